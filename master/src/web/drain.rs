//! Draining: no job starts, those that run end.

use super::App;
use super::error::{ApiError, Body};
use super::views::JobView;
use crate::model::{AfterDrain, JobState};
use crate::store::StoreError;
use axum::Json;
use axum::extract::State;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// The body of `POST /api/drain`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DrainRequest {
    pub(crate) then: AfterDrain,
}

/// Whether the master takes jobs, and what still runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DrainView {
    /// When the drain began; none while jobs are taken.
    pub since: Option<Timestamp>,
    pub then: Option<AfterDrain>,
    /// Jobs with a machine, those included whose machine is being removed.
    pub running: Vec<JobView>,
    /// Jobs that wait, durably.
    pub queued: usize,
}

pub(super) async fn show(State(app): State<App>) -> Result<Json<DrainView>, ApiError> {
    Ok(Json(app.drain_view().await?))
}

pub(super) async fn begin(
    State(app): State<App>,
    Body(request): Body<DrainRequest>,
) -> Result<Json<DrainView>, ApiError> {
    let store = &app.ledger.store;
    store.begin_drain(request.then, Timestamp::now()).await?;
    app.pauses.look().await.map_err(ApiError::internal)?;
    show(State(app)).await
}

pub(super) async fn resume(State(app): State<App>) -> Result<Json<DrainView>, ApiError> {
    app.ledger.store.end_drain().await?;
    app.pauses.look().await.map_err(ApiError::internal)?;
    app.ledger.wake();
    show(State(app)).await
}

impl App {
    async fn drain_view(&self) -> Result<DrainView, StoreError> {
        let store = &self.ledger.store;
        let drain = store.drain().await?;
        let live: BTreeSet<_> = store
            .live_attempts()
            .await?
            .into_iter()
            .map(|attempt| attempt.job)
            .collect();
        let mut running = Vec::new();
        for id in live {
            if let Some(job) = store.job(id).await? {
                running.push(self.job_view(job).await?);
            }
        }
        Ok(DrainView {
            since: drain.map(|drain| drain.since),
            then: drain.map(|drain| drain.then),
            running,
            queued: store.jobs_in(JobState::Queued).await?.len(),
        })
    }
}
