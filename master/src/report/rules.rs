//! The rules of sending again: what a verdict means for its row and for all, as pure functions.

use crate::github::Verdict;
use std::time::Duration;

/// How fast, and how patient.
#[derive(Debug, Clone)]
pub struct Pace {
    /// Requests at the same time, each for another row.
    pub concurrency: usize,
    /// After a failure; doubled with each one up to the longest, less a random part.
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

/// What is recorded, and whether all wait.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) record: Record,
    pub(super) pause: Option<Duration>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Record {
    Sent,
    Retry {
        after: Duration,
        why: String,
    },
    /// It was not taken, for no reason of its own: it is due again as soon as all are.
    PutOff {
        why: String,
    },
    Refused {
        why: String,
    },
}

/// The rules of sending again.
pub(super) fn decide(
    verdict: &Verdict,
    tries: u32,
    unknown_commit: u32,
    pauses: u32,
    pace: &Pace,
) -> Step {
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
            (Record::PutOff { why: why.clone() }, Some(wait))
        }
        Verdict::Unauthorized { why } => {
            (Record::PutOff { why: why.clone() }, Some(pace.token_pause))
        }
        Verdict::Refused { why } => (Record::Refused { why: why.clone() }, None),
    };
    Step { record, pause }
}

fn doubled(first: Duration, times: u32, longest: Duration) -> Duration {
    first
        .saturating_mul(2_u32.saturating_pow(times))
        .min(longest)
}
