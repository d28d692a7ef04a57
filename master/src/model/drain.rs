//! A drain: an operator's wish that no more jobs start.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Jobs wait since then, durably; those that ran go on to their end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    pub since: Timestamp,
    pub then: AfterDrain,
}

/// What the master does once nothing runs any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AfterDrain {
    /// It goes on without jobs, also after a restart, until it is told to resume.
    Stay,
    /// It ends, and takes jobs again when it is next started.
    Stop,
}
