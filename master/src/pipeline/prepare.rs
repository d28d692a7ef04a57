//! From a build to its jobs: fetch, merge, read the repository file, resolve platforms.

use super::drive::Machinery;
use super::ledger::Ledger;
use super::patience::patiently;
use crate::config::{
    Config, Platforms, REPOSITORY_FILE, RepositoryConfig, RepositoryFile, resolve_jobs,
};
use crate::model::{Build, Ending, Job, JobPlan, NewJob, Reason, Trigger};
use crate::pulse::Pulse;
use crate::source::{Merge, Source, SourceError};
use crate::store::builds::Prepared;
use futures::StreamExt;
use std::sync::Arc;
use std::time::Duration;

/// How often builds are looked for without a wake-up.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// Builds prepared at once; fetches of one repository wait for each other anyway.
const AT_ONCE: usize = 8;
/// Files named in the message of a merge conflict.
const CONFLICTS_NAMED: usize = 10;

/// Prepares builds; clones share it.
#[derive(Debug, Clone)]
pub(super) struct Preparer {
    ledger: Ledger,
    sources: Arc<dyn Source>,
    platforms: Platforms,
    config: Arc<Config>,
}

impl Preparer {
    pub(super) fn new(ledger: Ledger, machinery: &Machinery) -> Preparer {
        Preparer {
            ledger,
            sources: machinery.sources.clone(),
            platforms: machinery.platforms.clone(),
            config: machinery.config.clone(),
        }
    }

    pub(super) async fn run(self, wake: Arc<tokio::sync::Notify>, pulse: Pulse) {
        loop {
            pulse.beat();
            let due = match self
                .ledger
                .store
                .builds_to_prepare(self.ledger.clock.now())
                .await
            {
                Ok(due) => due,
                Err(error) => {
                    tracing::error!(%error, "builds cannot be read; trying again");
                    Vec::new()
                }
            };
            if due.is_empty() {
                tokio::select! {
                    biased;
                    () = wake.notified() => {}
                    () = tokio::time::sleep(LOOK_INTERVAL) => {}
                }
                continue;
            }
            let preparer = &self;
            futures::stream::iter(due)
                .for_each_concurrent(AT_ONCE, |build| async move {
                    if let Err(error) = preparer.settle(&build).await {
                        tracing::error!(build = %build.id, %error, "the outcome of a preparation cannot be recorded; trying again");
                        tokio::time::sleep(LOOK_INTERVAL).await;
                    }
                })
                .await;
        }
    }

    async fn settle(&self, build: &Build) -> Result<(), crate::store::StoreError> {
        let Some(repository) = self.config.repository(&build.new.repository) else {
            let message = format!(
                "Repository `{}` is not configured any more",
                build.new.repository
            );
            return self
                .ledger
                .end_build(build.id, &Ending::new(Reason::RepositoryFile, message))
                .await;
        };
        match self.prepare(repository, build).await {
            Ok((found, jobs)) => {
                tracing::info!(build = %build.id, repository = repository.name, jobs = jobs.len(), "build prepared");
                self.ledger.record_preparation(build, &found, &jobs).await
            }
            Err(ending) if ending.reason.is_worth_a_retry() => {
                match self.ledger.put_off_preparation(build.id).await? {
                    Some(until) => {
                        tracing::warn!(build = %build.id, why = ending.message, %until, "preparation put off");
                        Ok(())
                    }
                    None => self.ledger.end_build(build.id, &ending).await,
                }
            }
            Err(ending) => {
                tracing::info!(build = %build.id, why = ending.message, "build ends without jobs");
                self.ledger.end_build(build.id, &ending).await
            }
        }
    }

    async fn prepare(
        &self,
        repository: &RepositoryConfig,
        build: &Build,
    ) -> Result<(Prepared, Vec<NewJob>), Ending> {
        let head = build.new.head_sha.as_str();
        let (tested, base) = match build.new.trigger {
            Trigger::PullRequest => self.merge(repository, build).await?,
            Trigger::Merge
            | Trigger::MergeGroup
            | Trigger::Push
            | Trigger::Poll
            | Trigger::Manual => {
                self.sources
                    .fetch(repository, &[head])
                    .await
                    .map_err(ours)?;
                let parent = self.sources.parent(repository, head).await.map_err(ours)?;
                (head.to_owned(), parent)
            }
        };
        let changed_files = match &base {
            Some(base) => self
                .sources
                .changed_files(repository, base, &tested)
                .await
                .map_err(ours)?,
            None => Vec::new(),
        };
        let jobs = self
            .resolve(repository, build, &tested, base.as_deref())
            .await?;
        let found = Prepared {
            base_sha: base,
            tested_sha: tested,
            changed_files: String::from_utf8_lossy(&changed_files).into_owned(),
        };
        Ok((found, jobs))
    }

    /// The jobs that the commit asks for.
    async fn resolve(
        &self,
        repository: &RepositoryConfig,
        build: &Build,
        tested: &str,
        base: Option<&str>,
    ) -> Result<Vec<NewJob>, Ending> {
        // A stranger's pull request does not choose what runs: the file comes from the base.
        let file_from = match (base, build.new.from_fork) {
            (Some(base), true) => base,
            (Some(_) | None, _) => tested,
        };
        let file = self.repository_file(repository, file_from).await?;
        let jobs = resolve_jobs(
            &file,
            &self.platforms.usable(),
            &self.platforms.unplannable(),
            &build.new.only_platforms,
            build.new.publish,
            &self.config.limits,
        )
        .map_err(|message| {
            Ending::new(
                Reason::RepositoryFile,
                format!("{REPOSITORY_FILE}: {message}"),
            )
        })?;
        let steps = jobs.iter().flat_map(|job| &job.plan.steps);
        self.config
            .check_secrets(repository, steps.flat_map(|step| &step.secrets))
            .map_err(|message| Ending::new(Reason::RepositoryFile, message))?;
        Ok(jobs)
    }

    /// The plan of a job whose platform was out of service when its build was prepared, and is not any more.
    pub(super) async fn plan_late(&self, build: &Build, job: &Job) -> Result<JobPlan, Ending> {
        let gone = |what: String| Ending::new(Reason::RepositoryFile, what);
        let repository = self
            .config
            .repository(&build.new.repository)
            .ok_or_else(|| {
                gone(format!(
                    "Repository `{}` is not configured any more",
                    build.new.repository
                ))
            })?;
        let tested = build.tested_sha.as_ref().unwrap_or(&build.new.head_sha);
        let jobs = self
            .resolve(repository, build, tested, build.base_sha.as_deref())
            .await?;
        let plan = jobs
            .into_iter()
            .find(|new| (&new.suite, &new.platform) == (&job.suite, &job.platform))
            .map(|new| new.plan)
            .filter(JobPlan::is_known)
            .ok_or_else(|| {
                gone(format!(
                    "Suite `{}` does not ask for `{}` any more",
                    job.suite, job.platform
                ))
            })?;
        let store = &self.ledger.store;
        patiently("record the plan", || store.set_plan(job.id, &plan)).await?;
        Ok(plan)
    }

    /// Merges the head into the base's present tip.
    async fn merge(
        &self,
        repository: &RepositoryConfig,
        build: &Build,
    ) -> Result<(String, Option<String>), Ending> {
        let head = build.new.head_sha.as_str();
        let base_ref = format!(
            "refs/heads/{}",
            build.new.base_ref.as_deref().unwrap_or("main")
        );
        self.sources
            .fetch_pull_request(repository, &base_ref, &build.new.reference, head)
            .await
            .map_err(ours)?;
        let base = self
            .sources
            .resolve(repository, &base_ref)
            .await
            .map_err(ours)?;
        match self
            .sources
            .merge(repository, &base, head)
            .await
            .map_err(ours)?
        {
            Merge::Clean { sha, tree: _ } => Ok((sha, Some(base))),
            Merge::Conflict { files } => {
                let named: Vec<&str> = files
                    .iter()
                    .take(CONFLICTS_NAMED)
                    .map(String::as_str)
                    .collect();
                let more = files.len().saturating_sub(CONFLICTS_NAMED);
                let more = if more > 0 {
                    format!(" and {more} more")
                } else {
                    String::new()
                };
                Err(Ending::new(
                    Reason::MergeConflict,
                    format!("Merge conflict in {}{more}", named.join(", ")),
                ))
            }
        }
    }

    async fn repository_file(
        &self,
        repository: &RepositoryConfig,
        sha: &str,
    ) -> Result<RepositoryFile, Ending> {
        let own = repository.suites.as_ref();
        if repository.ignore_repository_file
            && let Some(suites) = own
        {
            return Ok(suites.clone());
        }
        let content = self
            .sources
            .file_at(repository, sha, REPOSITORY_FILE)
            .await
            .map_err(ours)?;
        let wrong = |message: String| Ending::new(Reason::RepositoryFile, message);
        match (content, own) {
            (Some(content), _) => {
                let text = String::from_utf8(content)
                    .map_err(|_| wrong(format!("{REPOSITORY_FILE} is not UTF-8 text")))?;
                RepositoryFile::parse(&text).map_err(|error| wrong(error.to_string()))
            }
            (None, Some(suites)) => Ok(suites.clone()),
            (None, None) => Err(wrong(format!(
                "There is no {REPOSITORY_FILE} in the commit, and the master has no suites for `{}`",
                repository.name
            ))),
        }
    }
}

/// A fault of the source stage: ours, unless what was asked for is at fault.
#[expect(clippy::needless_pass_by_value, reason = "handed to map_err")]
fn ours(error: SourceError) -> Ending {
    let reason = match error.is_final() {
        true => Reason::CommitUnusable,
        false => Reason::SourceError,
    };
    Ending::new(reason, error.to_string())
}
