//! What jobs left goes to the object store, once they have ended.
//!
//! ```text
//!        ┌──────────► look: ended jobs with a log in segments or a set of artefacts that waits
//!        │              │ a few at once; one, while the store does not answer
//!  wake, something      ▼
//!  ended, a while ◄── send the set, seal the log: they are there, and not here any more
//! ```
//!
//! A store that is away costs no job anything: all of it waits here, can be read here, and counts against
//! `pending_mib`. What is there is looked at each time, so a start is a first look.

use super::backlog::{Backlog, SharedBacklog, look};
use crate::model::{JobId, JobState};
use crate::pulse::Pulse;
use crate::result::artifacts::{ArtifactError, Artifacts};
use crate::result::log::{LogError, Logs};
use crate::store::{Store, StoreError};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::Instant;

/// How often is looked without a wake-up.
const LOOK_INTERVAL: Duration = Duration::from_secs(30);
/// Jobs whose results are sent at the same time: each has two parts of 8 MiB on their way.
const AT_ONCE: usize = 4;
/// After the store refused; doubled each time up to the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(120);
/// Before a job is tried again whose files are at fault.
const JOB_PAUSE: Duration = Duration::from_secs(60);

/// Sends results; [`Keeper::run`] is its loop.
#[derive(Debug)]
pub(super) struct Keeper {
    pub(super) store: Store,
    pub(super) logs: Logs,
    pub(super) artifacts: Artifacts,
    pub(super) backlog: SharedBacklog,
}

/// What the loop remembers between two looks.
#[derive(Debug, Default)]
struct Sends {
    tasks: JoinSet<Result<(), KeepError>>,
    under_way: HashMap<Id, JobId>,
    paused_until: Option<Instant>,
    /// Refusals of the store in a row.
    refusals: u32,
    /// Jobs that are at fault themselves, and until when they are left.
    set_aside: HashMap<JobId, Instant>,
}

#[derive(Debug, thiserror::Error)]
enum KeepError {
    #[error(transparent)]
    Artifacts(#[from] ArtifactError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the database does not know this job")]
    Unknown,
}

impl KeepError {
    /// Whether the object store is at fault, and so every job is in for the same.
    fn is_the_stores(&self) -> bool {
        matches!(
            self,
            KeepError::Artifacts(ArtifactError::Object { .. })
                | KeepError::Log(LogError::Object { .. })
        )
    }
}

impl Keeper {
    pub(super) async fn run(self, wake: Arc<Notify>, pulse: Pulse) {
        let mut sends = Sends::default();
        loop {
            pulse.beat();
            let rest = match look(&self.store, &self.logs, &self.artifacts).await {
                Ok((waiting, found)) => {
                    self.tell(&found);
                    self.start(&waiting, &mut sends)
                }
                Err(error) => {
                    tracing::warn!(
                        error = format!("{error:#}"),
                        "cannot see what waits for the object store"
                    );
                    LOOK_INTERVAL
                }
            };
            tokio::select! {
                biased;
                Some(ended) = sends.tasks.join_next_with_id() => self.ended(ended, &mut sends),
                () = wake.notified() => {}
                () = tokio::time::sleep(rest) => {}
            }
        }
    }

    fn tell(&self, found: &Backlog) {
        let mut backlog = self.backlog.lock();
        let trouble = backlog.trouble.take().filter(|_| found.jobs > 0);
        *backlog = Backlog { trouble, ..*found };
    }

    /// Starts what there is room for; says how long there is nothing else to do.
    fn start(&self, waiting: &BTreeSet<JobId>, sends: &mut Sends) -> Duration {
        let now = Instant::now();
        sends.set_aside.retain(|_, until| *until > now);
        if let Some(until) = sends.paused_until.filter(|until| *until > now) {
            return until - now;
        }
        let busy: BTreeSet<JobId> = sends.under_way.values().copied().collect();
        // After a refusal one goes ahead and shows whether the store is back.
        let most = if sends.refusals > 0 { 1 } else { AT_ONCE };
        let due = waiting
            .iter()
            .filter(|job| !busy.contains(job) && !sends.set_aside.contains_key(job))
            .take(most.saturating_sub(busy.len()));
        for job in due {
            let task = sends.tasks.spawn(keep(
                self.store.clone(),
                self.logs.clone(),
                self.artifacts.clone(),
                *job,
            ));
            sends.under_way.insert(task.id(), *job);
        }
        LOOK_INTERVAL
    }

    fn ended(&self, ended: Result<(Id, Result<(), KeepError>), JoinError>, sends: &mut Sends) {
        let (id, result) = match ended {
            Ok((id, result)) => (
                id,
                result.map_err(|error| (error.is_the_stores(), error.to_string())),
            ),
            Err(error) => (error.id(), Err((false, error.to_string()))),
        };
        let Some(job) = sends.under_way.remove(&id) else {
            return;
        };
        match result {
            Ok(()) => {
                // Should something be left of it all the same, it is not tried again and again at once.
                sends.set_aside.insert(job, Instant::now() + FIRST_PAUSE);
                if sends.refusals > 0 {
                    tracing::info!("the object store takes results again");
                }
                sends.refusals = 0;
                sends.paused_until = None;
                self.backlog.lock().trouble = None;
            }
            Err((true, why)) => {
                if sends.refusals == 0 {
                    tracing::warn!(%job, why, "the object store does not take results: they wait here");
                }
                let pause = FIRST_PAUSE
                    .saturating_mul(1 << sends.refusals.min(10))
                    .min(LONGEST_PAUSE);
                sends.refusals += 1;
                sends.paused_until = Some(Instant::now() + pause);
                self.backlog.lock().trouble = Some(why);
            }
            Err((false, why)) => {
                tracing::warn!(%job, why, "results wait here; trying again");
                sends.set_aside.insert(job, Instant::now() + JOB_PAUSE);
            }
        }
    }
}

/// Sends all that a job left. The log goes even where the artefacts cannot, and the other way round.
async fn keep(store: Store, logs: Logs, artifacts: Artifacts, id: JobId) -> Result<(), KeepError> {
    match store.job(id).await? {
        Some(job) if job.state == JobState::Finished => {}
        // It runs again.
        Some(_) => return Ok(()),
        None => return Err(KeepError::Unknown),
    }
    let sent = artifacts.send(id).await;
    logs.seal(id).await?;
    Ok(sent?)
}
