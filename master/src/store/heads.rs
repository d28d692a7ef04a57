//! What the database knows of the commits that GitHub shows: the questions of a look at GitHub.

use super::builds::{COLUMNS, from_row};
use super::{Store, StoreError, millis};
use crate::model::{Build, Trigger};
use jiff::Timestamp;
use sqlx::SqliteConnection;

/// The build of that meaning.
pub async fn build_of_key(
    tx: &mut SqliteConnection,
    repository: &str,
    key: &str,
) -> Result<Option<Build>, StoreError> {
    sqlx::query(&format!(
        "SELECT {COLUMNS} FROM builds WHERE repository = ? AND build_key = ?"
    ))
    .bind(repository)
    .bind(key)
    .fetch_optional(tx)
    .await?
    .as_ref()
    .map(from_row)
    .transpose()
}

/// Whether a build whose statuses go to the commit has not ended.
pub async fn is_under_way(
    tx: &mut SqliteConnection,
    repository: &str,
    sha: &str,
) -> Result<bool, StoreError> {
    let count: i64 = sqlx::query_scalar(
        "SELECT COUNT(*) FROM builds WHERE repository = ? AND head_sha = ? AND state <> 'finished'",
    )
    .bind(repository)
    .bind(sha)
    .fetch_one(tx)
    .await?;
    Ok(count > 0)
}

impl Store {
    /// [`build_of_key`] outside of a transaction.
    pub async fn build_of_key(
        &self,
        repository: &str,
        key: &str,
    ) -> Result<Option<Build>, StoreError> {
        build_of_key(&mut *self.reader.acquire().await?, repository, key).await
    }

    /// Whether any build was made for the commit.
    pub async fn knows_head(&self, repository: &str, sha: &str) -> Result<bool, StoreError> {
        let count: i64 =
            sqlx::query_scalar("SELECT COUNT(*) FROM builds WHERE repository = ? AND head_sha = ?")
                .bind(repository)
                .bind(sha)
                .fetch_one(&self.reader)
                .await?;
        Ok(count > 0)
    }

    /// [`is_under_way`] outside of a transaction.
    pub async fn is_under_way(&self, repository: &str, sha: &str) -> Result<bool, StoreError> {
        is_under_way(&mut *self.reader.acquire().await?, repository, sha).await
    }

    /// Pull requests, with a head, of which a build has not ended that was made before the time.
    pub async fn pull_requests_under_way(
        &self,
        repository: &str,
        made_before: Timestamp,
    ) -> Result<Vec<(i64, String)>, StoreError> {
        Ok(sqlx::query_as(
            "SELECT pull_request, head_sha FROM builds WHERE repository = ? AND trigger_name = ?
             AND state <> 'finished' AND pull_request IS NOT NULL AND created_at < ? ORDER BY id",
        )
        .bind(repository)
        .bind(Trigger::PullRequest.as_str())
        .bind(millis(made_before))
        .fetch_all(&self.reader)
        .await?)
    }

    /// Commits of merge groups with a build that has not ended and was made before the time.
    pub async fn merge_groups_under_way(
        &self,
        repository: &str,
        made_before: Timestamp,
    ) -> Result<Vec<String>, StoreError> {
        Ok(sqlx::query_scalar(
            "SELECT head_sha FROM builds WHERE repository = ? AND trigger_name = ? AND state <> 'finished'
             AND created_at < ? ORDER BY id",
        )
        .bind(repository)
        .bind(Trigger::MergeGroup.as_str())
        .bind(millis(made_before))
        .fetch_all(&self.reader)
        .await?)
    }
}
