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

use super::{Store, StoreError, millis, timestamp};
use crate::model::{BuildId, CommitStatus, StatusState};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

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
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Backlog {
    pub unsent: i64,
    /// Refused by GitHub, so that it shows something else than it should.
    pub refused: i64,
    /// When the oldest of the unsent ones changed.
    pub oldest: Option<Timestamp>,
}

/// Records what GitHub should show, inside the transaction of the change that leads to it.
pub async fn want_status(
    connection: &mut SqliteConnection,
    repository: &str,
    sha: &str,
    status: &CommitStatus,
    generation: BuildId,
    reopen: Reopen,
    now: Timestamp,
) -> Result<Wanted, StoreError> {
    let key = status.context.to_lowercase();
    let before =
        sqlx::query("SELECT * FROM statuses WHERE repository = ? AND sha = ? AND context_key = ?")
            .bind(repository)
            .bind(sha)
            .bind(&key)
            .fetch_optional(&mut *connection)
            .await?;
    let Some(before) = before else {
        sqlx::query(
            "INSERT INTO statuses (repository, sha, context_key, context, generation, state, description, target_url,
                                   changed_at, version)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 1)",
        )
        .bind(repository)
        .bind(sha)
        .bind(&key)
        .bind(&status.context)
        .bind(generation.0)
        .bind(status.state.as_str())
        .bind(&status.description)
        .bind(&status.target_url)
        .bind(millis(now))
        .execute(connection)
        .await?;
        return Ok(Wanted::Changed);
    };
    let next_try_at: i64 = before.try_get("next_try_at")?;
    let before = row(&before)?;
    let wanted = compare(&before, status, generation, reopen);
    match wanted {
        Wanted::Outdated | Wanted::Ended => return Ok(wanted),
        Wanted::Unchanged => {
            sqlx::query("UPDATE statuses SET generation = ? WHERE id = ?")
                .bind(generation.0)
                .bind(before.id.0)
                .execute(connection)
                .await?;
            return Ok(wanted);
        }
        Wanted::Changed => {}
    }
    // A pause after a failure is waited out: a request that seemed to fail may still arrive, and must not arrive last.
    let pause = if before.tries > 0 && before.refused.is_none() {
        next_try_at
    } else {
        0
    };
    let settles = status.state == StatusState::Pending
        && before.sent_state == Some(StatusState::Pending)
        && before.generation == generation;
    let next_try_at = if settles {
        pause.max(millis(settled_at(now)))
    } else {
        pause
    };
    sqlx::query(
        "UPDATE statuses SET context = ?, generation = ?, state = ?, description = ?, target_url = ?, changed_at = ?,
                version = version + 1, next_try_at = ?, refused = NULL
         WHERE id = ?",
    )
    .bind(&status.context)
    .bind(generation.0)
    .bind(status.state.as_str())
    .bind(&status.description)
    .bind(&status.target_url)
    .bind(millis(now))
    .bind(next_try_at)
    .bind(before.id.0)
    .execute(connection)
    .await?;
    Ok(Wanted::Changed)
}

/// The rule of what may be written over what.
fn compare(
    before: &StatusRow,
    status: &CommitStatus,
    generation: BuildId,
    reopen: Reopen,
) -> Wanted {
    if generation < before.generation {
        return Wanted::Outdated;
    }
    let is_newer = generation > before.generation;
    if before.status == *status {
        // What was refused is worth another try once somebody builds again.
        let again = before.refused.is_some() && (is_newer || reopen == Reopen::Yes);
        return if again {
            Wanted::Changed
        } else {
            Wanted::Unchanged
        };
    }
    let reopens = before.status.state.is_terminal() && !status.state.is_terminal();
    if reopens && !is_newer && reopen == Reopen::No {
        return Wanted::Ended;
    }
    Wanted::Changed
}

fn settled_at(now: Timestamp) -> Timestamp {
    now.saturating_add(PENDING_SETTLES).unwrap_or(now)
}

impl Store {
    /// [`want_status`] in a transaction of its own.
    pub async fn want_status(
        &self,
        repository: &str,
        sha: &str,
        status: &CommitStatus,
        generation: BuildId,
        reopen: Reopen,
        now: Timestamp,
    ) -> Result<Wanted, StoreError> {
        let mut transaction = self.write().await?;
        let wanted = want_status(
            &mut transaction,
            repository,
            sha,
            status,
            generation,
            reopen,
            now,
        )
        .await?;
        transaction.commit().await?;
        Ok(wanted)
    }

    /// Rows to be sent now; outcomes before pendings.
    pub async fn due_statuses(
        &self,
        now: Timestamp,
        limit: i64,
    ) -> Result<Vec<StatusId>, StoreError> {
        let ids: Vec<i64> = sqlx::query_scalar(
            "SELECT id FROM statuses WHERE refused IS NULL AND sent_version < version AND next_try_at <= ?
             ORDER BY CASE state WHEN 'pending' THEN 1 ELSE 0 END, next_try_at, id LIMIT ?",
        )
        .bind(millis(now))
        .bind(limit)
        .fetch_all(&self.reader)
        .await?;
        Ok(ids.into_iter().map(StatusId).collect())
    }

    /// When the next row that is not due yet will be.
    pub async fn next_status_after(&self, now: Timestamp) -> Result<Option<Timestamp>, StoreError> {
        let at: Option<i64> = sqlx::query_scalar(
            "SELECT MIN(next_try_at) FROM statuses
             WHERE refused IS NULL AND sent_version < version AND next_try_at > ?",
        )
        .bind(millis(now))
        .fetch_one(&self.reader)
        .await?;
        Ok(at.map(timestamp))
    }

    pub async fn status_row(&self, id: StatusId) -> Result<Option<StatusRow>, StoreError> {
        let found = sqlx::query("SELECT * FROM statuses WHERE id = ?")
            .bind(id.0)
            .fetch_optional(&self.reader)
            .await?;
        found.as_ref().map(row).transpose()
    }

    /// All contexts of a commit.
    pub async fn statuses_of(
        &self,
        repository: &str,
        sha: &str,
    ) -> Result<Vec<StatusRow>, StoreError> {
        let rows =
            sqlx::query("SELECT * FROM statuses WHERE repository = ? AND sha = ? ORDER BY id")
                .bind(repository)
                .bind(sha)
                .fetch_all(&self.reader)
                .await?;
        rows.iter().map(row).collect()
    }

    /// GitHub shows this version now.
    pub async fn status_sent(
        &self,
        id: StatusId,
        version: i64,
        state: StatusState,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let settles = state == StatusState::Pending;
        sqlx::query(
            "UPDATE statuses SET sent_version = ?, sent_state = ?, tries = 0, trouble = NULL,
                    next_try_at = CASE WHEN ? AND state = 'pending' AND version > ? THEN ? ELSE 0 END
             WHERE id = ? AND sent_version < ?",
        )
        .bind(version)
        .bind(state.as_str())
        .bind(settles)
        .bind(version)
        .bind(millis(settled_at(now)))
        .bind(id.0)
        .bind(version)
        .execute(&self.writer)
        .await?;
        Ok(())
    }

    /// Sending failed in a way that may pass: not before `at`.
    pub async fn retry_status_at(
        &self,
        id: StatusId,
        at: Timestamp,
        why: &str,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "UPDATE statuses SET tries = tries + 1, next_try_at = ?, trouble = ? WHERE id = ?",
        )
        .bind(millis(at))
        .bind(why)
        .bind(id.0)
        .execute(&self.writer)
        .await?;
        Ok(())
    }

    /// GitHub will never take this version; something newer is tried again.
    pub async fn status_refused(
        &self,
        id: StatusId,
        version: i64,
        why: &str,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "UPDATE statuses SET tries = 0, next_try_at = 0, trouble = NULL,
                    refused = CASE WHEN version = ? THEN ? ELSE refused END
             WHERE id = ?",
        )
        .bind(version)
        .bind(why)
        .bind(id.0)
        .execute(&self.writer)
        .await?;
        Ok(())
    }

    /// Tries again what GitHub refused since then, for a person who has mended the reason; says how many.
    pub async fn retry_refused_statuses(&self, since: Timestamp) -> Result<u64, StoreError> {
        let done = sqlx::query(
            "UPDATE statuses SET refused = NULL, next_try_at = 0 WHERE refused IS NOT NULL AND changed_at >= ?",
        )
        .bind(millis(since))
        .execute(&self.writer)
        .await?;
        Ok(done.rows_affected())
    }

    /// What waits, and since when.
    pub async fn status_backlog(&self) -> Result<Backlog, StoreError> {
        let (unsent, oldest): (i64, Option<i64>) = sqlx::query_as(
            "SELECT COUNT(*), MIN(changed_at) FROM statuses WHERE refused IS NULL AND sent_version < version",
        )
        .fetch_one(&self.reader)
        .await?;
        let refused: i64 =
            sqlx::query_scalar("SELECT COUNT(*) FROM statuses WHERE refused IS NOT NULL")
                .fetch_one(&self.reader)
                .await?;
        Ok(Backlog {
            unsent,
            refused,
            oldest: oldest.map(timestamp),
        })
    }
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
        trouble: row.try_get("trouble")?,
        refused: row.try_get("refused")?,
    })
}

#[cfg(test)]
mod tests;
