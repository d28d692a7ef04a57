//! Every change of state, together with what GitHub shall show of it, in one transaction.
//!
//! In come decisions of the other files of this folder; out go rows, and a wake-up for whoever acts on them next.
//! Nothing here talks to libvirt, a guest or GitHub.

mod boots;
mod made_good;
mod pull_requests;

pub use boots::FailedBoot;
pub use pull_requests::Again;

use super::signals::Signals;
use crate::clock::Clock;
use crate::config::Config;
use crate::model::{
    Attempt, AttemptId, Build, BuildId, Conclusion, Ending, Job, JobId, JobState, NewBuild, NewJob,
    Phase, Priority, Reason,
};
use crate::report::wording;
use crate::store::builds::{Inserted, Prepared};
use crate::store::{
    Reopen, Store, StoreError, attempts, branches, builds, jobs, results, want_status,
};
use jiff::{SignedDuration, Timestamp};
use sqlx::SqliteConnection;
use std::sync::Arc;
use url::Url;

/// The pause before the first retry after an infrastructure error; each further one doubles it.
const RETRY_PAUSE: SignedDuration = SignedDuration::from_secs(2);

/// Writes the state down; clones share it.
#[derive(Debug, Clone)]
pub struct Ledger {
    pub store: Store,
    signals: Signals,
    config: Arc<Config>,
    public_url: Url,
    pub clock: Clock,
}

/// What became of a job with its attempt's ending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobOutcome {
    Finished,
    /// It waits for a fresh VM.
    Retried,
}

/// What a new build does to unfinished ones of the same pull request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OlderBuilds {
    Keep,
    /// Those that are older than the new one: by their events, or because GitHub was seen to show the new one since.
    Cancel {
        seen_at: Option<Timestamp>,
    },
}

impl Ledger {
    pub fn new(
        store: Store,
        signals: Signals,
        config: Arc<Config>,
        public_url: Url,
        clock: Clock,
    ) -> Ledger {
        Ledger {
            store,
            signals,
            config,
            public_url,
            clock,
        }
    }

    /// Wakes the loops that act on rows.
    pub fn wake(&self) {
        self.signals.state_changed();
    }

    /// Adds a build, unless an event that means the same did so before.
    pub async fn open_build(
        &self,
        new: &NewBuild,
        older: OlderBuilds,
    ) -> Result<Inserted, StoreError> {
        let now = self.clock.now();
        let mut tx = self.store.write().await?;
        let inserted = builds::insert(&mut tx, new, now).await?;
        match (inserted, new.pull_request) {
            (Inserted::New(id), Some(number)) => {
                self.supersede(&mut tx, id, new, number, older, now).await?;
            }
            (Inserted::New(_), None) | (Inserted::Known(_), _) => {}
        }
        let (Inserted::New(id) | Inserted::Known(id)) = inserted;
        self.write_statuses(&mut tx, id, now).await?;
        tx.commit().await?;
        crate::crash::point("build_opened");
        self.signals.state_changed();
        Ok(inserted)
    }

    /// Of two commits of a pull request, the one that GitHub saw later stays.
    async fn supersede(
        &self,
        tx: &mut SqliteConnection,
        id: BuildId,
        new: &NewBuild,
        number: i64,
        older: OlderBuilds,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let OlderBuilds::Cancel { seen_at } = older else {
            return Ok(());
        };
        let others = builds::unfinished_of_pull_request(tx, &new.repository, number).await?;
        let is_later = |other: &Build| {
            match (other.new.event_at, new.event_at) {
                (Some(a), Some(b)) if a != b => a > b,
                _ if seen_at.is_some_and(|at| other.created_at < at) => false,
                // Events of the same second are told apart by the head that one of them replaced.
                _ => other.new.before_sha.as_ref() == Some(&new.head_sha),
            }
        };
        let latest = builds::latest_of_pull_request(tx, &new.repository, number).await?;
        let newer = others
            .iter()
            .chain(&latest)
            .find(|other| other.id != id && is_later(other));
        if let Some(newer) = newer {
            let ending = Ending::new(
                Reason::Superseded,
                wording::superseded_by(&newer.new.head_sha),
            );
            return self.cancel_in(tx, id, &ending, now).await;
        }
        let ending = Ending::new(Reason::Superseded, wording::superseded_by(&new.head_sha));
        for other in others.iter().filter(|other| other.id != id) {
            self.cancel_in(tx, other.id, &ending, now).await?;
        }
        Ok(())
    }

    /// Adds the build of a polled branch's commit and remembers that the branch was read so far.
    pub async fn open_polled_build(
        &self,
        new: &NewBuild,
        branch: &str,
    ) -> Result<Inserted, StoreError> {
        let now = self.clock.now();
        let mut tx = self.store.write().await?;
        let inserted = builds::insert(&mut tx, new, now).await?;
        branches::advance(&mut tx, &new.repository, branch, &new.head_sha).await?;
        let (Inserted::New(id) | Inserted::Known(id)) = inserted;
        self.write_statuses(&mut tx, id, now).await?;
        tx.commit().await?;
        self.signals.state_changed();
        Ok(inserted)
    }

    /// Remembers how far a branch was read, without a build.
    pub async fn advance_branch(
        &self,
        repository: &str,
        branch: &str,
        sha: &str,
    ) -> Result<(), StoreError> {
        let mut tx = self.store.write().await?;
        branches::advance(&mut tx, repository, branch, sha).await?;
        Ok(tx.commit().await?)
    }

    /// The build's jobs are known: they queue.
    pub async fn record_preparation(
        &self,
        build: &Build,
        found: &Prepared,
        new_jobs: &[NewJob],
    ) -> Result<(), StoreError> {
        let now = self.clock.now();
        let mut tx = self.store.write().await?;
        if builds::prepared(&mut tx, build.id, found).await? {
            let priority = Priority::of(build.new.trigger);
            for new in new_jobs {
                jobs::insert(&mut tx, build.id, &build.new.repository, priority, new, now).await?;
            }
            self.write_statuses(&mut tx, build.id, now).await?;
        }
        tx.commit().await?;
        crate::crash::point("build_prepared");
        self.signals.state_changed();
        Ok(())
    }

    /// Ends a build that has no jobs to end it.
    pub async fn end_build(&self, id: BuildId, ending: &Ending) -> Result<(), StoreError> {
        let now = self.clock.now();
        let mut tx = self.store.write().await?;
        builds::finish(&mut tx, id, ending, now).await?;
        self.write_statuses(&mut tx, id, now).await?;
        tx.commit().await?;
        self.signals.state_changed();
        Ok(())
    }

    /// Puts a preparation off that failed through our fault; `None` when it failed too often.
    pub async fn put_off_preparation(&self, id: BuildId) -> Result<Option<Timestamp>, StoreError> {
        let now = self.clock.now();
        let mut tx = self.store.write().await?;
        let tries = builds::count_failure(&mut tx, id).await?;
        if tries > i64::from(self.config.limits.infrastructure_retries) {
            tx.rollback().await?;
            return Ok(None);
        }
        let until = now + pause_before(tries);
        builds::put_off(&mut tx, id, until).await?;
        tx.commit().await?;
        Ok(Some(until))
    }

    /// Gives a queued job a slot. `None` when it is not queued any more.
    pub async fn place(&self, job: JobId) -> Result<Option<Attempt>, StoreError> {
        let now = self.clock.now();
        let mut tx = self.store.write().await?;
        let Some(mut row) = jobs::get(&mut tx, job).await? else {
            return Ok(None);
        };
        let attempt = attempts::insert(&mut tx, job, &row.platform, now).await?;
        let from = row.state;
        row.state = JobState::Running;
        row.attempts += 1;
        row.attempt = Some(attempt);
        row.started_at = row.started_at.or(Some(now));
        if !jobs::move_to(&mut tx, from, &row).await? {
            tx.rollback().await?;
            return Ok(None);
        }
        self.write_statuses(&mut tx, row.build, now).await?;
        let attempt = attempts::get(&mut tx, attempt).await?;
        tx.commit().await?;
        crate::crash::point("job_placed");
        self.signals.state_changed();
        Ok(attempt)
    }

    /// Moves an attempt on, before its outcome is known.
    pub async fn enter_phase(&self, attempt: &Attempt, phase: Phase) -> Result<(), StoreError> {
        let now = self.clock.now();
        let mut tx = self.store.write().await?;
        attempts::move_to(&mut tx, attempt.id, phase, None, None, now).await?;
        if let Some(job) = jobs::get(&mut tx, attempt.job).await? {
            self.write_statuses(&mut tx, job.build, now).await?;
        }
        tx.commit().await?;
        self.signals.state_changed();
        Ok(())
    }

    /// Records an attempt's outcome and what it means for the job and the build. Safe to repeat.
    pub async fn conclude(
        &self,
        attempt: &Attempt,
        ending: &Ending,
        console_tail: Option<&str>,
    ) -> Result<JobOutcome, StoreError> {
        let now = self.clock.now();
        let mut tx = self.store.write().await?;
        attempts::move_to(
            &mut tx,
            attempt.id,
            Phase::CleaningUp,
            Some(ending),
            console_tail,
            now,
        )
        .await?;
        let job = jobs::get(&mut tx, attempt.job).await?;
        let mut outcome = JobOutcome::Finished;
        if let Some(mut job) =
            job.filter(|job| job.state == JobState::Running && job.attempt == Some(attempt.id))
        {
            let from = job.state;
            let retries = i64::from(self.config.limits.infrastructure_retries);
            match &job.cancel {
                None if ending.reason.is_worth_a_retry() && job.attempts <= retries => {
                    job.state = JobState::Queued;
                    job.not_before = now + pause_before(job.attempts);
                    outcome = JobOutcome::Retried;
                }
                // Nobody wants it cancelled any more.
                None if ending.conclusion() == Conclusion::Cancelled => {
                    job.state = JobState::Queued;
                    job.not_before = now;
                    job.attempts = 0;
                    outcome = JobOutcome::Retried;
                }
                cancel => {
                    let ending = match cancel {
                        // Asked to cancel while it failed through our fault: the wish is the better reason.
                        Some(wish) if ending.conclusion() == Conclusion::InfrastructureError => {
                            wish.clone()
                        }
                        Some(_) | None => ending.clone(),
                    };
                    job.state = JobState::Finished;
                    job.ending = Some(ending);
                    job.finished_at = Some(now);
                }
            }
            jobs::move_to(&mut tx, from, &job).await?;
            self.settle_build(&mut tx, job.build, now).await?;
        }
        tx.commit().await?;
        crate::crash::point("attempt_concluded");
        self.signals.state_changed();
        Ok(outcome)
    }

    /// The attempt's machine is gone and its files are removed.
    pub async fn end_attempt(&self, id: AttemptId) -> Result<(), StoreError> {
        let mut tx = self.store.write().await?;
        attempts::move_to(&mut tx, id, Phase::Ended, None, None, self.clock.now()).await?;
        tx.commit().await?;
        self.signals.state_changed();
        Ok(())
    }

    /// Ends a queued job that cannot run.
    pub async fn refuse(&self, job: JobId, ending: &Ending) -> Result<(), StoreError> {
        let now = self.clock.now();
        let mut tx = self.store.write().await?;
        self.finish_queued(&mut tx, job, ending, now).await?;
        tx.commit().await?;
        self.signals.state_changed();
        Ok(())
    }

    /// Cancels a build: queued jobs end at once, running ones as soon as their driver hears of it.
    pub async fn cancel_build(&self, id: BuildId, ending: &Ending) -> Result<(), StoreError> {
        let now = self.clock.now();
        let mut tx = self.store.write().await?;
        self.cancel_in(&mut tx, id, ending, now).await?;
        tx.commit().await?;
        self.signals.state_changed();
        Ok(())
    }

    /// Cancels one job.
    pub async fn cancel_job(&self, id: JobId, ending: &Ending) -> Result<(), StoreError> {
        let now = self.clock.now();
        let mut tx = self.store.write().await?;
        jobs::ask_to_cancel(&mut tx, id, ending).await?;
        self.finish_queued(&mut tx, id, ending, now).await?;
        tx.commit().await?;
        self.signals.state_changed();
        Ok(())
    }

    /// Queues finished jobs again; those that still wait or run are left alone. Says how many were taken up.
    pub async fn rerun(&self, build: BuildId, only: Option<JobId>) -> Result<usize, StoreError> {
        let mut tx = self.store.write().await?;
        let is_meant = |job: &Job| only.is_none_or(|id| id == job.id);
        let taken_up = self.rerun_in(&mut tx, build, is_meant).await?;
        tx.commit().await?;
        self.signals.state_changed();
        Ok(taken_up)
    }

    async fn rerun_in(
        &self,
        tx: &mut SqliteConnection,
        build: BuildId,
        is_meant: impl Fn(&Job) -> bool,
    ) -> Result<usize, StoreError> {
        let now = self.clock.now();
        let all = jobs::of_build(tx, build).await?;
        let mut taken_up = 0;
        if all.is_empty() {
            builds::prepare_again(tx, build).await?;
            taken_up = 1;
        }
        for mut job in all {
            if job.state != JobState::Finished || !is_meant(&job) {
                continue;
            }
            job.state = JobState::Queued;
            job.cancel = None;
            job.ending = None;
            job.finished_at = None;
            job.started_at = None;
            job.queued_at = now;
            job.not_before = now;
            job.attempts = 0;
            if jobs::rerun(tx, &job).await? {
                taken_up += 1;
            }
        }
        if taken_up > 0 {
            builds::reopen(tx, build).await?;
            self.write_statuses_as(tx, build, Reopen::Yes, now).await?;
        }
        Ok(taken_up)
    }

    async fn cancel_in(
        &self,
        tx: &mut SqliteConnection,
        id: BuildId,
        ending: &Ending,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let all = jobs::of_build(tx, id).await?;
        if all.is_empty() {
            builds::finish(tx, id, ending, now).await?;
            return self.write_statuses(tx, id, now).await;
        }
        for job in all {
            jobs::ask_to_cancel(tx, job.id, ending).await?;
            self.finish_queued(tx, job.id, ending, now).await?;
        }
        Ok(())
    }

    async fn finish_queued(
        &self,
        tx: &mut SqliteConnection,
        id: JobId,
        ending: &Ending,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let Some(mut job) = jobs::get(tx, id).await? else {
            return Ok(());
        };
        if job.state != JobState::Queued {
            return Ok(());
        }
        job.state = JobState::Finished;
        job.ending = Some(ending.clone());
        job.finished_at = Some(now);
        jobs::move_to(tx, JobState::Queued, &job).await?;
        self.settle_build(tx, job.build, now).await
    }

    /// Ends the build when its last job has ended, and writes its statuses.
    async fn settle_build(
        &self,
        tx: &mut SqliteConnection,
        id: BuildId,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let all = jobs::of_build(tx, id).await?;
        if all.iter().all(|job| job.state == JobState::Finished) {
            builds::finish(tx, id, &sum_up(&all), now).await?;
        }
        self.write_statuses(tx, id, now).await
    }

    async fn write_statuses(
        &self,
        tx: &mut SqliteConnection,
        id: BuildId,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.write_statuses_as(tx, id, Reopen::No, now).await
    }

    /// Puts what GitHub shall show of the build into the outbox.
    async fn write_statuses_as(
        &self,
        tx: &mut SqliteConnection,
        id: BuildId,
        reopen: Reopen,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let Some(build) = builds::get(tx, id).await? else {
            return Ok(());
        };
        let is_reported = self
            .config
            .repository(&build.new.repository)
            .is_some_and(|repository| repository.is_github());
        if !is_reported {
            return Ok(());
        }
        let page = |kind: &str, number: i64| {
            let base = self.public_url.as_str().trim_end_matches('/');
            format!("{base}/{kind}/{number}")
        };
        let all = jobs::of_build(tx, id).await?;
        let mut wanted = vec![wording::aggregate_status(
            &build,
            &all,
            page("builds", id.0),
        )];
        for job in &all {
            let attempt = match job.attempt {
                Some(attempt) => attempts::get(tx, attempt).await?,
                None => None,
            };
            let progress = attempt.map(|attempt| wording::Progress {
                phase: attempt.phase,
                step: None,
            });
            let tests = results::tests(tx, job.id).await?;
            let url = page("jobs", job.id.0);
            wanted.push(wording::job_status(job, progress, tests.as_ref(), url));
        }
        let (repository, sha) = (&build.new.repository, &build.new.head_sha);
        for status in wanted {
            want_status(tx, repository, sha, &status, id, reopen, now).await?;
        }
        Ok(())
    }
}

fn pause_before(retry: i64) -> SignedDuration {
    let doublings = u32::try_from(retry.clamp(1, 6) - 1).unwrap_or(0);
    RETRY_PAUSE * 2_i32.pow(doublings)
}

/// A build's ending from its jobs': the worst of those that count speaks, the project's own failures before ours.
fn sum_up(all: &[Job]) -> Ending {
    let rank = |ending: &Ending| match ending.conclusion() {
        Conclusion::Failure => 4,
        Conclusion::TimedOut => 3,
        Conclusion::InfrastructureError => 2,
        Conclusion::Cancelled => 1,
        Conclusion::Success => 0,
    };
    let passed = all.iter().filter(|job| job.counts()).count();
    all.iter()
        .filter(|job| job.counts())
        .filter_map(|job| job.ending.clone().map(|ending| (job, ending)))
        .max_by_key(|(_, ending)| rank(ending))
        .map_or_else(
            || Ending::new(Reason::Passed, "Passed"),
            |(job, ending)| match ending.conclusion() {
                Conclusion::Success if passed == 1 => Ending::new(Reason::Passed, "Passed"),
                Conclusion::Success => {
                    Ending::new(Reason::Passed, format!("All {passed} jobs passed"))
                }
                Conclusion::Failure
                | Conclusion::TimedOut
                | Conclusion::InfrastructureError
                | Conclusion::Cancelled => Ending::new(
                    ending.reason,
                    format!("{} ({}): {}", job.suite, job.platform, ending.message),
                ),
            },
        )
}
