//! Rows of `jobs`. One function moves a job's state, from the table in [`JobState::may_become`].

use super::{Store, StoreError, ending, json, millis, optional_time, parsed, timestamp};
use crate::model::{AttemptId, BuildId, Ending, Job, JobId, JobPlan, JobState, NewJob, Priority};
use jiff::Timestamp;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

const COLUMNS: &str = "id, build, repository, suite, platform, plan, priority, state, attempts, attempt, \
     cancel_reason, cancel_message, reason, message, queued_at, not_before, started_at, finished_at";

fn from_row(row: &SqliteRow) -> Result<Job, StoreError> {
    let plan: String = row.try_get("plan")?;
    let state: String = row.try_get("state")?;
    Ok(Job {
        id: JobId(row.try_get("id")?),
        build: BuildId(row.try_get("build")?),
        repository: row.try_get("repository")?,
        suite: row.try_get("suite")?,
        platform: row.try_get("platform")?,
        plan: parsed("a job's plan", &plan)?,
        priority: Priority::from_number(row.try_get("priority")?),
        state: JobState::from_name(&state).ok_or(StoreError::Unknown {
            what: "a job's state",
            value: state,
        })?,
        attempts: row.try_get("attempts")?,
        attempt: row.try_get::<Option<i64>, _>("attempt")?.map(AttemptId),
        cancel: ending(row, "cancel_reason", "cancel_message")?,
        ending: ending(row, "reason", "message")?,
        queued_at: timestamp(row.try_get("queued_at")?),
        not_before: timestamp(row.try_get("not_before")?),
        started_at: optional_time(row.try_get("started_at")?),
        finished_at: optional_time(row.try_get("finished_at")?),
    })
}

pub async fn insert(
    tx: &mut SqliteConnection,
    build: BuildId,
    repository: &str,
    priority: Priority,
    new: &NewJob,
    now: Timestamp,
) -> Result<JobId, StoreError> {
    let id = sqlx::query_scalar(
        "INSERT INTO jobs (build, repository, suite, platform, plan, priority, state, queued_at, not_before) \
         VALUES (?, ?, ?, ?, ?, ?, 'queued', ?, ?) RETURNING id",
    )
    .bind(build.0)
    .bind(repository)
    .bind(&new.suite)
    .bind(&new.platform)
    .bind(json("a job's plan", &new.plan)?)
    .bind(priority as i64)
    .bind(millis(now))
    .bind(millis(now))
    .fetch_one(tx)
    .await?;
    Ok(JobId(id))
}

pub async fn get(tx: &mut SqliteConnection, id: JobId) -> Result<Option<Job>, StoreError> {
    sqlx::query(&format!("SELECT {COLUMNS} FROM jobs WHERE id = ?"))
        .bind(id.0)
        .fetch_optional(tx)
        .await?
        .as_ref()
        .map(from_row)
        .transpose()
}

pub async fn of_build(tx: &mut SqliteConnection, build: BuildId) -> Result<Vec<Job>, StoreError> {
    sqlx::query(&format!(
        "SELECT {COLUMNS} FROM jobs WHERE build = ? ORDER BY suite, platform"
    ))
    .bind(build.0)
    .fetch_all(tx)
    .await?
    .iter()
    .map(from_row)
    .collect()
}

/// Writes the fields of a job that moves. The caller has changed `job` from what it read in this transaction,
/// where it was in state `from`; false when the table does not allow the move or the row moved meanwhile.
pub async fn move_to(
    tx: &mut SqliteConnection,
    from: JobState,
    job: &Job,
) -> Result<bool, StoreError> {
    if !from.may_become(job.state) {
        return Ok(false);
    }
    write(tx, from, job).await
}

/// Takes a finished job up again, because it is wanted once more: the one move outside the table.
pub async fn rerun(tx: &mut SqliteConnection, job: &Job) -> Result<bool, StoreError> {
    // It will have results again.
    sqlx::query("UPDATE jobs SET log_removed_at = NULL, artifacts_removed_at = NULL WHERE id = ?")
        .bind(job.id.0)
        .execute(&mut *tx)
        .await?;
    write(tx, JobState::Finished, job).await
}

async fn write(tx: &mut SqliteConnection, from: JobState, job: &Job) -> Result<bool, StoreError> {
    let reason = |ending: &Option<Ending>| ending.as_ref().map(|e| e.reason.as_str());
    let message = |ending: &Option<Ending>| ending.as_ref().map(|e| e.message.clone());
    let done = sqlx::query(
        "UPDATE jobs SET state = ?, attempts = ?, attempt = ?, cancel_reason = ?, cancel_message = ?, reason = ?, \
         message = ?, queued_at = ?, not_before = ?, started_at = ?, finished_at = ? WHERE id = ? AND state = ?",
    )
    .bind(job.state.as_str())
    .bind(job.attempts)
    .bind(job.attempt.map(|id| id.0))
    .bind(reason(&job.cancel))
    .bind(message(&job.cancel))
    .bind(reason(&job.ending))
    .bind(message(&job.ending))
    .bind(millis(job.queued_at))
    .bind(millis(job.not_before))
    .bind(job.started_at.map(millis))
    .bind(job.finished_at.map(millis))
    .bind(job.id.0)
    .bind(from.as_str())
    .execute(tx)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Notes that the job is to be cancelled; its driver ends it. The first wish stands.
pub async fn ask_to_cancel(
    tx: &mut SqliteConnection,
    id: JobId,
    why: &Ending,
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE jobs SET cancel_reason = ?, cancel_message = ? \
         WHERE id = ? AND state <> 'finished' AND cancel_reason IS NULL",
    )
    .bind(why.reason.as_str())
    .bind(&why.message)
    .bind(id.0)
    .execute(tx)
    .await?;
    Ok(())
}

/// The wish to cancel does not hold any more. A driver that has heard of it ends its attempt all the same.
pub async fn withdraw_cancel(tx: &mut SqliteConnection, id: JobId) -> Result<(), StoreError> {
    sqlx::query("UPDATE jobs SET cancel_reason = NULL, cancel_message = NULL WHERE id = ? AND state = 'running'")
        .bind(id.0)
        .execute(tx)
        .await?;
    Ok(())
}

impl Store {
    /// Gives a job the plan that could not be made when it was inserted.
    pub async fn set_plan(&self, id: JobId, plan: &JobPlan) -> Result<(), StoreError> {
        sqlx::query("UPDATE jobs SET plan = ? WHERE id = ?")
            .bind(json("a job's plan", plan)?)
            .bind(id.0)
            .execute(&self.writer)
            .await?;
        Ok(())
    }

    pub async fn job(&self, id: JobId) -> Result<Option<Job>, StoreError> {
        get(&mut *self.reader.acquire().await?, id).await
    }

    pub async fn jobs_of(&self, build: BuildId) -> Result<Vec<Job>, StoreError> {
        of_build(&mut *self.reader.acquire().await?, build).await
    }

    /// Jobs in a state, oldest first.
    pub async fn jobs_in(&self, state: JobState) -> Result<Vec<Job>, StoreError> {
        sqlx::query(&format!(
            "SELECT {COLUMNS} FROM jobs WHERE state = ? ORDER BY id"
        ))
        .bind(state.as_str())
        .fetch_all(&self.reader)
        .await?
        .iter()
        .map(from_row)
        .collect()
    }

    /// Jobs that wait or run.
    pub async fn unfinished_jobs(&self) -> Result<Vec<JobId>, StoreError> {
        let ids: Vec<i64> =
            sqlx::query_scalar("SELECT id FROM jobs WHERE state IN ('queued', 'running')")
                .fetch_all(&self.reader)
                .await?;
        Ok(ids.into_iter().map(JobId).collect())
    }

    /// How many jobs there are of each state.
    pub async fn count_jobs(&self) -> Result<Vec<(String, i64)>, StoreError> {
        Ok(
            sqlx::query_as("SELECT state, COUNT(*) FROM jobs GROUP BY state ORDER BY state")
                .fetch_all(&self.reader)
                .await?,
        )
    }

    /// How many finished jobs there are of each reason.
    pub async fn count_endings(&self) -> Result<Vec<(String, i64)>, StoreError> {
        Ok(sqlx::query_as(
            "SELECT reason, COUNT(*) FROM jobs WHERE reason IS NOT NULL GROUP BY reason ORDER BY reason",
        )
        .fetch_all(&self.reader)
        .await?)
    }
}
