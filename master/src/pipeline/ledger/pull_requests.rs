//! Changes that follow from what happens to a pull request. Events may arrive out of order: of two, the one that
//! GitHub dates later counts.

use super::{Ledger, OlderBuilds};
use crate::model::{BuildId, Ending, JobState, NewBuild, Reason};
use crate::store::{StoreError, builds, jobs, pull_requests};
use jiff::Timestamp;
use sqlx::SqliteConnection;

/// What became of a build that was wanted once more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again {
    Known,
    TakenUp,
}

impl Ledger {
    /// Cancels all unfinished builds of a pull request that was closed; says how many. `closed_at` is when, by GitHub's
    /// clock: a pull request with a later event was opened again.
    pub async fn cancel_pull_request(
        &self,
        repository: &str,
        number: i64,
        closed_at: Option<Timestamp>,
        ending: &Ending,
    ) -> Result<usize, StoreError> {
        let now = self.clock.now();
        let mut tx = self.store.write().await?;
        if let Some(at) = closed_at {
            pull_requests::close(&mut tx, repository, number, at).await?;
        }
        let last_event = pull_requests::last_event(&mut tx, repository, number).await?;
        let is_overtaken = matches!((closed_at, last_event), (Some(at), Some(last)) if last > at);
        let unfinished = match is_overtaken {
            true => Vec::new(),
            false => builds::unfinished_of_pull_request(&mut tx, repository, number).await?,
        };
        for build in &unfinished {
            self.cancel_in(&mut tx, build.id, ending, now).await?;
        }
        tx.commit().await?;
        self.signals.state_changed();
        Ok(unfinished.len())
    }

    /// A build that is known is what its pull request wants now. What of it was cancelled because nobody wanted it any
    /// more is taken up: the pull request was closed and is open again, or its head went on and was pushed back. `new` is
    /// the wish, which means the same build.
    pub async fn want_again(
        &self,
        id: BuildId,
        new: &NewBuild,
        older: OlderBuilds,
    ) -> Result<Again, StoreError> {
        let Some(number) = new.pull_request else {
            return Ok(Again::Known);
        };
        let now = self.clock.now();
        let mut tx = self.store.write().await?;
        let last_event = pull_requests::last_event(&mut tx, &new.repository, number).await?;
        let is_news = new.event_at > last_event;
        let taken_up = self
            .take_up(&mut tx, id, |reason| is_wanted_again(reason, is_news))
            .await?;
        if taken_up == 0 && !is_news {
            return Ok(Again::Known);
        }
        pull_requests::set_event(&mut tx, id, new.event_at, new.before_sha.as_deref()).await?;
        self.supersede(&mut tx, id, new, number, older, now).await?;
        tx.commit().await?;
        self.signals.state_changed();
        Ok(match taken_up {
            0 => Again::Known,
            _ => Again::TakenUp,
        })
    }

    /// Takes up what was cancelled for a reason that does not hold any more; says how much that was.
    async fn take_up(
        &self,
        tx: &mut SqliteConnection,
        id: BuildId,
        holds_no_more: impl Fn(Reason) -> bool,
    ) -> Result<usize, StoreError> {
        let is_void = |ending: &Option<Ending>| {
            ending
                .as_ref()
                .is_some_and(|ending| holds_no_more(ending.reason))
        };
        let all = jobs::of_build(tx, id).await?;
        if all.is_empty() {
            let build = builds::get(tx, id).await?;
            if !build.is_some_and(|build| is_void(&build.ending)) {
                return Ok(0);
            }
        }
        let mut count = 0;
        for job in &all {
            // Its driver has not heard of it yet, or gives it back to the queue.
            if job.state == JobState::Running && is_void(&job.cancel) {
                jobs::withdraw_cancel(tx, job.id).await?;
                count += 1;
            }
        }
        Ok(count + self.rerun_in(tx, id, |job| is_void(&job.ending)).await?)
    }
}

/// Whether what was cancelled for this reason is wanted again, now that an event of an open pull request means it; news
/// is what GitHub dates later than all that was heard before.
fn is_wanted_again(reason: Reason, is_news: bool) -> bool {
    match reason {
        Reason::Closed => true,
        Reason::Superseded => is_news,
        Reason::Passed
        | Reason::StepFailed
        | Reason::StepTimeout
        | Reason::JobTimeout
        | Reason::NoOutputTimeout
        | Reason::MergeConflict
        | Reason::RepositoryFile
        | Reason::CommitUnusable
        | Reason::CancelledByPerson
        | Reason::SourceError
        | Reason::BootDeadline
        | Reason::ConnectDeadline
        | Reason::GuestDied
        | Reason::AgentLost
        | Reason::HostError
        | Reason::PlatformUnavailable
        | Reason::StorageError => false,
    }
}
