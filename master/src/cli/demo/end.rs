//! The demo's end, whenever it comes: what runs is cancelled, and no machine is left.

use super::super::serve::Guests;
use crate::model::{BuildState, Ending, Reason};
use anyhow::{Context, bail};
use std::collections::HashSet;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Machines that were asked to go and have not gone are taken away by the sweep after this.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// Builds looked at; a demo has two, and some more if a person plays with it.
const BUILDS: i64 = 200;
/// As a shell tells of a program that Ctrl-C ended.
const INTERRUPTED: i32 = 130;

/// Listens for Ctrl-C, SIGTERM and the closing of the terminal from now on. The first cancels the token; the second
/// ends the program at once.
pub(in crate::cli) fn asked_to_stop() -> anyhow::Result<CancellationToken> {
    let kinds = [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
    ];
    let stop = CancellationToken::new();
    for kind in kinds {
        let mut signals = signal(kind).context("cannot listen for signals")?;
        let stop = stop.clone();
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                if stop.is_cancelled() {
                    std::process::exit(INTERRUPTED);
                }
                stop.cancel();
            }
        });
    }
    Ok(stop)
}

/// Cancels every build and waits until the last machine is gone.
pub(super) async fn cancel_everything(guests: &Guests) -> anyhow::Result<()> {
    let until = Instant::now() + PATIENCE;
    let ending = Ending::new(Reason::CancelledByPerson, "The demo was ended");
    while Instant::now() < until {
        // Asked again at each look: a poll under way may open one more build.
        let builds = guests.ledger.store.recent_builds(None, None, BUILDS);
        let mut is_quiet = true;
        for build in builds.await? {
            if build.state != BuildState::Finished {
                guests.ledger.cancel_build(build.id, &ending).await?;
                is_quiet = false;
            }
        }
        if is_quiet && guests.ledger.store.live_attempts().await?.is_empty() {
            return Ok(());
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
    Ok(())
}

/// Once the master has stopped: takes away what is left all the same.
pub(super) async fn sweep(guests: &Guests) -> anyhow::Result<()> {
    let swept = guests.machines.sweep(&HashSet::new()).await?;
    if !swept.left.is_empty() {
        bail!("{swept}\nhint: the next demo tries again");
    }
    Ok(())
}
