//! A build: all the jobs of one commit.

use super::{BuildId, Ending};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What made the build.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trigger {
    PullRequest,
    /// A pull request was merged.
    Merge,
    /// A merge queue wants to know whether it may merge.
    MergeGroup,
    /// A push reported by a webhook.
    Push,
    /// A commit found by polling.
    Poll,
    /// A person.
    Manual,
}

impl Trigger {
    pub const ALL: [Trigger; 6] = [
        Trigger::PullRequest,
        Trigger::Merge,
        Trigger::MergeGroup,
        Trigger::Push,
        Trigger::Poll,
        Trigger::Manual,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Trigger::PullRequest => "pull_request",
            Trigger::Merge => "merge",
            Trigger::MergeGroup => "merge_group",
            Trigger::Push => "push",
            Trigger::Poll => "poll",
            Trigger::Manual => "manual",
        }
    }

    pub fn from_name(name: &str) -> Option<Trigger> {
        Trigger::ALL.into_iter().find(|t| t.as_str() == name)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BuildState {
    /// The commit is fetched, merged, and its repository file read.
    Preparing,
    /// Its jobs are known; some have not ended.
    Running,
    Finished,
}

impl BuildState {
    pub const ALL: [BuildState; 3] = [
        BuildState::Preparing,
        BuildState::Running,
        BuildState::Finished,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            BuildState::Preparing => "preparing",
            BuildState::Running => "running",
            BuildState::Finished => "finished",
        }
    }

    pub fn from_name(name: &str) -> Option<BuildState> {
        BuildState::ALL.into_iter().find(|s| s.as_str() == name)
    }
}

/// A build before it has a number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewBuild {
    pub repository: String,
    pub trigger: Trigger,
    /// Two events that mean the same build have the same key; only the first makes one.
    pub key: String,
    /// The branch or ref: for a pull request `refs/pull/N/head`.
    pub reference: String,
    pub pull_request: Option<i64>,
    pub base_ref: Option<String>,
    /// The commit that the status goes to.
    pub head_sha: String,
    pub from_fork: bool,
    /// Whether the artefacts of jobs that succeed are published.
    pub publish: bool,
    pub title: String,
    pub author: Option<String>,
    /// When the event's subject changed, by GitHub's clock.
    pub event_at: Option<Timestamp>,
    /// The head that this one took the place of, where the event says so.
    pub before_sha: Option<String>,
    /// Platforms a person asked for; empty: the suites' own.
    pub only_platforms: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Build {
    pub id: BuildId,
    #[serde(flatten)]
    pub new: NewBuild,
    pub state: BuildState,
    /// The base's commit that the head was merged into, or the commit before.
    pub base_sha: Option<String>,
    /// The commit that is tested: the merge built by us, or the head itself.
    pub tested_sha: Option<String>,
    /// Paths that differ between base and tested commit, one a line.
    #[serde(skip)]
    pub changed_files: Option<String>,
    pub ending: Option<Ending>,
    pub created_at: Timestamp,
    pub finished_at: Option<Timestamp>,
}
