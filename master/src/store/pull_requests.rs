//! Rows of `pull_requests`, and when a pull request changed as its builds tell: events may arrive out of order.

use super::{Store, StoreError, millis, optional_time};
use crate::model::BuildId;
use jiff::Timestamp;
use sqlx::SqliteConnection;

/// Notes that the pull request was closed; of two times the later one stays.
pub async fn close(
    tx: &mut SqliteConnection,
    repository: &str,
    number: i64,
    at: Timestamp,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO pull_requests (repository, number, closed_at) VALUES (?, ?, ?) \
         ON CONFLICT (repository, number) DO UPDATE SET closed_at = excluded.closed_at \
         WHERE excluded.closed_at > pull_requests.closed_at",
    )
    .bind(repository)
    .bind(number)
    .bind(millis(at))
    .execute(tx)
    .await?;
    Ok(())
}

/// When the pull request changed last, as far as its builds tell.
pub async fn last_event(
    tx: &mut SqliteConnection,
    repository: &str,
    number: i64,
) -> Result<Option<Timestamp>, StoreError> {
    let at: Option<i64> = sqlx::query_scalar(
        "SELECT MAX(event_at) FROM builds WHERE repository = ? AND pull_request = ?",
    )
    .bind(repository)
    .bind(number)
    .fetch_one(tx)
    .await?;
    Ok(optional_time(at))
}

/// A later event means the build as well.
pub async fn set_event(
    tx: &mut SqliteConnection,
    id: BuildId,
    event_at: Option<Timestamp>,
    before_sha: Option<&str>,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE builds SET event_at = COALESCE(?, event_at), before_sha = ? WHERE id = ?")
        .bind(event_at.map(millis))
        .bind(before_sha)
        .bind(id.0)
        .execute(tx)
        .await?;
    Ok(())
}

impl Store {
    /// When the pull request was closed last, as far as was heard.
    pub async fn closed_at(
        &self,
        repository: &str,
        number: i64,
    ) -> Result<Option<Timestamp>, StoreError> {
        let at: Option<i64> = sqlx::query_scalar(
            "SELECT closed_at FROM pull_requests WHERE repository = ? AND number = ?",
        )
        .bind(repository)
        .bind(number)
        .fetch_optional(&self.reader)
        .await?;
        Ok(optional_time(at))
    }
}
