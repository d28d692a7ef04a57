//! Rows of `attempts` and `steps`. One function moves an attempt's phase, from the table in [`Phase::may_become`].

use super::{Store, StoreError, ending, json, millis, optional_time, parsed, timestamp};
use crate::model::{Attempt, AttemptId, BootRecord, Ending, JobId, Phase};
use jiff::Timestamp;
use serde::Serialize;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};
use vivarium_protocol::Exit;

const COLUMNS: &str = "id, job, number, platform, phase, ssh_port, phases, boot, reason, message, console_tail, log_end";

/// One command of an attempt, as far as it has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StepRecord {
    /// Counted from 0.
    pub number: i64,
    pub name: String,
    /// Where its output begins in the job's log, in bytes.
    pub log_offset: u64,
    pub started_at: Timestamp,
    pub finished_at: Option<Timestamp>,
    pub exit: Option<Exit>,
    /// Where its output ended in the job's log, once it has.
    pub log_end: Option<u64>,
    /// Why the master ended it, if it did.
    pub stop: Option<Ending>,
}

fn from_row(row: &SqliteRow) -> Result<Attempt, StoreError> {
    let phase: String = row.try_get("phase")?;
    let phases: String = row.try_get("phases")?;
    let phases: Vec<(Phase, i64)> = parsed("phases", &phases)?;
    Ok(Attempt {
        id: AttemptId(row.try_get("id")?),
        job: JobId(row.try_get("job")?),
        number: row.try_get("number")?,
        platform: row.try_get("platform")?,
        phase: Phase::from_name(&phase).ok_or(StoreError::Unknown {
            what: "a phase",
            value: phase,
        })?,
        ssh_port: row
            .try_get::<Option<i64>, _>("ssh_port")?
            .and_then(|port| u16::try_from(port).ok()),
        phases: phases
            .into_iter()
            .map(|(phase, at)| (phase, timestamp(at)))
            .collect(),
        boot: match row.try_get::<Option<String>, _>("boot")? {
            Some(boot) => parsed("a boot", &boot)?,
            None => BootRecord::default(),
        },
        ending: ending(row, "reason", "message")?,
        console_tail: row.try_get("console_tail")?,
        log_end: position(row, "log_end")?,
    })
}

/// A place in a log.
fn position(row: &SqliteRow, column: &str) -> Result<Option<u64>, StoreError> {
    let position: Option<i64> = row.try_get(column)?;
    Ok(position.and_then(|position| u64::try_from(position).ok()))
}

/// Begins the job's next attempt.
pub async fn insert(
    tx: &mut SqliteConnection,
    job: JobId,
    platform: &str,
    now: Timestamp,
) -> Result<AttemptId, StoreError> {
    let id = sqlx::query_scalar(
        "INSERT INTO attempts (job, number, platform, phase, phases) \
         VALUES (?, (SELECT COALESCE(MAX(number), 0) + 1 FROM attempts WHERE job = ?), ?, ?, ?) RETURNING id",
    )
    .bind(job.0)
    .bind(job.0)
    .bind(platform)
    .bind(Phase::Placed.as_str())
    .bind(json("phases", &[(Phase::Placed, millis(now))])?)
    .fetch_one(tx)
    .await?;
    Ok(AttemptId(id))
}

pub async fn get(tx: &mut SqliteConnection, id: AttemptId) -> Result<Option<Attempt>, StoreError> {
    sqlx::query(&format!("SELECT {COLUMNS} FROM attempts WHERE id = ?"))
        .bind(id.0)
        .fetch_optional(tx)
        .await?
        .as_ref()
        .map(from_row)
        .transpose()
}

/// Moves the attempt to `next`; false when the table does not allow it.
pub async fn move_to(
    tx: &mut SqliteConnection,
    id: AttemptId,
    next: Phase,
    ending: Option<&Ending>,
    console_tail: Option<&str>,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let Some(attempt) = get(tx, id).await? else {
        return Ok(false);
    };
    if !attempt.phase.may_become(next) {
        return Ok(false);
    }
    let phases: Vec<(Phase, i64)> = attempt
        .phases
        .iter()
        .map(|(phase, at)| (*phase, millis(*at)))
        .chain((attempt.phase != next).then(|| (next, millis(now))))
        .collect();
    sqlx::query(
        "UPDATE attempts SET phase = ?, phases = ?, reason = COALESCE(reason, ?), message = COALESCE(message, ?), \
         console_tail = COALESCE(console_tail, ?) WHERE id = ?",
    )
    .bind(next.as_str())
    .bind(json("phases", &phases)?)
    .bind(ending.map(|e| e.reason.as_str()))
    .bind(ending.map(|e| e.message.as_str()))
    .bind(console_tail)
    .bind(id.0)
    .execute(tx)
    .await?;
    Ok(true)
}

/// What is kept of a machine that failed us, fit to be shown.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Evidence {
    /// The last lines of its console.
    pub console_tail: Option<String>,
    /// The end of QEMU's own log.
    pub qemu_log: Option<String>,
    /// What its display showed, as a PNG.
    pub screenshot: Option<Vec<u8>>,
}

/// How an attempt ends, and what is kept with that.
#[derive(Debug, Clone, Copy)]
pub struct Decided<'a> {
    pub ending: &'a Ending,
    pub boot: &'a BootRecord,
    pub evidence: &'a Evidence,
    /// Where the line about the end begins in the job's log.
    pub log_end: u64,
}

/// Records how the attempt ends, before the log tells so. The first ending stands; says whether this is it.
pub async fn decide_ending(
    tx: &mut SqliteConnection,
    id: AttemptId,
    decided: Decided<'_>,
) -> Result<bool, StoreError> {
    let Decided {
        ending,
        boot,
        evidence,
        log_end,
    } = decided;
    let done = sqlx::query(
        "UPDATE attempts SET reason = ?, message = ?, console_tail = ?, log_end = ? \
         WHERE id = ? AND reason IS NULL",
    )
    .bind(ending.reason.as_str())
    .bind(&ending.message)
    .bind(&evidence.console_tail)
    .bind(i64::try_from(log_end).unwrap_or(i64::MAX))
    .bind(id.0)
    .execute(&mut *tx)
    .await?;
    if done.rows_affected() == 0 {
        return Ok(false);
    }
    write_boot(tx, id, boot).await?;
    if evidence.qemu_log.is_some() || evidence.screenshot.is_some() {
        sqlx::query("INSERT INTO evidence (attempt, qemu_log, screenshot) VALUES (?, ?, ?)")
            .bind(id.0)
            .bind(&evidence.qemu_log)
            .bind(&evidence.screenshot)
            .execute(&mut *tx)
            .await?;
    }
    Ok(true)
}

/// Records what was seen of its machine on the way up.
pub async fn write_boot(
    tx: &mut SqliteConnection,
    id: AttemptId,
    boot: &BootRecord,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE attempts SET boot = ? WHERE id = ?")
        .bind(json("a boot", boot)?)
        .bind(id.0)
        .execute(&mut *tx)
        .await?;
    Ok(())
}

impl Store {
    pub async fn attempt(&self, id: AttemptId) -> Result<Option<Attempt>, StoreError> {
        get(&mut *self.reader.acquire().await?, id).await
    }

    pub async fn attempts_of(&self, job: JobId) -> Result<Vec<Attempt>, StoreError> {
        sqlx::query(&format!(
            "SELECT {COLUMNS} FROM attempts WHERE job = ? ORDER BY number"
        ))
        .bind(job.0)
        .fetch_all(&self.reader)
        .await?
        .iter()
        .map(from_row)
        .collect()
    }

    /// Attempts that have not ended, oldest first.
    pub async fn live_attempts(&self) -> Result<Vec<Attempt>, StoreError> {
        sqlx::query(&format!(
            "SELECT {COLUMNS} FROM attempts WHERE phase <> 'ended' ORDER BY id"
        ))
        .fetch_all(&self.reader)
        .await?
        .iter()
        .map(from_row)
        .collect()
    }

    pub async fn record_ssh_port(&self, id: AttemptId, port: u16) -> Result<(), StoreError> {
        sqlx::query("UPDATE attempts SET ssh_port = ? WHERE id = ?")
            .bind(i64::from(port))
            .bind(id.0)
            .execute(&self.writer)
            .await?;
        Ok(())
    }

    /// The commands of an attempt that were begun, in order.
    pub async fn steps_of(&self, attempt: AttemptId) -> Result<Vec<StepRecord>, StoreError> {
        sqlx::query(
            "SELECT number, name, log_offset, started_at, finished_at, exit, log_end, stop_reason, stop_message \
             FROM steps WHERE attempt = ? ORDER BY number",
        )
        .bind(attempt.0)
        .fetch_all(&self.reader)
        .await?
        .iter()
        .map(|row| {
            let exit: Option<String> = row.try_get("exit")?;
            Ok(StepRecord {
                number: row.try_get("number")?,
                name: row.try_get("name")?,
                log_offset: position(row, "log_offset")?.unwrap_or(0),
                started_at: timestamp(row.try_get("started_at")?),
                finished_at: optional_time(row.try_get("finished_at")?),
                exit: exit.map(|exit| parsed("an exit", &exit)).transpose()?,
                log_end: position(row, "log_end")?,
                stop: ending(row, "stop_reason", "stop_message")?,
            })
        })
        .collect()
    }

    /// Records that a command is about to start, with the place of its output in the log. Safe to repeat.
    pub async fn begin_step(
        &self,
        attempt: AttemptId,
        number: i64,
        name: &str,
        log_offset: u64,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO steps (attempt, number, name, log_offset, started_at) VALUES (?, ?, ?, ?, ?) \
             ON CONFLICT (attempt, number) DO NOTHING",
        )
        .bind(attempt.0)
        .bind(number)
        .bind(name)
        .bind(i64::try_from(log_offset).unwrap_or(i64::MAX))
        .bind(millis(now))
        .execute(&self.writer)
        .await?;
        Ok(())
    }

    /// Records that the master is about to end a command, and why. The first reason stands.
    pub async fn stop_step(
        &self,
        attempt: AttemptId,
        number: i64,
        why: &Ending,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "UPDATE steps SET stop_reason = ?, stop_message = ? \
             WHERE attempt = ? AND number = ? AND stop_reason IS NULL",
        )
        .bind(why.reason.as_str())
        .bind(&why.message)
        .bind(attempt.0)
        .bind(number)
        .execute(&self.writer)
        .await?;
        Ok(())
    }

    /// Records what was seen of its machine on the way up.
    pub async fn record_boot(&self, id: AttemptId, boot: &BootRecord) -> Result<(), StoreError> {
        let mut connection = self.writer.acquire().await?;
        write_boot(&mut connection, id, boot).await
    }

    /// What is kept of its machine beside the console.
    pub async fn evidence(&self, id: AttemptId) -> Result<Evidence, StoreError> {
        let row = sqlx::query(
            "SELECT console_tail, qemu_log, screenshot FROM attempts \
             LEFT JOIN evidence ON evidence.attempt = attempts.id WHERE id = ?",
        )
        .bind(id.0)
        .fetch_optional(&self.reader)
        .await?;
        let Some(row) = row else {
            return Ok(Evidence::default());
        };
        Ok(Evidence {
            console_tail: row.try_get("console_tail")?,
            qemu_log: row.try_get("qemu_log")?,
            screenshot: row.try_get("screenshot")?,
        })
    }

    /// Records how a command ended, and where its output did in the log.
    pub async fn finish_step(
        &self,
        attempt: AttemptId,
        number: i64,
        exit: Exit,
        log_end: u64,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "UPDATE steps SET finished_at = ?, exit = ?, log_end = ? WHERE attempt = ? AND number = ?",
        )
            .bind(millis(now))
            .bind(json("an exit", &exit)?)
            .bind(i64::try_from(log_end).unwrap_or(i64::MAX))
            .bind(attempt.0)
            .bind(number)
            .execute(&self.writer)
            .await?;
        Ok(())
    }
}
