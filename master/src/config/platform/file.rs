//! The file as it is written. Each comment is the key's manual, which `vivarium platform schema` prints.

use super::shell::Shell;
use crate::model::{
    AgentKind, Architecture, ClockOffset, DiskBus, DiskFormat, Firmware, Network, NetworkDevice,
    OsFamily, Seed,
};
use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use url::Url;

/// A platform: what to boot, how large, and how to talk to it. The file is `platform.toml` in a folder that has the
/// platform's name; relative paths start at that folder.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "platform.toml")]
pub(super) struct PlatformFile {
    /// The folder's name once more, so that a folder that was copied and not changed is noticed. Default: not checked.
    pub(super) name: Option<String>,
    /// Whether Vivarium starts the machine. Default `vm`.
    #[serde(default)]
    pub(super) kind: Kind,
    /// Words that suites may ask for instead of the name, e.g. `["bsd"]`. Default: none.
    #[serde(default)]
    pub(super) tags: Vec<String>,
    /// The family of the guest's system: it decides which agent is sent. Default `linux`.
    #[serde(default = "linux")]
    pub(super) os: OsFamily,
    /// The system's version, for people, e.g. `"14.2"`. Default: not said.
    pub(super) os_version: Option<String>,
    /// The guest's processor architecture. One that is not the host's is emulated. Default `x86_64`.
    #[serde(default = "x86_64")]
    pub(super) arch: Architecture,

    /// What starts the boot loader. Both kinds of `uefi` need Debian's package `ovmf` on the host. Default `bios`
    /// (for an `aarch64` disk: `uefi-without-secure-boot`).
    pub(super) firmware: Option<Firmware>,
    /// libvirt machine type, e.g. `q35`. Default `pc`; with `firmware = "uefi"` `q35`; for `aarch64` `virt`.
    pub(super) machine: Option<String>,
    /// A processor by libvirt's name, e.g. `Nehalem`, for systems that stumble over a newer one. Default: all that the
    /// host's can do.
    pub(super) cpu_model: Option<String>,
    /// Memory of the VM in MiB. Default 1024.
    pub(super) memory_mib: Option<u64>,
    /// Virtual processors. Default 1.
    pub(super) vcpus: Option<u32>,
    /// What the guest reaches: `"closed"` (nothing), `"internet"` (whatever the host reaches, its loopback addresses
    /// too), or `{ libvirt_network = "name" }` (a second card in one of libvirt's networks). Default `"closed"`.
    pub(super) network: Option<Network>,
    /// The network card. Default `virtio`.
    pub(super) network_device: Option<NetworkDevice>,
    /// What the machine's clock shows when it is switched on. Default `utc`.
    pub(super) clock: Option<ClockOffset>,
    /// Whether the VM has a graphics card. Nobody sees it but a screenshot, which is taken when a guest does not come up.
    /// Default: true, but for a VM with `[kernel]`, whose messages go where its command line says, false.
    pub(super) display: Option<bool>,
    /// `nocloud` for a vendor's cloud image as it is: each VM gets a volume `cidata` with a user, an SSH key and a host
    /// key of its own, and the image needs neither key nor preparation. Default `none`.
    pub(super) seed: Option<Seed>,

    /// Most VMs of this platform at once. Default 8; always 1 for `kind = "ssh"`.
    pub(super) limit: Option<u32>,
    /// The guest must show its first sign of life within this time, in seconds, under KVM. Default 120.
    pub(super) boot_deadline_secs: Option<u64>,
    /// SSH and the agent must answer within this time after the boot, in seconds, under KVM. Default 60.
    pub(super) connect_deadline_secs: Option<u64>,
    /// Both deadlines are longer by this factor, 1 to 100. Default 1.
    pub(super) boot_scale: Option<u32>,
    /// Times that suites and the master set for steps, jobs and silence are longer here by this factor, 1 to 100:
    /// for systems that are slow. Default 1.
    pub(super) timeout_scale: Option<u32>,

    /// The shell of steps that name none: `sh`, `bash`, `cmd`, `powershell`, `pwsh`, or a program with its arguments
    /// before the script, e.g. `["/bin/ksh", "-c"]`. Default `sh`; on Windows `cmd`.
    pub(super) shell: Option<Shell>,
    /// Folder in the guest for the source. Default: `work` in the home folder of the SSH user; on Windows
    /// `C:/Users/<user>/work`.
    pub(super) work_dir: Option<String>,
    /// Folder in the guest for the agent. Default `/tmp/vivarium`; on Windows `C:/Users/<user>/.vivarium`.
    pub(super) state_dir: Option<String>,
    /// The program that the master pushes into the guest. Default: `native` where the master has one for this system
    /// and architecture, else `sh`.
    pub(super) agent: Option<AgentKind>,
    /// Environment of every step. Default: empty.
    #[serde(default)]
    pub(super) env: BTreeMap<String, String>,

    /// Who answers for this platform: a name, an address. Default: nobody.
    pub(super) owner: Option<String>,
    /// For people: what is special about this image. Default: nothing.
    #[serde(rename = "notes")]
    pub(super) _notes: Option<String>,
    /// Why this platform fails just now. Its jobs run and are reported, and whatever becomes of them, the aggregate
    /// status `vivarium` does not fail for it. Default: it has none.
    pub(super) known_issue: Option<String>,
    /// A date, e.g. `2027-06-30`: from that day on the platform takes no work, so that nobody relies on an image that
    /// gets no updates any more. `vivarium doctor` and `vivarium platform list` warn 30 days before. Default: never.
    #[schemars(with = "Option<String>")]
    pub(super) expires: Option<toml::Value>,

    pub(super) kernel: Option<KernelTable>,
    pub(super) disk: Option<DiskTable>,
    #[serde(default)]
    pub(super) console: ConsoleTable,
    #[serde(default)]
    pub(super) ssh: SshTable,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    /// A VM for each attempt.
    #[default]
    Vm,
    /// A machine that is there already and reached by SSH, one job at a time.
    Ssh,
}

/// A kernel that QEMU loads itself, past firmware and boot loader.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct KernelTable {
    /// The kernel. Required.
    pub(super) path: PathBuf,
    /// Its initial RAM disk. Default: none.
    pub(super) initrd: Option<PathBuf>,
    /// Its command line. Default: empty.
    #[serde(default)]
    pub(super) cmdline: String,
}

/// The image of the guest's disk. It is never written: each VM writes to a throw-away overlay.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DiskTable {
    /// The image's file. This or `url` is required.
    pub(super) path: Option<PathBuf>,
    /// Where the image is fetched from, once, into the master's data folder: an address that begins with `https://` or
    /// `http://`. Needs `sha256`. What ends with `.xz`, `.gz` or `.zst` is unpacked.
    pub(super) url: Option<Url>,
    /// What the image's bytes hash to, in 64 hexadecimal digits. Required with `url`, packed as it is there; with `path` it is
    /// checked before the platform takes work. Default: not checked.
    pub(super) sha256: Option<String>,
    /// The image's format. Default: what the name of the file or address ends with, else `qcow2`.
    pub(super) format: Option<DiskFormat>,
    /// How large the guest's disk is, in GiB: at least as large as the image. Default: as large as the image.
    pub(super) size_gib: Option<u64>,
    /// How the guest sees the disk. Default `virtio-blk`.
    #[serde(default)]
    pub(super) bus: DiskBus,
}

/// The serial console.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ConsoleTable {
    /// Text that the console shows once SSH answers; without it one patient connection waits. Default: none.
    pub(super) ready_marker: Option<String>,
}

/// How the master logs in.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SshTable {
    /// Where the machine is. Required for `kind = "ssh"`, and for nothing else.
    pub(super) host: Option<String>,
    /// The port of the guest's SSH server. Default 22.
    pub(super) port: Option<u16>,
    /// The user who runs the steps. Default `build`.
    pub(super) user: Option<String>,
    /// Private key in OpenSSH format, without a passphrase. This or `password_file` is required without a seed; with one
    /// its public half is let in. Default with a seed: a key made for each VM.
    pub(super) key: Option<PathBuf>,
    /// File with the user's password, for images that know no key. A newline at its end does not belong to it.
    pub(super) password_file: Option<PathBuf>,
    /// The host's public key in one line, as in a `.pub` file; several lines are several keys. Required without a seed.
    /// Default with a seed: a key made for each VM.
    pub(super) host_key: Option<PathBuf>,
}

fn linux() -> OsFamily {
    OsFamily::Linux
}

fn x86_64() -> Architecture {
    Architecture::X86_64
}
