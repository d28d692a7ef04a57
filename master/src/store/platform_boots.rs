//! Rows of `platform_boots`: platforms whose last boot failed. What a boot means for one is decided in [`crate::model::service`].

use super::{Store, StoreError, millis, optional_time};
use crate::model::service::{Out, Service};
use jiff::Timestamp;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};
use std::collections::BTreeMap;

const COLUMNS: &str = "platform, failures, why, files, out_since, canaries, next_canary_at";

fn from_row(row: &SqliteRow) -> Result<Service, StoreError> {
    let count = |column: &str| -> Result<u32, StoreError> {
        let count: i64 = row.try_get(column)?;
        Ok(u32::try_from(count).unwrap_or(u32::MAX))
    };
    let since = optional_time(row.try_get("out_since")?);
    let next_canary = optional_time(row.try_get("next_canary_at")?);
    let canaries = count("canaries")?;
    Ok(Service {
        failures: count("failures")?,
        why: row.try_get("why")?,
        files: row.try_get("files")?,
        out: since.map(|since| Out {
            since,
            canaries,
            next_canary: next_canary.unwrap_or(since),
        }),
    })
}

/// Replaces what is known of the platform by what `change` makes of it.
pub async fn update(
    tx: &mut SqliteConnection,
    platform: &str,
    change: impl FnOnce(Option<Service>) -> Option<Service>,
) -> Result<(), StoreError> {
    let before = sqlx::query(&format!(
        "SELECT {COLUMNS} FROM platform_boots WHERE platform = ?"
    ))
    .bind(platform)
    .fetch_optional(&mut *tx)
    .await?
    .as_ref()
    .map(from_row)
    .transpose()?;
    let after = change(before.clone());
    if after == before {
        return Ok(());
    }
    let Some(after) = after else {
        sqlx::query("DELETE FROM platform_boots WHERE platform = ?")
            .bind(platform)
            .execute(&mut *tx)
            .await?;
        return Ok(());
    };
    let time = |time: Option<Timestamp>| time.map(millis);
    sqlx::query(&format!(
        "INSERT INTO platform_boots ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?) \
         ON CONFLICT (platform) DO UPDATE SET failures = excluded.failures, why = excluded.why, files = excluded.files, \
         out_since = excluded.out_since, canaries = excluded.canaries, next_canary_at = excluded.next_canary_at"
    ))
    .bind(platform)
    .bind(i64::from(after.failures))
    .bind(&after.why)
    .bind(&after.files)
    .bind(time(after.out.map(|out| out.since)))
    .bind(i64::from(after.out.map_or(0, |out| out.canaries)))
    .bind(time(after.out.map(|out| out.next_canary)))
    .execute(&mut *tx)
    .await?;
    Ok(())
}

impl Store {
    /// The platforms whose last boot failed, by name.
    pub async fn platform_boots(&self) -> Result<BTreeMap<String, Service>, StoreError> {
        sqlx::query(&format!("SELECT {COLUMNS} FROM platform_boots"))
            .fetch_all(&self.reader)
            .await?
            .iter()
            .map(|row| Ok((row.try_get("platform")?, from_row(row)?)))
            .collect()
    }
}
