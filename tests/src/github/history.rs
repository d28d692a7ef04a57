//! What was told to GitHub, in order: for waiting and for judging.

use super::GitHub;
use super::state::{Status, StatusState};
use anyhow::{Result, bail};
use std::fmt;
use std::time::Duration;

/// The statuses of one context of one commit, oldest first.
#[derive(Debug, Clone)]
pub struct StatusHistory {
    pub context: String,
    pub sha: String,
    pub statuses: Vec<Status>,
}

/// Whether a pull request may be merged, by branch protection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Mergeable,
    /// These required contexts are missing or not green, with their state.
    Blocked(Vec<(String, Option<StatusState>)>),
    Conflict,
    NotOpen,
}

impl StatusHistory {
    pub fn states(&self) -> Vec<StatusState> {
        self.statuses.iter().map(|status| status.state).collect()
    }

    pub fn last(&self) -> Option<&Status> {
        self.statuses.last()
    }

    /// The promise about every context: pending first, as often as it likes; then exactly one terminal status, this
    /// one; then nothing more.
    #[track_caller]
    pub fn assert_settled_once(&self, wanted: StatusState) {
        let states = self.states();
        let terminal = states.iter().filter(|state| state.is_terminal()).count();
        assert!(
            terminal == 1 && states.last() == Some(&wanted),
            "expected one terminal status, {}, at the end: {self}",
            wanted.as_str()
        );
        assert!(
            states.first() == Some(&StatusState::Pending),
            "a person should have seen it pending first: {self}"
        );
    }

    /// Weaker, for a context that is built again: the last word is this.
    #[track_caller]
    pub fn assert_ends(&self, wanted: StatusState) {
        assert!(
            self.last().is_some_and(|status| status.state == wanted),
            "expected {} at the end: {self}",
            wanted.as_str()
        );
    }
}

impl fmt::Display for StatusHistory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` of {}:", self.context, self.sha)?;
        if self.statuses.is_empty() {
            return write!(f, " nothing was ever posted");
        }
        for status in &self.statuses {
            write!(
                f,
                "\n  {} {} {:?}",
                status.at,
                status.state.as_str(),
                status.description.as_deref().unwrap_or_default()
            )?;
        }
        Ok(())
    }
}

impl GitHub {
    /// All statuses of a context of a commit.
    pub fn status_history(&self, repository: &str, sha: &str, context: &str) -> StatusHistory {
        StatusHistory {
            context: context.to_owned(),
            sha: sha.to_owned(),
            statuses: self
                .statuses_of(repository, sha)
                .into_iter()
                .filter(|status| status.is_of(context))
                .collect(),
        }
    }

    /// A status that somebody else sets, or that came late.
    pub fn set_status(
        &self,
        repository: &str,
        sha: &str,
        context: &str,
        state: StatusState,
        target_url: &str,
    ) {
        let mut all = self.state();
        let id = all.next_id();
        all.statuses.push(Status {
            id,
            repository: repository.to_owned(),
            sha: sha.to_owned(),
            context: context.to_owned(),
            state,
            description: Some("Set by the test".to_owned()),
            target_url: Some(target_url.to_owned()),
            creator: "ada".to_owned(),
            at: jiff::Timestamp::now(),
        });
        drop(all);
        self.notify();
    }

    /// All statuses of a commit, oldest first.
    pub fn statuses_of(&self, repository: &str, sha: &str) -> Vec<Status> {
        self.state()
            .statuses
            .iter()
            .filter(|status| status.repository == repository && status.sha == sha)
            .cloned()
            .collect()
    }

    /// The contexts ever reported on a commit, in order of appearance.
    pub fn contexts_of(&self, repository: &str, sha: &str) -> Vec<String> {
        let mut contexts: Vec<String> = Vec::new();
        for status in self.statuses_of(repository, sha) {
            if !contexts.contains(&status.context) {
                contexts.push(status.context);
            }
        }
        contexts
    }

    /// Waits until `wanted` is true of this GitHub; looks again after every change. The error tells `what` was waited
    /// for.
    pub async fn wait_until<T>(
        &self,
        what: &str,
        deadline: Duration,
        mut wanted: impl FnMut(&GitHub) -> Option<T>,
    ) -> Result<T> {
        let mut changed = self.inner.changed.subscribe();
        let waiting = async {
            loop {
                if let Some(found) = wanted(self) {
                    return found;
                }
                if changed.changed().await.is_err() {
                    // The sender lives in `self`.
                    std::future::pending::<()>().await;
                }
            }
        };
        match tokio::time::timeout(deadline, waiting).await {
            Ok(found) => Ok(found),
            Err(_) => bail!("{what}: not within {} s", deadline.as_secs()),
        }
    }

    /// Waits until the latest status of the context satisfies the predicate.
    pub async fn wait_for_status(
        &self,
        repository: &str,
        sha: &str,
        context: &str,
        wanted: impl Fn(&Status) -> bool,
        deadline: Duration,
    ) -> Result<Status> {
        let found = self
            .wait_until("a status", deadline, |github| {
                github
                    .status_history(repository, sha, context)
                    .statuses
                    .pop()
                    .filter(|status| wanted(status))
            })
            .await;
        match found {
            Ok(status) => Ok(status),
            Err(_) => {
                let others = self.contexts_of(repository, sha).join(", ");
                bail!(
                    "not the status that was waited for within {} s; {}\ncontexts of the commit: {others}",
                    deadline.as_secs(),
                    self.status_history(repository, sha, context)
                )
            }
        }
    }

    /// Waits until the context has a terminal status.
    pub async fn wait_for_terminal_status(
        &self,
        repository: &str,
        sha: &str,
        context: &str,
        deadline: Duration,
    ) -> Result<Status> {
        self.wait_for_status(
            repository,
            sha,
            context,
            |status| status.state.is_terminal(),
            deadline,
        )
        .await
    }

    /// What branch protection says about a pull request, with these contexts required on its head.
    pub async fn is_mergeable(
        &self,
        repository: &str,
        number: i64,
        required: &[&str],
    ) -> Result<Verdict> {
        use super::state::{Mergeability, PullState};
        self.compute_mergeability(repository, number).await?;
        let state = self.state();
        let Some(pull) = state.pull(repository, number) else {
            bail!("no pull request {number} in {repository}");
        };
        if pull.state != PullState::Open {
            return Ok(Verdict::NotOpen);
        }
        if pull.mergeability == Mergeability::Conflict {
            return Ok(Verdict::Conflict);
        }
        let latest = state.latest_statuses(repository, &pull.head_sha);
        let blocking: Vec<_> = required
            .iter()
            .map(|&context| {
                let status = latest.iter().find(|status| status.is_of(context));
                (context.to_owned(), status.map(|status| status.state))
            })
            .filter(|(_, state)| *state != Some(StatusState::Success))
            .collect();
        Ok(if blocking.is_empty() {
            Verdict::Mergeable
        } else {
            Verdict::Blocked(blocking)
        })
    }
}
