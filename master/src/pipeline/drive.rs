//! One attempt, from its slot to its end: VM, session, work, result, clean-up.
//!
//! ```text
//!  placed ─► booting ─► connecting ─► sending source ─► running ─► collecting ─► cleaning up ─► ended
//!     └──────────┴───────────┴──────────────┴──────────────┴────────────┴──────────────▲
//! ```
//!
//! Each step looks at what is there first, so that a driver started for an attempt that is under way takes it up
//! where it is. Whatever happened, the way leads through cleaning up.

use super::ledger::{JobOutcome, Ledger};
use super::patience::{insist, patiently};
use super::prepare::Preparer;
use super::transcript;
use super::work::{Work, log_error};
use crate::config::{Config, Platforms};
use crate::model::{
    AgentKind, Architecture, Attempt, AttemptId, Build, Conclusion, ConsoleSpec, Ending, HostKey,
    Job, Login, OsFamily, Phase, Platform, PlatformKind, Reason,
};
use crate::result::artifacts::Artifacts;
use crate::result::log::{LogError, LogWriter, Logs, Mask};
use crate::session::{Agent, Credential, Endpoint, GuestSpec, Transport};
use crate::source::Source;
use crate::store::StoreError;
use crate::vm::{Accelerator, Machines, VmError};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

/// The end of the console that goes into an attempt's record.
const CONSOLE_TAIL: usize = 16 * 1024;

/// What drivers work with; shared by all.
#[derive(Debug)]
pub struct Machinery {
    pub config: Arc<Config>,
    pub platforms: Platforms,
    pub machines: Machines,
    pub transport: Arc<dyn Transport>,
    pub sources: Arc<dyn Source>,
    pub logs: Logs,
    pub artifacts: Artifacts,
}

/// What an agent for this platform's guests has to know.
pub(crate) fn guest(platform: &Platform) -> GuestSpec {
    GuestSpec {
        os: platform.os,
        arch: platform.arch,
        agent: platform.agent,
        state_dir: platform.state_dir.clone(),
    }
}

/// How the machine of an attempt is reached, and what proves either side to the other.
pub(crate) fn endpoint(
    machines: &Machines,
    id: AttemptId,
    platform: &Platform,
    (host, port): (&str, u16),
    heartbeat_secs: u64,
) -> Endpoint {
    let credential = match &platform.ssh.login {
        Login::Key(path) => Credential::Key(path.clone()),
        Login::Password(path) => Credential::Password(path.clone()),
        Login::Seeded => Credential::Key(machines.ssh_key(id)),
    };
    let host_key = match &platform.ssh.host_key {
        HostKey::Pinned(path) => path.clone(),
        HostKey::Seeded => machines.ssh_host_key(id),
    };
    Endpoint {
        host: host.to_owned(),
        port,
        user: platform.ssh.user.clone(),
        credential,
        host_key,
        name: id.to_string(),
        heartbeat: Duration::from_secs(heartbeat_secs),
    }
}

/// Drives one attempt.
#[derive(Debug)]
pub(super) struct Driver {
    pub(super) ledger: Ledger,
    pub(super) machinery: Arc<Machinery>,
    pub(super) build: Build,
    pub(super) job: Job,
    pub(super) attempt: Attempt,
    pub(super) cancelled: watch::Receiver<Option<Ending>>,
    /// What of the guest's words must not be shown.
    pub(super) mask: Mask,
}

impl Driver {
    pub(super) fn new(
        ledger: Ledger,
        machinery: Arc<Machinery>,
        build: Build,
        job: Job,
        attempt: Attempt,
        cancelled: watch::Receiver<Option<Ending>>,
    ) -> Driver {
        Driver {
            ledger,
            machinery,
            build,
            job,
            attempt,
            cancelled,
            mask: Mask::default(),
        }
    }

    /// Runs the attempt to its end.
    #[tracing::instrument(name = "attempt", skip_all, fields(job = %self.job.id, vm = %self.attempt.id, platform = self.job.platform))]
    pub(super) async fn run(mut self) {
        if self.attempt.phase < Phase::CleaningUp {
            let done = match self.attempt.ending {
                None => self.work().await,
                Some(_) => self.leave().await,
            };
            let left = match (done, &self.attempt.ending) {
                (Ok(()), _) => Ok(()),
                (Err(ending), None) => {
                    self.decide(ending).await;
                    // A master before this one had begun there.
                    match self.attempt.phase > Phase::Connecting {
                        true => self.leave().await,
                        false => Ok(()),
                    }
                }
                (Err(why), Some(_)) => Err(why),
            };
            if let Err(why) = left {
                tracing::warn!(why = why.message, "what the job left stays on its machine");
            }
            self.conclude().await;
        }
        self.clean_up().await;
    }

    /// A machine that runs is what its platform was when it was made.
    async fn platform(&self) -> Result<Arc<Platform>, Ending> {
        if self.attempt.phase > Phase::Placed
            && let Some(platform) = self.machinery.machines.platform_of(self.attempt.id).await
        {
            return Ok(Arc::new(platform));
        }
        let now = self.machinery.platforms.get(&self.job.platform);
        now.map_err(|why| Ending::new(Reason::PlatformUnavailable, why))
    }

    async fn work(&mut self) -> Result<(), Ending> {
        let platform = self.platform().await?;
        if !self.job.plan.is_known() {
            let preparer = Preparer::new(self.ledger.clone(), &self.machinery);
            self.job.plan = preparer.plan_late(&self.build, &self.job).await?;
        }
        let is_rerun = self.job.attempts == 1 && self.attempt.number > 1;
        if is_rerun && self.attempt.phase == Phase::Placed {
            // Taken up again by a person: the log begins anew.
            let anew = self.machinery.logs.begin_anew(self.job.id).await;
            anew.map_err(|error| Ending::new(Reason::HostError, error.to_string()))?;
        }
        let mut log = self.open_log().await?;
        if self.attempt.phase == Phase::Placed {
            let stand_in = self.stand_in_for_agent(&platform);
            let opening = transcript::opening(&self.attempt, &self.build, stand_in);
            transcript::put_last(&mut log, &self.machinery.logs, &opening).await?;
        }
        let mut cancelled = self.cancelled.clone();
        let agent = tokio::select! {
            biased;
            ending = asked_to_cancel(&mut cancelled) => return Err(ending),
            agent = self.reach_agent(&platform) => agent?,
        };
        Work::new(self, platform, log, agent).run().await;
        Ok(())
    }

    /// The system for which no agent is built, where the one in `sh` does its work because of that.
    fn stand_in_for_agent(&self, platform: &Platform) -> Option<(OsFamily, Architecture)> {
        let kind = self.machinery.transport.agent_kind(&guest(platform));
        (platform.agent.is_none() && kind == Some(AgentKind::Sh))
            .then_some((platform.os, platform.arch))
    }

    /// Leaves a machine that outlives the job: the master may have died after the job was decided and before that.
    async fn leave(&mut self) -> Result<(), Ending> {
        let platform = self.platform().await?;
        match &platform.kind {
            PlatformKind::Vm { .. } => Ok(()),
            PlatformKind::Ssh { host } => {
                let agent = self.connect(&platform, host, platform.ssh.port).await?;
                let log = self.open_log().await?;
                Work::new(self, platform, log, agent).leave_machine().await;
                Ok(())
            }
        }
    }

    async fn open_log(&self) -> Result<LogWriter, Ending> {
        let opened = patiently("open the log", || self.try_to_open_log()).await?;
        opened.map_err(log_error)
    }

    /// Whether a log is still open is known to the database, whose errors are apart: it may be away for a while.
    async fn try_to_open_log(&self) -> Result<Result<LogWriter, LogError>, StoreError> {
        match self.machinery.logs.writer(self.job.id).await {
            Err(LogError::Store { source, .. }) => Err(source),
            opened => Ok(opened),
        }
    }

    /// Brings the machine up, unless it is, and connects to it.
    async fn reach_agent(&mut self, platform: &Platform) -> Result<Agent, Ending> {
        match &platform.kind {
            PlatformKind::Vm { console, .. } => {
                let port = self.boot(platform, console).await?;
                self.connect(platform, "127.0.0.1", port).await
            }
            PlatformKind::Ssh { host } => {
                self.enter(Phase::Connecting).await?;
                self.connect(platform, host, platform.ssh.port).await
            }
        }
    }

    async fn boot(&mut self, platform: &Platform, console: &ConsoleSpec) -> Result<u16, Ending> {
        let machines = &self.machinery.machines;
        let id = self.attempt.id;
        let is_taken_up = self.attempt.phase > Phase::Booting;
        let patience = self.scaled(platform.boot_deadline_secs);
        let is_running = || machines.is_running(id);
        if is_taken_up && !outlast(patience, is_running).await.map_err(host_error)? {
            let message = match self.began_before_the_host() {
                true => "The host was restarted while the job ran",
                false => "The VM was gone when the master came back to it",
            };
            return Err(Ending::new(Reason::GuestDied, message));
        }
        if is_taken_up && let Some(port) = self.attempt.ssh_port {
            // Should it die this moment, a new one in its place would know nothing of what was begun.
            return Ok(port);
        }
        let port = outlast(patience, || machines.start(id, platform))
            .await
            .map_err(host_error)?;
        let store = &self.ledger.store;
        patiently("record the port of a machine", || {
            store.record_ssh_port(id, port)
        })
        .await?;
        if is_taken_up {
            return Ok(port);
        }
        self.enter(Phase::Booting).await?;
        if let Some(marker) = &console.ready_marker {
            match timeout(
                patience,
                self.machinery.machines.wait_for_console(id, marker),
            )
            .await
            {
                Ok(Ok(())) => {}
                Ok(Err(VmError::Gone(why))) => {
                    return Err(Ending::new(
                        Reason::BootDeadline,
                        format!("The VM of {} ended while it booted: {why}", platform.name),
                    ));
                }
                Ok(Err(error)) => return Err(host_error(error)),
                Err(_) => {
                    return Err(Ending::new(
                        Reason::BootDeadline,
                        format!(
                            "{} did not finish booting in {} s: its console never showed `{marker}`",
                            platform.name,
                            patience.as_secs()
                        ),
                    ));
                }
            }
            self.enter(Phase::Connecting).await?;
        }
        Ok(port)
    }

    /// Whether the host was started after this attempt.
    fn began_before_the_host(&self) -> bool {
        let began = self.attempt.phases.first().map(|(_, at)| *at);
        let host_started = nix::sys::sysinfo::sysinfo().ok().and_then(|info| {
            let uptime = jiff::SignedDuration::try_from(info.uptime()).ok()?;
            self.ledger.clock.now().checked_sub(uptime).ok()
        });
        matches!((began, host_started), (Some(began), Some(started)) if began < started)
    }

    /// Connects to the agent before the deadline, or until the VM is gone.
    pub(super) async fn connect(
        &self,
        platform: &Platform,
        host: &str,
        port: u16,
    ) -> Result<Agent, Ending> {
        let endpoint = endpoint(
            &self.machinery.machines,
            self.attempt.id,
            platform,
            (host, port),
            self.machinery.config.limits.heartbeat_secs,
        );
        let guest = guest(platform);
        // Without a console marker nobody knows when the boot ends: its time counts to this wait.
        let has_booted = self.attempt.phase > Phase::Booting;
        let secs = match has_booted {
            true => platform.connect_deadline_secs,
            false => platform.connect_deadline_secs + platform.boot_deadline_secs,
        };
        let deadline = self.scaled(secs);
        let transport = &*self.machinery.transport;
        let mut last = String::new();
        let connected = Agent::connect_telling(transport, &endpoint, &guest, &mut last);
        let connected = tokio::select! {
            biased;
            why = self.machine_gone(platform) => {
                let message = format!("The VM of {} died: {why}", platform.name);
                return Err(Ending::new(Reason::GuestDied, message));
            }
            connected = timeout(deadline, connected) => connected,
        };
        match connected {
            Ok(Ok(agent)) => Ok(agent),
            Ok(Err(error)) => {
                let reason = match error.is_platforms() {
                    true => Reason::PlatformUnavailable,
                    false => Reason::ConnectDeadline,
                };
                let message = format!("Cannot work on {}: {error}", platform.name);
                Err(Ending::new(reason, message))
            }
            Err(_) => {
                let reason = match has_booted {
                    true => Reason::ConnectDeadline,
                    false => Reason::BootDeadline,
                };
                let last = match last.is_empty() {
                    true => String::new(),
                    false => format!(": {last}"),
                };
                let message = format!(
                    "{} did not answer by SSH in {} s{last}",
                    platform.name,
                    deadline.as_secs()
                );
                Err(Ending::new(reason, message))
            }
        }
    }

    /// Resolves when the VM is gone; never for a machine that is none of ours.
    pub(super) fn machine_gone(
        &self,
        platform: &Platform,
    ) -> impl Future<Output = String> + Send + use<> {
        let machines = self.machinery.machines.clone();
        let id = self.attempt.id;
        let is_ours = matches!(platform.kind, PlatformKind::Vm { .. });
        async move {
            match is_ours {
                true => machines.wait_gone(id).await.why,
                false => std::future::pending().await,
            }
        }
    }

    pub(super) async fn enter(&mut self, phase: Phase) -> Result<(), Ending> {
        if self.attempt.phase < phase {
            let (ledger, attempt) = (&self.ledger, &self.attempt);
            patiently("record the phase", || ledger.enter_phase(attempt, phase)).await?;
            self.attempt.phase = phase;
            crate::crash::point(phase.as_str());
        }
        Ok(())
    }

    /// A deadline of a platform's file, longer where guests run without KVM.
    fn scaled(&self, secs: u64) -> Duration {
        let scale = match self.machinery.machines.accelerator() {
            Accelerator::Kvm => 1,
            Accelerator::Tcg => self.machinery.config.hypervisor.tcg_deadline_scale,
        };
        Duration::from_secs(secs) * scale
    }

    /// Writes the ending down: from now on it stands, whatever is found at a later start.
    pub(super) async fn decide(&mut self, mut ending: Ending) {
        ending.message = self.mask.text(&ending.message);
        let tail = match ending.conclusion() {
            Conclusion::InfrastructureError => {
                let machines = &self.machinery.machines;
                Some(machines.console_tail(self.attempt.id, CONSOLE_TAIL).await)
                    .filter(|tail| !tail.is_empty())
                    .map(|tail| self.mask.text(&tail))
            }
            Conclusion::Success
            | Conclusion::Failure
            | Conclusion::TimedOut
            | Conclusion::Cancelled => None,
        };
        let log_end = match self.machinery.logs.length(self.job.id).await {
            Ok(length) => length,
            Err(error) => {
                tracing::warn!(%error, "the length of the log cannot be told");
                0
            }
        };
        let (store, id) = (&self.ledger.store, self.attempt.id);
        insist(|| store.decide_ending(id, &ending, tail.as_deref(), log_end)).await;
        crate::crash::point("ending_decided");
        self.attempt.ending = Some(ending);
        self.attempt.console_tail = tail;
        self.attempt.log_end = Some(log_end);
    }

    /// Tells the ending, in the log and to the job.
    async fn conclude(&self) {
        let Some(ending) = &self.attempt.ending else {
            return;
        };
        let tail = self.attempt.console_tail.as_deref();
        let retries = i64::from(self.machinery.config.limits.infrastructure_retries);
        let is_last = !ending.reason.is_worth_a_retry() || self.job.attempts > retries;
        let logs = &self.machinery.logs;
        let closing = transcript::closing(ending, is_last, tail);
        // Nobody would add it later.
        let written = match insist(|| self.try_to_open_log()).await {
            Ok(mut log) => {
                let at = self.attempt.log_end.unwrap_or(log.len());
                let put = transcript::put_at(&mut log, logs, at, &closing).await;
                put.map(|_| ())
            }
            Err(error) => Err(log_error(error)),
        };
        if let Err(error) = written {
            tracing::warn!(why = error.message, "the end of the log cannot be written");
        }
        crate::crash::point("closing_written");
        match insist(|| self.ledger.conclude(&self.attempt, ending, tail)).await {
            JobOutcome::Finished => {
                tracing::info!(
                    reason = ending.reason.as_str(),
                    why = ending.message,
                    "job finished"
                );
                self.close_log().await;
            }
            JobOutcome::Retried => tracing::warn!(
                reason = ending.reason.as_str(),
                why = ending.message,
                "attempt failed; the job is queued again"
            ),
        }
    }

    /// The log is sealed later, when the object store takes it.
    async fn close_log(&self) {
        if let Err(error) = self.machinery.logs.close(self.job.id).await {
            tracing::debug!(%error, "followers learn the end of the log a little later");
        }
    }

    /// The attempt keeps its slot as long as there is anything of its machine: what still runs takes room.
    async fn clean_up(&self) {
        let machines = &self.machinery.machines;
        machines.destroy_until_gone(self.attempt.id).await;
        crate::crash::point("machine_destroyed");
        insist(|| self.ledger.end_attempt(self.attempt.id)).await;
    }
}

/// Repeats a call of libvirt while libvirtd is away, as when it is restarted.
async fn outlast<T, F>(patience: Duration, mut call: impl FnMut() -> F) -> Result<T, VmError>
where
    F: Future<Output = Result<T, VmError>>,
{
    let give_up = Instant::now() + patience;
    loop {
        match call().await {
            Err(error @ VmError::Away { .. }) if Instant::now() < give_up => {
                tracing::warn!(%error, "libvirt is waited for");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            result => return result,
        }
    }
}

/// Resolves with the wish, once somebody has it.
pub(super) async fn asked_to_cancel(cancelled: &mut watch::Receiver<Option<Ending>>) -> Ending {
    match cancelled
        .wait_for(Option::is_some)
        .await
        .map(|wish| wish.clone())
    {
        Ok(Some(ending)) => ending,
        // The scheduler is gone: the master stops, and the guest is left for its next start.
        Ok(None) | Err(_) => std::future::pending().await,
    }
}

#[expect(clippy::needless_pass_by_value, reason = "handed to map_err")]
pub(super) fn host_error(error: VmError) -> Ending {
    Ending::new(Reason::HostError, error.to_string())
}
