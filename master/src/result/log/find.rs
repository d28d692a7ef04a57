//! Where a log is: in files, in the object store, or nowhere yet.
//!
//! ```text
//!  in use by somebody and not sealed? ─yes─► its files
//!    └no─► a record in `logs`? ─yes─► its object
//!            └no─► look at the folder, enter it as in use, look for a record once more
//! ```

use super::live::Live;
use super::{LogError, Logs, blocking};
use crate::model::JobId;
use crate::store::results::LogRow;
use std::collections::HashMap;
use std::sync::{Arc, MutexGuard, PoisonError, Weak};

/// Where the log of a job is.
pub(super) enum Whereabouts {
    Live(Arc<Live>),
    Sealed(Arc<LogRow>),
}

impl Logs {
    /// Finds a log. One that is nowhere is live and empty: its job may be about to start.
    pub(super) async fn find(&self, job: JobId) -> Result<Whereabouts, LogError> {
        let known = self.registry().get(&job).and_then(Weak::upgrade);
        if let Some(live) = known
            && !live.is_sealed()
        {
            return Ok(Whereabouts::Live(live));
        }
        if let Some(row) = self.record_of(job).await? {
            return Ok(Whereabouts::Sealed(row));
        }
        let folder = self.folder(job);
        let cap = self.shared.cap;
        let fresh = blocking(move || {
            let error = |e| LogError::io("look at", job, &folder, e);
            Live::open(job, folder.clone(), cap).map_err(error)
        })
        .await??;
        let live = {
            let mut registry = self.registry();
            registry.retain(|_, live| live.strong_count() > 0);
            match registry.get(&job).and_then(Weak::upgrade) {
                Some(live) => live,
                None => {
                    let live = Arc::new(fresh);
                    registry.insert(job, Arc::downgrade(&live));
                    live
                }
            }
        };
        // It may have been sealed between the first look and the files: whoever seals from now on meets our entry.
        if let Some(row) = self.record_of(job).await? {
            live.set_sealed();
            live.tell_length(row.length);
            live.tell_complete();
            return Ok(Whereabouts::Sealed(row));
        }
        Ok(Whereabouts::Live(live))
    }

    async fn record_of(&self, job: JobId) -> Result<Option<Arc<LogRow>>, LogError> {
        if let Some(row) = self.shared.frames.known(job) {
            return Ok(Some(row));
        }
        let row = self.shared.store.sealed_log(job).await;
        let row = row.map_err(|source| LogError::Store { job, source })?;
        Ok(row.map(|row| self.shared.frames.remember(row)))
    }

    pub(super) async fn forget(&self, job: JobId) -> Result<(), LogError> {
        let forgotten = self.shared.store.forget_log(job).await;
        self.shared.frames.forget(job);
        // A job that is run again begins a new log.
        self.registry().remove(&job);
        forgotten.map_err(|source| LogError::Store { job, source })
    }

    fn registry(&self) -> MutexGuard<'_, HashMap<JobId, Weak<Live>>> {
        let live = self.shared.live.lock();
        live.unwrap_or_else(PoisonError::into_inner)
    }
}
