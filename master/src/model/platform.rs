//! A platform: a named environment people ask for, checked and with its paths resolved.

use jiff::civil::Date;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use url::Url;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
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

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AgentKind {
    /// Compiled for the guest's system and architecture.
    Native,
    /// The one in POSIX `sh`, for any Unix.
    Sh,
}

/// What the guest can reach besides the SSH connection from the master.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    /// Nothing.
    Closed,
    /// Outgoing connections through QEMU's user-mode network.
    Internet,
    /// A network that libvirt manages, by name; SSH still goes through the forwarded port.
    LibvirtNetwork(String),
}

/// The network card that leads to SSH, as QEMU and libvirt name it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkDevice {
    /// The fastest; needs a driver of virtio.
    #[default]
    Virtio,
    /// Intel's card for PCI: nearly every system has a driver.
    E1000,
    /// Intel's card for PCI Express: Windows has a driver.
    E1000e,
    /// Realtek's card, for what is older.
    Rtl8139,
}

impl NetworkDevice {
    /// libvirt's name for it.
    pub fn as_str(self) -> &'static str {
        match self {
            NetworkDevice::Virtio => "virtio",
            NetworkDevice::E1000 => "e1000",
            NetworkDevice::E1000e => "e1000e",
            NetworkDevice::Rtl8139 => "rtl8139",
        }
    }
}

/// What starts the guest's boot loader.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Firmware {
    /// SeaBIOS.
    #[default]
    Bios,
    /// UEFI with Secure Boot and Microsoft's keys, on a machine of type q35.
    Uefi,
    /// UEFI that starts any boot loader.
    UefiWithoutSecureBoot,
}

/// What the machine's clock shows when it is switched on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ClockOffset {
    #[default]
    Utc,
    /// The host's local time, as Windows expects it.
    Localtime,
}

impl ClockOffset {
    /// libvirt's name for it.
    pub fn as_str(self) -> &'static str {
        match self {
            ClockOffset::Utc => "utc",
            ClockOffset::Localtime => "localtime",
        }
    }
}

/// What each VM is told of itself on a volume of its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Seed {
    /// Nothing: the image knows its user and keys.
    #[default]
    None,
    /// cloud-init's NoCloud: user, keys made for this VM, network.
    Nocloud,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    Qcow2,
    Raw,
    Vmdk,
}

impl DiskFormat {
    pub const ALL: [DiskFormat; 3] = [DiskFormat::Qcow2, DiskFormat::Raw, DiskFormat::Vmdk];

    /// As qemu-img names it, which is also what such files' names end with.
    pub fn as_str(self) -> &'static str {
        match self {
            DiskFormat::Qcow2 => "qcow2",
            DiskFormat::Raw => "raw",
            DiskFormat::Vmdk => "vmdk",
        }
    }
}

/// How the guest sees its disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DiskBus {
    #[default]
    VirtioBlk,
    VirtioScsi,
    Sata,
    /// On a machine of type `pc` only.
    Ide,
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
    pub bus: DiskBus,
    /// What the image's bytes must hash to, in lower-case hexadecimal digits.
    pub sha256: Option<String>,
    /// Where the image is fetched from once; then `sha256` is there and `path` is in the master's own folder.
    pub url: Option<Url>,
    /// How it is packed at that address; `sha256` is of what is there.
    #[serde(default)]
    pub packing: Option<Packing>,
}

/// How vendors compress images as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Packing {
    Gzip,
    Xz,
    Zstd,
}

impl Packing {
    const ALL: [Packing; 3] = [Packing::Gzip, Packing::Xz, Packing::Zstd];

    /// What the name of a packed file ends with.
    pub fn ending(self) -> &'static str {
        match self {
            Packing::Gzip => ".gz",
            Packing::Xz => ".xz",
            Packing::Zstd => ".zst",
        }
    }

    /// A file's name without that ending, if it has one.
    pub fn split(name: &str) -> (&str, Option<Packing>) {
        Self::ALL
            .into_iter()
            .find_map(|packing| Some((name.strip_suffix(packing.ending())?, Some(packing))))
            .unwrap_or((name, None))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleSpec {
    /// Text on the serial console after which SSH answers; without it one patient connection waits.
    pub ready_marker: Option<String>,
}

/// What lets us in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Login {
    /// A private key in OpenSSH format.
    Key(PathBuf),
    /// A file with the password.
    Password(PathBuf),
    /// A key that is made for each VM; its seed carries the public half.
    Seeded,
}

/// What the guest has to show.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostKey {
    /// Public keys in OpenSSH's one-line format.
    Pinned(PathBuf),
    /// A key that is made for each VM and given to it by its seed.
    Seeded,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshSpec {
    pub user: String,
    /// The guest's port (for a VM), or the machine's port (for a machine reached by SSH).
    pub port: u16,
    pub login: Login,
    pub host_key: HostKey,
}

/// A VM of ours, or a machine that is there already.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all are VMs, and each is behind an Arc"
)]
pub enum PlatformKind {
    Vm {
        kernel: Option<KernelSpec>,
        disk: Option<DiskSpec>,
        firmware: Firmware,
        /// libvirt machine type, e.g. `pc` or `q35`.
        machine: String,
        /// libvirt's name of a processor. `None`: all that the host or QEMU can do.
        cpu_model: Option<String>,
        memory_mib: u64,
        vcpus: u32,
        network: Network,
        network_device: NetworkDevice,
        clock: ClockOffset,
        /// It has a graphics card.
        #[serde(default)]
        display: bool,
        seed: Seed,
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
    /// For people, e.g. `14.2`.
    pub os_version: Option<String>,
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
    /// Times that suites set are longer here by this factor.
    pub timeout_scale: u32,
    /// Who answers for it.
    pub owner: Option<String>,
    /// Why its failures block nobody.
    pub known_issue: Option<String>,
    /// It takes no work from this day on.
    pub expires: Option<Date>,
}

impl Platform {
    /// Memory a slot of this platform takes from its host, in MiB.
    pub fn memory_mib(&self) -> u64 {
        match &self.kind {
            PlatformKind::Vm { memory_mib, .. } => *memory_mib,
            PlatformKind::Ssh { .. } => 0,
        }
    }

    /// The day on which it expires, if that is near.
    pub fn expires_soon(&self, today: Date) -> Option<Date> {
        const WARNING_DAYS: i32 = 30;
        self.expires.filter(|expires| {
            today
                .until(*expires)
                .is_ok_and(|left| left.get_days() <= WARNING_DAYS)
        })
    }

    /// Processors a slot of this platform takes from its host.
    pub fn vcpus(&self) -> u32 {
        match &self.kind {
            PlatformKind::Vm { vcpus, .. } => *vcpus,
            PlatformKind::Ssh { .. } => 0,
        }
    }
}
