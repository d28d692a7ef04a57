//! The table `deliveries`: each webhook POST, kept before it is answered.
//!
//! ```text
//!             insert            finish
//!   (new) ──► stored ─────────► done
//!               ▲  │ fail, the fifth time
//!               │  └──────────► failed
//!               └── delivered again ──┘
//! ```

use super::{Store, StoreError, millis, timestamp};
use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use sqlx::{Row, SqliteConnection};
use tokio::sync::{mpsc, oneshot};

/// After so many tries a delivery waits for a person, or for GitHub to deliver it again.
pub const MOST_TRIES: i64 = 5;
/// Between the first try and the second; doubled for each one after.
const FIRST_PAUSE: SignedDuration = SignedDuration::from_secs(2);
/// Deliveries that wait for the writer; beyond it senders wait for room.
const QUEUE: usize = 256;
/// Deliveries that share a transaction.
const BATCH: usize = 64;

/// A delivery whose signature has been checked.
#[derive(Debug, Clone)]
pub struct NewDelivery {
    pub guid: String,
    pub event: String,
    pub body: Bytes,
    /// Of the body, in hexadecimal; or [`NewDelivery::FETCHED`].
    pub sha256: String,
    pub received_at: Timestamp,
    /// Set for a delivery that asks for nothing: it is recorded as done at once.
    pub outcome: Option<String>,
}

impl NewDelivery {
    /// In place of the digest, for an event that was fetched from GitHub's log: the bytes that were sent are not known.
    pub const FETCHED: &'static str = "";
}

/// What became of an insert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inserted {
    New(i64),
    /// The same delivery is here, in this state.
    Known(DeliveryState),
    /// The same delivery had failed; it will be tried again.
    TriedAgain(i64),
    /// Another delivery bears the same id.
    Conflict,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryState {
    Stored,
    Done,
    Failed,
}

impl DeliveryState {
    pub fn as_str(self) -> &'static str {
        match self {
            DeliveryState::Stored => "stored",
            DeliveryState::Done => "done",
            DeliveryState::Failed => "failed",
        }
    }

    fn from_stored(name: &str) -> Result<DeliveryState, StoreError> {
        [
            DeliveryState::Stored,
            DeliveryState::Done,
            DeliveryState::Failed,
        ]
        .into_iter()
        .find(|state| state.as_str() == name)
        .ok_or_else(|| StoreError::Unknown {
            what: "a delivery's state",
            value: name.to_owned(),
        })
    }
}

/// A delivery that waits to be acted upon.
#[derive(Debug, Clone)]
pub struct StoredDelivery {
    pub id: i64,
    pub guid: String,
    pub event: String,
    pub body: Vec<u8>,
    pub received_at: Timestamp,
    pub tries: i64,
}

/// A delivery as pages show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeliverySummary {
    pub id: i64,
    pub guid: String,
    pub event: String,
    pub received_at: Timestamp,
    pub state: DeliveryState,
    pub tries: i64,
    pub outcome: Option<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct DeliveryCounts {
    pub stored: i64,
    pub done: i64,
    pub failed: i64,
}

/// Whether a delivery that failed is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterFailure {
    TriedAgainAt(Timestamp),
    GivenUp,
}

impl Store {
    /// Stores one delivery; durable when this returns.
    pub async fn insert_delivery(&self, delivery: &NewDelivery) -> Result<Inserted, StoreError> {
        let mut transaction = self.write().await?;
        let inserted = insert(&mut transaction, delivery).await?;
        transaction.commit().await?;
        Ok(inserted)
    }

    /// The oldest deliveries that wait and are due, in the order they came.
    pub async fn next_deliveries(
        &self,
        now: Timestamp,
        limit: i64,
    ) -> Result<Vec<StoredDelivery>, StoreError> {
        let rows = sqlx::query(
            "SELECT id, guid, event, body, received_at, tries FROM deliveries
             WHERE state = 'stored' AND not_before <= ? ORDER BY id LIMIT ?",
        )
        .bind(millis(now))
        .bind(limit)
        .fetch_all(&self.reader)
        .await?;
        rows.iter()
            .map(|row| {
                Ok(StoredDelivery {
                    id: row.try_get("id")?,
                    guid: row.try_get("guid")?,
                    event: row.try_get("event")?,
                    body: row.try_get("body")?,
                    received_at: timestamp(row.try_get("received_at")?),
                    tries: row.try_get("tries")?,
                })
            })
            .collect()
    }

    /// When the next delivery that waits is due, if one waits.
    pub async fn next_delivery_at(&self) -> Result<Option<Timestamp>, StoreError> {
        let at: Option<i64> =
            sqlx::query_scalar("SELECT MIN(not_before) FROM deliveries WHERE state = 'stored'")
                .fetch_one(&self.reader)
                .await?;
        Ok(at.map(timestamp))
    }

    /// The deliveries were acted upon; each has a sentence that says how.
    pub async fn finish_deliveries(&self, done: &[(i64, String)]) -> Result<(), StoreError> {
        if done.is_empty() {
            return Ok(());
        }
        let mut transaction = self.write().await?;
        for (id, outcome) in done {
            finish_delivery(&mut transaction, *id, outcome).await?;
        }
        Ok(transaction.commit().await?)
    }

    /// Acting upon the delivery failed: it is tried again after a pause, [`MOST_TRIES`] times in all.
    pub async fn fail_delivery(
        &self,
        id: i64,
        why: &str,
        now: Timestamp,
    ) -> Result<AfterFailure, StoreError> {
        let mut transaction = self.write().await?;
        let tries: i64 = sqlx::query_scalar("SELECT tries FROM deliveries WHERE id = ?")
            .bind(id)
            .fetch_one(&mut *transaction)
            .await?;
        let tries = tries.saturating_add(1);
        let (state, after) = if tries >= MOST_TRIES {
            (DeliveryState::Failed, AfterFailure::GivenUp)
        } else {
            let pause = FIRST_PAUSE * (1_i32 << tries.clamp(1, MOST_TRIES).saturating_sub(1));
            let at = now.saturating_add(pause).unwrap_or(now);
            (DeliveryState::Stored, AfterFailure::TriedAgainAt(at))
        };
        let not_before = match after {
            AfterFailure::TriedAgainAt(at) => millis(at),
            AfterFailure::GivenUp => 0,
        };
        sqlx::query(
            "UPDATE deliveries SET tries = ?, state = ?, outcome = ?, not_before = ? WHERE id = ?",
        )
        .bind(tries)
        .bind(state.as_str())
        .bind(why)
        .bind(not_before)
        .bind(id)
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(after)
    }

    /// How many deliveries are in each state.
    pub async fn delivery_counts(&self) -> Result<DeliveryCounts, StoreError> {
        let rows: Vec<(String, i64)> =
            sqlx::query_as("SELECT state, COUNT(*) FROM deliveries GROUP BY state")
                .fetch_all(&self.reader)
                .await?;
        let mut counts = DeliveryCounts::default();
        for (state, count) in rows {
            match DeliveryState::from_stored(&state)? {
                DeliveryState::Stored => counts.stored = count,
                DeliveryState::Done => counts.done = count,
                DeliveryState::Failed => counts.failed = count,
            }
        }
        Ok(counts)
    }

    /// Whether the delivery of that id is here.
    pub async fn knows_delivery(&self, guid: &str) -> Result<bool, StoreError> {
        let count: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM deliveries WHERE guid = ?")
            .bind(guid)
            .fetch_one(&self.reader)
            .await?;
        Ok(count > 0)
    }

    /// The latest deliveries, newest first.
    pub async fn recent_deliveries(&self, limit: i64) -> Result<Vec<DeliverySummary>, StoreError> {
        let rows = sqlx::query(
            "SELECT id, guid, event, received_at, state, tries, outcome FROM deliveries
             ORDER BY id DESC LIMIT ?",
        )
        .bind(limit)
        .fetch_all(&self.reader)
        .await?;
        rows.iter()
            .map(|row| {
                Ok(DeliverySummary {
                    id: row.try_get("id")?,
                    guid: row.try_get("guid")?,
                    event: row.try_get("event")?,
                    received_at: timestamp(row.try_get("received_at")?),
                    state: DeliveryState::from_stored(row.try_get("state")?)?,
                    tries: row.try_get("tries")?,
                    outcome: row.try_get("outcome")?,
                })
            })
            .collect()
    }

    /// Removes deliveries that were done with, or given up, and came before the time: at most so many, oldest first.
    /// Says how many. GitHub delivers again for three days (an Enterprise server for seven), so younger ones are still
    /// needed to know them by.
    pub async fn forget_deliveries(&self, before: Timestamp, most: i64) -> Result<u64, StoreError> {
        let old = "SELECT id FROM deliveries WHERE state IN ('done', 'failed') AND received_at < ? ORDER BY id LIMIT ?";
        let done = sqlx::query(&format!("DELETE FROM deliveries WHERE id IN ({old})"))
            .bind(millis(before))
            .bind(most)
            .execute(&self.writer)
            .await?;
        Ok(done.rows_affected())
    }
}

async fn finish_delivery(
    connection: &mut SqliteConnection,
    id: i64,
    outcome: &str,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE deliveries SET state = 'done', outcome = ? WHERE id = ?")
        .bind(outcome)
        .bind(id)
        .execute(connection)
        .await?;
    Ok(())
}

async fn insert(
    connection: &mut SqliteConnection,
    delivery: &NewDelivery,
) -> Result<Inserted, StoreError> {
    let state = match delivery.outcome {
        Some(_) => DeliveryState::Done,
        None => DeliveryState::Stored,
    };
    let new: Option<i64> = sqlx::query_scalar(
        "INSERT INTO deliveries (guid, event, body, body_sha256, received_at, state, outcome)
         VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (guid) DO NOTHING RETURNING id",
    )
    .bind(&delivery.guid)
    .bind(&delivery.event)
    .bind(&*delivery.body)
    .bind(&delivery.sha256)
    .bind(millis(delivery.received_at))
    .bind(state.as_str())
    .bind(&delivery.outcome)
    .fetch_optional(&mut *connection)
    .await?;
    if let Some(id) = new {
        return Ok(Inserted::New(id));
    }
    let (id, sha256, event, state): (i64, String, String, String) =
        sqlx::query_as("SELECT id, body_sha256, event, state FROM deliveries WHERE guid = ?")
            .bind(&delivery.guid)
            .fetch_one(&mut *connection)
            .await?;
    let is_fetched = [&sha256, &delivery.sha256]
        .into_iter()
        .any(|digest| digest == NewDelivery::FETCHED);
    if (sha256 != delivery.sha256 && !is_fetched) || event != delivery.event {
        return Ok(Inserted::Conflict);
    }
    match DeliveryState::from_stored(&state)? {
        DeliveryState::Failed => {
            sqlx::query(
                "UPDATE deliveries SET state = 'stored', tries = 0, not_before = 0 WHERE id = ?",
            )
            .bind(id)
            .execute(connection)
            .await?;
            Ok(Inserted::TriedAgain(id))
        }
        known @ (DeliveryState::Stored | DeliveryState::Done) => Ok(Inserted::Known(known)),
    }
}

/// Stores deliveries that come at the same time in one transaction, so that they share its fsync.
/// Its task ends with the last clone.
#[derive(Debug, Clone)]
pub struct DeliveryWriter {
    queue: mpsc::Sender<Waiting>,
}

struct Waiting {
    delivery: NewDelivery,
    answer: oneshot::Sender<Result<Inserted, StoreError>>,
}

impl DeliveryWriter {
    /// Starts the writer's task.
    pub fn start(store: Store) -> DeliveryWriter {
        let (queue, waiting) = mpsc::channel(QUEUE);
        tokio::spawn(write_batches(store, waiting));
        DeliveryWriter { queue }
    }

    /// Stores the delivery; durable when this returns.
    pub async fn insert(&self, delivery: NewDelivery) -> Result<Inserted, StoreError> {
        let (answer, result) = oneshot::channel();
        let stopped = || StoreError::Sql(sqlx::Error::WorkerCrashed);
        self.queue
            .send(Waiting { delivery, answer })
            .await
            .map_err(|_| stopped())?;
        result.await.map_err(|_| stopped())?
    }
}

async fn write_batches(store: Store, mut waiting: mpsc::Receiver<Waiting>) {
    let mut batch = Vec::with_capacity(BATCH);
    while waiting.recv_many(&mut batch, BATCH).await > 0 {
        let written = write(&store, &batch).await;
        match written {
            Ok(inserted) => {
                for (waiting, inserted) in batch.drain(..).zip(inserted) {
                    // The request may have gone away; the delivery is stored all the same.
                    drop(waiting.answer.send(Ok(inserted)));
                }
            }
            // GitHub does not wait for each of them in turn.
            Err(error) if error.is_busy() => {
                for waiting in batch.drain(..) {
                    let error = StoreError::Unavailable(error.to_string());
                    drop(waiting.answer.send(Err(error)));
                }
            }
            // One that cannot be stored must not take the others with it: each alone.
            Err(_) => {
                for waiting in batch.drain(..) {
                    let result = store.insert_delivery(&waiting.delivery).await;
                    drop(waiting.answer.send(result));
                }
            }
        }
    }
}

async fn write(store: &Store, batch: &[Waiting]) -> Result<Vec<Inserted>, StoreError> {
    let mut transaction = store.write().await?;
    let mut inserted = Vec::with_capacity(batch.len());
    for waiting in batch {
        inserted.push(insert(&mut transaction, &waiting.delivery).await?);
    }
    transaction.commit().await?;
    Ok(inserted)
}
