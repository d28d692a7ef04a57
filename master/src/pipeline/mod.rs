//! Joins the stages: the only place that knows them all.
//!
//! ```text
//!  reconcile ──► intake ──► prepare ──► schedule ──► drive (work, collect)
//!      │           │          │            │           │
//!      └───────────┴──────────┴──► ledger ◄┴───────────┘ ──► outbox ──► report
//! ```
//!
//! Every loop is level-triggered: it looks at the rows, takes a step, looks again. Starting is just a first look.

pub mod backlog;
mod canary;
pub mod certification;
mod collect;
pub mod disks;
mod drive;
mod evidence;
mod inspect;
pub mod intake;
mod keep;
pub mod ledger;
mod patience;
pub mod pause;
mod prepare;
pub(crate) mod reach;
mod reconcile;
mod retention;
mod schedule;
pub mod signals;
mod transcript;
mod work;

pub use drive::Machinery;

use crate::github::GitHub;
use crate::placement::Capacity;
use backlog::SharedBacklog;
use certification::Certification;
use inspect::Inspector;
use intake::Intake;
use keep::Keeper;
use ledger::Ledger;
use pause::Pauses;
use prepare::Preparer;
use reconcile::Reconciler;
use retention::Retention;
use schedule::Scheduler;
use signals::Signals;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;

/// The longest rounds that are in order. A delivery waits for the database, for seconds where another process holds it;
const DELIVERIES_ROUND: Duration = Duration::from_secs(120);
/// a first fetch of a large repository may take two hours;
const PREPARATION_ROUND: Duration = Duration::from_secs(3 * 3600);
/// a sweep waits for libvirt, for minutes where that is slow to end a machine.
const SCHEDULING_ROUND: Duration = Duration::from_secs(15 * 60);
/// Looking through what waits for the object store is file work, and there may be much of it.
const RESULTS_ROUND: Duration = Duration::from_secs(15 * 60);
/// Looking for images to look into is quick; the looks are tasks of their own.
const INSPECTION_ROUND: Duration = Duration::from_secs(120);
/// A large image is read once to be hashed.
const CERTIFICATES_ROUND: Duration = Duration::from_secs(3600);
/// Retention rests for an hour.
const RETENTION_ROUND: Duration = Duration::from_secs(2 * 3600);

/// The running stages between the events and the outbox.
#[derive(Debug)]
pub struct Pipeline {
    pub intake: Intake,
    pub ledger: Ledger,
    pub signals: Signals,
    pub machinery: Arc<Machinery>,
    pub capacity: Capacity,
    pub pauses: Pauses,
    pub backlog: SharedBacklog,
    /// Where there is one to be looked at.
    pub github: Option<Arc<GitHub>>,
    /// Where images are tested.
    pub certification: Option<Certification>,
}

impl Pipeline {
    /// Runs all loops until the future is dropped; guests are left as they are then. It resolves only when a loop
    /// broke off.
    pub async fn run(self) -> anyhow::Error {
        let mut loops = JoinSet::new();
        let config = self.machinery.config.clone();
        let pulses = &self.signals.pulses;
        let retention = config.retention;
        loops.spawn(self.intake.clone().run_deliveries(
            self.signals.deliveries.clone(),
            pulses.watch("deliveries", DELIVERIES_ROUND),
        ));
        for repository in &config.repositories {
            if let Some(every) = repository.poll_interval() {
                loops.spawn(self.intake.clone().run_poll(repository.clone(), every));
            }
        }
        if let Some(github) = self.github.filter(|_| config.github.reconcile_secs > 0) {
            let reconciler =
                Reconciler::new(github, self.intake.clone(), self.signals.deliveries.clone());
            loops.spawn(reconciler.run(pulses.watch("reconciliation", reconcile::ROUND)));
        }
        let preparer = Preparer::new(self.ledger.clone(), &self.machinery);
        loops.spawn(preparer.run(
            self.signals.preparation.clone(),
            pulses.watch("preparation", PREPARATION_ROUND),
        ));
        let scheduler = Scheduler::new(
            self.ledger.clone(),
            self.machinery.clone(),
            self.capacity,
            self.pauses,
        );
        loops.spawn(scheduler.run(
            self.signals.scheduling.clone(),
            pulses.watch("scheduling", SCHEDULING_ROUND),
        ));
        let inspector = Inspector {
            platforms: self.machinery.platforms.clone(),
            machines: self.machinery.machines.clone(),
            signals: self.signals.clone(),
            required: self
                .certification
                .as_ref()
                .filter(|_| config.images.require_certificate)
                .map(|certification| certification.bench.hashes.clone()),
        };
        if let Some(certification) = self.certification {
            let pulse = pulses.watch("certificates", CERTIFICATES_ROUND);
            loops.spawn(certification.clone().run_looks(pulse));
            loops.spawn(certification.run_nightly(self.signals.clone()));
        }
        loops.spawn(inspector.run(pulses.watch("inspection", INSPECTION_ROUND)));
        let keeper = Keeper {
            store: self.ledger.store.clone(),
            logs: self.machinery.logs.clone(),
            artifacts: self.machinery.artifacts.clone(),
            backlog: self.backlog,
        };
        loops.spawn(keeper.run(
            self.signals.results.clone(),
            pulses.watch("results", RESULTS_ROUND),
        ));
        let retention = Retention {
            config: retention,
            store: self.ledger.store.clone(),
            logs: self.machinery.logs.clone(),
            artifacts: self.machinery.artifacts.clone(),
            clock: self.ledger.clock.clone(),
            refused: retention::Refused::default(),
        };
        loops.spawn(retention.run(pulses.watch("retention", RETENTION_ROUND)));
        let ended = loops.join_next().await;
        match ended {
            Some(Err(error)) => {
                anyhow::Error::new(error).context("a loop of the pipeline broke off")
            }
            Some(Ok(())) | None => anyhow::anyhow!("a loop of the pipeline ended"),
        }
    }
}
