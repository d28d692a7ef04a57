//! From a platform to a machine that runs: folder, copies, overlay, port, and a few tries at the port.

use super::folder::VmFolder;
use super::hypervisor::{CreateError, Life, MachineSpec, Macs, OverlaySpec};
use super::{Inner, VmError, blocking, image, seed};
use crate::model::{AttemptId, DiskSpec, Platform, PlatformKind, Seed};
use std::path::{Path, PathBuf};

/// Somebody may take the port between our look and QEMU's bind; that many times in a row it is something else.
const PORT_TRIES: u32 = 4;

impl Inner {
    /// The port to the attempt's machine, which is made unless it runs already.
    pub(super) async fn start(
        &self,
        attempt: AttemptId,
        platform: &Platform,
    ) -> Result<u16, VmError> {
        if let Some(seen) = self.hypervisor.find(attempt).await? {
            match seen.life {
                Life::Running => {
                    self.ports.keep(attempt, seen.ssh_port);
                    return Ok(seen.ssh_port);
                }
                Life::Ending | Life::Ended(_) => self.hypervisor.destroy(attempt).await?,
            }
        }
        let folder = VmFolder::of(&self.dir, attempt);
        let mut spec = self.prepare(attempt, platform, &folder).await?;
        crate::crash::point("overlay_made");
        let mut tries = 1;
        loop {
            match self.hypervisor.create(&spec).await {
                Ok(()) => break,
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
        crate::crash::point("domain_started");
        blocking(move || folder.empty_kernel()).await?;
        Ok(spec.ssh_port)
    }

    /// Everything that the machine needs before it can be made.
    async fn prepare(
        &self,
        attempt: AttemptId,
        platform: &Platform,
        folder: &VmFolder,
    ) -> Result<MachineSpec, VmError> {
        let PlatformKind::Vm {
            kernel,
            disk,
            firmware,
            machine,
            cpu_model,
            memory_mib,
            vcpus,
            network,
            network_device,
            clock,
            display,
            seed,
            console: _,
        } = &platform.kind
        else {
            return Err(VmError::image(
                &platform.name,
                "it is a machine reached by SSH, not a VM",
            ));
        };
        image::check_files(platform)?;
        {
            let (folder, platform) = (folder.clone(), platform.clone());
            blocking(move || {
                folder.make()?;
                folder.keep_platform(&platform)
            })
            .await??;
        }
        let copy = {
            let (folder, kernel) = (folder.clone(), kernel.clone());
            blocking(move || kernel.map(|kernel| folder.copy_kernel(&kernel)).transpose())
        };
        let overlay = async {
            match disk {
                Some(disk) => make_overlay(&platform.name, disk, folder.overlay())
                    .await
                    .map(Some),
                None => Ok(None),
            }
        };
        let macs = Macs::new();
        let seed = async {
            match seed {
                Seed::None => Ok(None),
                Seed::Nocloud => make_seed(attempt, platform, folder, &macs).await.map(Some),
            }
        };
        let (kernel, overlay, seed) = tokio::join!(copy, overlay, seed);
        Ok(MachineSpec {
            attempt,
            arch: platform.arch,
            machine: machine.clone(),
            firmware: *firmware,
            firmware_variables: folder.firmware_variables(),
            cpu_model: cpu_model.clone(),
            memory_mib: *memory_mib,
            vcpus: *vcpus,
            kernel: kernel??,
            disk_bus: disk.as_ref().map(|disk| disk.bus).unwrap_or_default(),
            disk: overlay?,
            seed: seed?,
            network: network.clone(),
            network_device: *network_device,
            macs,
            clock: *clock,
            display: *display,
            console: folder.console(),
            ssh_port: self.ports.reserve(attempt)?,
            guest_port: platform.ssh.port,
        })
    }
}

/// Makes the keys of one VM and the volume that carries them.
async fn make_seed(
    attempt: AttemptId,
    platform: &Platform,
    folder: &VmFolder,
    macs: &Macs,
) -> Result<PathBuf, VmError> {
    let (platform, folder, macs) = (platform.clone(), folder.clone(), macs.clone());
    blocking(move || seed::make(attempt, &platform, &folder, &macs)).await?
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
