//! The durable state, in one SQLite file. Every state change is a row before it is an act.
//!
//! In come the nouns of [`crate::model`]; out come the same. A file per table holds the statements, which keep to
//! SQL that other databases share, so that a second backend can come beside this one.
//!
//! Writes go through one connection, because SQLite has one writer: they wait in the pool's queue instead of failing
//! with "database is locked". Reads have connections of their own and never wait for a write.

pub mod attempts;
pub mod branches;
pub mod builds;
mod checkpoint;
mod deliveries;
mod drain;
pub mod heads;
pub mod jobs;
mod looks;
pub mod platform_boots;
pub mod pull_requests;
pub mod results;
mod retention;
pub mod snapshot;
mod statuses;
mod tokens;

pub use attempts::{Decided, Evidence};
pub use deliveries::{
    AfterFailure, DeliveryCounts, DeliveryState, DeliverySummary, DeliveryWriter, Inserted,
    MOST_TRIES, NewDelivery, StoredDelivery,
};
pub use looks::LookRow;
pub use retention::Removed;
pub use statuses::{
    Backlog, Reopen, StatusId, StatusRow, Wanted, send_again, status_of, want_status,
};
pub use tokens::{Added, TokenRow};

use crate::model::{Ending, Reason};
use checkpoint::Checkpointer;
use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::migrate::Migrator;
use sqlx::sqlite::SqliteRow;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePoolOptions,
    SqliteSynchronous, SqliteTransactionManager,
};
use sqlx::{Connection, Row, Sqlite, SqlitePool, Transaction, TransactionManager};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Brings a database to this version's form.
static MIGRATIONS: Migrator = sqlx::migrate!("./migrations");

/// How long a statement waits for another process that holds the file (a backup, an inspection by hand).
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
const READERS: u32 = 4;

/// A handle on the database; clones share its connections.
#[derive(Debug, Clone)]
pub struct Store {
    writer: SqlitePool,
    reader: SqlitePool,
    /// Where writes are made; ends with the last clone.
    checkpointer: Option<Arc<Checkpointer>>,
}

/// The database did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot open the database {path}: {source}")]
    Open { path: String, source: sqlx::Error },
    #[error("cannot bring the database {path} to this version's form: {source}")]
    Migrate {
        path: String,
        source: sqlx::migrate::MigrateError,
    },
    #[error(
        "the database {path} has the form of another version: this version's master brings an older one to its own form \
         when it starts"
    )]
    OtherForm { path: String },
    #[error("the database refused: {0}")]
    Sql(#[from] sqlx::Error),
    /// What failed for several at once.
    #[error("the database refused: {0}")]
    Unavailable(String),
    #[error("the database holds `{value}` as {what}, which this version does not know")]
    Unknown { what: &'static str, value: String },
    #[error("the database holds {what} that does not parse: {source}")]
    Json {
        what: &'static str,
        source: serde_json::Error,
    },
}

impl StoreError {
    /// Whether the same may succeed later, without anybody changing what was asked.
    pub fn may_pass(&self) -> bool {
        match self {
            StoreError::Sql(sqlx::Error::Database(_)) => {
                // Busy, locked, read-only, interrupted, a write that failed, full, cannot be opened.
                matches!(self.result_code(), Some(5 | 6 | 8 | 9 | 10 | 13 | 14))
            }
            StoreError::Sql(error) => matches!(
                error,
                sqlx::Error::PoolTimedOut | sqlx::Error::Io(_) | sqlx::Error::WorkerCrashed
            ),
            StoreError::Unavailable(_) => true,
            StoreError::Open { .. }
            | StoreError::OtherForm { .. }
            | StoreError::Migrate { .. }
            | StoreError::Unknown { .. }
            | StoreError::Json { .. } => false,
        }
    }

    /// Whether another process holds the database: each further try would wait as long as this one.
    fn is_busy(&self) -> bool {
        matches!(self.result_code(), Some(5 | 6))
            || matches!(self, StoreError::Sql(sqlx::Error::PoolTimedOut))
    }

    /// SQLite's primary result code.
    fn result_code(&self) -> Option<u32> {
        let StoreError::Sql(sqlx::Error::Database(error)) = self else {
            return None;
        };
        let extended: u32 = error.code()?.parse().ok()?;
        Some(extended & 0xff)
    }
}

impl Store {
    /// Opens the database file, creating it if it is not there, and applies the migrations that it lacks.
    pub async fn open(path: &Path) -> Result<Store, StoreError> {
        let options = options(path)
            .create_if_missing(true)
            // Never within a commit: the checkpointer does it beside them.
            .pragma("wal_autocheckpoint", "0");
        let open = |source| StoreError::Open {
            path: path.display().to_string(),
            source,
        };
        let writer = one_that_writes()
            .after_release(|connection, _| Box::pin(is_outside_transactions(connection)))
            .connect_with(options.clone())
            .await
            .map_err(open)?;
        MIGRATIONS
            .run(&writer)
            .await
            .map_err(|source| StoreError::Migrate {
                path: path.display().to_string(),
                source,
            })?;
        shrink_by_itself(&writer).await;
        let reader = SqlitePoolOptions::new()
            .max_connections(READERS)
            .connect_with(options.clone().read_only(true).create_if_missing(false))
            .await
            .map_err(open)?;
        let checkpointer = Checkpointer::start(options, writer.clone())
            .await
            .map_err(open)?;
        Ok(Store {
            checkpointer: Some(Arc::new(checkpointer)),
            ..Store::over(writer, reader)
        })
    }

    /// Over connections to a database of this version's form.
    pub(crate) fn over(writer: SqlitePool, reader: SqlitePool) -> Store {
        Store {
            writer,
            reader,
            checkpointer: None,
        }
    }

    /// Opens the database beside the master that may work with it, only to read, and only where it has this version's
    /// form.
    pub async fn open_to_read(path: &Path) -> Result<Store, StoreError> {
        let named = || path.display().to_string();
        let reader = SqlitePoolOptions::new()
            .max_connections(READERS)
            .connect_with(options(path).read_only(true))
            .await
            .map_err(|source| StoreError::Open {
                path: named(),
                source,
            })?;
        let applied: Vec<i64> =
            sqlx::query_scalar("SELECT version FROM _sqlx_migrations ORDER BY version")
                .fetch_all(&reader)
                .await?;
        let known: Vec<i64> = MIGRATIONS
            .iter()
            .map(|migration| migration.version)
            .collect();
        if applied != known {
            return Err(StoreError::OtherForm { path: named() });
        }
        Ok(Store {
            writer: reader.clone(),
            reader,
            checkpointer: None,
        })
    }

    /// Begins a transaction that writes. The statements in it are functions of this folder's modules.
    pub async fn write(&self) -> Result<Transaction<'static, Sqlite>, StoreError> {
        Ok(self.writer.begin_with("BEGIN IMMEDIATE").await?)
    }

    /// Closes the connections after the statements under way.
    pub async fn close(&self) {
        if let Some(checkpointer) = &self.checkpointer {
            checkpointer.close().await;
        }
        self.reader.close().await;
        self.writer.close().await;
    }
}

fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .journal_mode(SqliteJournalMode::Wal)
        // A delivery that was answered with 202 must outlive a power cut.
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(BUSY_TIMEOUT)
}

/// Rewrites a database once that was made without the pages that shrinking needs. It works without them too.
async fn shrink_by_itself(writer: &SqlitePool) {
    const INCREMENTAL: i64 = 2;
    let prepared = async {
        let mut connection = writer.acquire().await?;
        let mode: i64 = sqlx::query_scalar("PRAGMA auto_vacuum")
            .fetch_one(&mut *connection)
            .await?;
        if mode != INCREMENTAL {
            for statement in ["PRAGMA auto_vacuum = INCREMENTAL", "VACUUM"] {
                sqlx::query(statement).execute(&mut *connection).await?;
            }
        }
        Ok::<_, sqlx::Error>(())
    };
    if let Err(error) = prepared.await {
        tracing::warn!(%error, "the database does not shrink when something is removed");
    }
}

fn one_that_writes() -> SqlitePoolOptions {
    SqlitePoolOptions::new()
        .max_connections(1)
        .after_connect(|connection, _| Box::pin(insist_on_writing(connection)))
}

/// Refuses a connection that can only read. SQLite opens a file that way when it cannot be written at that moment, and
/// the connection would stay so after the fault has passed.
async fn insist_on_writing(connection: &mut SqliteConnection) -> sqlx::Result<()> {
    for statement in ["BEGIN IMMEDIATE", "ROLLBACK"] {
        sqlx::query(statement).execute(&mut *connection).await?;
    }
    Ok(())
}

/// Whether a connection that comes back may be used again. SQLite ends a transaction by itself when the disk is full
/// or a write fails; the ROLLBACK that follows is then refused, and the connection would refuse every BEGIN for ever.
pub(crate) async fn is_outside_transactions(
    connection: &mut SqliteConnection,
) -> sqlx::Result<bool> {
    // Answered after the rollback that is under way.
    connection.ping().await?;
    Ok(SqliteTransactionManager::get_transaction_depth(connection) == 0)
}

/// A time as the database keeps it.
pub(crate) fn millis(time: Timestamp) -> i64 {
    time.as_millisecond()
}

/// A time as the database kept it; nonsense becomes the epoch.
pub(crate) fn timestamp(millis: i64) -> Timestamp {
    Timestamp::from_millisecond(millis).unwrap_or(Timestamp::UNIX_EPOCH)
}

pub(crate) fn optional_time(millis: Option<i64>) -> Option<Timestamp> {
    millis.map(timestamp)
}

/// Reads a reason and its message from two columns.
pub(crate) fn ending(
    row: &SqliteRow,
    reason: &str,
    message: &str,
) -> Result<Option<Ending>, StoreError> {
    let Some(name) = row.try_get::<Option<String>, _>(reason)? else {
        return Ok(None);
    };
    let message: Option<String> = row.try_get(message)?;
    match Reason::from_name(&name) {
        Some(reason) => Ok(Some(Ending::new(reason, message.unwrap_or_default()))),
        None => Err(StoreError::Unknown {
            what: "a reason",
            value: name,
        }),
    }
}

pub(crate) fn json<T: Serialize + ?Sized>(
    what: &'static str,
    value: &T,
) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|source| StoreError::Json { what, source })
}

pub(crate) fn parsed<T: DeserializeOwned>(what: &'static str, text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|source| StoreError::Json { what, source })
}

#[cfg(test)]
mod tests;
