//! From queued jobs to running attempts: look at the rows, place what fits, start a driver for each.
//!
//! Attempts that have no driver, because the master was started anew, get one too: that is the whole of recovery.

use super::canary::{Canaries, Ended};
use super::drive::{Driver, Machinery};
use super::ledger::Ledger;
use super::patience::insist;
use super::pause::Pauses;
use crate::model::service::{Outcome, Service};
use crate::model::{Attempt, AttemptId, Ending, Job, JobState, Reason};
use crate::placement::{Capacity, Placement, Size, has_room, place};
use crate::pulse::Pulse;
use crate::queue::{Waiting, order};
use anyhow::Context;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// How often the queue is looked at without a wake-up.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// How often domains and files that belong to nobody are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);
/// How often the folder of platforms is looked at.
const PLATFORMS_INTERVAL: Duration = Duration::from_secs(3);

/// Owns the running drivers.
#[derive(Debug)]
pub(super) struct Scheduler {
    ledger: Ledger,
    machinery: Arc<Machinery>,
    capacity: Capacity,
    pauses: Pauses,
    /// What each driver is told: the wish to cancel.
    running: HashMap<AttemptId, watch::Sender<Option<Ending>>>,
    drivers: JoinSet<AttemptId>,
    canaries: Canaries,
}

impl Scheduler {
    pub(super) fn new(
        ledger: Ledger,
        machinery: Arc<Machinery>,
        capacity: Capacity,
        pauses: Pauses,
    ) -> Scheduler {
        Scheduler {
            ledger,
            machinery,
            capacity,
            pauses,
            running: HashMap::new(),
            drivers: JoinSet::new(),
            canaries: Canaries::default(),
        }
    }

    /// Runs for ever; dropping it leaves the guests as they are.
    pub(super) async fn run(mut self, wake: Arc<tokio::sync::Notify>, pulse: Pulse) {
        let mut swept: Option<Instant> = None;
        let mut platforms_read = Instant::now();
        loop {
            pulse.beat();
            if platforms_read.elapsed() >= PLATFORMS_INTERVAL {
                platforms_read = Instant::now();
                if self.machinery.platforms.reload() {
                    tracing::info!("platforms were read again");
                }
            }
            // Before the first job is placed: a database that was restored gives out numbers anew, and a machine from
            // after its backup may bear the next one.
            if swept.is_none_or(|at| at.elapsed() >= SWEEP_INTERVAL) {
                swept = Some(Instant::now());
                if let Err(error) = self.sweep().await {
                    tracing::warn!(
                        error = format!("{error:#}"),
                        "what nobody owns cannot be swept; trying again"
                    );
                }
            }
            if let Err(error) = self.look().await {
                tracing::error!(
                    error = format!("{error:#}"),
                    "the queue cannot be served; trying again"
                );
            }
            tokio::select! {
                biased;
                Some(ended) = self.drivers.join_next() => self.forget(ended),
                ended = self.canaries.next_end() => self.note_canary(ended).await,
                () = wake.notified() => {}
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
            }
        }
    }

    fn forget(&mut self, ended: Result<AttemptId, tokio::task::JoinError>) {
        match ended {
            Ok(id) => {
                self.running.remove(&id);
            }
            Err(error) => {
                // The attempt's row still says that it lives: the next look starts a new driver for it.
                tracing::error!(%error, "a driver broke off");
                self.running.retain(|_, cancel| cancel.receiver_count() > 0);
            }
        }
    }

    /// Only now that its slot is free, its platform may take jobs again.
    async fn note_canary(&self, ended: Option<Ended>) {
        let Some(ended) = ended else { return };
        let outcome = match &ended.came_up {
            Ok(()) => Outcome::Up,
            Err(ending) => Outcome::Failed(&ending.message),
        };
        let (ledger, name) = (&self.ledger, &ended.platform);
        insist(|| ledger.record_canary(name, &ended.files, outcome)).await;
    }

    async fn look(&mut self) -> anyhow::Result<()> {
        let live = self.ledger.store.live_attempts().await?;
        let running_jobs = self.ledger.store.jobs_in(JobState::Running).await?;
        for attempt in &live {
            if !self.running.contains_key(&attempt.id) {
                self.start_driver(attempt.clone()).await?;
            }
        }
        for job in &running_jobs {
            if let (Some(wish), Some(cancel)) = (
                &job.cancel,
                job.attempt.and_then(|id| self.running.get(&id)),
            ) {
                cancel.send_if_modified(|known| {
                    let is_new = known.is_none();
                    known.get_or_insert_with(|| wish.clone());
                    is_new
                });
            }
        }
        let boots = self.look_at_boots().await?;
        self.place(&live, &running_jobs, &boots).await
    }

    /// Tells who is out of service, whether or not jobs are placed.
    async fn look_at_boots(&self) -> anyhow::Result<BTreeMap<String, Service>> {
        let boots = self.ledger.store.platform_boots().await?;
        let out = boots.iter().filter(|(_, service)| service.out.is_some());
        let out = out.map(|(name, service)| (name.clone(), service.to_string()));
        self.machinery.platforms.put_out_of_service(out.collect());
        Ok(boots)
    }

    /// Ends a job that has waited long enough for a platform that is out of service.
    async fn end_patience(
        &self,
        job: &Job,
        boots: &BTreeMap<String, Service>,
    ) -> anyhow::Result<()> {
        // One whose new image is just being looked into is about to be tried.
        if !self.machinery.platforms.is_out_of_service(&job.platform) {
            return Ok(());
        }
        let secs = self.machinery.config.limits.platform_patience_secs;
        let now = self.ledger.clock.now();
        if let Some(service) = boots
            .get(&job.platform)
            .filter(|service| service.patience_is_over(job.queued_at, secs, now))
        {
            let message = format!(
                "The platform {} is {service}; the job waited {secs} s for it",
                job.platform
            );
            let ending = Ending::new(Reason::PlatformUnavailable, message);
            self.ledger.refuse(job.id, &ending).await?;
        }
        Ok(())
    }

    async fn place(
        &mut self,
        live: &[Attempt],
        running_jobs: &[Job],
        boots: &BTreeMap<String, Service>,
    ) -> anyhow::Result<()> {
        if !self.pauses.look().await?.is_empty() {
            return Ok(());
        }
        let now = self.ledger.clock.now();
        let mut sizes = BTreeMap::new();
        // Also of those that take no job now: their machines run, and canaries are tried.
        for platform in self.machinery.platforms.usable() {
            let size = Size {
                memory_mib: platform.memory_mib(),
                vcpus: platform.vcpus(),
                limit: platform.limit,
            };
            sizes.insert(platform.name.clone(), size);
        }
        let mut by_platform: BTreeMap<String, u32> = BTreeMap::new();
        let attempted = live.iter().map(|attempt| &attempt.platform);
        for platform in attempted.chain(self.canaries.platforms()) {
            *by_platform.entry(platform.clone()).or_default() += 1;
        }
        for due in self.canaries.due(boots, &self.machinery.platforms, now) {
            if has_room(&due.platform.name, self.capacity, &sizes, &by_platform) {
                *by_platform.entry(due.platform.name.clone()).or_default() += 1;
                self.canaries
                    .start(due, &self.machinery, &self.ledger.clock);
            }
        }
        let queued = self.ledger.store.jobs_in(JobState::Queued).await?;
        let mut waiting = Vec::new();
        for job in queued {
            if self.machinery.platforms.why_held(&job.platform).is_some() {
                self.end_patience(&job, boots).await?;
                continue;
            }
            if let Err(why) = self.machinery.platforms.get(&job.platform) {
                let ending = Ending::new(Reason::PlatformUnavailable, why);
                self.ledger.refuse(job.id, &ending).await?;
            } else if job.not_before <= now {
                waiting.push(Waiting {
                    job: job.id,
                    repository: job.repository,
                    platform: job.platform,
                    priority: job.priority,
                });
            }
        }
        let mut by_repository: HashMap<String, usize> = HashMap::new();
        for job in running_jobs {
            *by_repository.entry(job.repository.clone()).or_default() += 1;
        }
        let ordered = order(waiting, &by_repository);
        for placement in place(&ordered, self.capacity, &sizes, &by_platform) {
            match placement {
                Placement::Placed(job) => {
                    if let Some(attempt) = self.ledger.place(job).await? {
                        self.start_driver(attempt).await?;
                    }
                }
                Placement::Impossible(job, why) => {
                    let ending = Ending::new(Reason::PlatformUnavailable, why);
                    self.ledger.refuse(job, &ending).await?;
                }
            }
        }
        Ok(())
    }

    async fn start_driver(&mut self, attempt: Attempt) -> anyhow::Result<()> {
        let job = self.ledger.store.job(attempt.job).await?.with_context(|| {
            format!(
                "{} is an attempt of {}, which is not there",
                attempt.id, attempt.job
            )
        })?;
        let build =
            self.ledger.store.build(job.build).await?.with_context(|| {
                format!("{} is a job of {}, which is not there", job.id, job.build)
            })?;
        let (cancel, cancelled) = watch::channel(job.cancel.clone());
        let id = attempt.id;
        let driver = Driver::new(
            self.ledger.clone(),
            self.machinery.clone(),
            build,
            job,
            attempt,
            cancelled,
        );
        self.running.insert(id, cancel);
        self.drivers.spawn(async move {
            driver.run().await;
            id
        });
        Ok(())
    }

    async fn sweep(&self) -> anyhow::Result<()> {
        let live: HashSet<AttemptId> = self
            .ledger
            .store
            .live_attempts()
            .await?
            .iter()
            .map(|attempt| attempt.id)
            .chain(self.canaries.machines())
            .collect();
        let swept = self.machinery.machines.sweep(&live).await?;
        if !swept.is_empty() {
            tracing::warn!(?swept, "removed what belonged to no live attempt");
        }
        Ok(())
    }
}
