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
mod console;
mod error;
mod folder;
mod hypervisor;
mod image;
mod libvirt;
mod ports;
mod sweep;
mod turns;

pub use accelerator::{Acceleration, Accelerator};
pub use error::{Gone, VmError};
pub use hypervisor::HostCapacity;
pub use sweep::Swept;

use crate::model::{AttemptId, DiskSpec, Platform, PlatformKind};
use console::{ConsoleReader, MarkerSearch};
use folder::VmFolder;
use hypervisor::{CreateError, Hypervisor, Life, MachineSpec, OverlaySpec};
use ports::Ports;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tracing::Instrument;
use turns::Turns;

/// Between two looks at a console: what a boot can lose by it.
const CONSOLE_PAUSE: Duration = Duration::from_millis(25);
/// Between two questions whether a machine still runs.
const LIFE_PAUSE: Duration = Duration::from_secs(1);
/// Somebody may take the port between our look and QEMU's bind; that many times in a row it is something else.
const PORT_TRIES: u32 = 4;
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
        Ok(Machines {
            inner: Arc::new(Inner {
                dir,
                hypervisor: Box::new(hypervisor),
                ports: Ports::default(),
                turns: Turns::default(),
            }),
        })
    }

    /// What guests run on, decided when the stage was opened.
    pub fn accelerator(&self) -> Accelerator {
        self.inner.hypervisor.accelerator()
    }

    /// The reason for the accelerator, as a clause.
    pub fn accelerator_why(&self) -> &str {
        self.inner.hypervisor.accelerator_why()
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
    /// deadline: the caller knows the platform's.
    pub async fn wait_for_console(&self, attempt: AttemptId, marker: &str) -> Result<(), VmError> {
        let mut search = MarkerSearch::new(marker);
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
            if search.is_found_in(&new) {
                return Ok(());
            }
            match ended.take() {
                // What it wrote before its end has been read to the last byte.
                Some(gone) if new.is_empty() => return Err(VmError::Gone(gone)),
                Some(gone) => ended = Some(gone),
                None => tokio::select! {
                    () = tokio::time::sleep(CONSOLE_PAUSE) => {}
                    gone = &mut gone => ended = Some(gone),
                },
            }
        }
    }

    /// Resolves when the machine does not run any more, with the reason. While libvirt cannot be asked it waits on.
    pub async fn wait_gone(&self, attempt: AttemptId) -> Gone {
        let hypervisor = &self.inner.hypervisor;
        loop {
            match hypervisor.find(attempt).await {
                Ok(Some(seen)) => match seen.life {
                    Life::Running => {}
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

    /// Ends the machine and removes its files, from any state; doing it again is fine.
    pub async fn destroy(&self, attempt: AttemptId) -> Result<(), VmError> {
        let inner = Arc::clone(&self.inner);
        tokio::spawn(async move { inner.destroy(attempt).await }.in_current_span())
            .await
            .map_err(|error| VmError::host(format!("destroy {attempt}"), error))?
    }

    /// What the host has in all.
    pub async fn capacity(&self) -> Result<HostCapacity, VmError> {
        self.inner.hypervisor.capacity().await
    }

    /// Whether what the platform boots from is there and fit for use; the sentence names what is not.
    pub async fn check_platform(&self, platform: &Platform) -> Result<(), VmError> {
        image::check_platform(platform).await
    }
}

impl Inner {
    async fn start(&self, attempt: AttemptId, platform: &Platform) -> Result<u16, VmError> {
        if let Some(seen) = self.hypervisor.find(attempt).await? {
            match seen.life {
                Life::Running => {
                    self.ports.keep(attempt, seen.ssh_port);
                    return Ok(seen.ssh_port);
                }
                Life::Ended(_) => self.hypervisor.destroy(attempt).await?,
            }
        }
        let mut spec = self.prepare(attempt, platform).await?;
        let mut tries = 1;
        loop {
            match self.hypervisor.create(&spec).await {
                Ok(()) => return Ok(spec.ssh_port),
                Err(CreateError::PortTaken(_)) if tries < PORT_TRIES => {
                    tracing::warn!(vm = %attempt, port = spec.ssh_port, "the port was taken; trying another");
                    tries += 1;
                    spec.ssh_port = self.ports.reserve(attempt)?;
                }
                Err(CreateError::PortTaken(error) | CreateError::Other(error)) => {
                    return Err(error);
                }
            }
        }
    }

    /// Everything that the machine needs before it can be made.
    async fn prepare(
        &self,
        attempt: AttemptId,
        platform: &Platform,
    ) -> Result<MachineSpec, VmError> {
        let PlatformKind::Vm {
            kernel,
            disk,
            machine,
            memory_mib,
            vcpus,
            network,
            console: _,
        } = &platform.kind
        else {
            return Err(VmError::image(
                &platform.name,
                "it is a machine reached by SSH, not a VM",
            ));
        };
        image::check_files(platform)?;
        let folder = VmFolder::of(&self.dir, attempt);
        let kernel = {
            let (folder, kernel) = (folder.clone(), kernel.clone());
            blocking(move || {
                folder.make()?;
                kernel.map(|kernel| folder.copy_kernel(&kernel)).transpose()
            })
            .await??
        };
        let disk = match disk {
            Some(disk) => Some(make_overlay(&platform.name, disk, folder.overlay()).await?),
            None => None,
        };
        Ok(MachineSpec {
            attempt,
            arch: platform.arch,
            machine: machine.clone(),
            memory_mib: *memory_mib,
            vcpus: *vcpus,
            kernel,
            disk,
            network: network.clone(),
            console: folder.console(),
            ssh_port: self.ports.reserve(attempt)?,
            guest_port: platform.ssh.port,
        })
    }

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

/// Makes the overlay, and reads meanwhile what it stands on.
async fn make_overlay(
    platform: &str,
    disk: &DiskSpec,
    overlay: PathBuf,
) -> Result<OverlaySpec, VmError> {
    let disk = DiskSpec {
        path: absolute(&disk.path)?,
        ..disk.clone()
    };
    let (backing, created) = tokio::join!(
        image::backing_chain(platform, &disk),
        image::create_overlay(&overlay, &disk)
    );
    // The image's own fault is the better sentence.
    let backing = backing?;
    created?;
    Ok(OverlaySpec {
        path: overlay,
        backing,
    })
}

fn absolute(path: &Path) -> Result<PathBuf, VmError> {
    std::path::absolute(path)
        .map_err(|error| VmError::host(format!("use {}", path.display()), error))
}

/// File work on a thread of its own.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, VmError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| VmError::host("work on the VM's files", error))
}
