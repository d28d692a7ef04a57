//! Where statuses go: GitHub, or a test's stand-in.

use super::wording;
use crate::github::{GitHub, GitHubError, Verdict};
use crate::model::CommitStatus;
use futures::FutureExt;
use futures::future::BoxFuture;

/// Takes statuses and shows them. Every call ends within a bounded time.
pub trait StatusSink: Send + Sync + std::fmt::Debug {
    /// Sends one status once.
    fn post<'a>(
        &'a self,
        repository: &'a str,
        sha: &'a str,
        status: &'a CommitStatus,
    ) -> BoxFuture<'a, Verdict>;

    /// Whether this is the latest status of its context: what a try that seemed to fail may have led to.
    fn shows<'a>(
        &'a self,
        repository: &'a str,
        sha: &'a str,
        status: &'a CommitStatus,
    ) -> BoxFuture<'a, Result<bool, Verdict>>;

    /// Whether credentials that were refused have been replaced since.
    fn has_new_credentials(&self) -> bool {
        false
    }
}

impl StatusSink for GitHub {
    fn post<'a>(
        &'a self,
        repository: &'a str,
        sha: &'a str,
        status: &'a CommitStatus,
    ) -> BoxFuture<'a, Verdict> {
        async move { self.post_status(repository, sha, &fitting(status)).await }.boxed()
    }

    fn shows<'a>(
        &'a self,
        repository: &'a str,
        sha: &'a str,
        status: &'a CommitStatus,
    ) -> BoxFuture<'a, Result<bool, Verdict>> {
        async move {
            let wanted = fitting(status);
            let shown = self
                .shown_statuses(repository, sha)
                .await
                .map_err(GitHubError::into_verdict)?;
            Ok(shown.iter().any(|shown| shows(shown, &wanted)))
        }
        .boxed()
    }

    fn has_new_credentials(&self) -> bool {
        GitHub::has_new_credentials(self)
    }
}

/// A row may hold a sentence that did not come from `wording`.
fn fitting(status: &CommitStatus) -> CommitStatus {
    CommitStatus {
        description: wording::description(&status.description),
        ..status.clone()
    }
}

fn shows(shown: &CommitStatus, wanted: &CommitStatus) -> bool {
    shown.is_of(&wanted.context)
        && (shown.state, &shown.description, &shown.target_url)
            == (wanted.state, &wanted.description, &wanted.target_url)
}
