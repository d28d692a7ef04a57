//! From an address to a greeted agent: tries, pauses between them, and the guest's clock.

use super::channel::Ssh;
use super::link::Link;
use super::transport::{Failed, Transport};
use super::{ANSWER, Agent, Endpoint, GuestSpec, SessionError};
use crate::model::Witness;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};
use vivarium_protocol::{Frame, ToAgent};

/// The pauses between tries. Each try costs a booting guest a forked sshd, and QEMU's forward queues them all.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A guest's clock that is this close is left alone; the agent thinks the same.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(1);

impl Agent {
    /// Connects: SSH handshake with the pinned host key, agent pushed if it is not there, started, its nonce echoed,
    /// the guest's clock set.
    ///
    /// Waits as long as the caller lets it while nobody answers (refused, reset, closed early, silent), one connection
    /// at a time. Drop the future to give up, or see [`Agent::connect_within`]. Errors are those that waiting does not mend.
    pub async fn connect(endpoint: &Endpoint, guest: &GuestSpec) -> Result<Agent, SessionError> {
        Self::connect_by(&Ssh::default(), endpoint, guest).await
    }

    /// The same by another transport.
    pub async fn connect_by(
        transport: &dyn Transport,
        endpoint: &Endpoint,
        guest: &GuestSpec,
    ) -> Result<Agent, SessionError> {
        Self::connect_telling(transport, endpoint, guest, &(), &mut String::new()).await
    }

    /// The same with a deadline, after which [`SessionError::Unreachable`] tells how the last try went.
    pub async fn connect_within(
        endpoint: &Endpoint,
        guest: &GuestSpec,
        patience: Duration,
    ) -> Result<Agent, SessionError> {
        let mut last = String::new();
        let ssh = Ssh::default();
        let connected = Self::connect_telling(&ssh, endpoint, guest, &(), &mut last);
        match timeout(patience, connected).await {
            Ok(result) => result,
            Err(_) => {
                let last = if last.is_empty() {
                    "the first try is still unanswered"
                } else {
                    &last
                };
                Err(SessionError::Unreachable {
                    name: endpoint.name.clone(),
                    address: endpoint.address(),
                    why: format!("tried for {:.1} s: {last}", patience.as_secs_f64()),
                })
            }
        }
    }

    /// The same; `witness` hears how far the tries come, and `last` says how the last one went that was in vain.
    pub(crate) async fn connect_telling(
        transport: &dyn Transport,
        endpoint: &Endpoint,
        guest: &GuestSpec,
        witness: &dyn Witness,
        last: &mut String,
    ) -> Result<Agent, SessionError> {
        let mut pause = FIRST_PAUSE;
        loop {
            match Self::try_once(transport, endpoint, guest, witness).await {
                Ok(agent) => return Ok(agent),
                Err(Failed::ForGood(error)) => return Err(error),
                Err(Failed::NotYet(why)) => {
                    tracing::debug!(vm = endpoint.name, why, "no session yet");
                    *last = why;
                }
            }
            sleep(pause).await;
            pause = next_pause(pause);
        }
    }

    async fn try_once(
        transport: &dyn Transport,
        endpoint: &Endpoint,
        guest: &GuestSpec,
        witness: &dyn Witness,
    ) -> Result<Agent, Failed> {
        let opened = transport.open(endpoint, guest, witness).await?;
        let hello = opened.hello.clone();
        let agent = Agent {
            link: Link::start(endpoint, opened),
            hello,
            follow_turn: Arc::default(),
            upload_turn: Arc::default(),
            collect_turn: Arc::default(),
        };
        agent
            .set_clock()
            .await
            .map_err(|error| Failed::NotYet(error.to_string()))?;
        tracing::debug!(
            vm = endpoint.name,
            pid = agent.hello.pid,
            version = agent.hello.agent_version,
            "agent greeted"
        );
        Ok(agent)
    }

    /// A guest restored from a saved state lives in the past, and certificates fail there.
    async fn set_clock(&self) -> Result<(), SessionError> {
        let router = &self.link.router;
        let unix_ms = |time: SystemTime| {
            u64::try_from(
                time.duration_since(UNIX_EPOCH)
                    .unwrap_or_default()
                    .as_millis(),
            )
        };
        let now = unix_ms(SystemTime::now()).unwrap_or(u64::MAX);
        if u128::from(now.abs_diff(self.hello.unix_ms)) <= CLOCK_TOLERANCE.as_millis() {
            return Ok(());
        }
        let (sender, answer) = oneshot::channel();
        let place = self.link.reserve().await?;
        router.await_clock(sender)?;
        place.send(Frame::to_agent(&ToAgent::SetClock { unix_ms: now }));
        match timeout(ANSWER, answer).await {
            Ok(Ok(Ok(stepped_ms))) => {
                tracing::info!(vm = router.name(), stepped_ms, "the guest's clock was set")
            }
            // A user who may not do that. The job may not care.
            Ok(Ok(Err(message))) => tracing::warn!(
                vm = router.name(),
                off_ms = self.hello.unix_ms.abs_diff(now),
                message,
                "the guest's clock is off and cannot be set"
            ),
            Ok(Err(_)) => return Err(router.lost()),
            Err(_) => return Err(self.silent("set the clock")),
        }
        Ok(())
    }
}

/// 0.5 s, 1 s, 2 s, 4 s, 5 s, 5 s, …
fn next_pause(pause: Duration) -> Duration {
    (pause * 2).min(LONGEST_PAUSE)
}
