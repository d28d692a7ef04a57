//! Looks at the outbox.

use super::{Backlog, StatusId, StatusRow, row};
use crate::store::{Store, StoreError, timestamp};

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
