//! What the JSON and the pages show of builds and jobs. Field names are the interface: they are kept.

use super::App;
use crate::model::{Attempt, Build, BuildId, Conclusion, Job, JobState, Phase, TestCounts};
use crate::store::{Evidence, StatusRow, StoreError};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BuildView {
    pub id: String,
    pub number: i64,
    pub repository: String,
    pub event: String,
    pub title: String,
    pub author: Option<String>,
    pub reference: String,
    pub pull_request: Option<i64>,
    pub head_sha: String,
    pub base_sha: Option<String>,
    pub tested_sha: Option<String>,
    /// `preparing`, `running` or `finished`.
    pub state: String,
    /// `success`, `failure`, `timed_out`, `cancelled` or `infrastructure_error`, once finished.
    pub conclusion: Option<String>,
    pub reason: Option<String>,
    pub message: Option<String>,
    pub created_at: Timestamp,
    pub finished_at: Option<Timestamp>,
    pub jobs: Vec<JobView>,
    /// What GitHub is told. Only in the answer for a single build.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub statuses: Vec<StatusView>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StatusView {
    pub context: String,
    pub state: String,
    pub description: String,
    /// GitHub shows it.
    pub sent: bool,
    /// Why GitHub could not be told yet; it is tried again.
    pub trouble: Option<String>,
    /// Why GitHub refused it; it is not tried again by itself.
    pub refused: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JobView {
    pub id: String,
    pub number: i64,
    pub build: String,
    pub repository: String,
    pub suite: String,
    pub platform: String,
    /// `queued`, `running` or `finished`.
    pub state: String,
    /// How far the attempt under way, or the last one, has come.
    pub phase: Option<String>,
    pub conclusion: Option<String>,
    pub reason: Option<String>,
    pub message: Option<String>,
    pub tests: Option<TestCounts>,
    /// Why it waits, where that is not the queue itself.
    #[serde(default)]
    pub waiting: Option<String>,
    pub queued_at: Timestamp,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
    pub log_url: String,
    pub artifacts: Vec<ArtifactView>,
    /// Says that and when the log was removed because of its age. These two only in the answer for a single job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_removed: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifacts_removed: Option<String>,
    /// Only in the answer for a single job.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attempts: Vec<AttemptView>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AttemptView {
    pub vm: String,
    pub number: i64,
    pub phase: String,
    /// Phase and the time at which it began.
    pub phases: Vec<(String, Timestamp)>,
    pub conclusion: Option<String>,
    pub reason: Option<String>,
    pub message: Option<String>,
    /// How its machine came up, or how far. Without milestones when it did not begin to.
    #[serde(default)]
    pub boot: BootView,
    /// These three only where the attempt failed through no fault of the job.
    pub console_tail: Option<String>,
    /// The end of QEMU's own log.
    #[serde(default)]
    pub qemu_log: Option<String>,
    /// Where the picture is of what its display showed, a PNG.
    #[serde(default)]
    pub screenshot_url: Option<String>,
    pub steps: Vec<StepView>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct BootView {
    /// Each milestone that was seen, and the time at which it first was.
    pub milestones: Vec<(String, Timestamp)>,
    /// What was being waited for when the machine was given up.
    pub waited_for: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StepView {
    pub name: String,
    pub log_offset: u64,
    pub started_at: Timestamp,
    pub finished_at: Option<Timestamp>,
    pub exit: Option<vivarium_protocol::Exit>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ArtifactView {
    pub path: String,
    pub size: u64,
    pub sha256: String,
    pub url: String,
}

impl App {
    pub(super) async fn build_view(&self, build: Build) -> Result<BuildView, StoreError> {
        let mut jobs = Vec::new();
        for job in self.ledger.store.jobs_of(build.id).await? {
            jobs.push(self.job_view(job).await?);
        }
        Ok(build_view(build, jobs))
    }

    pub(super) async fn job_view(&self, job: Job) -> Result<JobView, StoreError> {
        let store = &self.ledger.store;
        let attempt = match job.attempt {
            Some(id) => store.attempt(id).await?,
            None => None,
        };
        let waiting = self.why_waiting(&job);
        let tests = store.tests(job.id).await?;
        let artifacts = store.artifacts(job.id).await?;
        let artifacts = artifacts
            .into_iter()
            .map(|artifact| ArtifactView {
                url: format!(
                    "/api/jobs/{}/artifacts/{}",
                    job.id.0,
                    encoded(&artifact.path)
                ),
                path: artifact.path,
                size: artifact.size,
                sha256: artifact.sha256,
            })
            .collect();
        Ok(JobView {
            id: job.id.to_string(),
            number: job.id.0,
            build: job.build.to_string(),
            repository: job.repository,
            suite: job.suite,
            platform: job.platform,
            state: job.state.as_str().to_owned(),
            phase: attempt
                .filter(|_| job.state == JobState::Running)
                .map(|attempt| attempt.phase.as_str().to_owned()),
            conclusion: job.ending.as_ref().map(|e| said(e.conclusion())),
            reason: job.ending.as_ref().map(|e| e.reason.as_str().to_owned()),
            message: job.ending.map(|e| e.message),
            tests,
            waiting,
            queued_at: job.queued_at,
            started_at: job.started_at,
            finished_at: job.finished_at,
            log_url: format!("/api/jobs/{}/log", job.id.0),
            artifacts,
            log_removed: None,
            artifacts_removed: None,
            attempts: Vec::new(),
        })
    }

    /// With what GitHub is told of it.
    pub(super) async fn whole_build_view(&self, build: Build) -> Result<BuildView, StoreError> {
        let statuses = self.ledger.store.statuses_of_build(build.id).await?;
        let mut view = self.build_view(build).await?;
        view.statuses = statuses.into_iter().map(status_view).collect();
        Ok(view)
    }

    fn why_waiting(&self, job: &Job) -> Option<String> {
        if job.state != JobState::Queued {
            return None;
        }
        if let Some(pause) = self.pauses.now().first() {
            return Some(pause.to_string());
        }
        if let Some(why) = self.platforms.why_held(&job.platform) {
            return Some(format!(
                "The platform {} takes no job yet: {why}",
                job.platform
            ));
        }
        (job.not_before > Timestamp::now()).then(|| {
            "It is tried again after a pause: the last try failed through no fault of its own"
                .to_owned()
        })
    }

    /// With its attempts and their steps.
    pub(super) async fn whole_job_view(&self, job: Job) -> Result<JobView, StoreError> {
        let id = job.id;
        let ended = job.finished_at;
        let mut view = self.job_view(job).await?;
        let removed = self.ledger.store.removed(id).await?;
        view.log_removed = removed
            .log
            .map(|at| removed_sentence("The log was", ended, at));
        view.artifacts_removed = removed
            .artifacts
            .map(|at| removed_sentence("The artefacts were", ended, at));
        for attempt in self.ledger.store.attempts_of(id).await? {
            let steps = self.ledger.store.steps_of(attempt.id).await?;
            let steps = steps
                .into_iter()
                .map(|step| StepView {
                    name: step.name,
                    log_offset: step.log_offset,
                    started_at: step.started_at,
                    finished_at: step.finished_at,
                    exit: step.exit,
                })
                .collect();
            let evidence = self.ledger.store.evidence(attempt.id).await?;
            view.attempts.push(attempt_view(attempt, evidence, steps));
        }
        Ok(view)
    }

    pub(super) async fn recent_builds(
        &self,
        repository: Option<&str>,
        before: Option<BuildId>,
        limit: i64,
    ) -> Result<Vec<BuildView>, StoreError> {
        let mut views = Vec::new();
        for build in self
            .ledger
            .store
            .recent_builds(repository, before, limit)
            .await?
        {
            views.push(self.build_view(build).await?);
        }
        Ok(views)
    }
}

pub(super) fn status_view(row: StatusRow) -> StatusView {
    StatusView {
        sent: !row.is_unsent() && row.refused.is_none(),
        context: row.status.context,
        state: row.status.state.as_str().to_owned(),
        description: row.status.description,
        trouble: row.trouble,
        refused: row.refused,
    }
}

fn build_view(build: Build, jobs: Vec<JobView>) -> BuildView {
    BuildView {
        id: build.id.to_string(),
        number: build.id.0,
        repository: build.new.repository,
        event: build.new.trigger.as_str().to_owned(),
        title: build.new.title,
        author: build.new.author,
        reference: build.new.reference,
        pull_request: build.new.pull_request,
        head_sha: build.new.head_sha,
        base_sha: build.base_sha,
        tested_sha: build.tested_sha,
        state: build.state.as_str().to_owned(),
        conclusion: build.ending.as_ref().map(|e| said(e.conclusion())),
        reason: build.ending.as_ref().map(|e| e.reason.as_str().to_owned()),
        message: build.ending.map(|e| e.message),
        created_at: build.created_at,
        finished_at: build.finished_at,
        jobs,
        statuses: Vec::new(),
    }
}

fn attempt_view(attempt: Attempt, evidence: Evidence, steps: Vec<StepView>) -> AttemptView {
    let name = |phase: Phase| phase.as_str().to_owned();
    AttemptView {
        vm: attempt.id.to_string(),
        number: attempt.number,
        phase: name(attempt.phase),
        phases: attempt
            .phases
            .iter()
            .map(|(phase, at)| (name(*phase), *at))
            .collect(),
        conclusion: attempt.ending.as_ref().map(|e| said(e.conclusion())),
        reason: attempt
            .ending
            .as_ref()
            .map(|e| e.reason.as_str().to_owned()),
        message: attempt.ending.map(|e| e.message),
        boot: BootView {
            milestones: attempt
                .boot
                .milestones
                .iter()
                .map(|(milestone, at)| (milestone.as_str().to_owned(), *at))
                .collect(),
            waited_for: attempt.boot.waited_for,
        },
        console_tail: evidence.console_tail,
        qemu_log: evidence.qemu_log,
        screenshot_url: evidence.screenshot.map(|_| {
            let (job, number) = (attempt.job.0, attempt.number);
            format!("/api/jobs/{job}/attempts/{number}/screenshot.png")
        }),
        steps,
    }
}

fn said(conclusion: Conclusion) -> String {
    conclusion.as_str().to_owned()
}

/// `The log was removed after 90 days`.
pub(super) fn removed_sentence(what: &str, ended: Option<Timestamp>, at: Timestamp) -> String {
    let days = ended.map_or(0, |ended| at.duration_since(ended).as_hours() / 24);
    match days {
        1 => format!("{what} removed after 1 day"),
        days => format!("{what} removed after {days} days"),
    }
}

/// A path for a URL, with what is not plain in it percent-encoded.
pub(super) fn encoded(path: &str) -> String {
    let mut url = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'_' | b'-' | b'~' | b'/' => {
                url.push(char::from(byte));
            }
            other => url.push_str(&format!("%{other:02X}")),
        }
    }
    url
}
