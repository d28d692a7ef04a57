//! An attempt: one try of a job on one VM.

use super::{AttemptId, BootRecord, Ending, JobId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// How far an attempt has come. Every phase is recorded with the time it began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// A slot is taken; overlay and domain are made.
    Placed,
    /// The domain runs; the guest has not said it is ready.
    Booting,
    /// The SSH connection and the agent are set up.
    Connecting,
    SendingSource,
    Running,
    Collecting,
    /// The outcome is known; the VM is destroyed and its files removed.
    CleaningUp,
    Ended,
}

impl Phase {
    pub const ALL: [Phase; 8] = [
        Phase::Placed,
        Phase::Booting,
        Phase::Connecting,
        Phase::SendingSource,
        Phase::Running,
        Phase::Collecting,
        Phase::CleaningUp,
        Phase::Ended,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Placed => "placed",
            Phase::Booting => "booting",
            Phase::Connecting => "connecting",
            Phase::SendingSource => "sending_source",
            Phase::Running => "running",
            Phase::Collecting => "collecting",
            Phase::CleaningUp => "cleaning_up",
            Phase::Ended => "ended",
        }
    }

    pub fn from_name(name: &str) -> Option<Phase> {
        Phase::ALL.into_iter().find(|p| p.as_str() == name)
    }

    /// The table of moves. Cleaning up is reached from anywhere, may be repeated, and alone leads to the end.
    pub fn may_become(self, next: Phase) -> bool {
        match (self, next) {
            (Phase::Ended, _) => false,
            (_, Phase::CleaningUp) => true,
            (Phase::CleaningUp, next) => next == Phase::Ended,
            (_, Phase::Ended) => false,
            // Forward, one or more steps: a machine that is no VM does not boot.
            (now, next) => next > now,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    pub id: AttemptId,
    pub job: JobId,
    /// 1 for the first try.
    pub number: i64,
    pub platform: String,
    pub phase: Phase,
    /// The loopback port that is forwarded to the guest's SSH port.
    pub ssh_port: Option<u16>,
    /// When each phase began.
    pub phases: Vec<(Phase, Timestamp)>,
    /// What was seen of its machine on the way up.
    pub boot: BootRecord,
    pub ending: Option<Ending>,
    /// The last lines of the serial console, kept when the attempt did not pass.
    pub console_tail: Option<String>,
    /// Where the line about its end begins in the job's log, once the ending is known.
    pub log_end: Option<u64>,
}
