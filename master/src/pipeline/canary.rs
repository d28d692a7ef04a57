//! Canary boots: machines without a job, by which platforms that are out of service come back.
//!
//! ```text
//!  rows of platform_boots ─► due ─► start ─► reach ─► destroyed ─┬─► came up: back in service
//!                                                                └─► did not: a longer pause
//! ```
//!
//! A canary takes a slot like a job. Its machine bears a number which no attempt has, and ends with the master: as it stops,
//! or where it was killed by the first sweep of the next one.

use super::drive::Machinery;
use super::reach::{Reach, Recorder};
use crate::clock::Clock;
use crate::config::{Platforms, Standing};
use crate::model::service::Service;
use crate::model::{AttemptId, BootRecord, Ending, Platform};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::task::JoinSet;

/// The canaries under way, one a platform at most.
#[derive(Debug, Default)]
pub(super) struct Canaries {
    running: BTreeMap<String, AttemptId>,
    tasks: JoinSet<Ended>,
    /// Counts the canaries of this process.
    started: i64,
}

/// How one ended; nothing is left of its machine.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) platform: String,
    /// What the platform's files were.
    pub(super) files: String,
    pub(super) came_up: Result<(), Ending>,
}

/// A platform that is to be tried.
#[derive(Debug)]
pub(super) struct Due {
    pub(super) platform: Arc<Platform>,
    /// What its files are.
    files: String,
}

impl Canaries {
    /// The platforms of those under way.
    pub(super) fn platforms(&self) -> impl Iterator<Item = &String> {
        self.running.keys()
    }

    /// Their machines.
    pub(super) fn machines(&self) -> impl Iterator<Item = AttemptId> {
        self.running.values().copied()
    }

    /// Platforms out of service whose time has come, of which nothing else is in the way.
    pub(super) fn due(
        &self,
        boots: &BTreeMap<String, Service>,
        platforms: &Platforms,
        now: Timestamp,
    ) -> Vec<Due> {
        let tried = |name: &str, service: &Service| {
            let files = platforms.files_of(name);
            let is_due = service.is_canary_due(&files, now) && !self.running.contains_key(name);
            let listed = is_due.then(|| platforms.list())?;
            let listed = listed.into_iter().find(|listed| listed.name == name)?;
            match listed.standing {
                Standing::OutOfService(_) => Some(Due {
                    platform: listed.platform?,
                    files,
                }),
                Standing::Ready | Standing::Held(_) | Standing::Refused(_) => None,
            }
        };
        let tried = boots.iter().map(|(name, service)| tried(name, service));
        tried.flatten().collect()
    }

    pub(super) fn start(&mut self, due: Due, machinery: &Arc<Machinery>, clock: &Clock) {
        self.started += 1;
        let id = AttemptId::canary(self.started);
        self.running.insert(due.platform.name.clone(), id);
        let canary = Canary {
            machinery: Arc::clone(machinery),
            clock: clock.clone(),
            id,
            due,
        };
        self.tasks.spawn(canary.run());
    }

    /// Resolves when one has ended and its slot is free; never while none is under way.
    pub(super) async fn next_end(&mut self) -> Option<Ended> {
        match self.tasks.join_next().await {
            Some(Ok(ended)) => {
                self.running.remove(&ended.platform);
                Some(ended)
            }
            Some(Err(error)) => {
                // Which one it was is not known. The next looks begin anew, and the sweep removes what these leave.
                tracing::error!(%error, "a canary boot broke off");
                self.tasks.abort_all();
                self.running.clear();
                None
            }
            None => std::future::pending().await,
        }
    }
}

#[derive(Debug)]
struct Canary {
    machinery: Arc<Machinery>,
    clock: Clock,
    id: AttemptId,
    due: Due,
}

impl Canary {
    #[tracing::instrument(name = "canary", skip_all, fields(vm = %self.id, platform = self.due.platform.name))]
    async fn run(self) -> Ended {
        let machines = &self.machinery.machines;
        tracing::info!("a canary boot tries the platform");
        // One of a master before this one, should the sweep not have got rid of it.
        machines.destroy_until_gone(self.id).await;
        let came_up = self.boot().await;
        match &came_up {
            Ok(()) => tracing::info!("it came up: the platform is back in service"),
            Err(ending) => tracing::warn!(
                why = ending.message,
                "it did not come up: the platform stays out of service"
            ),
        }
        machines.destroy_until_gone(self.id).await;
        Ended {
            platform: self.due.platform.name.clone(),
            files: self.due.files,
            came_up,
        }
    }

    async fn boot(&self) -> Result<(), Ending> {
        let recorder = Recorder::new(self.clock.clone(), BootRecord::default());
        let reach = Reach::new(&self.machinery, self.id, &self.due.platform, recorder);
        let agent = reach.come_up().await?;
        agent.disconnect().await;
        Ok(())
    }
}
