//! What must be true when all is over.

mod logs;
mod order;

pub(super) use order::WITNESS;

use super::database::open_plainly;
use super::guest::artifacts;
use super::life::Disk;
use super::plan::{Happening, LOCAL, Plan, natural_end};
use super::program::End;
use super::world::World;
use crate::model::{
    Attempt, Build, BuildState, CommitStatus, Conclusion, Job, JobState, Phase, Reason, StatusState,
};
use crate::report::wording::state_of;
use crate::result::log::Logs;
use crate::result::objects::Objects;
use crate::store::Store;
use futures::StreamExt;
use object_store::{ObjectStore, ObjectStoreExt};
use sha2::{Digest, Sha256};
use sqlx::SqlitePool;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Notes every broken promise with the world.
pub(super) fn check(world: &Arc<World>, disk: &Disk) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let pool = open_plainly(&world.folder.join("vivarium.sqlite")).await;
        let objects = Objects::over(disk.objects.clone(), "simulation");
        let store = Store::over(pool.clone(), pool.clone());
        let logs = Logs::open(world.folder.join("logs"), 1 << 20, store.clone(), objects)
            .expect("a folder of logs");
        let check = Check {
            world,
            disk,
            pool,
            store,
            logs,
        };
        check.deliveries().await;
        check.polled().await;
        check.builds().await;
        check.statuses().await;
        check.order().await;
        check.objects().await;
        check.pool.close().await;
    });
}

struct Check<'a> {
    world: &'a World,
    disk: &'a Disk,
    pool: SqlitePool,
    store: Store,
    logs: Logs,
}

impl Check<'_> {
    fn plan(&self) -> &Plan {
        &self.world.plan
    }

    fn expect(&self, is_so: bool, otherwise: impl FnOnce() -> String) {
        if !is_so {
            self.world.violated(otherwise());
        }
    }

    /// What was accepted was acted upon, and led to what it means.
    async fn deliveries(&self) {
        let rows: Vec<(String, String, Option<String>)> =
            sqlx::query_as("SELECT guid, state, outcome FROM deliveries")
                .fetch_all(&self.pool)
                .await
                .expect("read");
        let keys: Vec<String> = sqlx::query_scalar("SELECT build_key FROM builds")
            .fetch_all(&self.pool)
            .await
            .expect("read");
        let accepted = self.world.state().accepted.clone();
        for (_, happening) in &self.plan().happenings {
            let Happening::Delivery(delivery) = happening else {
                continue;
            };
            if !accepted.contains(&delivery.guid) {
                continue;
            }
            let row = rows.iter().find(|(guid, _, _)| *guid == delivery.guid);
            self.expect(row.is_some_and(|(_, state, _)| state == "done"), || {
                format!("{} was accepted, and is {row:?}", delivery.guid)
            });
            let body = &delivery.body;
            let key = match (delivery.event, body["action"].as_str()) {
                ("push", _) => commit_key(body["after"].as_str()),
                (_, Some("closed")) => match body["pull_request"]["merge_commit_sha"].as_str() {
                    Some(merge) => commit_key(Some(merge)),
                    None => continue,
                },
                (_, Some(_) | None) => {
                    let request = &body["pull_request"];
                    let head = request["head"]["sha"].as_str().unwrap_or_default();
                    format!("pull:{}:main:{head}", request["number"])
                }
            };
            let is_overtaken = self.plan().is_closed_after(body);
            self.expect(keys.contains(&key) || is_overtaken, || {
                format!("{} led to no build {key}", delivery.guid)
            });
        }
    }

    /// Of a polled branch every commit is built since the first that was seen, in order.
    async fn polled(&self) {
        let built: Vec<String> =
            sqlx::query_scalar("SELECT head_sha FROM builds WHERE repository = ? ORDER BY id")
                .bind(LOCAL)
                .fetch_all(&self.pool)
                .await
                .expect("read");
        let mut pushed = vec![self.plan().root()];
        pushed.extend(self.plan().local.iter().map(|(_, sha)| sha.clone()));
        let is_all = pushed.ends_with(&built) && (built.is_empty() == self.plan().local.is_empty());
        self.expect(is_all, || {
            format!("of {pushed:?} these are built: {built:?}")
        });
    }

    async fn builds(&self) {
        let builds = self
            .store
            .recent_builds(None, None, 1000)
            .await
            .expect("read");
        for build in &builds {
            let id = build.id;
            self.expect(build.state == BuildState::Finished, || {
                format!("{id} is {:?}", build.state)
            });
            let Some(ending) = &build.ending else {
                self.world.violated(format_args!("{id} has no ending"));
                continue;
            };
            if let (Some(number), true) = (
                build.new.pull_request,
                matches!(ending.reason, Reason::Superseded | Reason::Closed),
            ) {
                let request = &self.plan().pull_requests[&number];
                self.expect(!request.wants(&build.new.head_sha), || {
                    format!("{id} of the newest commit ended as {:?}", ending.reason)
                });
            }
            for job in self.store.jobs_of(id).await.expect("read") {
                self.job(build, &job).await;
            }
        }
    }

    async fn job(&self, build: &Build, job: &Job) {
        let id = job.id;
        let attempts = self.store.attempts_of(id).await.expect("read");
        let Some(ending) = job
            .ending
            .as_ref()
            .filter(|_| job.state == JobState::Finished)
        else {
            self.world
                .violated(format_args!("{id} is {:?}, {:?}", job.state, job.ending));
            return;
        };
        for attempt in &attempts {
            self.expect(
                attempt.phase == Phase::Ended && attempt.ending.is_some(),
                || format!("{} of {id} is {:?}", attempt.id, attempt.phase),
            );
        }
        let most = i64::from(self.plan().retries) + 1;
        self.expect(job.attempts <= most, || {
            format!("{id} had {} tries, {most} are allowed", job.attempts)
        });
        self.judge(build, job, ending.reason);
        let present = attempts.len() - (job.attempts as usize).min(attempts.len());
        for attempt in &attempts[present..] {
            let is_last = attempt.id == attempts[attempts.len() - 1].id;
            let reason = attempt.ending.as_ref().map(|ending| ending.reason);
            let is_theirs = reason.is_some_and(|reason| !reason.is_worth_a_retry());
            self.expect(is_last || !is_theirs, || {
                format!("{id} was tried again after {reason:?}")
            });
        }
        self.log(job, &attempts, ending.reason).await;
        self.artifacts(build, job, attempts.last(), ending.reason)
            .await;
    }

    /// The ending is one that the plan explains.
    fn judge(&self, build: &Build, job: &Job, reason: Reason) {
        let plan = self.plan();
        let natural = natural_end(job.plan.steps.iter().map(|step| step.run.as_str()));
        let is_explained = match reason {
            Reason::Passed => natural.is_none(),
            Reason::StepFailed => matches!(natural, Some(End::Exits(_))),
            Reason::StepTimeout | Reason::JobTimeout | Reason::NoOutputTimeout => {
                matches!(natural, Some(End::Hangs | End::Stays)) || plan.jumps_ahead()
            }
            Reason::Superseded => {
                build.new.pull_request.is_some() && plan.on_new_commit == "cancel"
            }
            Reason::Closed => build.new.pull_request.is_some(),
            Reason::CancelledByPerson => plan.happenings.iter().any(|(_, happening)| {
                matches!(
                    happening,
                    Happening::CancelBuild(_) | Happening::CancelJob(_)
                )
            }),
            Reason::MergeConflict | Reason::RepositoryFile | Reason::CommitUnusable => false,
            Reason::BootDeadline
            | Reason::ConnectDeadline
            | Reason::GuestDied
            | Reason::AgentLost
            | Reason::HostError
            | Reason::SourceError
            | Reason::StorageError => {
                let tries = i64::from(plan.retries) + 1;
                self.world.state().faults_met > 0 && job.attempts == tries
            }
            Reason::PlatformUnavailable => {
                plan.capacity.vcpus < 2 || plan.capacity.memory_mib < 768
            }
        };
        self.expect(is_explained, || {
            format!("{} ended as {reason:?}: {:?}", job.id, job.ending)
        });
    }

    /// What was published is what the machine of the last attempt built, to the bit; nothing half is visible.
    async fn artifacts(&self, build: &Build, job: &Job, last: Option<&Attempt>, reason: Reason) {
        let id = job.id;
        let mut rows = self.store.artifacts(id).await.expect("read");
        let publishes =
            build.new.publish && !job.plan.artifacts.is_empty() && reason == Reason::Passed;
        if !publishes {
            return self.expect(rows.is_empty() || reason != Reason::Passed, || {
                format!("{id} has artefacts that nobody asked for")
            });
        }
        let Some(last) = last else { return };
        rows.sort_by(|a, b| a.path.cmp(&b.path));
        let expected = artifacts(last.id);
        self.expect(rows.len() == expected.len(), || {
            format!("{id} has {} artefacts", rows.len())
        });
        for (row, (path, content)) in rows.iter().zip(expected) {
            let location = object_store::path::Path::parse(&row.object).expect("a key");
            let stored = match self.disk.objects.get(&location).await {
                Ok(stored) => stored.bytes().await.expect("in memory").to_vec(),
                Err(error) => {
                    self.world.violated(error);
                    continue;
                }
            };
            let sha256 = hex::encode(Sha256::digest(&content));
            self.expect(
                row.path == path && row.sha256 == sha256 && stored == content,
                || format!("the artefact {path} of {id} is another"),
            );
        }
    }

    /// Nothing lies in the object store that no row tells of.
    async fn objects(&self) {
        if self.plan().reruns() {
            return;
        }
        let mut told: BTreeSet<String> = sqlx::query_scalar(
            "SELECT object FROM artifacts UNION SELECT 'logs/job-' || job || '.log.zst' FROM logs",
        )
        .fetch_all(&self.pool)
        .await
        .expect("read")
        .into_iter()
        .collect();
        let manifests: Vec<String> = told
            .iter()
            .filter_map(|key| Some(format!("{}/manifest.json", key.split_once("/dist/")?.0)))
            .collect();
        told.extend(manifests);
        let stored: Vec<_> = self.disk.objects.list(None).collect().await;
        for object in stored {
            let key = object.expect("in memory").location.to_string();
            self.expect(told.contains(&key), || format!("{key} belongs to nobody"));
        }
    }

    /// GitHub shows of each context how it ended.
    async fn statuses(&self) {
        let shown = self.world.state().github.shown.clone();
        let builds = self
            .store
            .recent_builds(None, None, 1000)
            .await
            .expect("read");
        for build in builds
            .into_iter()
            .filter(|build| build.new.repository != LOCAL)
        {
            let (repository, sha) = (&build.new.repository, &build.new.head_sha);
            let rows = self.store.statuses_of(repository, sha).await.expect("read");
            for row in &rows {
                let context = &row.status.context;
                self.expect(row.status.state.is_terminal(), || {
                    format!("{context} of {sha} is to be {:?}", row.status.state)
                });
                let key = (sha.clone(), context.clone());
                let is_shown = shown.get(&key).map(|shown| shown.state) == Some(row.status.state);
                self.expect(is_shown || row.refused.is_some(), || {
                    format!(
                        "{context} of {sha} is {:?}, GitHub shows {:?}",
                        row.status.state,
                        shown.get(&key)
                    )
                });
            }
            let wanted = |context: &str| {
                let row = rows.iter().find(|row| row.status.context == context);
                row.filter(|row| row.generation == build.id)
                    .map(|row| row.status.state)
            };
            let is_newest = |context: &str| {
                let row = rows.iter().find(|row| row.status.context == context);
                row.is_none_or(|row| row.generation <= build.id)
            };
            let mut all: Vec<(String, Conclusion)> = Vec::new();
            for job in self.store.jobs_of(build.id).await.expect("read") {
                if let Some(ending) = &job.ending {
                    all.push((job.context(), ending.conclusion()));
                }
            }
            for (context, conclusion) in all.iter().filter(|(context, _)| is_newest(context)) {
                let state = state_of(*conclusion);
                self.expect(wanted(context) == Some(state), || {
                    format!(
                        "{context} of {} is {:?}, not {state:?}",
                        build.id,
                        wanted(context)
                    )
                });
            }
            if is_newest(CommitStatus::AGGREGATE) {
                let is_green = wanted(CommitStatus::AGGREGATE) == Some(StatusState::Success);
                let is_passed = !all.is_empty()
                    && all
                        .iter()
                        .all(|(_, conclusion)| *conclusion == Conclusion::Success);
                self.expect(is_green == is_passed, || {
                    format!(
                        "the aggregate of {} is green: {is_green}; its jobs: {all:?}",
                        build.id
                    )
                });
            }
        }
    }
}

fn commit_key(sha: Option<&str>) -> String {
    format!("commit:{}:publish", sha.unwrap_or_default())
}
