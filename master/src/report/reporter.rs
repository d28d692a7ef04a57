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
//! row has two requests under way, nothing late can arrive over something newer. After a try that may have been carried
//! out although its answer was lost, GitHub is asked what it shows before anything is sent twice. A refusal for sending
//! too much pauses everything, and one request goes first when the pause is over.

use super::rules::{Pace, Record, Step, decide};
use super::sink::StatusSink;
use crate::clock::Clock;
use crate::github::Verdict;
use crate::model::StatusState;
use crate::pulse::Pulse;
use crate::store::{StatusId, StatusRow, Store, StoreError};
use jiff::Timestamp;
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
/// Between two looks at the file with credentials that were not accepted.
const CREDENTIALS_LOOK: Duration = Duration::from_millis(500);

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
    /// Rows of which this version may have been sent: the answer was lost.
    unsure: HashMap<StatusId, i64>,
    /// What was wanted before may have been sent by the master that ran before this one.
    started_at: Timestamp,
    paused_until: Option<Instant>,
    /// The pause is for credentials that were not accepted.
    waits_for_credentials: bool,
    /// Pauses since the last success.
    pauses: u32,
}

/// What one request led to.
#[derive(Debug)]
struct Ended {
    id: StatusId,
    version: i64,
    verdict: Option<Verdict>,
    pause: Option<Duration>,
}

/// What is known of a row beside what it says.
#[derive(Debug, Clone, Copy)]
struct Before {
    unsure: Option<i64>,
    started_at: Timestamp,
    unknown_commit: u32,
    pauses: u32,
}

impl Before {
    /// Whether GitHub may show this already.
    fn may_be_shown(&self, row: &StatusRow) -> bool {
        self.unsure == Some(row.version) || row.changed_at < self.started_at
    }
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
            started_at: clock.now(),
            clock,
            in_flight: HashMap::new(),
            unknown_commit: HashMap::new(),
            unsure: HashMap::new(),
            paused_until: None,
            waits_for_credentials: false,
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
            let is_mended = self.waits_for_credentials && self.sink.has_new_credentials();
            if is_mended {
                tracing::info!("GitHub's credentials were replaced: statuses are sent again");
            } else if !rest.is_zero() {
                return Ok(match self.waits_for_credentials {
                    true => rest.min(CREDENTIALS_LOOK),
                    false => rest,
                });
            }
            self.paused_until = None;
            self.waits_for_credentials = false;
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
                Before {
                    unsure: self.unsure.get(&id).copied(),
                    started_at: self.started_at,
                    unknown_commit: self.unknown_commit.get(&id).copied().unwrap_or(0),
                    pauses: self.pauses,
                },
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
                tracing::error!(%error, "cannot read a status to send");
                self.pause(self.pace.first_retry);
                return;
            }
        };
        match &ended.verdict {
            Some(Verdict::Later { .. }) => {
                self.unsure.insert(ended.id, ended.version);
            }
            Some(Verdict::Sent { .. } | Verdict::NotYet { .. } | Verdict::Refused { .. }) => {
                self.unsure.remove(&ended.id);
            }
            Some(Verdict::Limited { .. } | Verdict::Unauthorized { .. }) | None => {}
        }
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
            self.waits_for_credentials =
                matches!(ended.verdict, Some(Verdict::Unauthorized { .. }));
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
    before: Before,
) -> Result<Ended, StoreError> {
    let row = store.status_row(id).await?;
    let Some(row) = row.filter(StatusRow::is_unsent) else {
        return Ok(Ended {
            id,
            version: 0,
            verdict: None,
            pause: None,
        });
    };
    let is_shown = match before.may_be_shown(&row) {
        true => sink.shows(&row.repository, &row.sha, &row.status).await,
        false => Ok(false),
    };
    let verdict = match is_shown {
        Ok(true) => Verdict::Sent { pause: None },
        Ok(false) | Err(Verdict::Refused { .. } | Verdict::NotYet { .. }) => {
            sink.post(&row.repository, &row.sha, &row.status).await
        }
        Err(verdict) => verdict,
    };
    crate::crash::point(match row.status.state {
        StatusState::Pending => "pending_posted",
        StatusState::Success | StatusState::Failure | StatusState::Error => "outcome_posted",
    });
    let tries = u32::try_from(row.tries).unwrap_or(u32::MAX);
    let step = decide(&verdict, tries, before.unknown_commit, before.pauses, &pace);
    log(&row, &step, &verdict);
    let now = clock.now();
    let recorded = match &step.record {
        Record::Sent => {
            let state = row.status.state;
            store.status_sent(id, row.version, state, now).await
        }
        Record::Retry { after, why } => {
            // Not all at once when what failed is there again.
            let after = after.mul_f64(spread(id, tries));
            let at = now.saturating_add(after).unwrap_or(now);
            store.retry_status_at(id, at, why).await
        }
        Record::PutOff { why } => store.put_off_status(id, why).await,
        Record::Refused { why } => store.status_refused(id, row.version, why).await,
    };
    if let Err(error) = recorded {
        tracing::error!(%error, "cannot record what became of a status");
        // GitHub may show it: that is looked at before it is sent again.
        let why = error.to_string();
        return Ok(Ended {
            id,
            version: row.version,
            verdict: Some(Verdict::Later { why }),
            pause: Some(pace.first_retry),
        });
    }
    Ok(Ended {
        id,
        version: row.version,
        verdict: Some(verdict),
        pause: step.pause,
    })
}

/// How much of a pause a row waits: another part for each row and each try.
fn spread(id: StatusId, tries: u32) -> f64 {
    let mut hasher = DefaultHasher::new();
    (id, tries).hash(&mut hasher);
    0.75 + 0.25 * (hasher.finish() % 1000) as f64 / 1000.0
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
