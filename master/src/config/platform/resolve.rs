//! From a file that makes sense to the platform it means: defaults filled in, paths resolved.

use super::file::{DiskTable, Kind, PlatformFile, SshTable};
use super::shell::Shell;
use crate::model::{
    Architecture, ConsoleSpec, DiskFormat, DiskSpec, Firmware, HostKey, KernelSpec, Login, Network,
    OsFamily, Packing, Platform, PlatformKind, Seed, SshSpec,
};
use jiff::civil::Date;
use std::path::{Path, PathBuf};
use url::Url;

/// Where images that were fetched are, below the master's data folder: each in a folder of its own, so that a qcow2 from
/// somewhere can stand on no other.
const FETCHED: &str = "images";

pub(super) fn resolve(folder: &Path, name: &str, file: PlatformFile) -> Result<Platform, String> {
    let ssh = ssh(folder, &file.ssh);
    let usual = usual(file.os, &ssh.user);
    let shell = file.shell.clone();
    let shell = shell.unwrap_or_else(|| Shell::Named(usual.shell.into()));
    let shell = shell.into_command()?;
    let boot_scale = u64::from(file.boot_scale.unwrap_or(1));
    let deadline =
        |secs: Option<u64>, default: u64| secs.unwrap_or(default).saturating_mul(boot_scale);
    Ok(Platform {
        name: name.to_owned(),
        tags: file.tags.clone(),
        os: file.os,
        os_version: file.os_version.clone(),
        arch: file.arch,
        work_dir: file.work_dir.clone().unwrap_or(usual.work_dir),
        state_dir: file.state_dir.clone().unwrap_or(usual.state_dir),
        shell,
        env: file.env.clone(),
        limit: match file.kind {
            Kind::Vm => file.limit.unwrap_or(8),
            Kind::Ssh => 1,
        },
        boot_deadline_secs: deadline(file.boot_deadline_secs, 120),
        connect_deadline_secs: deadline(file.connect_deadline_secs, 60),
        timeout_scale: file.timeout_scale.unwrap_or(1),
        owner: file.owner.clone(),
        known_issue: file.known_issue.clone(),
        expires: file.expires.as_ref().map(date).transpose()?,
        ssh,
        agent: file.agent,
        kind: kind(folder, file)?,
    })
}

/// What is usual on a system, where the file says nothing.
struct Usual {
    shell: &'static str,
    work_dir: String,
    state_dir: String,
}

fn usual(os: OsFamily, user: &str) -> Usual {
    let unix = |home: String| Usual {
        shell: "sh",
        work_dir: format!("{home}/work"),
        state_dir: "/tmp/vivarium".into(),
    };
    match os {
        OsFamily::Linux
        | OsFamily::Freebsd
        | OsFamily::Netbsd
        | OsFamily::Openbsd
        | OsFamily::Dragonfly => unix(match user {
            "root" => "/root".into(),
            user => format!("/home/{user}"),
        }),
        OsFamily::Macos => unix(match user {
            "root" => "/var/root".into(),
            user => format!("/Users/{user}"),
        }),
        OsFamily::Windows => Usual {
            shell: "cmd",
            work_dir: format!("C:/Users/{user}/work"),
            state_dir: format!("C:/Users/{user}/.vivarium"),
        },
    }
}

fn ssh(folder: &Path, table: &SshTable) -> SshSpec {
    let login = match (&table.key, &table.password_file) {
        (Some(key), _) => Login::Key(folder.join(key)),
        (None, Some(password)) => Login::Password(folder.join(password)),
        (None, None) => Login::Seeded,
    };
    SshSpec {
        user: table.user.clone().unwrap_or_else(|| "build".into()),
        port: table.port.unwrap_or(22),
        login,
        host_key: match &table.host_key {
            Some(host_key) => HostKey::Pinned(folder.join(host_key)),
            None => HostKey::Seeded,
        },
    }
}

fn date(value: &toml::Value) -> Result<Date, String> {
    let text = match value {
        toml::Value::String(text) => text.clone(),
        toml::Value::Datetime(date) => date.to_string(),
        other => other.to_string(),
    };
    text.parse()
        .map_err(|_| format!("expires = {text} is no date such as 2027-06-30"))
}

fn kind(folder: &Path, file: PlatformFile) -> Result<PlatformKind, String> {
    if file.kind == Kind::Ssh {
        let host = file
            .ssh
            .host
            .ok_or("kind = \"ssh\" needs `host` under [ssh]")?;
        return Ok(PlatformKind::Ssh { host });
    }
    let is_arm = file.arch == Architecture::Aarch64;
    let firmware = file
        .firmware
        .unwrap_or(match is_arm && file.kernel.is_none() {
            // The machine has no other.
            true => Firmware::UefiWithoutSecureBoot,
            false => Firmware::Bios,
        });
    Ok(PlatformKind::Vm {
        display: file.display.unwrap_or(file.kernel.is_none()),
        kernel: file.kernel.map(|kernel| KernelSpec {
            path: folder.join(kernel.path),
            initrd: kernel.initrd.map(|initrd| folder.join(initrd)),
            cmdline: kernel.cmdline,
        }),
        disk: file.disk.map(|disk| self::disk(folder, disk)),
        machine: file.machine.unwrap_or_else(|| {
            let usual = match firmware {
                _ if is_arm => "virt",
                Firmware::Uefi => "q35",
                Firmware::Bios | Firmware::UefiWithoutSecureBoot => "pc",
            };
            usual.into()
        }),
        firmware,
        cpu_model: file.cpu_model,
        memory_mib: file.memory_mib.unwrap_or(1024),
        vcpus: file.vcpus.unwrap_or(1),
        network: file.network.unwrap_or(Network::Closed),
        network_device: file.network_device.unwrap_or_default(),
        clock: file.clock.unwrap_or_default(),
        seed: file.seed.unwrap_or(Seed::None),
        console: ConsoleSpec {
            ready_marker: file.console.ready_marker,
        },
    })
}

fn disk(folder: &Path, table: DiskTable) -> DiskSpec {
    let sha256 = table.sha256.map(|hash| hash.to_ascii_lowercase());
    let (written, packing) = match (&table.path, &table.url) {
        (Some(path), _) => (path.clone(), None),
        (None, url) => {
            let (written, packing) = Packing::split(url.as_ref().map_or("", Url::path));
            (PathBuf::from(written), packing)
        }
    };
    let format = table.format.unwrap_or_else(|| format_of(&written));
    let path = match table.path {
        Some(path) => folder.join(path),
        None => Path::new(FETCHED)
            .join(sha256.as_deref().unwrap_or_default())
            .join(format!("disk.{}", format.as_str())),
    };
    DiskSpec {
        path,
        format,
        size_gib: table.size_gib,
        bus: table.bus,
        sha256,
        url: table.url,
        packing,
    }
}

/// By the name's ending; vendors call qcow2 files `.img` as well.
fn format_of(path: &Path) -> DiskFormat {
    let ending = path.extension().and_then(|ending| ending.to_str());
    DiskFormat::ALL
        .into_iter()
        .find(|format| ending == Some(format.as_str()))
        .unwrap_or(DiskFormat::Qcow2)
}
