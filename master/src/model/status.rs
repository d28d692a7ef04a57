//! What GitHub is told about a commit.

use serde::{Deserialize, Serialize};

/// GitHub's four states of a commit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StatusState {
    Pending,
    Success,
    Failure,
    Error,
}

impl StatusState {
    pub const ALL: [StatusState; 4] = [
        StatusState::Pending,
        StatusState::Success,
        StatusState::Failure,
        StatusState::Error,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            StatusState::Pending => "pending",
            StatusState::Success => "success",
            StatusState::Failure => "failure",
            StatusState::Error => "error",
        }
    }

    pub fn from_name(name: &str) -> Option<StatusState> {
        StatusState::ALL.into_iter().find(|s| s.as_str() == name)
    }

    pub fn is_terminal(self) -> bool {
        self != StatusState::Pending
    }
}

/// The wanted status of one context of one commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitStatus {
    pub context: String,
    pub state: StatusState,
    pub description: String,
    pub target_url: String,
}

impl CommitStatus {
    /// The one context to require in branch protection: it sums up all the others.
    pub const AGGREGATE: &'static str = "vivarium";

    /// The context of one suite on one platform.
    pub fn context_of(suite: &str, platform: &str) -> String {
        format!("vivarium/{suite} ({platform})")
    }

    /// GitHub takes contexts for the same without regard to case.
    pub fn is_of(&self, context: &str) -> bool {
        self.context.to_lowercase() == context.to_lowercase()
    }
}

/// Test cases counted from JUnit reports.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TestCounts {
    pub passed: u64,
    pub failed: u64,
    pub skipped: u64,
    /// Names of failing cases, the first of them only.
    pub failing: Vec<String>,
}
