//! Everybody who speaks to the master: GitHub by its deliveries, people, and those who read along.

use super::hypervisor::write_consoles;
use super::life::Outcome;
use super::plan::{Delivery, Happening, LOCAL, MAIN, REPOSITORY};
use super::world::{Moment, World};
use crate::model::{BuildId, Ending, JobId, Reason};
use crate::pipeline::intake::Intake;
use crate::pipeline::ledger::Ledger;
use crate::pipeline::signals::Signals;
use crate::result::log::Logs;
use crate::store::{Inserted, NewDelivery, Store, StoreError};
use bytes::Bytes;
use sha2::{Digest, Sha256};
use sqlx::SqlitePool;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// All must have come to its end by then: retries, timeouts and pauses of a minute's troubles, many times over.
const END: Moment = Duration::from_secs(3600);
/// How often the world looks whether there is anything to do.
const LOOK: Duration = Duration::from_secs(1);

/// Everybody who speaks to the master.
pub(super) struct Outside {
    pub(super) world: Arc<World>,
    pub(super) pool: SqlitePool,
    pub(super) store: Store,
    pub(super) intake: Intake,
    pub(super) ledger: Ledger,
    pub(super) signals: Signals,
    pub(super) logs: Logs,
    /// Jobs whose log somebody follows.
    pub(super) readers: BTreeSet<JobId>,
}

impl Outside {
    pub(super) async fn run(mut self, must_be_swept: bool) -> Outcome {
        loop {
            let boots = write_consoles(&self.world);
            while let Some(happening) = self.due() {
                self.world.happen(&happening);
                self.act(&happening).await;
            }
            if self.world.plan.has_readers {
                self.read_logs().await;
            }
            if self.world.now() > END {
                return Outcome::Stuck;
            }
            if self.world.state().happenings.is_empty() && self.is_settled(must_be_swept).await {
                return Outcome::Settled;
            }
            let happens = self.world.state().happenings.first().map(|(at, _)| *at);
            let now = self.world.now();
            let next = [happens, boots].into_iter().flatten().min();
            let rest = next.map_or(LOOK, |at| at.saturating_sub(now)).min(LOOK);
            tokio::time::sleep(rest).await;
        }
    }

    fn due(&self) -> Option<Happening> {
        let now = self.world.now();
        let mut state = self.world.state();
        match state.happenings.first() {
            Some((at, _)) if *at <= now => Some(state.happenings.remove(0).1),
            Some(_) | None => None,
        }
    }

    async fn act(&self, happening: &Happening) {
        let acted = match happening {
            Happening::Delivery(delivery) => {
                self.deliver(delivery).await;
                Ok(())
            }
            Happening::CancelBuild(which) => self.cancel_build(*which).await,
            Happening::CancelJob(which) => self.cancel_job(*which).await,
            Happening::Rerun(which) => self.rerun(*which).await,
            Happening::Build => {
                self.build().await;
                Ok(())
            }
            Happening::HostReboots
            | Happening::MachineDies(_)
            | Happening::CutAll
            | Happening::Freeze(_)
            | Happening::ClockJumps(_)
            | Happening::Outage(..) => Ok(()),
        };
        if let Err(error) = acted {
            self.world.note("person", error);
        }
    }

    /// What the webhook does once the signature is checked.
    async fn deliver(&self, delivery: &Delivery) {
        let body = Bytes::from(delivery.body.to_string());
        let new = NewDelivery {
            guid: delivery.guid.clone(),
            event: delivery.event.to_owned(),
            sha256: hex::encode(Sha256::digest(&body)),
            body,
            received_at: self.ledger.clock.now(),
            outcome: None,
        };
        match self.store.insert_delivery(&new).await {
            Ok(Inserted::Conflict) => self.world.violated("a delivery is taken for another one"),
            Ok(Inserted::New(_) | Inserted::Known(_) | Inserted::TriedAgain(_)) => {
                self.world
                    .note("webhook", format_args!("{} is accepted", delivery.guid));
                self.world.state().accepted.insert(delivery.guid.clone());
                self.signals.deliveries.notify_one();
            }
            Err(error) => self.world.note("webhook", error),
        }
    }

    async fn cancel_build(&self, which: u64) -> Result<(), StoreError> {
        let all = self
            .store
            .recent_builds(Some(REPOSITORY), None, 100)
            .await?;
        let unfinished: Vec<BuildId> = all
            .iter()
            .filter(|build| build.finished_at.is_none())
            .map(|build| build.id)
            .collect();
        if !unfinished.is_empty() {
            let id = unfinished[which as usize % unfinished.len()];
            self.world.note("person", format_args!("cancels {id}"));
            self.ledger.cancel_build(id, &by_person()).await?;
        }
        Ok(())
    }

    async fn cancel_job(&self, which: u64) -> Result<(), StoreError> {
        let all = self
            .store
            .recent_builds(Some(REPOSITORY), None, 100)
            .await?;
        let mut jobs: Vec<JobId> = Vec::new();
        for build in all {
            let of_build = self.store.jobs_of(build.id).await?;
            jobs.extend(
                of_build
                    .iter()
                    .filter(|job| job.ending.is_none())
                    .map(|job| job.id),
            );
        }
        if !jobs.is_empty() {
            let id = jobs[which as usize % jobs.len()];
            self.world.note("person", format_args!("cancels {id}"));
            self.ledger.cancel_job(id, &by_person()).await?;
        }
        Ok(())
    }

    async fn rerun(&self, which: u64) -> Result<(), StoreError> {
        let all = self
            .store
            .recent_builds(Some(REPOSITORY), None, 100)
            .await?;
        if !all.is_empty() {
            let id = all[which as usize % all.len()].id;
            let jobs = self.ledger.rerun(id, None).await?;
            self.world
                .note("person", format_args!("reruns {jobs} jobs of {id}"));
        }
        Ok(())
    }

    /// Waits for the answer beside everything else, as a request does.
    async fn build(&self) {
        let (intake, world) = (self.intake.clone(), Arc::clone(&self.world));
        tokio::spawn(async move {
            let repository = intake.config.repository(REPOSITORY).expect("configured");
            match intake.build_ref(repository, MAIN, Vec::new()).await {
                Ok(id) => world.note("person", format_args!("asked for {id}")),
                Err(error) => world.note("person", error),
            }
        });
    }

    /// Somebody follows each log from where they are in it; nobody ever waits for them.
    async fn read_logs(&mut self) {
        let jobs: Result<Vec<i64>, _> = sqlx::query_scalar("SELECT id FROM jobs")
            .fetch_all(&self.pool)
            .await;
        for job in jobs.unwrap_or_default().into_iter().map(JobId) {
            if self.readers.insert(job) {
                tokio::spawn(follow(Arc::clone(&self.world), self.logs.clone(), job));
            }
        }
    }

    /// Whether nothing is left to do: for the master, for GitHub, and for the sweep of the last life.
    async fn is_settled(&self, must_be_swept: bool) -> bool {
        let polled = self.world.plan.local.last().map(|(_, sha)| sha.as_str());
        let look: Result<(i64, i64, i64), _> = sqlx::query_as(LOOK_AT_ALL)
            .bind(LOCAL)
            .bind(polled)
            .fetch_one(&self.pool)
            .await;
        let Ok((twofold, waiting, built)) = look else {
            return false;
        };
        if twofold > 0 {
            self.world.violated("a job is in two states");
        }
        let is_gone = |name| is_empty(&self.world.folder.join(name));
        let is_swept = || self.world.state().guests.is_empty() && is_gone("vms") && is_gone("logs");
        // What waits for the object store is not there yet.
        let is_stored = is_gone("artifacts");
        waiting == 0
            && (built > 0 || polled.is_none())
            && is_stored
            && (!must_be_swept || is_swept())
    }
}

/// Jobs that run without an attempt at work, or have one although they do not run, or have several; what is not done
/// yet; whether the last commit of the polled repository is built.
const LOOK_AT_ALL: &str = "SELECT \
     (SELECT COUNT(*) FROM jobs WHERE \
        (SELECT COUNT(*) FROM attempts WHERE attempts.job = jobs.id AND phase NOT IN ('cleaning_up', 'ended')) \
        <> (CASE state WHEN 'running' THEN 1 ELSE 0 END)), \
     (SELECT COUNT(*) FROM deliveries WHERE state = 'stored') \
        + (SELECT COUNT(*) FROM builds WHERE state <> 'finished') \
        + (SELECT COUNT(*) FROM attempts WHERE phase <> 'ended') \
        + (SELECT COUNT(*) FROM statuses WHERE refused IS NULL AND sent_version < version), \
     (SELECT COUNT(*) FROM builds WHERE repository = ? AND head_sha = ?)";

/// Reads on where the life before ended.
async fn follow(world: Arc<World>, logs: Logs, job: JobId) {
    loop {
        let from = world.state().read.entry(job).or_default().len() as u64;
        let read = async {
            logs.wait_beyond(job, from).await?;
            logs.chunk(job, from, 700).await
        };
        match read.await {
            Ok(chunk) => {
                let mut state = world.state();
                state
                    .read
                    .entry(job)
                    .or_default()
                    .extend_from_slice(&chunk.bytes);
                if chunk.complete {
                    return;
                }
            }
            // The object store may be out: one tries again.
            Err(_) => tokio::time::sleep(LOOK).await,
        }
    }
}

fn by_person() -> Ending {
    Ending::new(Reason::CancelledByPerson, "Cancelled by ada")
}

fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
}
