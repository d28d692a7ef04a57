//! Rows of `builds`.

use super::{Store, StoreError, ending, millis, optional_time, parsed, timestamp};
use crate::model::{Build, BuildId, BuildState, Ending, NewBuild, Trigger};
use jiff::Timestamp;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

pub(super) const COLUMNS: &str = "id, repository, trigger_name, build_key, reference, pull_request, base_ref, head_sha, from_fork, \
     publish, title, author, event_at, before_sha, only_platforms, state, base_sha, tested_sha, changed_files, reason, message, created_at, finished_at";

/// What preparing a build found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepared {
    pub base_sha: Option<String>,
    pub tested_sha: String,
    pub changed_files: String,
}

/// Whether the event was the first that meant this build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inserted {
    New(BuildId),
    Known(BuildId),
}

pub(super) fn from_row(row: &SqliteRow) -> Result<Build, StoreError> {
    let trigger: String = row.try_get("trigger_name")?;
    let state: String = row.try_get("state")?;
    let only_platforms: String = row.try_get("only_platforms")?;
    Ok(Build {
        id: BuildId(row.try_get("id")?),
        new: NewBuild {
            repository: row.try_get("repository")?,
            trigger: Trigger::from_name(&trigger).ok_or(StoreError::Unknown {
                what: "a trigger",
                value: trigger,
            })?,
            key: row.try_get("build_key")?,
            reference: row.try_get("reference")?,
            pull_request: row.try_get("pull_request")?,
            base_ref: row.try_get("base_ref")?,
            head_sha: row.try_get("head_sha")?,
            from_fork: row.try_get("from_fork")?,
            publish: row.try_get("publish")?,
            title: row.try_get("title")?,
            author: row.try_get("author")?,
            event_at: optional_time(row.try_get("event_at")?),
            before_sha: row.try_get("before_sha")?,
            only_platforms: parsed("a list of platforms", &only_platforms)?,
        },
        state: BuildState::from_name(&state).ok_or(StoreError::Unknown {
            what: "a build's state",
            value: state,
        })?,
        base_sha: row.try_get("base_sha")?,
        tested_sha: row.try_get("tested_sha")?,
        changed_files: row.try_get("changed_files")?,
        ending: ending(row, "reason", "message")?,
        created_at: timestamp(row.try_get("created_at")?),
        finished_at: optional_time(row.try_get("finished_at")?),
    })
}

/// Adds the build unless one with the same key is there.
pub async fn insert(
    tx: &mut SqliteConnection,
    new: &NewBuild,
    now: Timestamp,
) -> Result<Inserted, StoreError> {
    let only_platforms = super::json("a list of platforms", &new.only_platforms)?;
    let id: Option<i64> = sqlx::query_scalar(
        "INSERT INTO builds (repository, trigger_name, build_key, reference, pull_request, base_ref, head_sha, \
         from_fork, publish, title, author, event_at, before_sha, only_platforms, state, created_at) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'preparing', ?) \
         ON CONFLICT (repository, build_key) DO NOTHING RETURNING id",
    )
    .bind(&new.repository)
    .bind(new.trigger.as_str())
    .bind(&new.key)
    .bind(&new.reference)
    .bind(new.pull_request)
    .bind(&new.base_ref)
    .bind(&new.head_sha)
    .bind(new.from_fork)
    .bind(new.publish)
    .bind(&new.title)
    .bind(&new.author)
    .bind(new.event_at.map(millis))
    .bind(&new.before_sha)
    .bind(only_platforms)
    .bind(millis(now))
    .fetch_optional(&mut *tx)
    .await?;
    if let Some(id) = id {
        return Ok(Inserted::New(BuildId(id)));
    }
    let id = sqlx::query_scalar("SELECT id FROM builds WHERE repository = ? AND build_key = ?")
        .bind(&new.repository)
        .bind(&new.key)
        .fetch_one(tx)
        .await?;
    Ok(Inserted::Known(BuildId(id)))
}

pub async fn get(tx: &mut SqliteConnection, id: BuildId) -> Result<Option<Build>, StoreError> {
    sqlx::query(&format!("SELECT {COLUMNS} FROM builds WHERE id = ?"))
        .bind(id.0)
        .fetch_optional(tx)
        .await?
        .as_ref()
        .map(from_row)
        .transpose()
}

/// Records what was found and that the jobs are known now. False when the build had ended meanwhile.
pub async fn prepared(
    tx: &mut SqliteConnection,
    id: BuildId,
    found: &Prepared,
) -> Result<bool, StoreError> {
    let done = sqlx::query(
        "UPDATE builds SET state = 'running', base_sha = ?, tested_sha = ?, changed_files = ? \
         WHERE id = ? AND state = 'preparing'",
    )
    .bind(&found.base_sha)
    .bind(&found.tested_sha)
    .bind(&found.changed_files)
    .bind(id.0)
    .execute(tx)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Ends the build; false when it had ended before.
pub async fn finish(
    tx: &mut SqliteConnection,
    id: BuildId,
    ending: &Ending,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let done = sqlx::query(
        "UPDATE builds SET state = 'finished', reason = ?, message = ?, finished_at = ? \
         WHERE id = ? AND state <> 'finished'",
    )
    .bind(ending.reason.as_str())
    .bind(&ending.message)
    .bind(millis(now))
    .bind(id.0)
    .execute(tx)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Takes a finished build up again, for a rerun of some of its jobs.
pub async fn reopen(tx: &mut SqliteConnection, id: BuildId) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE builds SET state = 'running', reason = NULL, message = NULL, finished_at = NULL \
         WHERE id = ? AND state = 'finished'",
    )
    .bind(id.0)
    .execute(tx)
    .await?;
    Ok(())
}

/// Takes a build up again that ended before it had jobs, for a rerun.
pub async fn prepare_again(tx: &mut SqliteConnection, id: BuildId) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE builds SET state = 'preparing', reason = NULL, message = NULL, finished_at = NULL, tries = 0, \
         not_before = 0 WHERE id = ? AND state = 'finished'",
    )
    .bind(id.0)
    .execute(tx)
    .await?;
    Ok(())
}

/// Counts a preparation that failed through our fault; returns how often that has happened.
pub async fn count_failure(tx: &mut SqliteConnection, id: BuildId) -> Result<i64, StoreError> {
    let counted = "UPDATE builds SET tries = tries + 1 WHERE id = ? RETURNING tries";
    Ok(sqlx::query_scalar(counted).bind(id.0).fetch_one(tx).await?)
}

/// Puts the preparation off.
pub async fn put_off(
    tx: &mut SqliteConnection,
    id: BuildId,
    until: Timestamp,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE builds SET not_before = ? WHERE id = ?")
        .bind(millis(until))
        .bind(id.0)
        .execute(tx)
        .await?;
    Ok(())
}

/// The unfinished builds of a pull request, oldest first.
pub async fn unfinished_of_pull_request(
    tx: &mut SqliteConnection,
    repository: &str,
    number: i64,
) -> Result<Vec<Build>, StoreError> {
    sqlx::query(&format!(
        "SELECT {COLUMNS} FROM builds WHERE repository = ? AND pull_request = ? AND trigger_name = 'pull_request' \
         AND state <> 'finished' ORDER BY id"
    ))
    .bind(repository)
    .bind(number)
    .fetch_all(tx)
    .await?
    .iter()
    .map(from_row)
    .collect()
}

/// The build of a pull request that has the latest event, ended or not.
pub async fn latest_of_pull_request(
    tx: &mut SqliteConnection,
    repository: &str,
    number: i64,
) -> Result<Option<Build>, StoreError> {
    sqlx::query(&format!(
        "SELECT {COLUMNS} FROM builds WHERE repository = ? AND pull_request = ? AND trigger_name = 'pull_request' \
         AND event_at IS NOT NULL ORDER BY event_at DESC, id DESC LIMIT 1"
    ))
    .bind(repository)
    .bind(number)
    .fetch_optional(tx)
    .await?
    .as_ref()
    .map(from_row)
    .transpose()
}

impl Store {
    pub async fn build(&self, id: BuildId) -> Result<Option<Build>, StoreError> {
        get(&mut *self.reader.acquire().await?, id).await
    }

    /// Builds whose preparation is due, oldest first.
    pub async fn builds_to_prepare(&self, now: Timestamp) -> Result<Vec<Build>, StoreError> {
        sqlx::query(&format!(
            "SELECT {COLUMNS} FROM builds WHERE state = 'preparing' AND not_before <= ? ORDER BY id LIMIT 100"
        ))
        .bind(millis(now))
        .fetch_all(&self.reader)
        .await?
        .iter()
        .map(from_row)
        .collect()
    }

    /// The newest builds, of one repository or of all.
    pub async fn recent_builds(
        &self,
        repository: Option<&str>,
        before: Option<BuildId>,
        limit: i64,
    ) -> Result<Vec<Build>, StoreError> {
        sqlx::query(&format!(
            "SELECT {COLUMNS} FROM builds WHERE (? IS NULL OR repository = ?) AND id < ? ORDER BY id DESC LIMIT ?"
        ))
        .bind(repository)
        .bind(repository)
        .bind(before.map_or(i64::MAX, |id| id.0))
        .bind(limit)
        .fetch_all(&self.reader)
        .await?
        .iter()
        .map(from_row)
        .collect()
    }
}
