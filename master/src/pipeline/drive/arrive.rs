//! The part of a drive until an agent answers: the steps of [`Reach`], with the attempt's rows in between.

use super::{Driver, FailedBoot};
use crate::model::{BootRecord, Ending, Phase, Platform, PlatformKind, Reason};
use crate::pipeline::patience::{outlast, patiently};
use crate::pipeline::reach::{Boot, LOOPBACK, Reach, Recorder, host_error, machine_gone};
use crate::session::Agent;
use std::convert::Infallible;
use std::sync::Arc;

impl Driver {
    /// Brings the machine up, unless it is, and connects to it; what is seen of it goes into the attempt's row.
    pub(super) async fn reach_agent(&mut self, platform: &Platform) -> Result<Agent, Ending> {
        let is_new = self.attempt.phase <= Phase::Connecting;
        let files = self.machinery.platforms.files_of(&platform.name);
        let machinery = Arc::clone(&self.machinery);
        // Once a machine was up, its record is complete: what comes after is no boot.
        let recorder = match is_new {
            true => self.recorder.clone(),
            false => Recorder::new(self.ledger.clock.clone(), BootRecord::default()),
        };
        let reach = Reach::new(&machinery, self.attempt.id, platform, recorder.clone());
        let saving = self.keep_record(recorder);
        let reached = async {
            match &platform.kind {
                PlatformKind::Vm { .. } => self.reach_vm(&reach).await,
                PlatformKind::Ssh { host } => {
                    let entered = self.enter(Phase::Connecting).await;
                    entered.map_err(Setback::Other)?;
                    let port = platform.ssh.port;
                    let connected = reach.connect(host, port, Boot::Over).await;
                    connected.map_err(Setback::Boot)
                }
            }
        };
        let reached = tokio::select! {
            biased;
            reached = reached => reached,
            never = saving => match never {},
        };
        match reached {
            Ok(agent) if is_new => {
                self.attempt.boot = self.recorder.record();
                let ledger = &self.ledger;
                patiently("record the boot", || {
                    ledger.record_arrival(&self.attempt, &files)
                })
                .await?;
                Ok(agent)
            }
            Ok(agent) => Ok(agent),
            Err(Setback::Other(ending)) => Err(ending),
            Err(Setback::Boot(ending)) => {
                if is_new && ending.reason.is_of_boot() {
                    self.failed_boot = Some(FailedBoot { files });
                }
                Err(ending)
            }
        }
    }

    /// Brings up a VM, or finds the one that a master before this one had.
    async fn reach_vm(&mut self, reach: &Reach<'_>) -> Result<Agent, Setback> {
        let (machines, id) = (reach.machines, self.attempt.id);
        let is_taken_up = self.attempt.phase > Phase::Booting;
        let connect = async |port, boot| {
            let connected = reach.connect(LOOPBACK, port, boot).await;
            connected.map_err(Setback::Boot)
        };
        if is_taken_up {
            let is_running = || machines.is_running(id);
            let is_there = outlast(reach.boot_patience(), is_running).await;
            if !is_there.map_err(|error| Setback::Other(host_error(error)))? {
                let message = match self.began_before_the_host() {
                    true => "The host was restarted while the job ran",
                    false => "The VM was gone when the master came back to it",
                };
                return Err(Setback::Other(Ending::new(Reason::GuestDied, message)));
            }
            if let Some(port) = self.attempt.ssh_port {
                // Should it die this moment, a new one in its place would know nothing of what was begun.
                return connect(port, Boot::Over).await;
            }
        }
        let port = reach.start().await.map_err(Setback::Boot)?;
        let store = &self.ledger.store;
        let recorded = patiently("record the port of a machine", || {
            store.record_ssh_port(id, port)
        });
        recorded.await.map_err(Setback::Other)?;
        if is_taken_up {
            return connect(port, Boot::Over).await;
        }
        self.enter(Phase::Booting).await.map_err(Setback::Other)?;
        let boot = reach.wait_until_booted().await.map_err(Setback::Boot)?;
        match boot {
            Boot::Over => self
                .enter(Phase::Connecting)
                .await
                .map_err(Setback::Other)?,
            Boot::UnderWay => {}
        }
        connect(port, boot).await
    }

    /// Writes the record down while it grows, for whoever looks on. What the database does not take now comes with the end.
    fn keep_record(&self, recorder: Recorder) -> impl Future<Output = Infallible> + Send + use<> {
        let (store, id) = (self.ledger.store.clone(), self.attempt.id);
        async move {
            loop {
                recorder.changed().await;
                if let Err(error) = store.record_boot(id, &recorder.record()).await {
                    tracing::debug!(%error, "the record of a boot is written later");
                }
            }
        }
    }

    /// What was seen of the boot, fit to be shown.
    pub(super) fn masked_boot(&self) -> BootRecord {
        let mut record = self.recorder.record();
        let waited_for = record.waited_for.take();
        record.waited_for = waited_for.map(|awaited| self.mask.text(&awaited));
        record
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

    /// Connects once more to a machine that was up before.
    pub(in crate::pipeline) async fn connect(
        &self,
        platform: &Platform,
        host: &str,
        port: u16,
    ) -> Result<Agent, Ending> {
        let recorder = Recorder::new(self.ledger.clock.clone(), BootRecord::default());
        let reach = Reach::new(&self.machinery, self.attempt.id, platform, recorder);
        reach.connect(host, port, Boot::Over).await
    }

    /// Resolves when the VM is gone; never for a machine that is none of ours.
    pub(in crate::pipeline) fn machine_gone(
        &self,
        platform: &Platform,
    ) -> impl Future<Output = String> + Send + use<> {
        machine_gone(&self.machinery.machines, self.attempt.id, platform)
    }
}

/// Why there is no agent.
enum Setback {
    /// The machine was tried, and did not come up.
    Boot(Ending),
    Other(Ending),
}
