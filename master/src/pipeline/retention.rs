//! Removes what is older than `[retention]` says, a little at a time.
//!
//! ```text
//!  logs, artefacts: object ─► row, with a note on the job      records: nothing left of them but rows ─► rows
//!                                                              deliveries ─► rows      then the database shrinks
//! ```
//!
//! Of each branch that publishes the newest build stays whole, and so does the newest that passed.

use crate::clock::Clock;
use crate::config::RetentionConfig;
use crate::pulse::Pulse;
use crate::result::artifacts::Artifacts;
use crate::result::log::Logs;
use crate::store::Store;
use jiff::{SignedDuration, Timestamp};
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
}

/// What one round removed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Round {
    logs: usize,
    artifacts: usize,
    builds: usize,
    deliveries: u64,
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
}

impl Retention {
    pub(super) async fn run(self, pulse: Pulse) {
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

    pub(super) async fn round(&self, pulse: &Pulse) -> anyhow::Result<Round> {
        let now = self.clock.now();
        let mut round = Round::default();
        // First what needs no object store.
        if let Some(before) = before(now, self.config.keep_deliveries_days) {
            round.deliveries = self
                .store
                .forget_deliveries(before, MOST_DELIVERIES)
                .await?;
        }
        if let Some(before) = before(now, self.config.keep_logs_days) {
            for id in self.store.logs_ended_before(before, MOST_JOBS).await? {
                pulse.beat();
                self.logs.remove(id, now).await?;
                round.logs += 1;
            }
        }
        if let Some(before) = before(now, self.config.keep_artifacts_days) {
            for id in self.store.artifacts_ended_before(before, MOST_JOBS).await? {
                pulse.beat();
                if let Some(job) = self.store.job(id).await? {
                    self.artifacts.remove(&job, now).await?;
                    round.artifacts += 1;
                }
            }
        }
        if let Some(before) = before(now, self.config.keep_records_days) {
            for id in self.store.builds_ended_before(before, MOST_BUILDS).await? {
                pulse.beat();
                // What an attempt left that never came to an end is known to no row.
                for job in self.store.jobs_of(id).await? {
                    if !job.plan.artifacts.is_empty() {
                        self.artifacts.remove(&job, now).await?;
                    }
                }
                self.store.remove_build(id).await?;
                round.builds += 1;
            }
        }
        let mut free = i64::MAX;
        loop {
            pulse.beat();
            let left = self.store.shrink(PAGES_AT_ONCE).await?;
            if left == 0 || left >= free {
                return Ok(round);
            }
            free = left;
        }
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
