//! What somebody may do with the master.

use serde::{Deserialize, Serialize};

/// Each right includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Right {
    /// See builds, logs, artefacts and metrics where they are not public.
    Read,
    /// Start, cancel and rerun builds.
    Act,
    /// Drain the master, make and revoke tokens.
    Admin,
}

impl Right {
    pub const ALL: [Right; 3] = [Right::Read, Right::Act, Right::Admin];

    pub fn as_str(self) -> &'static str {
        match self {
            Right::Read => "read",
            Right::Act => "act",
            Right::Admin => "admin",
        }
    }

    pub fn from_name(name: &str) -> Option<Right> {
        Right::ALL.into_iter().find(|right| right.as_str() == name)
    }
}
