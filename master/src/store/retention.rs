//! What is old enough to be removed, and the removal of its rows.
//!
//! A row goes after what it leads to: logs and artefacts of a job are gone from the object store before its record is
//! asked for here.

use super::{Store, StoreError, millis, optional_time};
use crate::model::{BuildId, JobId};
use jiff::Timestamp;
use sqlx::Row;

/// Builds that stay, whatever their age: of each branch that publishes the newest that ended, and the newest that passed.
const KEPT: &str = "SELECT MAX(id) FROM builds WHERE publish AND state = 'finished' GROUP BY repository, reference \
     UNION SELECT MAX(id) FROM builds WHERE publish AND state = 'finished' AND reason = 'passed' GROUP BY repository, reference";

/// The builds of the highest numbers, which are never given out again: objects and links bear them.
const HIGHEST: &str = "SELECT MAX(id) FROM builds UNION \
     SELECT build FROM jobs WHERE id = (SELECT MAX(id) FROM jobs) UNION \
     SELECT build FROM jobs WHERE id = (SELECT job FROM attempts WHERE id = (SELECT MAX(id) FROM attempts))";

/// When a job's results were removed because of their age.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Removed {
    pub log: Option<Timestamp>,
    pub artifacts: Option<Timestamp>,
}

impl Store {
    /// Ended jobs with a sealed log that is older, oldest first.
    pub async fn logs_ended_before(
        &self,
        before: Timestamp,
        limit: i64,
    ) -> Result<Vec<JobId>, StoreError> {
        self.results_before("logs", before, limit).await
    }

    /// Ended jobs with artefacts that are older, oldest first.
    pub async fn artifacts_ended_before(
        &self,
        before: Timestamp,
        limit: i64,
    ) -> Result<Vec<JobId>, StoreError> {
        self.results_before("artifacts", before, limit).await
    }

    async fn results_before(
        &self,
        table: &'static str,
        before: Timestamp,
        limit: i64,
    ) -> Result<Vec<JobId>, StoreError> {
        let ids: Vec<i64> = sqlx::query_scalar(&format!(
            "SELECT id FROM jobs WHERE state = 'finished' AND finished_at < ? \
             AND EXISTS (SELECT 1 FROM {table} WHERE {table}.job = jobs.id) AND build NOT IN ({KEPT}) \
             ORDER BY id LIMIT ?"
        ))
        .bind(millis(before))
        .bind(limit)
        .fetch_all(&self.reader)
        .await?;
        Ok(ids.into_iter().map(JobId).collect())
    }

    /// Notes that the job's log was removed, and forgets where it was, and with it what was kept of its machines. False
    /// for a job that runs again: it keeps its own.
    pub async fn note_removed_log(&self, job: JobId, now: Timestamp) -> Result<bool, StoreError> {
        let statement =
            "DELETE FROM evidence WHERE attempt IN (SELECT id FROM attempts WHERE job = ?)";
        self.note_removed("logs", "log_removed_at", Some(statement), job, now)
            .await
    }

    /// The same for its artefacts.
    pub async fn note_removed_artifacts(
        &self,
        job: JobId,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        self.note_removed("artifacts", "artifacts_removed_at", None, job, now)
            .await
    }

    async fn note_removed(
        &self,
        table: &'static str,
        column: &'static str,
        as_well: Option<&'static str>,
        job: JobId,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let mut tx = self.write().await?;
        let noted = sqlx::query(&format!(
            "UPDATE jobs SET {column} = ? WHERE id = ? AND state = 'finished'"
        ))
        .bind(millis(now))
        .bind(job.0)
        .execute(&mut *tx)
        .await?;
        if noted.rows_affected() == 0 {
            return Ok(false);
        }
        sqlx::query(&format!("DELETE FROM {table} WHERE job = ?"))
            .bind(job.0)
            .execute(&mut *tx)
            .await?;
        if let Some(statement) = as_well {
            sqlx::query(statement).bind(job.0).execute(&mut *tx).await?;
        }
        tx.commit().await?;
        Ok(true)
    }

    pub async fn removed(&self, job: JobId) -> Result<Removed, StoreError> {
        let row = sqlx::query("SELECT log_removed_at, artifacts_removed_at FROM jobs WHERE id = ?")
            .bind(job.0)
            .fetch_optional(&self.reader)
            .await?;
        let Some(row) = row else {
            return Ok(Removed::default());
        };
        Ok(Removed {
            log: optional_time(row.try_get("log_removed_at")?),
            artifacts: optional_time(row.try_get("artifacts_removed_at")?),
        })
    }

    /// Builds that ended before, and of which nothing is left but rows; oldest first.
    pub async fn builds_ended_before(
        &self,
        before: Timestamp,
        limit: i64,
    ) -> Result<Vec<BuildId>, StoreError> {
        let ids: Vec<i64> = sqlx::query_scalar(&format!(
            "SELECT id FROM builds WHERE state = 'finished' AND finished_at < ? \
             AND id NOT IN ({KEPT}) AND id NOT IN ({HIGHEST}) \
             AND NOT EXISTS (SELECT 1 FROM jobs WHERE jobs.build = builds.id AND (state <> 'finished' \
                 OR EXISTS (SELECT 1 FROM logs WHERE logs.job = jobs.id) \
                 OR EXISTS (SELECT 1 FROM artifacts WHERE artifacts.job = jobs.id) \
                 OR EXISTS (SELECT 1 FROM attempts WHERE attempts.job = jobs.id AND phase <> 'ended'))) \
             ORDER BY id LIMIT ?"
        ))
        .bind(millis(before))
        .bind(limit)
        .fetch_all(&self.reader)
        .await?;
        Ok(ids.into_iter().map(BuildId).collect())
    }

    /// Removes a build that ended, with its jobs, their attempts, and what was sent of them to GitHub.
    pub async fn remove_build(&self, id: BuildId) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        let of_its_jobs = "SELECT id FROM jobs WHERE build = ?";
        for statement in [
            &format!(
                "DELETE FROM steps WHERE attempt IN (SELECT id FROM attempts WHERE job IN ({of_its_jobs}))"
            ),
            &format!(
                "DELETE FROM evidence WHERE attempt IN (SELECT id FROM attempts WHERE job IN ({of_its_jobs}))"
            ),
            &format!("DELETE FROM attempts WHERE job IN ({of_its_jobs})"),
            "DELETE FROM jobs WHERE build = ?",
        ] {
            sqlx::query(statement).bind(id.0).execute(&mut *tx).await?;
        }
        let build: Option<(String, String)> =
            sqlx::query_as("DELETE FROM builds WHERE id = ? RETURNING repository, head_sha")
                .bind(id.0)
                .fetch_optional(&mut *tx)
                .await?;
        if let Some((repository, sha)) = build {
            // What is not sent yet is sent all the same.
            sqlx::query(
                "DELETE FROM statuses WHERE repository = $1 AND sha = $2 \
                 AND (refused IS NOT NULL OR sent_version >= version) \
                 AND NOT EXISTS (SELECT 1 FROM builds WHERE repository = $1 AND head_sha = $2)",
            )
            .bind(repository)
            .bind(sha)
            .execute(&mut *tx)
            .await?;
        }
        Ok(tx.commit().await?)
    }

    /// Gives at most so many of the file's free pages back to the file system; says how many are left.
    pub async fn shrink(&self, most_pages: i64) -> Result<i64, StoreError> {
        sqlx::query(&format!("PRAGMA incremental_vacuum({most_pages})"))
            .fetch_all(&self.writer)
            .await?;
        Ok(sqlx::query_scalar("PRAGMA freelist_count")
            .fetch_one(&self.writer)
            .await?)
    }
}
