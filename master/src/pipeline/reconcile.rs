//! Looks at GitHub: what it shows is compared with what the database knows, and what was missed is made good.
//!
//! ```text
//!            ┌─ open pull requests ─┐
//!   GitHub ──┼─ tips of branches ───┼──► no build? ──► the same intent as an event ──► ledger
//!            ├─ merge groups ───────┘    gone? ─────► cancelled
//!            ├─ logs of deliveries ─────► missed? ───► stored as if it had come
//!            └─ contexts of ours ──────► pending, and nobody at work? ──► told again
//! ```
//!
//! Events are hints, and GitHub delivers each of them once: a look at the start and every few minutes makes sure. It goes
//! through the same door as an event, with the same keys, so that a late delivery does not double what a look has found. A
//! look asks only for what has changed, and leaves most of the hour's requests to the statuses.

mod branches;
mod contexts;
mod deliveries;
mod pulls;
mod rules;

use super::intake::Intake;
use crate::config::RepositoryConfig;
use crate::event::form::{PullRequestBody, Reference};
use crate::github::{GitHub, GitHubError, Hook, Pages};
use crate::pulse::Pulse;
use jiff::{SignedDuration, Timestamp};
use rules::When;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// The longest round that is in order: a look at one repository, or a part of the rest between two.
pub(super) const ROUND: Duration = Duration::from_secs(30 * 60);
/// For one repository; what is left is for the next look.
const LOOK_DEADLINE: Duration = Duration::from_secs(20 * 60);
/// The rest between two looks is taken in parts, so that the loop is seen to live.
const REST: Duration = Duration::from_secs(60);
/// GitHub may take so long to show what it was told.
const SPREADS: SignedDuration = SignedDuration::from_secs(60);
/// Of the hour's requests, in percent, this much is left to the statuses.
const KEPT_PERCENT: u64 = 20;
/// Where GitHub asks to wait without saying how long.
const LIMIT_PAUSE: Duration = Duration::from_secs(120);

/// Compares, again and again.
#[derive(Debug)]
pub(super) struct Reconciler {
    github: Arc<GitHub>,
    intake: Intake,
    every: Duration,
    /// What was last touched longer ago is not missed.
    patience: SignedDuration,
    /// Told of deliveries that were stored.
    deliveries: Arc<Notify>,
    known: HashMap<String, Known>,
    /// The fault of the last look at the App's log.
    app_trouble: Option<String>,
}

/// What is remembered of a repository, so that the next look asks for less.
#[derive(Debug, Default)]
struct Known {
    pulls: Pages<PullRequestBody>,
    branches: HashMap<String, Pages<Reference>>,
    hooks: Pages<Hook>,
    /// When we were not let see the hooks.
    hooks_refused_at: Option<Timestamp>,
    /// Keys of builds that are not there and need not be.
    settled: HashSet<String>,
    /// Commits whose contexts GitHub was seen to show as they are, with what the outbox said of them then.
    verified: HashMap<String, u64>,
    /// The fault of the last look, so that it is told once.
    trouble: Option<String>,
}

/// One look at one repository.
struct Look<'a> {
    github: &'a GitHub,
    intake: &'a Intake,
    repository: &'a RepositoryConfig,
    known: &'a mut Known,
    deliveries: &'a Notify,
    when: When,
    /// What was told so lately need not be shown yet.
    spreads: SignedDuration,
    /// Keys of builds that were asked for in this look.
    keys: HashSet<String>,
    made_good: u32,
}

/// Why a look was not completed.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    GitHub(#[from] GitHubError),
    #[error("the rest of the hour's requests is left to the statuses")]
    Budget { resets_at: Timestamp },
    #[error(transparent)]
    Other(#[from] anyhow::Error),
}

impl Broken {
    /// How long all looks wait, where GitHub wants that.
    fn wait(&self, now: Timestamp) -> Option<Duration> {
        match self {
            Broken::GitHub(GitHubError::Limited { wait, .. }) => Some(wait.unwrap_or(LIMIT_PAUSE)),
            Broken::Budget { resets_at } => Duration::try_from(resets_at.duration_since(now)).ok(),
            Broken::GitHub(_) | Broken::Other(_) => None,
        }
    }
}

impl From<crate::store::StoreError> for Broken {
    fn from(error: crate::store::StoreError) -> Self {
        Broken::Other(error.into())
    }
}

impl Reconciler {
    /// `deliveries` is told of those that were missed and are stored now.
    pub(super) fn new(github: Arc<GitHub>, intake: Intake, deliveries: Arc<Notify>) -> Reconciler {
        let config = &intake.config.github;
        Reconciler {
            github,
            every: Duration::from_secs(config.reconcile_secs),
            patience: SignedDuration::from_hours(24 * i64::from(config.reconcile_days)),
            intake,
            deliveries,
            known: HashMap::new(),
            app_trouble: None,
        }
    }

    /// Looks at once, and then again and again, for ever.
    pub(super) async fn run(mut self, pulse: Pulse) {
        loop {
            let pause = self.look(&pulse).await;
            let until = tokio::time::Instant::now() + pause.unwrap_or_default().max(self.every);
            while tokio::time::Instant::now() < until {
                pulse.beat();
                let rest = until.saturating_duration_since(tokio::time::Instant::now());
                tokio::time::sleep(rest.min(REST)).await;
            }
        }
    }

    /// Looks at each repository; says how long to wait, where GitHub wants that.
    async fn look(&mut self, pulse: &Pulse) -> Option<Duration> {
        let config = self.intake.config.clone();
        if let Err(error) = self.look_at_app_log().await {
            let trouble = error.to_string();
            if self.app_trouble.as_ref() != Some(&trouble) {
                tracing::warn!(
                    why = trouble,
                    "the App's log of deliveries could not be read"
                );
            }
            self.app_trouble = Some(trouble);
            if let Some(wait) = error.wait(self.intake.ledger.clock.now()) {
                return Some(wait);
            }
        } else {
            self.app_trouble = None;
        }
        for repository in config.repositories.iter().filter(|known| known.is_github()) {
            pulse.beat();
            let began = self.intake.ledger.clock.now();
            let known = self.known.entry(repository.name.clone()).or_default();
            let after_outage = known.trouble.is_some();
            let mut look = Look {
                github: &self.github,
                intake: &self.intake,
                repository,
                deliveries: &self.deliveries,
                known,
                when: When {
                    began,
                    oldest: began.saturating_sub(self.patience).unwrap_or(began),
                    after_outage,
                },
                spreads: SPREADS.min(self.every.try_into().unwrap_or(SPREADS)),
                keys: HashSet::new(),
                made_good: 0,
            };
            let outcome = tokio::time::timeout(LOOK_DEADLINE, look.run()).await;
            let outcome = outcome.unwrap_or_else(|_| {
                let secs = LOOK_DEADLINE.as_secs();
                Err(anyhow::anyhow!("it took more than {secs} s; the next look goes on").into())
            });
            look.say(&outcome);
            if let Some(trouble) = look.record(&outcome).await.err() {
                tracing::error!(error = %trouble, "a look at GitHub cannot be written down");
            }
            let wait = outcome.err().and_then(|broken| broken.wait(began));
            if wait.is_some() {
                return wait;
            }
        }
        None
    }
}

impl Look<'_> {
    async fn run(&mut self) -> Result<(), Broken> {
        // Older events first: what they ask for is overtaken by what is there now.
        self.look_at_hooks().await?;
        let mut heads = self.look_at_pulls().await?;
        heads.extend(self.look_at_branches().await?);
        let keys = std::mem::take(&mut self.keys);
        self.known.settled.retain(|key| keys.contains(key));
        self.look_at_contexts(heads).await
    }

    /// Requests that are not needed for what people wait for are made only while there are plenty.
    fn spend(&self) -> Result<(), Broken> {
        match self.github.budget() {
            Some(budget)
                if budget.remaining.saturating_mul(100)
                    < budget.limit.saturating_mul(KEPT_PERCENT)
                    && budget.resets_at > self.intake.ledger.clock.now() =>
            {
                Err(Broken::Budget {
                    resets_at: budget.resets_at,
                })
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Does what was found to be wanted, by the door of events.
    async fn carry_out(
        &mut self,
        intents: Vec<crate::model::Intent>,
        why: &str,
    ) -> Result<(), Broken> {
        let outcome = self.intake.carry_out(self.repository, intents).await?;
        self.made_good += 1;
        tracing::info!(
            repository = self.repository.name,
            outcome,
            "GitHub shows {why}"
        );
        Ok(())
    }

    fn say(&mut self, outcome: &Result<(), Broken>) {
        let repository = &self.repository.name;
        let trouble = outcome.as_ref().err().map(ToString::to_string);
        match (&trouble, &self.known.trouble) {
            (Some(now), before) if before.as_ref() != Some(now) => {
                tracing::warn!(repository, why = now, "GitHub could not be looked at");
            }
            (None, Some(_)) => tracing::info!(repository, "GitHub can be looked at again"),
            (Some(_) | None, _) => {}
        }
        if self.made_good > 0 {
            tracing::info!(
                repository,
                count = self.made_good,
                "made good what was missed"
            );
        }
        self.known.trouble = trouble;
    }

    async fn record(&self, outcome: &Result<(), Broken>) -> Result<(), crate::store::StoreError> {
        let trouble = outcome.as_ref().err().map(ToString::to_string);
        self.intake
            .ledger
            .store
            .record_look(
                &self.repository.name,
                self.when.began,
                trouble.as_deref(),
                self.made_good,
            )
            .await
    }
}
