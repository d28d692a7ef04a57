//! The seam between the stage and whatever runs its machines.

use super::{Accelerator, QemuUser, VmError};
use crate::model::{
    Architecture, AttemptId, ClockOffset, DiskBus, DiskFormat, Firmware, KernelSpec, Network,
    NetworkDevice,
};
use futures::future::BoxFuture;
use std::path::PathBuf;

/// A machine to be made: all paths are absolute and its own, but for the images below the overlay.
#[derive(Debug, Clone)]
pub(crate) struct MachineSpec {
    pub(crate) attempt: AttemptId,
    pub(crate) arch: Architecture,
    pub(crate) machine: String,
    pub(crate) firmware: Firmware,
    /// Where a firmware that keeps variables keeps them; made by the hypervisor.
    pub(crate) firmware_variables: PathBuf,
    pub(crate) cpu_model: Option<String>,
    pub(crate) memory_mib: u64,
    pub(crate) vcpus: u32,
    pub(crate) kernel: Option<KernelSpec>,
    pub(crate) disk: Option<OverlaySpec>,
    pub(crate) disk_bus: DiskBus,
    /// A raw image that the guest reads what it is from.
    pub(crate) seed: Option<PathBuf>,
    pub(crate) network: Network,
    pub(crate) network_device: NetworkDevice,
    pub(crate) macs: Macs,
    pub(crate) clock: ClockOffset,
    /// It has a graphics card, of whose picture a screenshot can be taken.
    pub(crate) display: bool,
    /// An empty file that takes the serial console's output.
    pub(crate) console: PathBuf,
    /// Loopback port of the host that leads to `guest_port`.
    pub(crate) ssh_port: u16,
    pub(crate) guest_port: u16,
}

/// The addresses of a guest's network cards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Macs {
    /// Of the card that leads to SSH. Each is alone in its network, so all are the same.
    pub(crate) ssh: String,
    /// Of the card in one of libvirt's networks, where others are.
    pub(crate) network: String,
}

impl Macs {
    /// QEMU's own for the first card, and one at random for the second.
    pub(crate) fn new() -> Macs {
        let [a, b, c] = rand::random::<[u8; 3]>();
        Macs {
            ssh: "52:54:00:12:34:56".to_owned(),
            network: format!("52:54:00:{a:02x}:{b:02x}:{c:02x}"),
        }
    }
}

/// A throw-away qcow2 and what it stands on.
#[derive(Debug, Clone)]
pub(crate) struct OverlaySpec {
    pub(crate) path: PathBuf,
    /// The golden image first, then the images below it.
    pub(crate) backing: Vec<BackingImage>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BackingImage {
    pub(crate) path: PathBuf,
    pub(crate) format: DiskFormat,
}

/// A machine of ours as the hypervisor sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) attempt: AttemptId,
    pub(crate) ssh_port: u16,
    pub(crate) life: Life,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Life {
    Running,
    /// It has ended, and the hypervisor is clearing up after it.
    Ending,
    /// It is there and will never run again; a sentence why.
    Ended(String),
}

#[derive(Debug)]
pub(crate) enum CreateError {
    /// Somebody else has the loopback port: another port may do.
    PortTaken(VmError),
    Other(VmError),
}

/// What the host has, for all its machines together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostCapacity {
    pub memory_mib: u64,
    pub vcpus: u32,
}

/// Runs machines that bear this installation's mark, and never touches others.
/// Every method ends within a bounded time.
pub(crate) trait Hypervisor: std::fmt::Debug + Send + Sync {
    fn accelerator(&self) -> Accelerator;
    fn accelerator_why(&self) -> &str;
    fn qemu_user(&self) -> QemuUser;
    /// Makes the machine and starts it.
    fn create<'a>(&'a self, spec: &'a MachineSpec) -> BoxFuture<'a, Result<(), CreateError>>;
    /// The attempt's machine, if there is one.
    fn find(&self, attempt: AttemptId) -> BoxFuture<'_, Result<Option<Seen>, VmError>>;
    /// Ends the attempt's machine from any state; fine if there is none.
    fn destroy(&self, attempt: AttemptId) -> BoxFuture<'_, Result<(), VmError>>;
    fn list(&self) -> BoxFuture<'_, Result<Vec<Seen>, VmError>>;
    /// A sentence about how a machine that is no longer there ended.
    fn how_it_ended(&self, attempt: AttemptId) -> BoxFuture<'_, String>;
    /// What a machine's display shows now, as a PNG; `None` where there is no machine or no display.
    fn screenshot(&self, attempt: AttemptId) -> BoxFuture<'_, Result<Option<Vec<u8>>, VmError>>;
    /// The end of what the program that runs the machine has logged, or a sentence why that cannot be read.
    fn own_log(&self, attempt: AttemptId) -> BoxFuture<'_, String>;
    fn capacity(&self) -> BoxFuture<'_, Result<HostCapacity, VmError>>;
}
