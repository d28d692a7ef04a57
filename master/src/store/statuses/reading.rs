//! Looks at the outbox.

use super::{Backlog, StatusId, StatusRow, row};
use crate::model::BuildId;
use crate::store::{Store, StoreError, timestamp};
use sqlx::SqliteConnection;

/// The row of a context of a commit.
pub async fn status_of(
    connection: &mut SqliteConnection,
    repository: &str,
    sha: &str,
    context: &str,
) -> Result<Option<StatusRow>, StoreError> {
    sqlx::query("SELECT * FROM statuses WHERE repository = ? AND sha = ? AND context_key = ?")
        .bind(repository)
        .bind(sha)
        .bind(context.to_lowercase())
        .fetch_optional(connection)
        .await?
        .as_ref()
        .map(row)
        .transpose()
}

impl Store {
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

    /// What GitHub refused for good, newest first.
    pub async fn refused_statuses(&self, limit: i64) -> Result<Vec<StatusRow>, StoreError> {
        let rows = sqlx::query(
            "SELECT * FROM statuses WHERE refused IS NOT NULL ORDER BY changed_at DESC LIMIT ?",
        )
        .bind(limit)
        .fetch_all(&self.reader)
        .await?;
        rows.iter().map(row).collect()
    }

    /// What a build wants shown, unless a newer build of the same commit has written it since.
    pub async fn statuses_of_build(&self, build: BuildId) -> Result<Vec<StatusRow>, StoreError> {
        let rows = sqlx::query(
            "SELECT s.* FROM statuses AS s JOIN builds AS b ON b.repository = s.repository AND b.head_sha = s.sha
             WHERE b.id = ? AND s.generation = b.id ORDER BY s.id",
        )
        .bind(build.0)
        .fetch_all(&self.reader)
        .await?;
        rows.iter().map(row).collect()
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
        let trouble: Option<String> = sqlx::query_scalar(
            "SELECT trouble FROM statuses WHERE refused IS NULL AND sent_version < version AND trouble IS NOT NULL
             ORDER BY next_try_at DESC LIMIT 1",
        )
        .fetch_optional(&self.reader)
        .await?;
        Ok(Backlog {
            unsent,
            refused,
            oldest: oldest.map(timestamp),
            trouble,
        })
    }
}
