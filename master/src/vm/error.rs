//! Why a VM stage did not do what it was asked: each sentence says what was not done, to what, why, and what mends it.

use crate::model::AttemptId;
use std::fmt;

/// A VM that is no longer there, or will never run again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gone {
    pub attempt: AttemptId,
    /// A sentence, possibly with the last lines of QEMU's log.
    pub why: String,
}

impl fmt::Display for Gone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is gone: {}", self.attempt, self.why)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// The VM ended while something was waited for.
    #[error("{0}")]
    Gone(Gone),
    /// libvirt, a disk or a file of the host failed us; another try may do better.
    #[error("cannot {what}: {why}{}", hint_line(hint))]
    Host {
        what: String,
        why: String,
        hint: Option<String>,
    },
    /// libvirt cannot be asked just now, as while it is restarted: the same call later may do what it should.
    #[error("cannot {what}: {why}{}", hint_line(hint))]
    Away {
        what: String,
        why: String,
        hint: Option<String>,
    },
    /// The platform's own files are at fault: it stays unusable until a person mends them.
    #[error("platform `{platform}` cannot be used: {why}{}", hint_line(hint))]
    Image {
        platform: String,
        why: String,
        hint: Option<String>,
    },
}

impl VmError {
    pub(crate) fn host(what: impl Into<String>, why: impl fmt::Display) -> VmError {
        VmError::Host {
            what: what.into(),
            why: why.to_string(),
            hint: None,
        }
    }

    pub(super) fn away(what: impl Into<String>, why: impl fmt::Display) -> VmError {
        VmError::Away {
            what: what.into(),
            why: why.to_string(),
            hint: None,
        }
    }

    pub(super) fn image(platform: &str, why: impl Into<String>) -> VmError {
        VmError::Image {
            platform: platform.to_owned(),
            why: why.into(),
            hint: None,
        }
    }

    /// The same error with advice, unless it has some already.
    pub(super) fn with_hint(self, advice: impl Into<String>) -> VmError {
        match self {
            VmError::Host {
                what,
                why,
                hint: None,
            } => VmError::Host {
                what,
                why,
                hint: Some(advice.into()),
            },
            VmError::Away {
                what,
                why,
                hint: None,
            } => VmError::Away {
                what,
                why,
                hint: Some(advice.into()),
            },
            VmError::Image {
                platform,
                why,
                hint: None,
            } => VmError::Image {
                platform,
                why,
                hint: Some(advice.into()),
            },
            other @ (VmError::Gone(_)
            | VmError::Host { .. }
            | VmError::Away { .. }
            | VmError::Image { .. }) => other,
        }
    }
}

fn hint_line(hint: &Option<String>) -> String {
    hint.as_ref()
        .map(|hint| format!("\nhint: {hint}"))
        .unwrap_or_default()
}
