//! `platform.toml`: what stands beside an image, turned into a [`Platform`] with its paths resolved.

use super::error::{self, ConfigError};
use crate::model::{
    AgentKind, Architecture, ConsoleSpec, DiskFormat, DiskSpec, KernelSpec, Network, OsFamily,
    Platform, PlatformKind, SshSpec,
};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The file as it is written. The platform's name is its folder's; paths start there.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PlatformFile {
    /// `vm` (default), or `ssh` for a machine that is there already.
    #[serde(default)]
    kind: Kind,
    /// Words that suites may ask for instead of the name.
    #[serde(default)]
    tags: Vec<String>,
    #[serde(default = "linux")]
    os: OsFamily,
    #[serde(default = "x86_64")]
    arch: Architecture,
    /// libvirt machine type. Default `pc`.
    machine: Option<String>,
    /// Memory of the VM in MiB. Default 1024.
    memory_mib: Option<u64>,
    /// Virtual processors. Default 1.
    vcpus: Option<u32>,
    /// `"closed"` (default), `"internet"` (the host's own loopback services too) or `{ libvirt_network = "name" }`.
    network: Option<Network>,
    /// Most VMs of this platform at once. Default 8; always 1 for `kind = "ssh"`.
    limit: Option<u32>,
    /// The guest must show its first sign of life within this time, in seconds, under KVM. Default 120.
    boot_deadline_secs: Option<u64>,
    /// SSH and the agent must answer within this time after the boot, in seconds, under KVM. Default 60.
    connect_deadline_secs: Option<u64>,
    /// Folder in the guest for the source. Default `<home>/work` of the SSH user; on Windows `C:/Users/<user>/work`.
    work_dir: Option<String>,
    /// Folder in the guest for the agent. Default `/tmp/vivarium`; on Windows `C:/Users/<user>/.vivarium`.
    state_dir: Option<String>,
    /// The program that the master pushes into the guest: `"native"`, compiled for its system, or `"sh"`, for any Unix.
    /// Default: native where the master has one for this system and architecture, else `sh`.
    agent: Option<AgentKind>,
    /// The shell of steps that name none. Default `sh`; on Windows `cmd`.
    shell: Option<Shell>,
    /// Environment of every step.
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// For people: what is special about this image.
    #[serde(default, rename = "notes")]
    _notes: Option<String>,
    kernel: Option<KernelTable>,
    disk: Option<DiskTable>,
    #[serde(default)]
    console: ConsoleTable,
    ssh: SshTable,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    #[default]
    Vm,
    Ssh,
}

/// A kernel that QEMU loads itself.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct KernelTable {
    path: PathBuf,
    initrd: Option<PathBuf>,
    #[serde(default)]
    cmdline: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct DiskTable {
    path: PathBuf,
    #[serde(default = "qcow2")]
    format: DiskFormat,
    /// Virtual size of the overlay in GiB. Default: the image's.
    size_gib: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConsoleTable {
    /// Text on the serial console after which SSH answers.
    ready_marker: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SshTable {
    /// For `kind = "ssh"`: where the machine is.
    host: Option<String>,
    /// Default 22.
    port: Option<u16>,
    user: String,
    /// Private key, OpenSSH format.
    key: PathBuf,
    /// The host's public key in one line, as in a `.pub` file.
    host_key: PathBuf,
}

/// A shell by name, or a program with its arguments before the script.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub(super) enum Shell {
    Named(String),
    Command(Vec<String>),
}

impl Shell {
    pub(super) fn into_command(self) -> Result<Vec<String>, String> {
        let words: &[&str] = match &self {
            Shell::Command(command) if command.is_empty() => {
                return Err("a shell given as a list needs at least the program".into());
            }
            Shell::Command(command) => return Ok(command.clone()),
            Shell::Named(name) => match name.as_str() {
                "sh" => &["sh", "-e", "-c"],
                "bash" => &["bash", "-e", "-o", "pipefail", "-c"],
                "cmd" => &["cmd", "/d", "/s", "/c"],
                "powershell" => &["powershell", "-NoProfile", "-NonInteractive", "-Command"],
                "pwsh" => &["pwsh", "-NoProfile", "-NonInteractive", "-Command"],
                other => {
                    return Err(format!(
                        "unknown shell `{other}`: known are sh, bash, cmd, powershell, pwsh, \
                         or a list such as [\"/bin/zsh\", \"-c\"]"
                    ));
                }
            },
        };
        Ok(words.iter().map(|word| (*word).to_owned()).collect())
    }
}

fn default_shell(os: OsFamily) -> &'static str {
    match os {
        OsFamily::Windows => "cmd",
        OsFamily::Linux
        | OsFamily::Freebsd
        | OsFamily::Netbsd
        | OsFamily::Openbsd
        | OsFamily::Dragonfly
        | OsFamily::Macos => "sh",
    }
}

fn linux() -> OsFamily {
    OsFamily::Linux
}

fn x86_64() -> Architecture {
    Architecture::X86_64
}

fn qcow2() -> DiskFormat {
    DiskFormat::Qcow2
}

/// Parses the text of the `platform.toml` in `folder`.
pub fn parse_platform(folder: &Path, text: &str) -> Result<Platform, ConfigError> {
    let path = folder.join("platform.toml");
    let wrong = |message: String| ConfigError::meaning(&path, message);
    let name = folder
        .file_name()
        .and_then(|name| name.to_str())
        .filter(|name| is_platform_name(name))
        .ok_or_else(|| {
            wrong("the folder's name is the platform's: letters, digits, `.`, `_`, `-`".into())
        })?
        .to_owned();
    let file: PlatformFile = error::parse(&path, text)?;
    let shell = file
        .shell
        .clone()
        .unwrap_or_else(|| Shell::Named(default_shell(file.os).into()))
        .into_command()
        .map_err(&wrong)?;
    let user = file.ssh.user.clone();
    let work_dir = file
        .work_dir
        .clone()
        .unwrap_or_else(|| match (file.os, user.as_str()) {
            (OsFamily::Windows, user) => format!("C:/Users/{user}/work"),
            (_, "root") => "/root/work".into(),
            (_, user) => format!("/home/{user}/work"),
        });
    let limit = match file.kind {
        Kind::Vm => file.limit.unwrap_or(8),
        Kind::Ssh => 1,
    };
    if limit == 0 {
        return Err(wrong(
            "limit = 0 would never run a job: remove the folder instead".into(),
        ));
    }
    if file.agent == Some(AgentKind::Sh) && !file.os.is_unix() {
        return Err(wrong(format!(
            "agent = \"sh\" needs a POSIX shell, which {} has not: leave `agent` out",
            file.os.as_str()
        )));
    }
    let ssh = SshSpec {
        user,
        port: file.ssh.port.unwrap_or(22),
        key: folder.join(&file.ssh.key),
        host_key: folder.join(&file.ssh.host_key),
    };
    let boot_deadline_secs = file.boot_deadline_secs.unwrap_or(120);
    let connect_deadline_secs = file.connect_deadline_secs.unwrap_or(60);
    Ok(Platform {
        name,
        tags: file.tags.clone(),
        os: file.os,
        arch: file.arch,
        work_dir,
        state_dir: file.state_dir.clone().unwrap_or_else(|| match file.os {
            OsFamily::Windows => format!("C:/Users/{}/.vivarium", file.ssh.user),
            _ => "/tmp/vivarium".into(),
        }),
        shell,
        env: file.env.clone(),
        limit,
        boot_deadline_secs,
        connect_deadline_secs,
        ssh,
        agent: file.agent,
        kind: kind_of(folder, file).map_err(&wrong)?,
    })
}

fn kind_of(folder: &Path, file: PlatformFile) -> Result<PlatformKind, String> {
    match file.kind {
        Kind::Ssh => {
            for (key, given) in [
                ("kernel", file.kernel.is_some()),
                ("disk", file.disk.is_some()),
                ("memory_mib", file.memory_mib.is_some()),
                ("vcpus", file.vcpus.is_some()),
                ("machine", file.machine.is_some()),
                ("network", file.network.is_some()),
            ] {
                if given {
                    return Err(format!("`{key}` is for a VM: kind = \"ssh\" has none"));
                }
            }
            let host = file
                .ssh
                .host
                .ok_or("kind = \"ssh\" needs `host` under [ssh]")?;
            Ok(PlatformKind::Ssh { host })
        }
        Kind::Vm => {
            if file.ssh.host.is_some() {
                return Err("`host` under [ssh] is for kind = \"ssh\"".into());
            }
            if file.kernel.is_none() && file.disk.is_none() {
                return Err("a VM needs [disk] or [kernel] to boot from".into());
            }
            Ok(PlatformKind::Vm {
                kernel: file.kernel.map(|kernel| KernelSpec {
                    path: folder.join(kernel.path),
                    initrd: kernel.initrd.map(|initrd| folder.join(initrd)),
                    cmdline: kernel.cmdline,
                }),
                disk: file.disk.map(|disk| DiskSpec {
                    path: folder.join(disk.path),
                    format: disk.format,
                    size_gib: disk.size_gib,
                }),
                machine: file.machine.unwrap_or_else(|| "pc".into()),
                memory_mib: file.memory_mib.unwrap_or(1024),
                vcpus: file.vcpus.unwrap_or(1),
                network: file.network.unwrap_or(Network::Closed),
                console: ConsoleSpec {
                    ready_marker: file.console.ready_marker,
                },
            })
        }
    }
}

fn is_platform_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 64
        && !name.starts_with('.')
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SSH: &str = "[ssh]\nuser = 'build'\nkey = 'k'\nhost_key = 'h.pub'\n";

    fn parse(text: &str) -> Result<Platform, ConfigError> {
        parse_platform(Path::new("/platforms/freebsd-14"), text)
    }

    #[test]
    fn few_keys_make_a_platform() {
        let platform = parse(&format!("[disk]\npath = 'disk.qcow2'\n{SSH}")).unwrap();
        assert_eq!(platform.name, "freebsd-14");
        assert_eq!(platform.memory_mib(), 1024);
        assert_eq!(platform.work_dir, "/home/build/work");
        assert_eq!(platform.ssh.key, Path::new("/platforms/freebsd-14/k"));
        assert!(matches!(
            platform.kind,
            PlatformKind::Vm {
                network: Network::Closed,
                ..
            }
        ));
    }

    #[test]
    fn a_machine_reached_by_ssh_takes_one_job_at_a_time() {
        let platform = parse(
            "kind = 'ssh'\nos = 'macos'\nlimit = 5\n[ssh]\nhost = '127.0.0.1'\nuser = 'build'\nkey = 'k'\nhost_key = 'h'\n",
        )
        .unwrap();
        assert_eq!(platform.limit, 1);
        assert_eq!(platform.memory_mib(), 0);
    }

    #[test]
    fn the_agent_is_chosen_by_the_master_unless_the_file_says_which() {
        let with = |line: &str| parse(&format!("{line}\n[disk]\npath = 'd'\n{SSH}")).unwrap();
        assert_eq!(with("").agent, None);
        assert_eq!(with("agent = 'native'").agent, Some(AgentKind::Native));
        assert_eq!(
            with("os = 'openbsd'\nagent = 'sh'").agent,
            Some(AgentKind::Sh)
        );
    }

    #[test]
    fn faults_are_told_in_one_sentence() {
        for (text, expected) in [
            (SSH.to_owned(), "a VM needs [disk] or [kernel] to boot from"),
            (
                format!("memroy_mib = 1\n{SSH}"),
                "did you mean `memory_mib`?",
            ),
            (
                format!("shell = 'fish'\n[disk]\npath = 'd'\n{SSH}"),
                "unknown shell `fish`",
            ),
            (format!("kind = 'ssh'\n{SSH}"), "needs `host` under [ssh]"),
            (
                format!("kind = 'ssh'\nvcpus = 1\n{SSH}"),
                "`vcpus` is for a VM",
            ),
            (
                format!("agent = 'perl'\n[disk]\npath = 'd'\n{SSH}"),
                "unknown value `perl`: known are native, sh",
            ),
            (
                format!("os = 'windows'\nagent = 'sh'\n[disk]\npath = 'd'\n{SSH}"),
                "needs a POSIX shell, which windows has not",
            ),
            (
                format!("limit = 0\n[disk]\npath = 'd'\n{SSH}"),
                "limit = 0 would never run a job",
            ),
        ] {
            let error = parse(&text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
