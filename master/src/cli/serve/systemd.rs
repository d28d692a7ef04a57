//! What systemd is told: that the master is ready, stops, and lives. Where there is no systemd nobody listens.

use crate::pulse::Pulses;
use sd_notify::NotifyState;
use std::convert::Infallible;

/// Tells it once.
pub(super) fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd was not told");
    }
}

/// Feeds the watchdog as long as every loop goes on. When one does not, systemd ends this process (guests go on) and
/// starts it anew.
pub(super) async fn feed_watchdog(pulses: Pulses) -> Infallible {
    let Some(patience) = sd_notify::watchdog_enabled() else {
        return std::future::pending().await;
    };
    let mut was_stuck = false;
    loop {
        let stuck = pulses.stuck();
        match stuck.is_empty() {
            true => tell(&[NotifyState::Watchdog]),
            false if was_stuck => {}
            false => tracing::error!(
                why = stuck.join("; "),
                "systemd's watchdog is not fed any more: it will start the master anew"
            ),
        }
        was_stuck = !stuck.is_empty();
        // Two signs within its patience: one may be late.
        tokio::time::sleep(patience / 3).await;
    }
}
