//! A job: one suite on one platform for one build.

use super::{AttemptId, BuildId, Conclusion, Ending, JobId, JobPlan, Trigger};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Who goes first: merges, then pushes, then pull requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    PullRequest = 1,
    Push = 2,
    Merge = 3,
}

impl Priority {
    pub fn of(trigger: Trigger) -> Priority {
        match trigger {
            // All others in the merge queue wait, too.
            Trigger::Merge | Trigger::MergeGroup => Priority::Merge,
            // A person who asks by hand waits for it.
            Trigger::Push | Trigger::Poll | Trigger::Manual => Priority::Push,
            Trigger::PullRequest => Priority::PullRequest,
        }
    }

    pub fn from_number(number: i64) -> Priority {
        match number {
            i64::MIN..=1 => Priority::PullRequest,
            2 => Priority::Push,
            3..=i64::MAX => Priority::Merge,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Waits for a slot, perhaps after an attempt that failed through our fault.
    Queued,
    /// An attempt is under way.
    Running,
    Finished,
}

impl JobState {
    pub const ALL: [JobState; 3] = [JobState::Queued, JobState::Running, JobState::Finished];

    pub fn as_str(self) -> &'static str {
        match self {
            JobState::Queued => "queued",
            JobState::Running => "running",
            JobState::Finished => "finished",
        }
    }

    pub fn from_name(name: &str) -> Option<JobState> {
        JobState::ALL.into_iter().find(|s| s.as_str() == name)
    }

    /// The table of moves: whether a job in this state may come into `next`.
    pub fn may_become(self, next: JobState) -> bool {
        match (self, next) {
            (JobState::Queued, JobState::Running | JobState::Finished)
            | (JobState::Running, JobState::Queued | JobState::Finished) => true,
            (JobState::Queued, JobState::Queued)
            | (JobState::Running, JobState::Running)
            | (JobState::Finished, JobState::Queued | JobState::Running | JobState::Finished) => {
                false
            }
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewJob {
    pub suite: String,
    pub platform: String,
    pub plan: JobPlan,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    pub id: JobId,
    pub build: BuildId,
    pub repository: String,
    pub suite: String,
    pub platform: String,
    pub plan: JobPlan,
    pub priority: Priority,
    pub state: JobState,
    /// How many attempts were begun since it was queued, or queued again by a person.
    pub attempts: i64,
    /// The attempt under way, or the last one.
    pub attempt: Option<AttemptId>,
    /// Set once cancellation is asked for; the driver ends the job with it.
    pub cancel: Option<Ending>,
    pub ending: Option<Ending>,
    pub queued_at: Timestamp,
    /// Not placed before this time: the pause before a retry.
    pub not_before: Timestamp,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
}

impl Job {
    /// Whether the build's outcome is this job's, too: not so when its platform has a known issue and it did not pass.
    pub fn counts(&self) -> bool {
        let has_passed = self
            .ending
            .as_ref()
            .is_some_and(|ending| ending.conclusion() == Conclusion::Success);
        self.plan.known_issue.is_none() || has_passed
    }

    /// The status context of this job: a pure function of what the repository wrote, so that it never drifts.
    pub fn context(&self) -> String {
        super::CommitStatus::context_of(&self.suite, &self.platform)
    }
}
