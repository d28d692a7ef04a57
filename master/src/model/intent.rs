//! What an event asks for: the outcome of reading a delivery, a poll, or a person's request.

use super::Reason;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A pull request as an event tells of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullRequest {
    pub number: i64,
    pub title: String,
    pub author: Option<String>,
    pub head_sha: String,
    pub base_ref: String,
    /// When GitHub says it changed last: events may arrive out of order.
    pub updated_at: Option<Timestamp>,
    /// The head that this one took the place of, where the event says so.
    pub before: Option<String>,
    /// From another repository: its author is a stranger.
    pub from_fork: bool,
}

/// What is to be done for one repository. The stage after decides whether anything is new in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Intent {
    /// Build the merge of the head into its base, and settle what becomes of the older commit's build.
    BuildPullRequest(PullRequest),
    /// Test a commit that is on a branch now, and publish what it builds where the branch is configured so.
    BuildCommit {
        branch: String,
        sha: String,
        title: String,
        author: Option<String>,
        /// The commit came there by the merge of this pull request.
        merged_pull_request: Option<i64>,
        /// The branch's commit before this one, if the event knows.
        before: Option<String>,
    },
    /// End every build of the pull request that has not ended.
    CancelPullRequest {
        number: i64,
        reason: Reason,
        /// When GitHub says it was closed: events may arrive out of order.
        closed_at: Option<Timestamp>,
    },
    /// A person's wish: this ref, on these platforms (all of the suite's when empty).
    BuildRef {
        reference: String,
        platforms: Vec<String>,
    },
    /// Nothing to do; the reason goes into the delivery's record.
    Nothing { why: String },
}
