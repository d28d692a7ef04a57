//! The table `statuses`: the outbox, one row a context of a commit, with what GitHub should show and what it shows.
//!
//! ```text
//!   want ──► version 3, sent 2 ──► sent ──► version 3, sent 3
//!                  │    ▲
//!                  │    └── retry_at (a pause)
//!                  └─────► refused (until something new is wanted)
//! ```
//!
//! A row's content only moves forward: an older build never writes over a newer one's, and within a build what has
//! ended stays so unless it is opened again for a rerun.

mod reading;
mod sending;
mod wish;

pub use reading::status_of;
pub use sending::send_again;
pub use wish::want_status;

use super::{StoreError, timestamp};
use crate::model::{BuildId, CommitStatus, StatusState};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

/// A pending that only replaces another pending waits this long for something better: GitHub allows 80 writes a
/// minute and 500 an hour, and people read outcomes.
const PENDING_SETTLES: SignedDuration = SignedDuration::from_secs(5);

/// A row of the outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StatusId(i64);

/// Whether a status that has ended may become pending again within the same build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reopen {
    No,
    /// A job of the build is run again.
    Yes,
}

/// What became of a wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// It will be sent: wake the reporter.
    Changed,
    /// The row says so already.
    Unchanged,
    /// A newer build has written this row.
    Outdated,
    /// The row has ended, and is not to be opened again.
    Ended,
}

/// A row of the outbox with what it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatusRow {
    pub id: StatusId,
    pub repository: String,
    pub sha: String,
    pub generation: BuildId,
    pub status: CommitStatus,
    pub changed_at: Timestamp,
    pub version: i64,
    pub sent_version: i64,
    pub sent_state: Option<StatusState>,
    /// Failures since the last success.
    pub tries: i64,
    /// Not sent before this time: the pause after a failure.
    pub next_try_at: Timestamp,
    /// Why the last try failed, while it is to be tried again.
    pub trouble: Option<String>,
    /// Why it will not be tried again.
    pub refused: Option<String>,
}

impl StatusRow {
    pub fn is_unsent(&self) -> bool {
        self.sent_version < self.version && self.refused.is_none()
    }
}

/// What waits to be sent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Backlog {
    pub unsent: i64,
    /// Refused by GitHub, so that it shows something else than it should.
    pub refused: i64,
    /// When the oldest of the unsent ones changed.
    pub oldest: Option<Timestamp>,
    /// Why one of them could not be sent.
    pub trouble: Option<String>,
}

fn settled_at(now: Timestamp) -> Timestamp {
    now.saturating_add(PENDING_SETTLES).unwrap_or(now)
}

fn row(row: &SqliteRow) -> Result<StatusRow, StoreError> {
    let state = |name: &str| {
        StatusState::from_name(name).ok_or_else(|| StoreError::Unknown {
            what: "a status",
            value: name.to_owned(),
        })
    };
    let sent_state: Option<String> = row.try_get("sent_state")?;
    Ok(StatusRow {
        id: StatusId(row.try_get("id")?),
        repository: row.try_get("repository")?,
        sha: row.try_get("sha")?,
        generation: BuildId(row.try_get("generation")?),
        status: CommitStatus {
            context: row.try_get("context")?,
            state: state(row.try_get("state")?)?,
            description: row.try_get("description")?,
            target_url: row.try_get("target_url")?,
        },
        changed_at: timestamp(row.try_get("changed_at")?),
        version: row.try_get("version")?,
        sent_version: row.try_get("sent_version")?,
        sent_state: sent_state.as_deref().map(state).transpose()?,
        tries: row.try_get("tries")?,
        next_try_at: timestamp(row.try_get("next_try_at")?),
        trouble: row.try_get("trouble")?,
        refused: row.try_get("refused")?,
    })
}

#[cfg(test)]
mod tests;
