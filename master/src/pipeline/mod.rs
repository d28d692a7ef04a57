//! Joins the stages: the only place that knows them all.
//!
//! ```text
//!  intake ──► prepare ──► schedule ──► drive (work, collect)
//!     │          │            │           │
//!     └──────────┴─────► ledger ◄─────────┘ ──► outbox ──► report
//! ```
//!
//! Every loop is level-triggered: it looks at the rows, takes a step, looks again. Starting is just a first look.

mod collect;
mod drive;
pub mod intake;
pub mod ledger;
mod prepare;
mod schedule;
pub mod signals;
mod transcript;
mod work;

pub use drive::Machinery;

use crate::model::JobState;
use crate::placement::Capacity;
use intake::Intake;
use ledger::Ledger;
use prepare::Preparer;
use schedule::Scheduler;
use signals::Signals;
use std::sync::Arc;
use tokio::task::JoinSet;

/// The running stages between the events and the outbox.
#[derive(Debug)]
pub struct Pipeline {
    pub intake: Intake,
    pub ledger: Ledger,
    pub signals: Signals,
    pub machinery: Arc<Machinery>,
    pub capacity: Capacity,
}

impl Pipeline {
    /// Runs all loops until the future is dropped; guests are left as they are then.
    pub async fn run(self) {
        let mut loops = JoinSet::new();
        let config = self.machinery.config.clone();
        loops.spawn(
            self.intake
                .clone()
                .run_deliveries(self.signals.deliveries.clone()),
        );
        for repository in &config.repositories {
            if let Some(every) = repository.poll_interval() {
                loops.spawn(self.intake.clone().run_poll(repository.clone(), every));
            }
        }
        let preparer = Preparer {
            ledger: self.ledger.clone(),
            sources: self.machinery.sources.clone(),
            platforms: self.machinery.platforms.clone(),
            config,
        };
        loops.spawn(preparer.run(self.signals.preparation.clone()));
        let scheduler = Scheduler::new(self.ledger.clone(), self.machinery.clone(), self.capacity);
        loops.spawn(scheduler.run(self.signals.scheduling.clone()));
        loops.spawn(seal_finished_logs(
            self.machinery.clone(),
            self.ledger.clone(),
        ));
        while let Some(ended) = loops.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a loop of the pipeline broke off: restart the master");
            }
        }
    }
}

/// Seals what a master that was stopped between a job's end and its log's left behind.
async fn seal_finished_logs(machinery: Arc<Machinery>, ledger: Ledger) {
    let unsealed = match machinery.logs.unsealed().await {
        Ok(unsealed) => unsealed,
        Err(error) => {
            tracing::warn!(%error, "logs in segments cannot be listed");
            return;
        }
    };
    for id in unsealed {
        match ledger.store.job(id).await {
            Ok(Some(job)) if job.state == JobState::Finished => {
                if let Err(error) = machinery.logs.seal(id).await {
                    tracing::warn!(job = %id, %error, "log cannot be sealed");
                }
            }
            Ok(Some(_) | None) => {}
            Err(error) => tracing::warn!(job = %id, %error, "log cannot be sealed"),
        }
    }
}
