//! What waits here for the object store: how much, since when, and why.

use super::pause::Pause;
use crate::model::JobId;
use crate::result::artifacts::Artifacts;
use crate::result::log::Logs;
use crate::store::Store;
use anyhow::Context;
use jiff::Timestamp;
use serde::Serialize;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Logs and artefacts of ended jobs that are not in the object store.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Backlog {
    pub jobs: usize,
    pub bytes: u64,
    /// When the first of these jobs ended.
    pub oldest: Option<Timestamp>,
    /// Why the store did not take the last, while it takes none.
    pub trouble: Option<String>,
}

impl Backlog {
    /// Whether it is too much for more jobs to start.
    pub(crate) fn pause(&self, pending_mib: u64) -> Option<Pause> {
        let mib = self.bytes >> 20;
        (mib > pending_mib).then_some(Pause::ResultsWait { mib, pending_mib })
    }
}

/// What was last found; clones share it.
#[derive(Debug, Clone, Default)]
pub struct SharedBacklog(Arc<Mutex<Backlog>>);

impl SharedBacklog {
    pub fn now(&self) -> Backlog {
        self.lock().clone()
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Backlog> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ended jobs with something that waits, by their numbers, and how much that is.
pub(crate) async fn look(
    store: &Store,
    logs: &Logs,
    artifacts: &Artifacts,
) -> anyhow::Result<(BTreeSet<JobId>, Backlog)> {
    let mut waiting: BTreeSet<JobId> = logs.unsealed().await?.into_iter().collect();
    let sets = artifacts.waiting().await.context("artefacts that wait")?;
    waiting.extend(sets);
    let unfinished: BTreeSet<JobId> = store.unfinished_jobs().await?.into_iter().collect();
    waiting.retain(|job| !unfinished.contains(job));
    let mut backlog = Backlog {
        jobs: waiting.len(),
        ..Backlog::default()
    };
    for job in &waiting {
        backlog.bytes += artifacts.waiting_bytes(*job).await? + logs.waiting_bytes(*job).await?;
    }
    if let Some(first) = waiting.first() {
        let job = store.job(*first).await?;
        backlog.oldest = job.and_then(|job| job.finished_at);
    }
    Ok((waiting, backlog))
}
