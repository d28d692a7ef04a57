//! A consistent copy of the database while others work with it.

use super::{BUSY_TIMEOUT, StoreError};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection, SqliteConnection};
use std::path::Path;

/// A copy of a database, as it was at one moment.
#[derive(Debug)]
pub struct Snapshot {
    connection: SqliteConnection,
}

impl Snapshot {
    /// Copies the database `from` into the new file `to`. Nobody is held up; the form may be any version's.
    pub async fn take(from: &Path, to: &Path) -> Result<Snapshot, StoreError> {
        let mut source = open(from).await?;
        // Compact, and a database by itself: no log beside it.
        sqlx::query("VACUUM INTO ?")
            .bind(to.display().to_string())
            .execute(&mut source)
            .await?;
        let mut connection = open(to).await?;
        sqlx::query("ATTACH DATABASE ? AS live")
            .bind(from.display().to_string())
            .execute(&mut connection)
            .await?;
        Ok(Snapshot { connection })
    }

    /// Takes the records over of logs that were sealed after the copy was made: their segments may have gone since.
    pub async fn take_over_sealed_logs(&mut self) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO main.logs SELECT * FROM live.logs WHERE job NOT IN (SELECT job FROM main.logs) \
             AND job IN (SELECT id FROM main.jobs WHERE state = 'finished')",
        )
        .execute(&mut self.connection)
        .await?;
        Ok(())
    }

    /// Closes the copy; its file is whole then.
    pub async fn close(self) -> Result<(), StoreError> {
        Ok(self.connection.close().await?)
    }
}

/// Whether the file is a database without damage; the sentence says what is wrong.
pub async fn check(path: &Path) -> Result<Option<String>, StoreError> {
    let mut connection = open(path).await?;
    let said: Vec<String> = sqlx::query_scalar("PRAGMA integrity_check(3)")
        .fetch_all(&mut connection)
        .await?;
    let faults: Vec<String> = said.into_iter().filter(|line| line != "ok").collect();
    Ok((!faults.is_empty()).then(|| faults.join("; ")))
}

async fn open(path: &Path) -> Result<SqliteConnection, StoreError> {
    SqliteConnectOptions::new()
        .filename(path)
        .busy_timeout(BUSY_TIMEOUT)
        .connect()
        .await
        .map_err(|source| StoreError::Open {
            path: path.display().to_string(),
            source,
        })
}
