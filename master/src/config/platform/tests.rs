use super::*;
use crate::model::{
    AgentKind, DiskBus, DiskFormat, Firmware, HostKey, Login, Network, NetworkDevice, Packing,
    PlatformKind, Seed,
};

const SSH: &str = "[ssh]\nuser = 'build'\nkey = 'k'\nhost_key = 'h.pub'\n";

fn parse(text: &str) -> Result<Platform, ConfigError> {
    parse_platform(Path::new("/platforms/freebsd-14"), text)
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
fn few_keys_make_a_platform() {
    let platform = parse(&format!("[disk]\npath = 'disk.qcow2'\n{SSH}")).unwrap();
    assert_eq!(platform.name, "freebsd-14");
    assert_eq!(platform.memory_mib(), 1024);
    assert_eq!(platform.work_dir, "/home/build/work");
    assert_eq!(
        platform.ssh.login,
        Login::Key("/platforms/freebsd-14/k".into())
    );
    assert!(matches!(
        platform.kind,
        PlatformKind::Vm {
            network: Network::Closed,
            display: true,
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
fn faults_are_told_in_one_sentence() {
    for (text, expected) in [
        (SSH.to_owned(), "a VM needs [disk] or [kernel] to boot from"),
        (
            format!("name = 'freebsd-15'\n[disk]\npath = 'd'\n{SSH}"),
            "`name` is `freebsd-15`, and the folder's is `freebsd-14`",
        ),
        (
            format!("[disk]\npath = 'd'\nurl = 'https://example.org/d'\n{SSH}"),
            "one of `path` and `url`, not both",
        ),
        (
            format!("[disk]\nsize_gib = 3\n{SSH}"),
            "needs `path` or `url`",
        ),
        (
            format!("[disk]\nurl = 'https://example.org/d'\n{SSH}"),
            "needs `sha256`",
        ),
        (
            format!("[disk]\nurl = 'file:///etc/shadow'\nsha256 = 'x'\n{SSH}"),
            "begins with https:// or http://, not file:",
        ),
        (
            format!("[disk]\nurl = 'https://a:b@example.org/d'\nsha256 = 'x'\n{SSH}"),
            "cannot have a user or password",
        ),
        (
            format!("[disk]\npath = 'd'\nsha256 = 'abc'\n{SSH}"),
            "64 hexadecimal digits",
        ),
        (
            format!("machine = 'q35'\n[disk]\npath = 'd'\nbus = 'ide'\n{SSH}"),
            "bus = \"ide\" needs machine = \"pc\"",
        ),
        (
            format!("[disk]\npath = 'd'\nbus = 'virtio-bulk'\n{SSH}"),
            "did you mean `virtio-blk`?",
        ),
        (
            format!("firmware = 'uefi'\nmachine = 'pc'\n[disk]\npath = 'd'\n{SSH}"),
            "needs machine = \"q35\"",
        ),
        (
            format!("expires = 'soon'\n[disk]\npath = 'd'\n{SSH}"),
            "expires = soon is no date",
        ),
        (
            format!("timeout_scale = 0\n[disk]\npath = 'd'\n{SSH}"),
            "timeout_scale = 0",
        ),
        (
            "[disk]\npath = 'd'\n[ssh]\nhost_key = 'h'\n".to_owned(),
            "[ssh] needs `key` or `password_file`",
        ),
        (
            "[disk]\npath = 'd'\n[ssh]\nkey = 'k'\n".to_owned(),
            "[ssh] needs `host_key`",
        ),
        (
            "[disk]\npath = 'd'\n[ssh]\nkey = 'k'\npassword_file = 'p'\nhost_key = 'h'\n"
                .to_owned(),
            "not both",
        ),
        (
            "seed = 'nocloud'\n[disk]\npath = 'd'\n[ssh]\npassword_file = 'p'\n".to_owned(),
            "a seed lets a key in",
        ),
        (
            format!("kind = 'ssh'\nseed = 'nocloud'\n{SSH}"),
            "`seed` is for a VM",
        ),
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

#[test]
fn a_packed_image_has_its_format_from_the_name_before() {
    let hash = "0".repeat(64);
    let platform = parse(&format!(
        "seed = 'nocloud'\nos = 'freebsd'\n[disk]\nurl = 'https://example.org/vm.raw.xz'\nsha256 = '{hash}'\n"
    ));
    let PlatformKind::Vm {
        disk: Some(disk), ..
    } = platform.unwrap().kind
    else {
        panic!("it is a VM with a disk");
    };
    assert_eq!(disk.packing, Some(Packing::Xz));
    assert_eq!(disk.path, Path::new(&format!("images/{hash}/disk.raw")));
}

/// The example of the manual.
#[test]
fn an_official_cloud_image_needs_five_lines() {
    let hash = "0123456789ABCDEF".repeat(4);
    let platform = parse(&format!(
        "seed = 'nocloud'\nos = 'freebsd'\n[disk]\nurl = 'https://example.org/vm.raw?x=1'\nsha256 = '{hash}'\n"
    ))
    .unwrap();
    assert_eq!(platform.ssh.user, "build");
    assert_eq!(platform.ssh.login, Login::Seeded);
    assert_eq!(platform.ssh.host_key, HostKey::Seeded);
    let PlatformKind::Vm {
        disk: Some(disk),
        seed,
        ..
    } = platform.kind
    else {
        panic!("it is a VM with a disk");
    };
    assert_eq!(seed, Seed::Nocloud);
    assert_eq!(disk.format, DiskFormat::Raw, "by the address");
    let hash = hash.to_lowercase();
    assert_eq!(disk.path, Path::new(&format!("images/{hash}/disk.raw")));
    assert_eq!(disk.sha256, Some(hash));
}

#[test]
fn every_key_reaches_the_platform() {
    let platform = parse(&format!(
        "name = 'freebsd-14'\ntags = ['bsd']\nos = 'freebsd'\nos_version = '14.2'\nfirmware = 'uefi'\n\
         cpu_model = 'Nehalem'\nmemory_mib = 2048\nvcpus = 2\nnetwork = 'internet'\nnetwork_device = 'e1000'\n\
         clock = 'localtime'\ndisplay = true\nlimit = 3\nboot_deadline_secs = 100\nboot_scale = 3\ntimeout_scale = 4\n\
         shell = ['/bin/csh', '-c']\nwork_dir = '/w'\nstate_dir = '/s'\nenv = {{ A = '1' }}\nowner = 'me'\n\
         notes = 'slow'\nknown_issue = 'hangs'\nexpires = 2027-06-30\n\
         [kernel]\npath = 'kernel'\ninitrd = 'initrd'\ncmdline = 'quiet'\n\
         [disk]\npath = 'd.vmdk'\nsize_gib = 20\nbus = 'sata'\n[console]\nready_marker = 'login:'\n{SSH}port = 2022\n"
    ))
    .unwrap();
    assert_eq!((platform.memory_mib(), platform.vcpus()), (2048, 2));
    assert_eq!(platform.os_version.as_deref(), Some("14.2"));
    assert_eq!(platform.boot_deadline_secs, 300);
    assert_eq!(platform.connect_deadline_secs, 180);
    assert_eq!(platform.timeout_scale, 4);
    assert_eq!(platform.owner.as_deref(), Some("me"));
    assert_eq!(platform.known_issue.as_deref(), Some("hangs"));
    let day = platform.expires.unwrap();
    assert_eq!(day.to_string(), "2027-06-30");
    let near = day.yesterday().unwrap();
    assert_eq!(platform.expires_soon(near), Some(day));
    assert_eq!(platform.expires_soon(jiff::civil::date(2027, 1, 1)), None);
    assert_eq!(platform.ssh.port, 2022);
    let PlatformKind::Vm {
        disk: Some(disk),
        firmware,
        machine,
        network,
        network_device,
        cpu_model,
        display,
        ..
    } = platform.kind
    else {
        panic!("it is a VM with a disk");
    };
    assert!(display, "although it has a kernel");
    assert_eq!((disk.format, disk.bus), (DiskFormat::Vmdk, DiskBus::Sata));
    assert_eq!((firmware, machine.as_str()), (Firmware::Uefi, "q35"));
    assert_eq!(network, Network::Internet);
    assert_eq!(network_device, NetworkDevice::E1000);
    assert_eq!(cpu_model.as_deref(), Some("Nehalem"));
}

/// Whatever key is added: without a comment it would be in no manual.
#[test]
fn every_key_has_its_manual() {
    fn look(schema: &serde_json::Value, at: &str, count: &mut usize) {
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            let is_table = property.get("$ref").is_some() || property.get("anyOf").is_some();
            let about = property["description"].as_str().unwrap_or_default();
            assert!(is_table || about.len() > 10, "{at}{name} says nothing");
            *count += 1;
        }
        for (name, table) in schema["$defs"].as_object().into_iter().flatten() {
            look(table, &format!("{name}."), count);
        }
    }
    let mut count = 0;
    look(&platform_schema(), "", &mut count);
    assert!(count > 40, "{count}");
    let manual = platform_manual();
    for part in [
        "\nmemory_mib\n    Memory of the VM in MiB. Default 1024.\n",
        "\n[disk]\nThe image of the guest's disk.",
        "\n    - \"virtio-scsi\"\n",
        "\n    - \"localtime\": The host's local time",
        "\n[ssh]\n",
    ] {
        assert!(manual.contains(part), "{part}: {manual}");
    }
    assert!(manual.lines().all(|line| line.chars().count() <= 100));
}
