//! Removes what is older than `[retention]` says, a little at a time.
//!
//! ```text
//!  logs, artefacts: object ─► row, with a note on the job      records: nothing left of them but rows ─► rows
//!                                                              deliveries ─► rows      then the database shrinks
//! ```
//!
//! Of each branch that publishes the newest build stays whole, and so does the newest that passed. Objects that the store
//! does not let go are passed over until the rest is done.

use crate::clock::Clock;
use crate::config::RetentionConfig;
use crate::model::JobId;
use crate::pulse::Pulse;
use crate::result::artifacts::{ArtifactError, Artifacts};
use crate::result::log::{LogError, Logs};
use crate::store::Store;
use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeSet;
use std::fmt::Display;
use std::time::Duration;

/// Between two rounds,
const INTERVAL: Duration = Duration::from_secs(3600);
/// and when a round left something for the next.
const NEXT_PART: Duration = Duration::from_secs(60);
/// The master has other things to do first.
const FIRST_AFTER: Duration = Duration::from_secs(60);
/// Jobs, builds and deliveries of one round: each job is a request or two to the object store.
const MOST_JOBS: i64 = 500;
const MOST_BUILDS: i64 = 500;
const MOST_DELIVERIES: i64 = 5000;
/// Jobs whose objects could not be removed, in one round: a store that is away refuses all of them.
const MOST_REFUSALS: usize = 50;
/// Pages given back at once (4 MiB): so long others wait for the writer.
const PAGES_AT_ONCE: i64 = 1000;

/// Removes what is old; [`Retention::run`] is its loop.
#[derive(Debug)]
pub(super) struct Retention {
    pub(super) config: RetentionConfig,
    pub(super) store: Store,
    pub(super) logs: Logs,
    pub(super) artifacts: Artifacts,
    pub(super) clock: Clock,
    pub(super) refused: Refused,
}

/// Jobs whose objects could not be removed: they are not asked for again before everything else was.
#[derive(Debug, Default)]
pub(super) struct Refused(BTreeSet<JobId>);

/// What one round removed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Round {
    logs: usize,
    artifacts: usize,
    builds: usize,
    deliveries: u64,
    refused: usize,
}

impl Round {
    /// Whether a bound was reached.
    fn is_full(&self) -> bool {
        let most = |bound: i64| usize::try_from(bound).unwrap_or(usize::MAX);
        self.logs >= most(MOST_JOBS)
            || self.artifacts >= most(MOST_JOBS)
            || self.builds >= most(MOST_BUILDS)
            || self.deliveries >= MOST_DELIVERIES.unsigned_abs()
    }

    fn may_go_on(&self) -> bool {
        self.refused < MOST_REFUSALS
    }
}

impl Retention {
    pub(super) async fn run(mut self, pulse: Pulse) {
        let mut pause = FIRST_AFTER;
        loop {
            tokio::time::sleep(pause).await;
            pulse.beat();
            pause = match self.round(&pulse).await {
                Ok(round) => {
                    if round != Round::default() {
                        tracing::info!(?round, "removed what was old");
                    }
                    if round.is_full() { NEXT_PART } else { INTERVAL }
                }
                Err(error) => {
                    tracing::warn!(
                        error = format!("{error:#}"),
                        "cannot remove what is old; trying again"
                    );
                    INTERVAL
                }
            };
        }
    }

    pub(super) async fn round(&mut self, pulse: &Pulse) -> anyhow::Result<Round> {
        let now = self.clock.now();
        let mut round = Round::default();
        // First what needs no object store.
        if let Some(before) = before(now, self.config.keep_deliveries_days) {
            round.deliveries = self
                .store
                .forget_deliveries(before, MOST_DELIVERIES)
                .await?;
        }
        self.remove_logs(now, &mut round, pulse).await?;
        self.remove_artifacts(now, &mut round, pulse).await?;
        self.remove_builds(now, &mut round, pulse).await?;
        if round.may_go_on() && !round.is_full() {
            // All others were asked for: in the next round it is their turn again.
            self.refused = Refused::default();
        }
        self.shrink(pulse).await?;
        Ok(round)
    }

    async fn remove_logs(
        &mut self,
        now: Timestamp,
        round: &mut Round,
        pulse: &Pulse,
    ) -> anyhow::Result<()> {
        let Some(before) = before(now, self.config.keep_logs_days) else {
            return Ok(());
        };
        let most = self.refused.beside(MOST_JOBS);
        for id in self.store.logs_ended_before(before, most).await? {
            if self.refused.has(id) || !round.may_go_on() {
                continue;
            }
            pulse.beat();
            match self.logs.remove(id, now).await {
                Ok(()) => round.logs += 1,
                Err(error @ LogError::Store { .. }) => return Err(error.into()),
                Err(error) => self.refused.note(id, error, round),
            }
        }
        Ok(())
    }

    async fn remove_artifacts(
        &mut self,
        now: Timestamp,
        round: &mut Round,
        pulse: &Pulse,
    ) -> anyhow::Result<()> {
        let Some(before) = before(now, self.config.keep_artifacts_days) else {
            return Ok(());
        };
        let most = self.refused.beside(MOST_JOBS);
        for id in self.store.artifacts_ended_before(before, most).await? {
            if self.refused.has(id) || !round.may_go_on() {
                continue;
            }
            pulse.beat();
            let Some(job) = self.store.job(id).await? else {
                continue;
            };
            match self.artifacts.remove(&job, now).await {
                Ok(()) => round.artifacts += 1,
                Err(error @ ArtifactError::Store { .. }) => return Err(error.into()),
                Err(error) => self.refused.note(id, error, round),
            }
        }
        Ok(())
    }

    async fn remove_builds(
        &mut self,
        now: Timestamp,
        round: &mut Round,
        pulse: &Pulse,
    ) -> anyhow::Result<()> {
        let Some(before) = before(now, self.config.keep_records_days) else {
            return Ok(());
        };
        let most = self.refused.beside(MOST_BUILDS);
        'builds: for id in self.store.builds_ended_before(before, most).await? {
            pulse.beat();
            let jobs = self.store.jobs_of(id).await?;
            if jobs.iter().any(|job| self.refused.has(job.id)) || !round.may_go_on() {
                continue;
            }
            // What an attempt left that never came to an end is known to no row.
            for job in jobs.iter().filter(|job| !job.plan.artifacts.is_empty()) {
                match self.artifacts.remove(job, now).await {
                    Ok(()) => {}
                    Err(error @ ArtifactError::Store { .. }) => return Err(error.into()),
                    Err(error) => {
                        self.refused.note(job.id, error, round);
                        continue 'builds;
                    }
                }
            }
            self.store.remove_build(id).await?;
            round.builds += 1;
        }
        Ok(())
    }

    async fn shrink(&self, pulse: &Pulse) -> anyhow::Result<()> {
        let mut free = i64::MAX;
        loop {
            pulse.beat();
            let left = self.store.shrink(PAGES_AT_ONCE).await?;
            if left == 0 || left >= free {
                return Ok(());
            }
            free = left;
        }
    }
}

impl Refused {
    fn has(&self, job: JobId) -> bool {
        self.0.contains(&job)
    }

    /// So many are asked for that there are as many others.
    fn beside(&self, others: i64) -> i64 {
        others.saturating_add_unsigned(self.0.len() as u64)
    }

    fn note(&mut self, job: JobId, error: impl Display, round: &mut Round) {
        if round.refused == 0 {
            tracing::warn!(%error, "cannot remove what is old; going on with the rest, trying again later");
        }
        round.refused += 1;
        self.0.insert(job);
    }
}

/// What ended before this time is old; `None` where all is kept.
fn before(now: Timestamp, keep_days: u32) -> Option<Timestamp> {
    if keep_days == 0 {
        return None;
    }
    let keep = SignedDuration::from_hours(24 * i64::from(keep_days));
    now.checked_sub(keep).ok()
}

#[cfg(test)]
mod tests;
