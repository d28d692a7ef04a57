//! The table `drain`: one row while no job may start.

use super::{Store, StoreError, millis, timestamp};
use crate::model::{AfterDrain, Drain};
use jiff::Timestamp;

impl Store {
    /// The drain that is on, if one is.
    pub async fn drain(&self) -> Result<Option<Drain>, StoreError> {
        let row: Option<(i64, bool)> = sqlx::query_as("SELECT since, stops FROM drain")
            .fetch_optional(&self.reader)
            .await?;
        Ok(row.map(|(since, stops)| Drain {
            since: timestamp(since),
            then: match stops {
                true => AfterDrain::Stop,
                false => AfterDrain::Stay,
            },
        }))
    }

    /// Begins a drain; where one is on already, only what follows it changes.
    pub async fn begin_drain(&self, then: AfterDrain, now: Timestamp) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO drain (only_row, since, stops) VALUES (1, ?, ?) \
             ON CONFLICT (only_row) DO UPDATE SET stops = excluded.stops",
        )
        .bind(millis(now))
        .bind(then == AfterDrain::Stop)
        .execute(&self.writer)
        .await?;
        Ok(())
    }

    /// Ends the drain; says whether one was on.
    pub async fn end_drain(&self) -> Result<bool, StoreError> {
        let done = sqlx::query("DELETE FROM drain")
            .execute(&self.writer)
            .await?;
        Ok(done.rows_affected() > 0)
    }
}
