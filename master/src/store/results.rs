//! What jobs left behind: rows of `logs` and `artifacts`, and the test counts of `jobs`.

use super::{Store, StoreError};
use crate::model::{JobId, TestCounts};
use serde::{Deserialize, Serialize};
use sqlx::{Row, SqliteConnection};

/// A log that is complete and in the object store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRow {
    pub job: JobId,
    /// Bytes of the whole stream, those left out included.
    pub length: u64,
    /// The part that the cap left out; equal when nothing was.
    pub omitted_from: u64,
    pub omitted_to: u64,
    pub sealed: SealedLog,
}

/// Where a sealed log is and how to find an offset in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedLog {
    /// Key in the object store; none when the log is empty.
    pub object: Option<String>,
    /// What the log was allowed to have, in bytes.
    pub cap: u64,
    /// The compressed frames, in the stream's order. The left-out part has none.
    pub frames: Vec<Frame>,
    /// When the stream reached which offset, sparsely: milliseconds since 1970 and offset.
    #[serde(default)]
    pub times: Vec<(i64, u64)>,
}

/// One independently compressed piece of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    /// Offset of its first byte in the stream.
    pub from: u64,
    /// Its bytes in the stream.
    pub length: u64,
    /// Where it begins in the object.
    pub at: u64,
    /// Its bytes in the object.
    pub size: u64,
}

/// An artefact in the object store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArtifactRow {
    /// The path that the job gave it.
    pub path: String,
    pub size: u64,
    /// Lower-case hexadecimal.
    pub sha256: String,
    /// Key in the object store.
    pub object: String,
}

impl Store {
    /// Records the sealed log of a job that has ended, in the place of an older record. False when the job runs again.
    pub async fn record_log(&self, row: &LogRow) -> Result<bool, StoreError> {
        let sealed = serde_json::to_string(&row.sealed).map_err(|source| StoreError::Json {
            what: "a sealed log",
            source,
        })?;
        let done = sqlx::query(
            "INSERT INTO logs (job, length, omitted_from, omitted_to, sealed) \
             SELECT id, $2, $3, $4, $5 FROM jobs WHERE id = $1 AND state = 'finished' \
             ON CONFLICT (job) DO UPDATE SET length = excluded.length, omitted_from = excluded.omitted_from, \
             omitted_to = excluded.omitted_to, sealed = excluded.sealed",
        )
        .bind(row.job.0)
        .bind(to_sql(row.length))
        .bind(to_sql(row.omitted_from))
        .bind(to_sql(row.omitted_to))
        .bind(sealed)
        .execute(&self.writer)
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// The record of a job's sealed log; none while it grows.
    pub async fn sealed_log(&self, job: JobId) -> Result<Option<LogRow>, StoreError> {
        let row =
            sqlx::query("SELECT length, omitted_from, omitted_to, sealed FROM logs WHERE job = $1")
                .bind(job.0)
                .fetch_optional(&self.reader)
                .await?;
        let Some(row) = row else {
            return Ok(None);
        };
        let sealed: String = row.try_get("sealed")?;
        Ok(Some(LogRow {
            job,
            length: from_sql(row.try_get("length")?),
            omitted_from: from_sql(row.try_get("omitted_from")?),
            omitted_to: from_sql(row.try_get("omitted_to")?),
            sealed: serde_json::from_str(&sealed).map_err(|source| StoreError::Json {
                what: "a sealed log",
                source,
            })?,
        }))
    }

    /// Forgets the record of a job's log.
    pub async fn forget_log(&self, job: JobId) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM logs WHERE job = $1")
            .bind(job.0)
            .execute(&self.writer)
            .await?;
        Ok(())
    }

    /// Records all artefacts of a job at once, in the place of those recorded before.
    pub async fn record_artifacts(
        &self,
        job: JobId,
        rows: &[ArtifactRow],
    ) -> Result<(), StoreError> {
        let mut transaction = self.write().await?;
        sqlx::query("DELETE FROM artifacts WHERE job = $1")
            .bind(job.0)
            .execute(&mut *transaction)
            .await?;
        for row in rows {
            sqlx::query("INSERT INTO artifacts (job, path, size, sha256, object) VALUES ($1, $2, $3, $4, $5)")
                .bind(job.0)
                .bind(&row.path)
                .bind(to_sql(row.size))
                .bind(&row.sha256)
                .bind(&row.object)
                .execute(&mut *transaction)
                .await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    /// The artefacts of a job, sorted by path.
    pub async fn artifacts(&self, job: JobId) -> Result<Vec<ArtifactRow>, StoreError> {
        let rows = sqlx::query(
            "SELECT path, size, sha256, object FROM artifacts WHERE job = $1 ORDER BY path",
        )
        .bind(job.0)
        .fetch_all(&self.reader)
        .await?;
        rows.into_iter()
            .map(|row| {
                Ok(ArtifactRow {
                    path: row.try_get("path")?,
                    size: from_sql(row.try_get("size")?),
                    sha256: row.try_get("sha256")?,
                    object: row.try_get("object")?,
                })
            })
            .collect()
    }

    /// Records what the reports of a job counted.
    pub async fn record_tests(&self, job: JobId, counts: &TestCounts) -> Result<(), StoreError> {
        let text = serde_json::to_string(counts).map_err(|source| StoreError::Json {
            what: "test counts",
            source,
        })?;
        sqlx::query("UPDATE jobs SET tests = $1 WHERE id = $2")
            .bind(text)
            .bind(job.0)
            .execute(&self.writer)
            .await?;
        Ok(())
    }

    /// What the reports of a job counted; none when it had no report.
    pub async fn tests(&self, job: JobId) -> Result<Option<TestCounts>, StoreError> {
        tests(&mut *self.reader.acquire().await?, job).await
    }
}

/// What the reports of a job counted, read within a transaction.
pub async fn tests(
    connection: &mut SqliteConnection,
    job: JobId,
) -> Result<Option<TestCounts>, StoreError> {
    let text: Option<Option<String>> = sqlx::query_scalar("SELECT tests FROM jobs WHERE id = $1")
        .bind(job.0)
        .fetch_optional(connection)
        .await?;
    text.flatten()
        .map(|text| super::parsed("test counts", &text))
        .transpose()
}

/// SQL's integers are signed; no file of ours has 8 EiB.
fn to_sql(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn from_sql(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

#[cfg(test)]
impl Store {
    /// A job of which nothing matters but that its row is there.
    pub(crate) async fn insert_bare_job(&self) -> JobId {
        let insert = |sql: &'static str| sqlx::query(sql).execute(&self.writer);
        insert(
            "INSERT INTO builds (repository, trigger_name, build_key, reference, head_sha, from_fork, publish, title, \
             only_platforms, state, created_at) SELECT 'octo/tools', 'push', 'key-' || COUNT(*), 'main', 'c0ffee', \
             FALSE, FALSE, '', '[]', 'running', 0 FROM builds",
        )
        .await
        .unwrap();
        let job = insert(
            "INSERT INTO jobs (build, repository, suite, platform, plan, priority, state, queued_at, not_before) \
             SELECT MAX(id), 'octo/tools', 'unit', 'linux', \
             '{\"steps\": [], \"timeouts\": {\"job_secs\": 1, \"no_output_secs\": 1}}', 1, 'running', 0, 0 FROM builds",
        )
        .await
        .unwrap();
        JobId(job.last_insert_rowid())
    }

    /// The same, of one that has ended.
    pub(crate) async fn insert_ended_job(&self) -> JobId {
        let job = self.insert_bare_job().await;
        self.set_bare_job_state(job, "finished").await;
        job
    }

    pub(crate) async fn set_bare_job_state(&self, job: JobId, state: &str) {
        sqlx::query("UPDATE jobs SET state = ? WHERE id = ?")
            .bind(state)
            .bind(job.0)
            .execute(&self.writer)
            .await
            .unwrap();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_recorded_reads_back_and_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("state.db")).await.unwrap();
        let job = store.insert_ended_job().await;

        assert_eq!(store.tests(job).await.unwrap(), None);
        let counts = TestCounts {
            passed: 1,
            failed: 2,
            skipped: 3,
            failing: vec!["a".to_string()],
        };
        store.record_tests(job, &counts).await.unwrap();
        assert_eq!(store.tests(job).await.unwrap(), Some(counts));

        let mut row = LogRow {
            job,
            length: 10,
            omitted_from: 4,
            omitted_to: 6,
            sealed: SealedLog {
                object: Some("logs/x".to_string()),
                cap: 1000,
                frames: vec![Frame {
                    from: 0,
                    length: 4,
                    at: 0,
                    size: 20,
                }],
                times: vec![(1, 0)],
            },
        };
        assert_eq!(store.sealed_log(job).await.unwrap(), None);
        store.record_log(&row).await.unwrap();
        row.length = 12;
        store.record_log(&row).await.unwrap();
        assert_eq!(store.sealed_log(job).await.unwrap(), Some(row));
        store.forget_log(job).await.unwrap();
        assert_eq!(store.sealed_log(job).await.unwrap(), None);

        let artifact = |path: &str| ArtifactRow {
            path: path.to_string(),
            size: 1,
            sha256: "00".to_string(),
            object: format!("artifacts/{path}"),
        };
        store
            .record_artifacts(job, &[artifact("b"), artifact("a")])
            .await
            .unwrap();
        assert_eq!(
            store.artifacts(job).await.unwrap(),
            [artifact("a"), artifact("b")]
        );
        store.record_artifacts(job, &[artifact("c")]).await.unwrap();
        assert_eq!(store.artifacts(job).await.unwrap(), [artifact("c")]);
    }
}
