//! Why something in a guest did not come to its own end, and what an error of the session means for that.

use crate::model::{Ending, Reason, Step};
use crate::session::SessionError;
use vivarium_protocol::Execution;

/// Why something in the guest did not come to its own end.
pub(in super::super) enum Interruption {
    /// The connection broke; the machine may still be there.
    ConnectionLost(String),
    Ended(Ending),
}

impl From<Ending> for Interruption {
    fn from(ending: Ending) -> Self {
        Interruption::Ended(ending)
    }
}

impl Interruption {
    /// A step that did not come to its exit. Where the agent answered and could not do it, the guest is as the
    /// suite has left it (its disk full, its shell not there), and another machine would do no better.
    pub(super) fn of_step(
        step: &Step,
        what: &str,
        execution: &Execution,
        error: SessionError,
    ) -> Interruption {
        match error {
            SessionError::Refused { message, .. } => {
                let message = message
                    .strip_prefix(&format!("{execution}: "))
                    .unwrap_or(&message);
                let message = format!("Step `{}` {what}: {message}", step.name);
                Interruption::Ended(Ending::new(Reason::StepFailed, message))
            }
            error => Interruption::of(&error, Reason::AgentLost),
        }
    }

    /// What an error of the session means; `reason` is for those that a new connection does not mend.
    pub(in super::super) fn of(error: &SessionError, reason: Reason) -> Interruption {
        match error {
            SessionError::Lost { .. } | SessionError::Agent { .. } => {
                Interruption::ConnectionLost(error.to_string())
            }
            SessionError::Protocol { .. } => {
                Interruption::Ended(Ending::new(Reason::AgentLost, error.to_string()))
            }
            SessionError::KeyFile { .. }
            | SessionError::NoAgent { .. }
            | SessionError::Unreachable { .. }
            | SessionError::HostKey { .. }
            | SessionError::Authentication { .. }
            | SessionError::Refused { .. }
            | SessionError::Source { .. }
            | SessionError::Incomplete { .. } => {
                Interruption::Ended(Ending::new(reason, error.to_string()))
            }
        }
    }
}
