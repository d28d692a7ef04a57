//! A platform: a named environment people ask for, checked and with its paths resolved.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OsFamily {
    Linux,
    Freebsd,
    Netbsd,
    Openbsd,
    Dragonfly,
    Windows,
    Macos,
}

impl OsFamily {
    pub const ALL: [OsFamily; 7] = [
        OsFamily::Linux,
        OsFamily::Freebsd,
        OsFamily::Netbsd,
        OsFamily::Openbsd,
        OsFamily::Dragonfly,
        OsFamily::Windows,
        OsFamily::Macos,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            OsFamily::Linux => "linux",
            OsFamily::Freebsd => "freebsd",
            OsFamily::Netbsd => "netbsd",
            OsFamily::Openbsd => "openbsd",
            OsFamily::Dragonfly => "dragonfly",
            OsFamily::Windows => "windows",
            OsFamily::Macos => "macos",
        }
    }

    /// Whether it has a POSIX shell and its tools.
    pub fn is_unix(self) -> bool {
        match self {
            OsFamily::Linux
            | OsFamily::Freebsd
            | OsFamily::Netbsd
            | OsFamily::Openbsd
            | OsFamily::Dragonfly
            | OsFamily::Macos => true,
            OsFamily::Windows => false,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Architecture {
    #[serde(rename = "x86_64")]
    X86_64,
    #[serde(rename = "aarch64")]
    Aarch64,
}

impl Architecture {
    pub const ALL: [Architecture; 2] = [Architecture::X86_64, Architecture::Aarch64];

    pub fn as_str(self) -> &'static str {
        match self {
            Architecture::X86_64 => "x86_64",
            Architecture::Aarch64 => "aarch64",
        }
    }
}

/// Which program the master pushes into a guest to work there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AgentKind {
    /// Compiled for the guest's system and architecture.
    Native,
    /// The one in POSIX `sh`, for any Unix.
    Sh,
}

/// What the guest can reach besides the SSH connection from the master.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    /// Nothing.
    Closed,
    /// Outgoing connections through QEMU's user-mode network.
    Internet,
    /// A network that libvirt manages, by name; SSH still goes through the forwarded port.
    LibvirtNetwork(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    Qcow2,
    Raw,
}

impl DiskFormat {
    pub fn as_str(self) -> &'static str {
        match self {
            DiskFormat::Qcow2 => "qcow2",
            DiskFormat::Raw => "raw",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelSpec {
    pub path: PathBuf,
    pub initrd: Option<PathBuf>,
    pub cmdline: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSpec {
    /// The golden image, never written.
    pub path: PathBuf,
    pub format: DiskFormat,
    /// Virtual size of the overlay in GiB: the guest's cap. `None`: the image's own size.
    pub size_gib: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleSpec {
    /// Text on the serial console after which SSH answers; without it one patient connection waits.
    pub ready_marker: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshSpec {
    pub user: String,
    /// The guest's port (for a VM), or the machine's port (for a machine reached by SSH).
    pub port: u16,
    /// Private key in OpenSSH format.
    pub key: PathBuf,
    /// Public host key that the guest must show, in OpenSSH's one-line format.
    pub host_key: PathBuf,
}

/// A VM of ours, or a machine that is there already.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum PlatformKind {
    Vm {
        kernel: Option<KernelSpec>,
        disk: Option<DiskSpec>,
        /// libvirt machine type, e.g. `pc` or `q35`.
        machine: String,
        memory_mib: u64,
        vcpus: u32,
        network: Network,
        console: ConsoleSpec,
    },
    /// Reached at `host`; one job at a time, each in a fresh work directory.
    Ssh { host: String },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// The folder's name.
    pub name: String,
    pub tags: Vec<String>,
    pub os: OsFamily,
    pub arch: Architecture,
    #[serde(flatten)]
    pub kind: PlatformKind,
    pub ssh: SshSpec,
    /// `None`: the native one where the master has it for this system, else the one in `sh`.
    pub agent: Option<AgentKind>,
    /// Folder in the guest that the source is unpacked into.
    pub work_dir: String,
    /// Folder in the guest for the agent and its spools.
    pub state_dir: String,
    /// The default shell of steps, with its arguments.
    pub shell: Vec<String>,
    pub env: BTreeMap<String, String>,
    /// Most VMs of this platform at once.
    pub limit: u32,
    pub boot_deadline_secs: u64,
    pub connect_deadline_secs: u64,
}

impl Platform {
    /// Memory a slot of this platform takes from its host, in MiB.
    pub fn memory_mib(&self) -> u64 {
        match &self.kind {
            PlatformKind::Vm { memory_mib, .. } => *memory_mib,
            PlatformKind::Ssh { .. } => 0,
        }
    }

    /// Processors a slot of this platform takes from its host.
    pub fn vcpus(&self) -> u32 {
        match &self.kind {
            PlatformKind::Vm { vcpus, .. } => *vcpus,
            PlatformKind::Ssh { .. } => 0,
        }
    }
}
