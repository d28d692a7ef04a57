//! What is to be sent, and what became of it.

use super::{StatusId, settled_at};
use crate::model::{CommitStatus, StatusState};
use crate::store::{Store, StoreError, millis, timestamp};
use jiff::Timestamp;
use sqlx::SqliteConnection;

/// Sends a row that GitHub was told, or refused, once more: it shows something else.
pub async fn send_again(
    connection: &mut SqliteConnection,
    id: StatusId,
    now: Timestamp,
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE statuses SET version = version + 1, changed_at = ?, tries = 0, next_try_at = 0, trouble = NULL,
                refused = NULL WHERE id = ?",
    )
    .bind(millis(now))
    .bind(id.0)
    .execute(connection)
    .await?;
    Ok(())
}

impl Store {
    /// Rows to be sent now; outcomes before pendings, and the sum of a commit after its parts: it waits for those that
    /// can be sent now, but not for one that fails.
    pub async fn due_statuses(
        &self,
        now: Timestamp,
        limit: i64,
    ) -> Result<Vec<StatusId>, StoreError> {
        let ids: Vec<i64> = sqlx::query_scalar(
            "SELECT id FROM statuses AS s WHERE refused IS NULL AND sent_version < version AND next_try_at <= ?
             AND NOT (context_key = ? AND EXISTS (
                 SELECT 1 FROM statuses AS part WHERE part.repository = s.repository AND part.sha = s.sha
                 AND part.context_key <> s.context_key AND part.refused IS NULL AND part.sent_version < part.version
                 AND part.tries = 0 AND part.next_try_at <= ?))
             ORDER BY CASE state WHEN 'pending' THEN 1 ELSE 0 END, next_try_at, id LIMIT ?",
        )
        .bind(millis(now))
        .bind(CommitStatus::AGGREGATE)
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

    /// It was not taken because nothing is, for a while: it stays due.
    pub async fn put_off_status(&self, id: StatusId, why: &str) -> Result<(), StoreError> {
        sqlx::query("UPDATE statuses SET trouble = ? WHERE id = ?")
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
}
