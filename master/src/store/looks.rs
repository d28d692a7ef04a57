//! The tables `looks` and `delivery_logs`: when GitHub was compared with this database, and what came of it.

use super::{Store, StoreError, millis, optional_time, timestamp};
use jiff::Timestamp;
use serde::Serialize;
use sqlx::Row;

/// How the looks at a repository stand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LookRow {
    pub repository: String,
    pub began_at: Timestamp,
    /// The beginning of the last complete one.
    pub complete_at: Option<Timestamp>,
    /// Why the last one was not complete.
    pub trouble: Option<String>,
    /// Builds, cancellations and statuses that were made good, by all looks.
    pub made_good: i64,
}

impl Store {
    /// Writes down what came of a look; `trouble` is why it was not complete.
    pub async fn record_look(
        &self,
        repository: &str,
        began: Timestamp,
        trouble: Option<&str>,
        made_good: u32,
    ) -> Result<(), StoreError> {
        let complete_at = trouble.is_none().then(|| millis(began));
        sqlx::query(
            "INSERT INTO looks (repository, began_at, complete_at, trouble, made_good) VALUES (?, ?, ?, ?, ?)
             ON CONFLICT (repository) DO UPDATE SET began_at = excluded.began_at, trouble = excluded.trouble,
                complete_at = COALESCE(excluded.complete_at, looks.complete_at),
                made_good = looks.made_good + excluded.made_good",
        )
        .bind(repository)
        .bind(millis(began))
        .bind(complete_at)
        .bind(trouble)
        .bind(i64::from(made_good))
        .execute(&self.writer)
        .await?;
        Ok(())
    }

    /// When GitHub's log of that name was last read to its end.
    pub async fn log_read_at(&self, name: &str) -> Result<Option<Timestamp>, StoreError> {
        let at: Option<Option<i64>> =
            sqlx::query_scalar("SELECT read_at FROM delivery_logs WHERE name = ?")
                .bind(name)
                .fetch_optional(&self.reader)
                .await?;
        Ok(optional_time(at.flatten()))
    }

    /// The log was read: to its end, unless there was too much in it; and so many events were fetched from it.
    pub async fn record_log_read(
        &self,
        name: &str,
        read_at: Option<Timestamp>,
        fetched: usize,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO delivery_logs (name, read_at, fetched) VALUES (?, ?, ?)
             ON CONFLICT (name) DO UPDATE SET read_at = COALESCE(excluded.read_at, delivery_logs.read_at),
                fetched = delivery_logs.fetched + excluded.fetched",
        )
        .bind(name)
        .bind(read_at.map(millis))
        .bind(i64::try_from(fetched).unwrap_or(i64::MAX))
        .execute(&self.writer)
        .await?;
        Ok(())
    }

    /// How many events were fetched from all logs.
    pub async fn fetched_deliveries(&self) -> Result<i64, StoreError> {
        let sum: Option<i64> = sqlx::query_scalar("SELECT SUM(fetched) FROM delivery_logs")
            .fetch_one(&self.reader)
            .await?;
        Ok(sum.unwrap_or(0))
    }

    /// All repositories that were looked at.
    pub async fn looks(&self) -> Result<Vec<LookRow>, StoreError> {
        sqlx::query("SELECT * FROM looks ORDER BY repository")
            .fetch_all(&self.reader)
            .await?
            .iter()
            .map(|row| {
                Ok(LookRow {
                    repository: row.try_get("repository")?,
                    began_at: timestamp(row.try_get("began_at")?),
                    complete_at: optional_time(row.try_get("complete_at")?),
                    trouble: row.try_get("trouble")?,
                    made_good: row.try_get("made_good")?,
                })
            })
            .collect()
    }
}
