//! Rows of `branches`: how far each polled branch has been read.

use super::{Store, StoreError};
use sqlx::SqliteConnection;
use std::collections::BTreeMap;

/// Records the last commit of a branch that has a build.
pub async fn advance(
    tx: &mut SqliteConnection,
    repository: &str,
    branch: &str,
    sha: &str,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO branches (repository, branch, sha) VALUES (?, ?, ?) \
         ON CONFLICT (repository, branch) DO UPDATE SET sha = excluded.sha",
    )
    .bind(repository)
    .bind(branch)
    .bind(sha)
    .execute(tx)
    .await?;
    Ok(())
}

impl Store {
    /// The last commit read of each branch.
    pub async fn branches_of(
        &self,
        repository: &str,
    ) -> Result<BTreeMap<String, String>, StoreError> {
        let rows: Vec<(String, String)> =
            sqlx::query_as("SELECT branch, sha FROM branches WHERE repository = ?")
                .bind(repository)
                .fetch_all(&self.reader)
                .await?;
        Ok(rows.into_iter().collect())
    }
}
