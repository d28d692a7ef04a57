//! How a job ends. The reason is what is recorded; the conclusion follows from it.

use serde::{Deserialize, Serialize};

/// What people see: the project's own endings and ours never share one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Conclusion {
    Success,
    /// The project's: a command failed.
    Failure,
    /// The project's: a command took too long or fell silent.
    TimedOut,
    Cancelled,
    /// Ours: no VM, the guest died, a file system was full.
    InfrastructureError,
}

impl Conclusion {
    pub fn as_str(self) -> &'static str {
        match self {
            Conclusion::Success => "success",
            Conclusion::Failure => "failure",
            Conclusion::TimedOut => "timed_out",
            Conclusion::Cancelled => "cancelled",
            Conclusion::InfrastructureError => "infrastructure_error",
        }
    }
}

/// Why a job, or a whole build, ended. Stored by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Every step exited 0.
    Passed,
    /// A step exited with another status or by a signal.
    StepFailed,
    /// A step ran longer than its timeout.
    StepTimeout,
    /// The steps together ran longer than the job's timeout.
    JobTimeout,
    /// A step printed nothing for longer than the no-output timeout.
    NoOutputTimeout,
    /// The head does not merge into the base.
    MergeConflict,
    /// The repository file is missing, does not parse, or asks for what does not exist.
    RepositoryFile,
    /// The commit does not exist any more, or cannot be merged or read for a reason that stays.
    CommitUnusable,
    /// A newer commit of the same pull request took its place.
    Superseded,
    /// The pull request was closed without a merge, or its branch was deleted.
    Closed,
    /// A person asked for it.
    CancelledByPerson,
    /// The domain did not start, or the guest showed no life before the boot deadline.
    BootDeadline,
    /// The guest booted, but SSH and the agent did not answer before the connect deadline.
    ConnectDeadline,
    /// The machine went away under a running job: QEMU died, the guest powered off or crashed.
    GuestDied,
    /// The machine is there but its agent does not answer, or broke the protocol.
    AgentLost,
    /// libvirt, a disk or a file of the host failed us.
    HostError,
    /// The repository could not be fetched, or its source not be sent.
    SourceError,
    /// The platform is not configured, or its files are missing or broken.
    PlatformUnavailable,
    /// What the job built could not be stored.
    StorageError,
}

impl Reason {
    /// All reasons, for tables and tests.
    pub const ALL: [Reason; 19] = [
        Reason::Passed,
        Reason::StepFailed,
        Reason::StepTimeout,
        Reason::JobTimeout,
        Reason::NoOutputTimeout,
        Reason::MergeConflict,
        Reason::RepositoryFile,
        Reason::CommitUnusable,
        Reason::Superseded,
        Reason::Closed,
        Reason::CancelledByPerson,
        Reason::BootDeadline,
        Reason::ConnectDeadline,
        Reason::GuestDied,
        Reason::AgentLost,
        Reason::HostError,
        Reason::SourceError,
        Reason::PlatformUnavailable,
        Reason::StorageError,
    ];

    pub fn conclusion(self) -> Conclusion {
        match self {
            Reason::Passed => Conclusion::Success,
            Reason::StepFailed
            | Reason::MergeConflict
            | Reason::RepositoryFile
            | Reason::CommitUnusable => Conclusion::Failure,
            Reason::StepTimeout | Reason::JobTimeout | Reason::NoOutputTimeout => {
                Conclusion::TimedOut
            }
            Reason::Superseded | Reason::Closed | Reason::CancelledByPerson => {
                Conclusion::Cancelled
            }
            Reason::BootDeadline
            | Reason::ConnectDeadline
            | Reason::GuestDied
            | Reason::AgentLost
            | Reason::HostError
            | Reason::SourceError
            | Reason::PlatformUnavailable
            | Reason::StorageError => Conclusion::InfrastructureError,
        }
    }

    /// Whether a fresh VM may do better. Only for what is ours, and not for what waits for a person.
    pub fn is_worth_a_retry(self) -> bool {
        self.conclusion() == Conclusion::InfrastructureError && self != Reason::PlatformUnavailable
    }

    /// Whether it tells, of a machine that was to come up, that it did not. A host without room or a platform without
    /// its files says nothing of a boot.
    pub fn is_of_boot(self) -> bool {
        matches!(
            self,
            Reason::BootDeadline | Reason::ConnectDeadline | Reason::GuestDied
        )
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Passed => "passed",
            Reason::StepFailed => "step_failed",
            Reason::StepTimeout => "step_timeout",
            Reason::JobTimeout => "job_timeout",
            Reason::NoOutputTimeout => "no_output_timeout",
            Reason::MergeConflict => "merge_conflict",
            Reason::RepositoryFile => "repository_file",
            Reason::CommitUnusable => "commit_unusable",
            Reason::Superseded => "superseded",
            Reason::Closed => "closed",
            Reason::CancelledByPerson => "cancelled_by_person",
            Reason::BootDeadline => "boot_deadline",
            Reason::ConnectDeadline => "connect_deadline",
            Reason::GuestDied => "guest_died",
            Reason::AgentLost => "agent_lost",
            Reason::HostError => "host_error",
            Reason::SourceError => "source_error",
            Reason::PlatformUnavailable => "platform_unavailable",
            Reason::StorageError => "storage_error",
        }
    }

    /// The reason of a stored name.
    pub fn from_name(name: &str) -> Option<Reason> {
        Reason::ALL
            .into_iter()
            .find(|reason| reason.as_str() == name)
    }
}

/// The end of a job or a build: why, and the one sentence a person reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    pub reason: Reason,
    pub message: String,
}

impl Ending {
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Ending {
            reason,
            message: message.into(),
        }
    }

    pub fn conclusion(&self) -> Conclusion {
        self.reason.conclusion()
    }
}

impl std::fmt::Display for Ending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_reason_reads_back() {
        for reason in Reason::ALL {
            assert_eq!(Reason::from_name(reason.as_str()), Some(reason));
        }
    }

    #[test]
    fn only_our_own_failures_are_retried() {
        for reason in Reason::ALL {
            if reason.is_worth_a_retry() {
                assert_eq!(reason.conclusion(), Conclusion::InfrastructureError);
            }
        }
    }
}
