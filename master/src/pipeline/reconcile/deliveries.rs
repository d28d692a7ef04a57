//! Deliveries that GitHub made in vain: they are fetched from its log and stored as if they had come.

use super::rules::missed;
use super::{Broken, Look, Reconciler};
use crate::event::interpret::is_acted_upon;
use crate::github::{DeliveryLog, GitHub, LoggedDelivery};
use crate::pipeline::ledger::Ledger;
use crate::store::{DeliveryState, Inserted, NewDelivery};
use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use std::time::Duration;
use tokio::sync::Notify;

/// GitHub keeps its log for three days, an Enterprise server for seven.
const KEPT: SignedDuration = SignedDuration::from_hours(7 * 24);
/// What was read before is read again this far back: an attempt enters the log when it has ended.
const OVERLAP: SignedDuration = SignedDuration::from_hours(1);
/// Events fetched in one look; the rest is for the next.
const MOST_FETCHED: usize = 500;
/// After this long without the right to see hooks it is tried again.
const HOOKS_REFUSED_FOR: SignedDuration = SignedDuration::from_hours(1);
/// For the deliveries that were fetched to be acted upon, before GitHub's present state is.
const SETTLE: Duration = Duration::from_secs(30);
const SETTLE_LOOK: Duration = Duration::from_millis(50);
/// The end of the address that hooks of ours have.
const WEBHOOK_PATH: &str = "/webhook/github";

impl Reconciler {
    /// The log of the App's own hook, which hears of all repositories.
    pub(super) async fn look_at_app_log(&self) -> Result<(), Broken> {
        if !self.github.is_app() {
            return Ok(());
        }
        let ledger = &self.intake.ledger;
        fetch_missed(&self.github, ledger, &self.deliveries, &DeliveryLog::App).await
    }
}

impl Look<'_> {
    /// The logs of the repository's hooks that lead to a master, where we may see them.
    pub(super) async fn look_at_hooks(&mut self) -> Result<(), Broken> {
        if self
            .known
            .hooks_refused_at
            .is_some_and(|at| self.when.began.duration_since(at) < HOOKS_REFUSED_FOR)
        {
            return Ok(());
        }
        self.spend()?;
        let name = &self.repository.name;
        let hooks = self.github.hooks(name, &mut self.known.hooks).await?;
        let Some(hooks) = hooks else {
            tracing::info!(
                repository = name,
                "its webhooks cannot be seen with these rights: what they missed is found by comparing alone"
            );
            self.known.hooks_refused_at = Some(self.when.began);
            return Ok(());
        };
        let ours = hooks.items.iter().filter(|hook| {
            let url = hook.config.url.as_deref().unwrap_or_default();
            url.trim_end_matches('/').ends_with(WEBHOOK_PATH)
        });
        for hook in ours {
            self.spend()?;
            let log = DeliveryLog::Repository {
                repository: name.clone(),
                hook: hook.id,
            };
            fetch_missed(self.github, &self.intake.ledger, self.deliveries, &log).await?;
        }
        Ok(())
    }
}

/// Stores what the log says was missed, and waits until it was acted upon.
async fn fetch_missed(
    github: &GitHub,
    ledger: &Ledger,
    arrived: &Notify,
    log: &DeliveryLog,
) -> Result<(), Broken> {
    let (store, began) = (&ledger.store, ledger.clock.now());
    let name = log.name();
    let since = match store.log_read_at(&name).await? {
        Some(at) => at.saturating_sub(OVERLAP),
        None => began.saturating_sub(KEPT),
    };
    let listed = github.deliveries(log, since.unwrap_or(began)).await?;
    let mut fetched = 0;
    let mut is_done = listed.is_whole;
    for delivery in missed(&listed.items) {
        if !is_acted_upon(&delivery.event) || store.knows_delivery(&delivery.guid).await? {
            continue;
        }
        if fetched == MOST_FETCHED {
            is_done = false;
            break;
        }
        if inject(github, ledger, log, delivery, began).await? {
            fetched += 1;
            arrived.notify_one();
        }
    }
    if fetched > 0 {
        tracing::info!(
            log = name,
            fetched,
            "fetched events that GitHub could not deliver"
        );
        wait_for_deliveries(ledger).await?;
    }
    let read_at = is_done.then_some(began);
    Ok(store.record_log_read(&name, read_at, fetched).await?)
}

async fn inject(
    github: &GitHub,
    ledger: &Ledger,
    log: &DeliveryLog,
    delivery: &LoggedDelivery,
    now: Timestamp,
) -> Result<bool, Broken> {
    let Some(payload) = github.delivered_event(log, delivery.id).await? else {
        return Ok(false);
    };
    let new = NewDelivery {
        guid: delivery.guid.clone(),
        event: delivery.event.clone(),
        body: Bytes::from(payload.to_string()),
        sha256: NewDelivery::FETCHED.to_owned(),
        received_at: now,
        outcome: None,
    };
    match ledger.store.insert_delivery(&new).await? {
        Inserted::New(_) | Inserted::TriedAgain(_) => Ok(true),
        Inserted::Known(DeliveryState::Stored | DeliveryState::Done | DeliveryState::Failed)
        | Inserted::Conflict => Ok(false),
    }
}

/// Waits for a while until no delivery is left to be acted upon, so that older events go before the present state.
async fn wait_for_deliveries(ledger: &Ledger) -> Result<(), Broken> {
    let deadline = tokio::time::Instant::now() + SETTLE;
    while tokio::time::Instant::now() < deadline {
        let waiting = ledger.store.next_deliveries(ledger.clock.now(), 1).await?;
        if waiting.is_empty() {
            break;
        }
        tokio::time::sleep(SETTLE_LOOK).await;
    }
    Ok(())
}
