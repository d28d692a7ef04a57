//! Whether the keys of a file fit together. Pure: the file in, one sentence out.

use super::file::{DiskTable, Kind, PlatformFile, SshTable};
use crate::model::{AgentKind, DiskBus, Firmware, Seed};

/// More than that is no scale but a mistake.
const LARGEST_SCALE: u32 = 100;

/// Refuses what cannot work, with a sentence that names the keys.
pub(super) fn check(folder: &str, file: &PlatformFile) -> Result<(), String> {
    if let Some(name) = file.name.as_ref().filter(|name| *name != folder) {
        return Err(format!(
            "`name` is `{name}`, and the folder's is `{folder}`: they must be the same"
        ));
    }
    for (key, number) in [
        ("limit", file.limit),
        ("vcpus", file.vcpus),
        ("boot_scale", file.boot_scale),
        ("timeout_scale", file.timeout_scale),
    ] {
        if number == Some(0) {
            return Err(match key {
                "limit" => "limit = 0 would never run a job: remove the folder instead".into(),
                key => format!("{key} = 0 makes no sense: 1 is the least"),
            });
        }
    }
    for (key, scale) in [
        ("boot_scale", file.boot_scale),
        ("timeout_scale", file.timeout_scale),
    ] {
        if scale.is_some_and(|scale| scale > LARGEST_SCALE) {
            return Err(format!("`{key}` is at most {LARGEST_SCALE}"));
        }
    }
    if file.memory_mib == Some(0) {
        return Err("memory_mib = 0 makes no sense".into());
    }
    if let Some(name) = file
        .env
        .keys()
        .find(|name| name.is_empty() || name.contains(['=', '\0']))
    {
        return Err(format!("`{name}` cannot name an environment variable"));
    }
    if file.agent == Some(AgentKind::Sh) && !file.os.is_unix() {
        return Err(format!(
            "agent = \"sh\" needs a POSIX shell, which {} has not: leave `agent` out",
            file.os.as_str()
        ));
    }
    match file.kind {
        Kind::Ssh => check_machine(file)?,
        Kind::Vm => check_vm(file)?,
    }
    check_login(file.seed.unwrap_or_default(), &file.ssh)
}

/// A machine that is there already is not described, only reached.
fn check_machine(file: &PlatformFile) -> Result<(), String> {
    for (key, given) in [
        ("kernel", file.kernel.is_some()),
        ("disk", file.disk.is_some()),
        ("firmware", file.firmware.is_some()),
        ("machine", file.machine.is_some()),
        ("cpu_model", file.cpu_model.is_some()),
        ("memory_mib", file.memory_mib.is_some()),
        ("vcpus", file.vcpus.is_some()),
        ("network", file.network.is_some()),
        ("network_device", file.network_device.is_some()),
        ("clock", file.clock.is_some()),
        ("display", file.display.is_some()),
        ("seed", file.seed.is_some()),
    ] {
        if given {
            return Err(format!("`{key}` is for a VM: kind = \"ssh\" has none"));
        }
    }
    match file.ssh.host {
        Some(_) => Ok(()),
        None => Err("kind = \"ssh\" needs `host` under [ssh]".into()),
    }
}

fn check_vm(file: &PlatformFile) -> Result<(), String> {
    if file.ssh.host.is_some() {
        return Err("`host` under [ssh] is for kind = \"ssh\"".into());
    }
    if file.kernel.is_none() && file.disk.is_none() {
        return Err("a VM needs [disk] or [kernel] to boot from".into());
    }
    let machine = file.machine.as_deref();
    let is_q35 = machine.is_none_or(|machine| machine.contains("q35"));
    if file.firmware == Some(Firmware::Uefi) && !is_q35 {
        return Err(
            "firmware = \"uefi\", which is with Secure Boot, needs machine = \"q35\"; \
             \"uefi-without-secure-boot\" does not"
                .into(),
        );
    }
    match &file.disk {
        Some(disk) => check_disk(file, disk),
        None => Ok(()),
    }
}

fn check_disk(file: &PlatformFile, disk: &DiskTable) -> Result<(), String> {
    match (&disk.path, &disk.url) {
        (None, None) => return Err("[disk] needs `path` or `url`".into()),
        (Some(_), Some(_)) => return Err("[disk] has one of `path` and `url`, not both".into()),
        (None, Some(url)) if !matches!(url.scheme(), "http" | "https") => {
            return Err(format!(
                "`url` under [disk] begins with https:// or http://, not {}:",
                url.scheme()
            ));
        }
        (None, Some(url)) if !url.username().is_empty() || url.password().is_some() => {
            return Err(
                "`url` under [disk] cannot have a user or password: it is shown to whoever may read".into(),
            );
        }
        (None, Some(_)) if disk.sha256.is_none() => {
            return Err(
                "`url` under [disk] needs `sha256`, so that what is fetched is what was meant"
                    .into(),
            );
        }
        (Some(_), None) | (None, Some(_)) => {}
    }
    if let Some(hash) = &disk.sha256
        && !(hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()))
    {
        return Err("`sha256` under [disk] has 64 hexadecimal digits".into());
    }
    if disk.size_gib == Some(0) {
        return Err("size_gib = 0 makes no sense".into());
    }
    let is_pc = match (&file.machine, file.firmware) {
        (Some(machine), _) => machine == "pc" || machine.starts_with("pc-i440fx"),
        (None, firmware) => firmware != Some(Firmware::Uefi),
    };
    if disk.bus == DiskBus::Ide && !is_pc {
        return Err("bus = \"ide\" needs machine = \"pc\"; others have \"sata\"".into());
    }
    Ok(())
}

fn check_login(seed: Seed, ssh: &SshTable) -> Result<(), String> {
    if ssh.key.is_some() && ssh.password_file.is_some() {
        return Err("[ssh] has one of `key` and `password_file`, not both".into());
    }
    match seed {
        Seed::Nocloud if ssh.password_file.is_some() => {
            Err("`password_file` is for seed = \"none\": a seed lets a key in".into())
        }
        Seed::Nocloud => Ok(()),
        Seed::None if ssh.key.is_none() && ssh.password_file.is_none() => {
            Err("[ssh] needs `key` or `password_file`, or the platform seed = \"nocloud\"".into())
        }
        Seed::None if ssh.host_key.is_none() => {
            Err("[ssh] needs `host_key`, or the platform seed = \"nocloud\"".into())
        }
        Seed::None => Ok(()),
    }
}
