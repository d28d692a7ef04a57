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
    pub learnt: Learnt,
    /// From another repository: its author is a stranger.
    pub from_fork: bool,
}

/// How it is known. Events may be late, and out of order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Learnt {
    FromEvent {
        /// The commit that this one took the place of, where the event says so.
        before: Option<String>,
    },
    /// GitHub was asked, and showed it then.
    ByLooking { at: Timestamp },
}

/// A commit that a merge queue made of its branch and pull requests, to be tested before it goes to the branch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MergeGroup {
    /// In full: `refs/heads/gh-readonly-queue/main/pr-7-…`.
    pub reference: String,
    pub base_ref: String,
    pub head_sha: String,
    pub title: String,
    pub author: Option<String>,
    pub learnt: Learnt,
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
        learnt: Learnt,
    },
    /// End every build of the pull request that has not ended.
    CancelPullRequest {
        number: i64,
        reason: Reason,
        /// When GitHub says it was closed: events may arrive out of order.
        closed_at: Option<Timestamp>,
    },
    /// Test what a merge queue made.
    BuildMergeGroup(MergeGroup),
    /// End the build of that commit: the merge queue does not wait for it any more.
    CancelMergeGroup { head_sha: String, reason: Reason },
    /// A person's wish: this ref, on these platforms (all of the suite's when empty).
    BuildRef {
        reference: String,
        platforms: Vec<String>,
    },
    /// Nothing to do; the reason goes into the delivery's record.
    Nothing { why: String },
}
