//! Why no job is placed, though some wait: an operator's drain, a disk without room, an object store that is away.
//!
//! ```text
//!  row of `drain` ─┐
//!  statvfs ────────┤
//!  backlog ────────┴─► look ─► none: jobs are placed │ some: jobs wait, and pages and metrics say why
//! ```
//!
//! Only placing pauses. Deliveries are stored and builds prepared all the same, and what runs goes on.

use super::backlog::SharedBacklog;
use super::disks::{Disks, FileSystem};
use crate::config::Config;
use crate::model::{AfterDrain, Drain};
use crate::store::Store;
use anyhow::Context;
use serde::Serialize;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "reason", rename_all = "snake_case")]
pub enum Pause {
    Drain(Drain),
    DiskFull {
        file_system: FileSystem,
        min_free_mib: u64,
    },
    /// Results wait here for the object store, and there may be no more of them.
    ResultsWait {
        mib: u64,
        pending_mib: u64,
    },
}

impl Pause {
    /// Each reason's name, for metrics.
    pub const NAMES: [&'static str; 3] = ["drain", "disk_full", "results_wait"];

    pub fn name(&self) -> &'static str {
        match self {
            Pause::Drain(_) => "drain",
            Pause::DiskFull { .. } => "disk_full",
            Pause::ResultsWait { .. } => "results_wait",
        }
    }

    fn is_same_as(&self, other: &Pause) -> bool {
        match (self, other) {
            (Pause::Drain(one), Pause::Drain(other)) => one == other,
            // The room changes all the time.
            (
                Pause::DiskFull { file_system, .. },
                Pause::DiskFull {
                    file_system: other, ..
                },
            ) => file_system.mount == other.mount,
            (Pause::ResultsWait { .. }, Pause::ResultsWait { .. }) => true,
            (Pause::Drain(_) | Pause::DiskFull { .. } | Pause::ResultsWait { .. }, _) => false,
        }
    }
}

impl fmt::Display for Pause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pause::Drain(drain) => {
                let since = drain.since.strftime("%Y-%m-%d %H:%M:%S UTC");
                write!(f, "The master is drained since {since}: no job starts")?;
                match drain.then {
                    AfterDrain::Stay => f.write_str(" until `vivarium resume`"),
                    AfterDrain::Stop => f.write_str(", and it stops once nothing runs"),
                }
            }
            Pause::DiskFull {
                file_system,
                min_free_mib,
            } => write!(
                f,
                "No job starts while the file system {} (with {}) has less than {min_free_mib} MiB free: it has {} MiB",
                file_system.mount.display(),
                file_system.folder.display(),
                file_system.free_mib
            ),
            Pause::ResultsWait { mib, pending_mib } => write!(
                f,
                "No job starts while more than {pending_mib} MiB of logs and artefacts wait for the object store: there are {mib} MiB"
            ),
        }
    }
}

/// Looks at all reasons; clones share what the last look found.
#[derive(Debug, Clone)]
pub struct Pauses {
    store: Store,
    pub disks: Disks,
    pub backlog: SharedBacklog,
    pending_mib: u64,
    found: Arc<Mutex<Arc<[Pause]>>>,
}

impl Pauses {
    pub fn of(config: &Config, store: Store, backlog: SharedBacklog) -> Pauses {
        Pauses {
            store,
            disks: Disks::of(config),
            backlog,
            pending_mib: config.storage.pending_mib,
            found: Arc::new(Mutex::new(Arc::new([]))),
        }
    }

    /// Looks now; what begins or ends is logged.
    pub async fn look(&self) -> anyhow::Result<Arc<[Pause]>> {
        let mut now = Vec::new();
        if let Some(drain) = self.store.drain().await? {
            now.push(Pause::Drain(drain));
        }
        let min_free_mib = self.disks.min_free_mib;
        let file_systems = self.disks.look().await.context("no job is placed")?;
        let full = file_systems
            .into_iter()
            .filter(|file_system| file_system.free_mib < min_free_mib);
        now.extend(full.map(|file_system| Pause::DiskFull {
            file_system,
            min_free_mib,
        }));
        now.extend(self.backlog.now().pause(self.pending_mib));
        let now: Arc<[Pause]> = now.into();
        let before = std::mem::replace(&mut *self.lock(), Arc::clone(&now));
        tell_change(&before, &now);
        Ok(now)
    }

    /// What the last look found.
    pub fn now(&self) -> Arc<[Pause]> {
        Arc::clone(&self.lock())
    }

    /// What a person who looks at any page should know.
    pub fn notices(&self) -> Vec<String> {
        let mut notices: Vec<String> = self.now().iter().map(ToString::to_string).collect();
        let backlog = self.backlog.now();
        if let Some(trouble) = backlog.trouble {
            notices.push(format!(
                "Results of {} jobs ({} MiB) wait here for the object store: {trouble}",
                backlog.jobs,
                backlog.bytes >> 20
            ));
        }
        notices
    }

    fn lock(&self) -> MutexGuard<'_, Arc<[Pause]>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn tell_change(before: &[Pause], now: &[Pause]) {
    let is_in = |pause: &Pause, list: &[Pause]| list.iter().any(|other| pause.is_same_as(other));
    for pause in now.iter().filter(|pause| !is_in(pause, before)) {
        tracing::warn!(reason = pause.name(), "{pause}");
    }
    for pause in before.iter().filter(|pause| !is_in(pause, now)) {
        tracing::info!(
            reason = pause.name(),
            "jobs are not held up by this any more"
        );
    }
}
