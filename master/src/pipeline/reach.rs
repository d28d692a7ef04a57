//! From a platform to an agent that answers: the machine's start, its boot, the connection; and the way of it, in a
//! record.
//!
//! ```text
//!  start ─► port ─► wait_until_booted (ready marker) ─► connect ─► Agent
//!    └────────────────────┴──────────────────────────────┴──► Recorder: milestones, what was waited for
//! ```
//!
//! Nothing here knows of jobs: a job's driver takes these steps with its rows in between, and whoever only wants to see
//! a platform come up takes them all at once ([`Reach::come_up`]).

use super::drive::Machinery;
use super::patience::outlast;
use crate::clock::Clock;
use crate::model::{
    AttemptId, Awaited, BootRecord, Ending, HostKey, Login, Milestone, Platform, PlatformKind,
    Reason, Witness,
};
use crate::session::{Agent, Credential, Endpoint, GuestSpec, Transport};
use crate::vm::{Accelerator, Machines, VmError};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::timeout;

/// Where our own VMs are reached: the forwarded port is on loopback.
pub(crate) const LOOPBACK: &str = "127.0.0.1";

/// Keeps the record of one machine; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Recorder {
    clock: Clock,
    record: Arc<Mutex<BootRecord>>,
    changed: Arc<Notify>,
}

impl Recorder {
    /// Goes on with what was seen before.
    pub(crate) fn new(clock: Clock, record: BootRecord) -> Recorder {
        Recorder {
            clock,
            record: Arc::new(Mutex::new(record)),
            changed: Arc::default(),
        }
    }

    /// What was seen so far.
    pub(crate) fn record(&self) -> BootRecord {
        self.lock().clone()
    }

    /// Resolves when there is something new in the record; for one who waits.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Notes that it was given up; what for is told in the ending's sentence too.
    fn give_up(&self, machine: Awaited<'_>) -> String {
        let mut record = self.lock();
        let awaited = record.awaited(machine);
        record.waited_for = Some(awaited.clone());
        awaited
    }

    fn lock(&self) -> MutexGuard<'_, BootRecord> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Witness for Recorder {
    fn sees(&self, milestone: Milestone) {
        let now = self.clock.now();
        if self.lock().note(milestone, now) {
            self.changed.notify_one();
        }
    }
}

/// One machine on its way up.
#[derive(Debug, Clone)]
pub(crate) struct Reach<'a> {
    pub(crate) machines: &'a Machines,
    pub(crate) transport: &'a dyn Transport,
    pub(crate) id: AttemptId,
    pub(crate) platform: &'a Platform,
    /// The deadlines of a platform's file are longer by this factor where guests run without KVM.
    pub(crate) tcg_scale: u32,
    pub(crate) heartbeat: Duration,
    pub(crate) recorder: Recorder,
}

/// Whether the guest has shown that it is up, before it is connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Boot {
    Over,
    /// Without a console marker nobody knows when it ends: its time counts to the connection's.
    UnderWay,
}

pub(crate) fn guest(platform: &Platform) -> GuestSpec {
    GuestSpec {
        os: platform.os,
        arch: platform.arch,
        agent: platform.agent,
        state_dir: platform.state_dir.clone(),
    }
}

impl<'a> Reach<'a> {
    pub(crate) fn new(
        machinery: &'a Machinery,
        id: AttemptId,
        platform: &'a Platform,
        recorder: Recorder,
    ) -> Reach<'a> {
        Reach {
            machines: &machinery.machines,
            transport: &*machinery.transport,
            id,
            platform,
            tcg_scale: machinery.config.hypervisor.tcg_deadline_scale,
            heartbeat: Duration::from_secs(machinery.config.limits.heartbeat_secs),
            recorder,
        }
    }

    /// All of the way. The machine stays, also where this fails: whoever asked for it has it destroyed.
    pub(crate) async fn come_up(&self) -> Result<Agent, Ending> {
        match &self.platform.kind {
            PlatformKind::Vm { .. } => {
                let port = self.start().await?;
                let boot = self.wait_until_booted().await?;
                self.connect(LOOPBACK, port, boot).await
            }
            PlatformKind::Ssh { host } => {
                self.connect(host, self.platform.ssh.port, Boot::Over).await
            }
        }
    }

    /// Starts the VM, or keeps the one that runs; the loopback port that leads to its SSH server.
    pub(crate) async fn start(&self) -> Result<u16, Ending> {
        let start = || self.machines.start(self.id, self.platform);
        let port = outlast(self.boot_patience(), start)
            .await
            .map_err(host_error)?;
        self.recorder.sees(Milestone::DomainStarted);
        Ok(port)
    }

    /// Waits for the ready marker, where the platform names one.
    pub(crate) async fn wait_until_booted(&self) -> Result<Boot, Ending> {
        let Some(marker) = self.marker() else {
            return Ok(Boot::UnderWay);
        };
        let patience = self.boot_patience();
        let shown = self
            .machines
            .wait_for_console(self.id, marker, &self.recorder);
        let name = &self.platform.name;
        let message = match timeout(patience, shown).await {
            Ok(Ok(())) => return Ok(Boot::Over),
            Ok(Err(VmError::Gone(gone))) => format!(
                "The VM of {name} ended while it booted: waited for {}; {}",
                self.give_up(self.console()),
                gone.why
            ),
            Ok(Err(
                error @ (VmError::Host { .. } | VmError::Away { .. } | VmError::Image { .. }),
            )) => {
                return Err(host_error(error));
            }
            Err(_) => format!(
                "{name} did not finish booting in {} s: waited for {}",
                patience.as_secs(),
                self.give_up(self.console())
            ),
        };
        Err(Ending::new(Reason::BootDeadline, message))
    }

    /// Connects to the agent before the deadline, or until the VM is gone.
    pub(crate) async fn connect(&self, host: &str, port: u16, boot: Boot) -> Result<Agent, Ending> {
        let name = &self.platform.name;
        let endpoint = self.endpoint(host, port);
        let guest = guest(self.platform);
        let secs = match boot {
            Boot::Over => self.platform.connect_deadline_secs,
            Boot::UnderWay => {
                self.platform.connect_deadline_secs + self.platform.boot_deadline_secs
            }
        };
        let deadline = self.scaled(secs);
        let awaited = match boot {
            // What its console should have shown, it has.
            Boot::Over => Awaited::Machine,
            Boot::UnderWay => self.console(),
        };
        let mut last = String::new();
        let connected =
            Agent::connect_telling(self.transport, &endpoint, &guest, &self.recorder, &mut last);
        let connected = tokio::select! {
            biased;
            why = machine_gone(self.machines, self.id, self.platform) => {
                let message = format!("The VM of {name} died: waited for {}; {why}", self.give_up(awaited));
                return Err(Ending::new(Reason::GuestDied, message));
            }
            connected = timeout(deadline, connected) => connected,
            never = self.watch_console(boot) => match never {},
        };
        match connected {
            Ok(Ok(agent)) => Ok(agent),
            Ok(Err(error)) => {
                let reason = match error.is_platforms() {
                    true => Reason::PlatformUnavailable,
                    false => Reason::ConnectDeadline,
                };
                self.give_up(awaited);
                let message = format!("Cannot work on {name}: {error}");
                Err(Ending::new(reason, message))
            }
            Err(_) => {
                let reason = match boot {
                    Boot::Over => Reason::ConnectDeadline,
                    Boot::UnderWay => Reason::BootDeadline,
                };
                let last = match last.is_empty() {
                    true => String::new(),
                    false => format!(" ({last})"),
                };
                let message = format!(
                    "{name} did not answer by SSH in {} s: waited for {}{last}",
                    deadline.as_secs(),
                    self.give_up(awaited)
                );
                Err(Ending::new(reason, message))
            }
        }
    }

    /// Notes the console's first byte, where nobody waits for a marker there.
    async fn watch_console(&self, boot: Boot) -> std::convert::Infallible {
        if boot == Boot::UnderWay
            && !self.recorder.record().has(Milestone::FirstConsoleByte)
            && let Err(error) = self
                .machines
                .wait_for_first_byte(self.id, &self.recorder)
                .await
        {
            tracing::debug!(vm = %self.id, %error, "the console's first byte was not seen");
        }
        std::future::pending().await
    }

    fn endpoint(&self, host: &str, port: u16) -> Endpoint {
        let ssh = &self.platform.ssh;
        let credential = match &ssh.login {
            Login::Key(path) => Credential::Key(path.clone()),
            Login::Password(path) => Credential::Password(path.clone()),
            Login::Seeded => Credential::Key(self.machines.ssh_key(self.id)),
        };
        let host_key = match &ssh.host_key {
            HostKey::Pinned(path) => path.clone(),
            HostKey::Seeded => self.machines.ssh_host_key(self.id),
        };
        Endpoint {
            host: host.to_owned(),
            port,
            user: ssh.user.clone(),
            credential,
            host_key,
            name: self.id.to_string(),
            heartbeat: self.heartbeat,
        }
    }

    fn marker(&self) -> Option<&str> {
        match &self.platform.kind {
            PlatformKind::Vm { console, .. } => console.ready_marker.as_deref(),
            PlatformKind::Ssh { .. } => None,
        }
    }

    fn console(&self) -> Awaited<'_> {
        Awaited::Vm {
            marker: self.marker(),
        }
    }

    fn give_up(&self, awaited: Awaited<'_>) -> String {
        self.recorder.give_up(awaited)
    }

    /// How long a boot may take here.
    pub(crate) fn boot_patience(&self) -> Duration {
        self.scaled(self.platform.boot_deadline_secs)
    }

    /// A deadline of a platform's file, longer where guests run without KVM.
    pub(crate) fn scaled(&self, secs: u64) -> Duration {
        let scale = match self.machines.accelerator() {
            Accelerator::Kvm => 1,
            Accelerator::Tcg => self.tcg_scale,
        };
        Duration::from_secs(secs) * scale
    }
}

/// Resolves when the VM is gone; never for a machine that is none of ours.
pub(crate) fn machine_gone(
    machines: &Machines,
    id: AttemptId,
    platform: &Platform,
) -> impl Future<Output = String> + Send + use<> {
    let machines = machines.clone();
    let is_ours = matches!(platform.kind, PlatformKind::Vm { .. });
    async move {
        match is_ours {
            true => machines.wait_gone(id).await.why,
            false => std::future::pending().await,
        }
    }
}

pub(crate) fn host_error(error: impl fmt::Display) -> Ending {
    Ending::new(Reason::HostError, error.to_string())
}
