//! What a job does in its guest, resolved from the repository file: no names left to look up.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One command of a suite.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    pub name: String,
    /// The script, handed to the shell as one argument.
    pub run: String,
    /// The shell with its arguments, e.g. `["sh", "-e", "-c"]`.
    pub shell: Vec<String>,
    pub timeout_secs: u64,
    /// Output and errors go to a terminal instead of a pipe.
    #[serde(default)]
    pub pty: bool,
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Names of secrets that come into the environment, where the commit may have them.
    #[serde(default)]
    pub secrets: Vec<String>,
    /// Runs only when the build publishes, after every suite step exited 0.
    #[serde(default)]
    pub only_to_publish: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeouts {
    /// All steps together, in seconds.
    pub job_secs: u64,
    /// Silence of a running step, in seconds.
    pub no_output_secs: u64,
}

/// All that a driver needs to know about a job's work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobPlan {
    /// Suite steps first, then those that only a publishing build runs.
    pub steps: Vec<Step>,
    pub timeouts: Timeouts,
    /// Files to publish, as globs below the work directory.
    #[serde(default)]
    pub artifacts: Vec<String>,
    /// JUnit XML files, as globs below the work directory.
    #[serde(default)]
    pub reports: Vec<String>,
    /// Send the history as a Git bundle instead of the tree alone.
    #[serde(default)]
    pub history: bool,
    /// Why the platform fails just now, so that this job's failure is reported and blocks nobody.
    #[serde(default)]
    pub known_issue: Option<String>,
}

impl JobPlan {
    /// False for a job whose platform was out of service when its build was prepared: nobody could say its steps.
    pub fn is_known(&self) -> bool {
        !self.steps.is_empty()
    }
}
