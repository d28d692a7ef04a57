//! The worker of the outbox: sends what is wanted and not yet shown, one request at a time for each row.
//!
//! ```text
//!        ┌───────────────► look: rows wanted ≠ sent, due, not in flight
//!        │                   │ up to `concurrency`
//!   wake, next due,          ▼
//!   something ended  ◄── send: read the row again, post, record
//! ```
//!
//! What is sent is what the row says at that moment, so what was overtaken while it waited is never sent, and since no
//! row has two requests under way, nothing late can arrive over something newer. A refusal for sending too much
//! pauses everything, and one request goes first when the pause is over.

use super::answer::Verdict;
use crate::clock::Clock;
use crate::model::CommitStatus;
use crate::pulse::Pulse;
use crate::store::{StatusId, StatusRow, Store, StoreError};
use futures::future::BoxFuture;
use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::{Id, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// For the requests under way at a shutdown.
const LAST_REQUESTS: Duration = Duration::from_secs(2);
/// A round is a look into the store, which waits for seconds where another process holds the database.
pub const ROUND: Duration = Duration::from_secs(120);

/// Where statuses go: GitHub, or a test's stand-in.
pub trait StatusSink: Send + Sync + std::fmt::Debug {
    /// Sends one status once. Ends within a bounded time.
    fn post<'a>(
        &'a self,
        repository: &'a str,
        sha: &'a str,
        status: &'a CommitStatus,
    ) -> BoxFuture<'a, Verdict>;
}

/// How fast, and how patient.
#[derive(Debug, Clone)]
pub struct Pace {
    /// Requests at the same time, each for another row.
    pub concurrency: usize,
    /// After a failure; doubled with each one up to the longest, less a part that differs.
    pub first_retry: Duration,
    pub longest_retry: Duration,
    /// After "too much" without a hint for how long; doubled likewise.
    pub first_pause: Duration,
    pub longest_pause: Duration,
    /// Before a token that was not accepted is tried again.
    pub token_pause: Duration,
    /// Tries for a commit that GitHub does not know: with the pauses between, about two minutes.
    pub tries_for_commit: u32,
    /// The longest time between two looks, should a wake be missed.
    pub look: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Pace {
            concurrency: 8,
            first_retry: Duration::from_secs(1),
            longest_retry: Duration::from_secs(60),
            first_pause: Duration::from_secs(60),
            longest_pause: Duration::from_secs(900),
            token_pause: Duration::from_secs(60),
            tries_for_commit: 8,
            look: Duration::from_secs(15),
        }
    }
}

/// The worker; [`Reporter::run`] is its loop.
#[derive(Debug)]
pub struct Reporter {
    store: Store,
    sink: Arc<dyn StatusSink>,
    wake: Arc<Notify>,
    pace: Pace,
    clock: Clock,
    in_flight: HashMap<Id, StatusId>,
    /// How often GitHub did not know the commit, in a row.
    unknown_commit: HashMap<StatusId, u32>,
    paused_until: Option<Instant>,
    /// Pauses since the last success.
    pauses: u32,
}

/// What one request led to.
#[derive(Debug)]
struct Ended {
    id: StatusId,
    verdict: Option<Verdict>,
    pause: Option<Duration>,
}

/// What is recorded, and whether all wait.
#[derive(Debug, PartialEq, Eq)]
struct Step {
    record: Record,
    pause: Option<Duration>,
}

#[derive(Debug, PartialEq, Eq)]
enum Record {
    Sent,
    Retry { after: Duration, why: String },
    Refused { why: String },
}

impl Reporter {
    /// `wake` is notified after a change was committed; the reporter finds it in the store.
    pub fn new(
        store: Store,
        sink: Arc<dyn StatusSink>,
        wake: Arc<Notify>,
        pace: Pace,
        clock: Clock,
    ) -> Reporter {
        Reporter {
            store,
            sink,
            wake,
            pace,
            clock,
            in_flight: HashMap::new(),
            unknown_commit: HashMap::new(),
            paused_until: None,
            pauses: 0,
        }
    }

    /// Runs until the shutdown, then gives the requests under way a moment to end.
    pub async fn run(mut self, shutdown: CancellationToken, pulse: Pulse) {
        let mut requests = JoinSet::new();
        loop {
            pulse.beat();
            let rest = match self.start_due(&mut requests).await {
                Ok(rest) => rest,
                Err(error) => {
                    tracing::error!(%error, "cannot look for statuses to send");
                    self.pace.first_retry
                }
            };
            let wake = Arc::clone(&self.wake);
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                Some(ended) = requests.join_next_with_id() => self.ended(ended),
                () = wake.notified() => {}
                () = tokio::time::sleep(rest) => {}
            }
        }
        // What is broken off is sent again after the restart.
        let rest = async { while requests.join_next().await.is_some() {} };
        drop(tokio::time::timeout(LAST_REQUESTS, rest).await);
    }

    /// Starts what is due as far as there is room, and says how long there is nothing else to do.
    async fn start_due(
        &mut self,
        requests: &mut JoinSet<Result<Ended, StoreError>>,
    ) -> Result<Duration, StoreError> {
        if let Some(until) = self.paused_until {
            let rest = until.saturating_duration_since(Instant::now());
            if !rest.is_zero() {
                return Ok(rest);
            }
            self.paused_until = None;
        }
        // After a pause one request goes ahead and shows whether it is over.
        let most = if self.pauses > 0 {
            1
        } else {
            self.pace.concurrency
        };
        let room = most.saturating_sub(self.in_flight.len());
        if room == 0 {
            return Ok(self.pace.look);
        }
        let now = self.clock.now();
        let busy: HashSet<_> = self.in_flight.values().copied().collect();
        let limit = i64::try_from(room.saturating_add(busy.len())).unwrap_or(i64::MAX);
        let due = self.store.due_statuses(now, limit).await?;
        for id in due.into_iter().filter(|id| !busy.contains(id)).take(room) {
            let request = send(
                self.store.clone(),
                Arc::clone(&self.sink),
                self.pace.clone(),
                self.clock.clone(),
                id,
                self.unknown_commit.get(&id).copied().unwrap_or(0),
                self.pauses,
            );
            let task = requests.spawn(request);
            self.in_flight.insert(task.id(), id);
        }
        let next = self.store.next_status_after(now).await?;
        let rest = next.map_or(self.pace.look, |at| {
            Duration::try_from(at.duration_since(now)).unwrap_or(Duration::ZERO)
        });
        Ok(rest.min(self.pace.look))
    }

    /// Keeps count. Of requests that were under way together, the first refusal counts for all.
    fn ended(&mut self, ended: Result<(Id, Result<Ended, StoreError>), tokio::task::JoinError>) {
        let ended = match ended {
            Ok((task, result)) => {
                self.in_flight.remove(&task);
                result
            }
            Err(error) => {
                self.in_flight.remove(&error.id());
                tracing::error!(%error, "the sending of a status broke off");
                self.pause(self.pace.first_retry);
                return;
            }
        };
        let ended = match ended {
            Ok(ended) => ended,
            Err(error) => {
                tracing::error!(%error, "cannot record what became of a status");
                self.pause(self.pace.first_retry);
                return;
            }
        };
        match &ended.verdict {
            Some(Verdict::NotYet { .. }) => {
                let count = self.unknown_commit.entry(ended.id).or_default();
                *count = count.saturating_add(1);
            }
            Some(Verdict::Limited { .. } | Verdict::Unauthorized { .. })
                if self.paused_until.is_none() =>
            {
                self.pauses = self.pauses.saturating_add(1);
            }
            Some(Verdict::Limited { .. } | Verdict::Unauthorized { .. }) => {}
            Some(Verdict::Sent { .. } | Verdict::Refused { .. }) => {
                self.unknown_commit.remove(&ended.id);
                if self.paused_until.is_none() {
                    self.pauses = 0;
                }
            }
            Some(Verdict::Later { .. }) | None => {}
        }
        if let Some(pause) = ended.pause {
            self.pause(pause);
        }
    }

    fn pause(&mut self, pause: Duration) {
        let until = Instant::now() + pause;
        self.paused_until = Some(self.paused_until.map_or(until, |known| known.max(until)));
    }
}

/// Sends what the row says now, if it is still not shown, and records what became of it.
async fn send(
    store: Store,
    sink: Arc<dyn StatusSink>,
    pace: Pace,
    clock: Clock,
    id: StatusId,
    unknown_commit: u32,
    pauses: u32,
) -> Result<Ended, StoreError> {
    let nothing = Ended {
        id,
        verdict: None,
        pause: None,
    };
    let Some(row) = store.status_row(id).await? else {
        return Ok(nothing);
    };
    if !row.is_unsent() {
        return Ok(nothing);
    }
    let verdict = sink.post(&row.repository, &row.sha, &row.status).await;
    let tries = u32::try_from(row.tries).unwrap_or(u32::MAX);
    let step = decide(&verdict, tries, unknown_commit, pauses, &pace);
    log(&row, &step, &verdict);
    let now = clock.now();
    match &step.record {
        Record::Sent => {
            store
                .status_sent(id, row.version, row.status.state, now)
                .await?;
        }
        Record::Retry { after, why } => {
            // Not all at once when what failed is there again.
            let after = after.mul_f64(spread(id, tries));
            let at = now.saturating_add(after).unwrap_or(now);
            store.retry_status_at(id, at, why).await?;
        }
        Record::Refused { why } => store.status_refused(id, row.version, why).await?,
    }
    Ok(Ended {
        id,
        verdict: Some(verdict),
        pause: step.pause,
    })
}

/// The rules of sending again.
fn decide(verdict: &Verdict, tries: u32, unknown_commit: u32, pauses: u32, pace: &Pace) -> Step {
    let retry = |after, why: &String| Record::Retry {
        after,
        why: why.clone(),
    };
    let (record, pause) = match verdict {
        Verdict::Sent { pause } => (Record::Sent, *pause),
        Verdict::Later { why } => (
            retry(doubled(pace.first_retry, tries, pace.longest_retry), why),
            None,
        ),
        Verdict::NotYet { why } if unknown_commit.saturating_add(1) >= pace.tries_for_commit => {
            (Record::Refused { why: why.clone() }, None)
        }
        Verdict::NotYet { why } => (
            retry(
                doubled(pace.first_retry, unknown_commit, pace.longest_retry),
                why,
            ),
            None,
        ),
        Verdict::Limited { wait, why } => {
            let wait = wait.unwrap_or(doubled(pace.first_pause, pauses, pace.longest_pause));
            (retry(Duration::ZERO, why), Some(wait))
        }
        Verdict::Unauthorized { why } => (retry(Duration::ZERO, why), Some(pace.token_pause)),
        Verdict::Refused { why } => (Record::Refused { why: why.clone() }, None),
    };
    Step { record, pause }
}

/// How much of a pause a row waits: another part for each row and each try.
fn spread(id: StatusId, tries: u32) -> f64 {
    let mut hasher = DefaultHasher::new();
    (id, tries).hash(&mut hasher);
    0.75 + 0.25 * (hasher.finish() % 1000) as f64 / 1000.0
}

fn doubled(first: Duration, times: u32, longest: Duration) -> Duration {
    first
        .saturating_mul(2_u32.saturating_pow(times))
        .min(longest)
}

fn log(row: &StatusRow, step: &Step, verdict: &Verdict) {
    let (repository, sha, context) = (&row.repository, &row.sha, &row.status.context);
    let pause = step.pause.unwrap_or_default().as_secs();
    match verdict {
        Verdict::Sent { .. } => {
            tracing::debug!(%repository, %sha, %context, state = row.status.state.as_str(), "status sent");
        }
        Verdict::Unauthorized { why } => {
            tracing::error!(%repository, why, pause, "GitHub does not accept the token: statuses wait until its file holds a valid one");
        }
        Verdict::Limited { why, .. } => {
            tracing::warn!(why, pause, "GitHub asks to send less: statuses wait");
        }
        Verdict::Later { why } | Verdict::NotYet { why } | Verdict::Refused { why } => {
            if matches!(step.record, Record::Refused { .. }) {
                tracing::warn!(%repository, %sha, %context, why, "GitHub refuses a status; it is not tried again");
            } else {
                tracing::info!(%repository, %sha, %context, why, tries = row.tries, "a status could not be sent; it is tried again");
            }
        }
    }
}
