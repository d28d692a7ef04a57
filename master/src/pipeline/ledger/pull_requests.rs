//! Changes that follow from what happens to a pull request. Events may arrive out of order: of two, the one that
//! GitHub dates later counts.

use super::{Ledger, OlderBuilds};
use crate::model::{Build, BuildId, Ending, JobState, Learnt, NewBuild, Reason};
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

    /// A build that is known is what its pull request, or a merge queue, wants now. What of it was cancelled because nobody
    /// wanted it any more is taken up: the pull request was closed and is open again, or its head went on and was pushed
    /// back. `new` is the wish, which means the same build.
    pub async fn want_again(
        &self,
        id: BuildId,
        new: &NewBuild,
        learnt: &Learnt,
        older: OlderBuilds,
    ) -> Result<Again, StoreError> {
        let now = self.clock.now();
        let mut tx = self.store.write().await?;
        let Some(build) = builds::get(&mut tx, id).await? else {
            return Ok(Again::Known);
        };
        let last_event = match new.pull_request {
            Some(number) => pull_requests::last_event(&mut tx, &new.repository, number).await?,
            None => None,
        };
        let evidence = Evidence::of(learnt, &build, new.event_at > last_event);
        let taken_up = self
            .take_up(&mut tx, &build, |reason| evidence.voids(reason))
            .await?;
        if taken_up == 0 && evidence == Evidence::OldEvent {
            return Ok(Again::Known);
        }
        if new.event_at >= build.new.event_at {
            pull_requests::set_event(&mut tx, id, new.event_at, new.before_sha.as_deref()).await?;
        }
        if let Some(number) = new.pull_request {
            self.supersede(&mut tx, id, new, number, older, now).await?;
        }
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
        build: &Build,
        is_void: impl Fn(Reason) -> bool,
    ) -> Result<usize, StoreError> {
        let is_void =
            |ending: &Option<Ending>| ending.as_ref().is_some_and(|ending| is_void(ending.reason));
        let all = jobs::of_build(tx, build.id).await?;
        if all.is_empty() && !is_void(&build.ending) {
            return Ok(0);
        }
        let mut count = 0;
        for job in &all {
            // Its driver has not heard of it yet, or gives it back to the queue.
            if job.state == JobState::Running && is_void(&job.cancel) {
                jobs::withdraw_cancel(tx, job.id).await?;
                count += 1;
            }
        }
        let rerun = self.rerun_in(tx, build.id, |job| is_void(&job.ending));
        Ok(count + rerun.await?)
    }
}

/// What speaks for a build that is known. Of two events the later one counts, and what was seen counts only if it was
/// seen after the cancelling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Evidence {
    /// GitHub dates the event later than all that was heard before.
    News,
    OldEvent,
    SeenSince {
        was_fetched: bool,
    },
    SeenBefore,
}

impl Evidence {
    fn of(learnt: &Learnt, build: &Build, is_news: bool) -> Evidence {
        match learnt {
            Learnt::FromEvent { .. } if is_news => Evidence::News,
            Learnt::FromEvent { .. } => Evidence::OldEvent,
            Learnt::ByLooking { at } if build.finished_at.is_some_and(|end| end < *at) => {
                Evidence::SeenSince {
                    was_fetched: build.tested_sha.is_some(),
                }
            }
            Learnt::ByLooking { .. } => Evidence::SeenBefore,
        }
    }

    /// Whether what was cancelled for this reason is wanted again.
    fn voids(self, reason: Reason) -> bool {
        match reason {
            // That the event is not older than the closing was looked at before.
            Reason::Closed => match self {
                Evidence::News | Evidence::OldEvent | Evidence::SeenSince { .. } => true,
                Evidence::SeenBefore => false,
            },
            Reason::Superseded => match self {
                Evidence::News | Evidence::SeenSince { .. } => true,
                Evidence::OldEvent | Evidence::SeenBefore => false,
            },
            // GitHub is back.
            Reason::SourceError => self == Evidence::SeenSince { was_fetched: false },
            Reason::Passed
            | Reason::StepFailed
            | Reason::StepTimeout
            | Reason::JobTimeout
            | Reason::NoOutputTimeout
            | Reason::MergeConflict
            | Reason::RepositoryFile
            | Reason::CommitUnusable
            | Reason::CancelledByPerson
            | Reason::BootDeadline
            | Reason::ConnectDeadline
            | Reason::GuestDied
            | Reason::AgentLost
            | Reason::HostError
            | Reason::PlatformUnavailable
            | Reason::StorageError => false,
        }
    }
}

#[cfg(test)]
mod tests;
