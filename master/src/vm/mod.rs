//! An attempt's virtual machine, from overlay to sweep.
//!
//! ```text
//! Platform ─► check ─► folder, overlay, port ─► [hypervisor] ─► console marker ─► port to SSH
//!                                                    │
//!              wait_gone ◄── it ended                └──► destroy, sweep: nothing is left
//! ```
//!
//! What is there is asked of libvirt and the folder of VMs each time; kept here are only the ports given out and whose
//! turn it is. So a master that starts again finds its machines running, and a second start of one keeps it.

mod accelerator;
mod confinement;
mod console;
mod error;
mod folder;
pub(crate) mod hypervisor;
mod image;
mod libvirt;
mod ports;
mod screenshot;
mod seed;
mod start;
mod sweep;
mod turns;

#[cfg(test)]
mod tests;

pub use accelerator::{Acceleration, Accelerator};
pub use confinement::QemuUser;
pub use error::{Gone, VmError};
pub use hypervisor::HostCapacity;
pub use image::{ImageFacts, check_platform, image_facts};
pub use sweep::Swept;

use crate::model::{AttemptId, Milestone, Platform, Witness};
use console::{ConsoleReader, MarkerSearch};
use folder::VmFolder;
use hypervisor::{Hypervisor, Life};
use ports::Ports;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tracing::Instrument;
use turns::Turns;

/// Between two looks at a console: what a boot can lose by it.
const CONSOLE_PAUSE: Duration = Duration::from_millis(25);
/// The same where only the time of its first byte is wanted.
const FIRST_BYTE_PAUSE: Duration = Duration::from_millis(200);
/// How long a console's file may become where virtlogd does not cut it shorter: twice of what that keeps.
const CONSOLE_BYTES: u64 = 16 << 20;
/// Between two questions whether a machine still runs.
const LIFE_PAUSE: Duration = Duration::from_secs(1);
/// How often a machine is looked at that has ended and is being cleared away: tenths of a second for libvirt.
const LOOKS_AT_AN_END: u32 = 5;
/// Between two tries to destroy a machine; doubled up to the longest.
const DESTROY_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_DESTROY_PAUSE: Duration = Duration::from_secs(30);
/// A destroy waits for a start or another destroy under way, each of which ends by itself sooner than this.
const TURN_DEADLINE: Duration = Duration::from_secs(240);

#[derive(Debug, Clone)]
pub struct VmConfig {
    /// libvirt's connection URI: `qemu:///system`, `qemu:///session`, or `qemu:///embed?root=DIR`.
    pub uri: String,
    /// Folder for overlays and console files: one folder per VM in it.
    pub dir: PathBuf,
    pub acceleration: Acceleration,
    /// This master's own mark, e.g. a UUID: several masters may share one libvirt, and each sweeps only its own.
    pub installation: String,
}

/// The machines of this master on this host.
#[derive(Debug, Clone)]
pub struct Machines {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    hypervisor: Box<dyn Hypervisor>,
    ports: Ports,
    turns: Turns,
}

impl Machines {
    pub async fn open(config: VmConfig) -> Result<Machines, VmError> {
        let dir = std::path::absolute(&config.dir)
            .map_err(|error| VmError::host(format!("use {}", config.dir.display()), error))?;
        folder::make_parent(&dir)?;
        let hypervisor =
            libvirt::Libvirt::open(&config.uri, &config.installation, config.acceleration).await?;
        Ok(Machines::over(dir, Box::new(hypervisor)))
    }

    /// Over another hypervisor; `dir` is there and is its own.
    pub(crate) fn over(dir: PathBuf, hypervisor: Box<dyn Hypervisor>) -> Machines {
        Machines {
            inner: Arc::new(Inner {
                dir,
                hypervisor,
                ports: Ports::default(),
                turns: Turns::default(),
            }),
        }
    }

    /// What guests run on, decided when the stage was opened.
    pub fn accelerator(&self) -> Accelerator {
        self.inner.hypervisor.accelerator()
    }

    /// The reason for the accelerator, as a clause.
    pub fn accelerator_why(&self) -> &str {
        self.inner.hypervisor.accelerator_why()
    }

    /// As whom QEMU runs: what a guest that broke out of it may do.
    pub fn qemu_user(&self) -> QemuUser {
        self.inner.hypervisor.qemu_user()
    }

    /// Starts the attempt's machine and returns the loopback port that leads to the guest's SSH; one that runs already
    /// is kept. A start that nobody waits for any more still ends, so that the next act finds a whole machine or none.
    pub async fn start(&self, attempt: AttemptId, platform: &Platform) -> Result<u16, VmError> {
        let (inner, platform) = (Arc::clone(&self.inner), platform.clone());
        let start = async move {
            let _turn = inner.turns.take(attempt).await;
            inner.turns.start_begins(attempt);
            let started = inner.start(attempt, &platform).await;
            inner.turns.start_ended(attempt);
            if started.is_err() {
                inner.ports.release(attempt);
            }
            started
        };
        tokio::spawn(start.in_current_span())
            .await
            .map_err(|error| VmError::host(format!("start {attempt}"), error))?
    }

    /// Returns when the serial console shows the marker, or with [`VmError::Gone`] when the machine ended. It has no
    /// deadline: the caller knows the platform's. `witness` hears of the console's first byte, and of the marker.
    pub async fn wait_for_console(
        &self,
        attempt: AttemptId,
        marker: &str,
        witness: &dyn Witness,
    ) -> Result<(), VmError> {
        let mut search = MarkerSearch::new(marker);
        let shows = |new: &[u8]| {
            if !new.is_empty() {
                witness.sees(Milestone::FirstConsoleByte);
            }
            search.is_found_in(new)
        };
        self.follow_console(attempt, CONSOLE_PAUSE, shows).await?;
        witness.sees(Milestone::ReadyMarker);
        Ok(())
    }

    /// The same for whatever the console shows first.
    pub async fn wait_for_first_byte(
        &self,
        attempt: AttemptId,
        witness: &dyn Witness,
    ) -> Result<(), VmError> {
        let shows = |new: &[u8]| !new.is_empty();
        self.follow_console(attempt, FIRST_BYTE_PAUSE, shows)
            .await?;
        witness.sees(Milestone::FirstConsoleByte);
        Ok(())
    }

    async fn follow_console(
        &self,
        attempt: AttemptId,
        pause: Duration,
        mut is_shown: impl FnMut(&[u8]) -> bool,
    ) -> Result<(), VmError> {
        let mut reader = ConsoleReader::new(VmFolder::of(&self.inner.dir, attempt).console());
        let gone = self.wait_gone(attempt);
        tokio::pin!(gone);
        let mut ended = None;
        loop {
            let look;
            (reader, look) = blocking(move || {
                let look = reader.read_new();
                (reader, look)
            })
            .await?;
            let new = look
                .map_err(|error| VmError::host(format!("read the console of {attempt}"), error))?;
            if is_shown(&new) {
                return Ok(());
            }
            match ended.take() {
                // What it wrote before its end has been read to the last byte.
                Some(gone) if new.is_empty() => return Err(VmError::Gone(gone)),
                Some(gone) => ended = Some(gone),
                None => tokio::select! {
                    biased;
                    gone = &mut gone => ended = Some(gone),
                    () = tokio::time::sleep(pause) => {}
                },
            }
        }
    }

    /// Resolves when the machine does not run any more, with the reason. While libvirt cannot be asked it waits on.
    pub async fn wait_gone(&self, attempt: AttemptId) -> Gone {
        let hypervisor = &self.inner.hypervisor;
        let mut looks_at_its_end = 0;
        loop {
            match hypervisor.find(attempt).await {
                Ok(Some(seen)) => match seen.life {
                    Life::Running => self.keep_console_short(attempt).await,
                    // Once it is gone, the reason is known.
                    Life::Ending if looks_at_its_end < LOOKS_AT_AN_END => looks_at_its_end += 1,
                    Life::Ending => {
                        let why = "it has ended, but is not cleared away".to_owned();
                        return Gone { attempt, why };
                    }
                    Life::Ended(why) => return Gone { attempt, why },
                },
                Ok(None) => {
                    let why = hypervisor.how_it_ended(attempt).await;
                    return Gone { attempt, why };
                }
                Err(error) => tracing::warn!(vm = %attempt, %error, "cannot see whether it runs"),
            }
            tokio::time::sleep(LIFE_PAUSE).await;
        }
    }

    async fn keep_console_short(&self, attempt: AttemptId) {
        let console = VmFolder::of(&self.inner.dir, attempt).console();
        let kept = blocking(move || console::keep_short(&console, CONSOLE_BYTES)).await;
        // Between the two halves of a rotation it is not there.
        if let Ok(Err(error)) = kept {
            tracing::debug!(vm = %attempt, %error, "the console's file is left as it is");
        }
    }

    pub async fn is_running(&self, attempt: AttemptId) -> Result<bool, VmError> {
        let seen = self.inner.hypervisor.find(attempt).await?;
        Ok(seen.is_some_and(|seen| seen.life == Life::Running))
    }

    /// The end of the serial console, fit to be shown; empty where there is none.
    pub async fn console_tail(&self, attempt: AttemptId, max_bytes: usize) -> String {
        let console = VmFolder::of(&self.inner.dir, attempt).console();
        blocking(move || console::read_tail(&console, max_bytes))
            .await
            .unwrap_or_default()
    }

    /// What the machine's display shows now, as a PNG; `None` where there is no machine or no display.
    pub async fn screenshot(&self, attempt: AttemptId) -> Result<Option<Vec<u8>>, VmError> {
        self.inner.hypervisor.screenshot(attempt).await
    }

    /// The end of QEMU's own log of the machine, fit to be shown, or a sentence why it cannot be read; empty where there
    /// is none.
    pub async fn qemu_log(&self, attempt: AttemptId) -> String {
        let folder = VmFolder::of(&self.inner.dir, attempt);
        if !blocking(move || folder.is_there()).await.unwrap_or(false) {
            return String::new();
        }
        console::clean(&self.inner.hypervisor.own_log(attempt).await)
    }

    /// What the attempt's machine was made from, while it is there: its platform's files may have changed since, or gone.
    pub async fn platform_of(&self, attempt: AttemptId) -> Option<Platform> {
        let folder = VmFolder::of(&self.inner.dir, attempt);
        blocking(move || folder.platform()).await.ok().flatten()
    }

    /// Where the private key is that logs in to the attempt's machine, if it has keys of its own.
    pub fn ssh_key(&self, attempt: AttemptId) -> PathBuf {
        VmFolder::of(&self.inner.dir, attempt).ssh_key()
    }

    /// Where the public host key is that the attempt's machine must show, if it has keys of its own.
    pub fn ssh_host_key(&self, attempt: AttemptId) -> PathBuf {
        VmFolder::of(&self.inner.dir, attempt).ssh_host_key()
    }

    /// Ends the machine and removes its files, from any state; doing it again is fine.
    pub async fn destroy(&self, attempt: AttemptId) -> Result<(), VmError> {
        let inner = Arc::clone(&self.inner);
        tokio::spawn(async move { inner.destroy(attempt).await }.in_current_span())
            .await
            .map_err(|error| VmError::host(format!("destroy {attempt}"), error))?
    }

    /// [`Machines::destroy`], again and again until it is done: libvirt may be away, or QEMU not die at once.
    pub async fn destroy_until_gone(&self, attempt: AttemptId) {
        let mut pause = DESTROY_PAUSE;
        while let Err(error) = self.destroy(attempt).await {
            tracing::warn!(%error, "the VM cannot be destroyed; trying again");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_DESTROY_PAUSE);
        }
    }

    /// What the host has in all.
    pub async fn capacity(&self) -> Result<HostCapacity, VmError> {
        self.inner.hypervisor.capacity().await
    }

    /// Whether what the platform boots from is there and fit for use; the sentence names what is not.
    pub async fn check_platform(&self, platform: &Platform) -> Result<(), VmError> {
        check_platform(platform).await
    }
}

impl Inner {
    async fn destroy(&self, attempt: AttemptId) -> Result<(), VmError> {
        let turn = tokio::time::timeout(TURN_DEADLINE, self.turns.take(attempt))
            .await
            .map_err(|_| {
                VmError::host(
                    format!("destroy {attempt}"),
                    "its start or another destroy is still under way",
                )
            })?;
        self.hypervisor.destroy(attempt).await?;
        let folder = VmFolder::of(&self.dir, attempt);
        blocking(move || folder.remove()).await??;
        self.ports.release(attempt);
        self.turns.forget(attempt, turn);
        Ok(())
    }
}

/// File work on a thread of its own.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, VmError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| VmError::host("work on the VM's files", error))
}
