//! The stage `vm` on real libvirt: `qemu:///system` as root, `qemu:///session` otherwise; another one by
//! `VIVARIUM_LIBVIRT_URI`. The guest is the platform `tiny-linux` of `VIVARIUM_IMAGES`.

use std::collections::HashSet;
use std::io::Read;
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use vivarium::config::parse_platform;
use vivarium::model::{
    AttemptId, DiskBus, DiskFormat, DiskSpec, KernelSpec, Platform, PlatformKind,
};
use vivarium::vm::{Acceleration, Machines, QemuUser, VmConfig, VmError};

/// What the guest's SSH server prints once it listens.
const READY: &str = "Not backgrounding";
/// Only a bound: a translated guest on a busy host is slow.
const PATIENCE: Duration = Duration::from_secs(120);
const ONE: AttemptId = AttemptId(1);
const TWO: AttemptId = AttemptId(2);

/// A master's share of the host: a folder, a mark, and nothing left of either when the test ends.
struct Master {
    folder: tempfile::TempDir,
    config: VmConfig,
    machines: Machines,
}

impl Master {
    /// `None`, with the reason on stderr, where the host has no guest for us.
    async fn new() -> Option<Master> {
        if let Err(reason) = images() {
            eprintln!("skipped: {reason}");
            return None;
        }
        let folder = tempfile::tempdir().expect("a folder");
        // QEMU's user passes through.
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o711))
            .expect("opened");
        let unique = folder.path().file_name().expect("a name").to_string_lossy();
        let config = VmConfig {
            uri: uri(),
            dir: folder.path().join("vms"),
            acceleration: Acceleration::Auto,
            installation: unique.trim_start_matches(".tmp").to_owned(),
        };
        let machines = Machines::open(config.clone()).await.expect("libvirt");
        Some(Master {
            folder,
            config,
            machines,
        })
    }

    /// The same master in a new process.
    async fn restarted(&self) -> Machines {
        Machines::open(self.config.clone()).await.expect("libvirt")
    }

    /// The machine's QEMU, by the name that libvirt gives to it.
    fn qemu(&self, attempt: AttemptId) -> Option<i32> {
        let mark = self.config.installation.to_ascii_lowercase();
        let mark = &mark[..mark.len().min(8)];
        let name = format!("guest=vivarium-{mark}-{attempt},");
        std::fs::read_dir("/proc")
            .expect("listed")
            .find_map(|entry| {
                let pid: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
                let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
                String::from_utf8_lossy(&arguments)
                    .contains(&name)
                    .then_some(pid)
            })
    }

    fn files(&self) -> Vec<PathBuf> {
        std::fs::read_dir(&self.config.dir)
            .expect("listed")
            .map(|entry| entry.expect("an entry").path())
            .collect()
    }

    /// The promise of every test: no machine, no file, no process.
    async fn assert_nothing_left(&self) {
        assert_eq!(self.files(), Vec::<PathBuf>::new());
        for attempt in [ONE, TWO] {
            assert!(!self.machines.is_running(attempt).await.expect("asked"));
            assert_eq!(self.qemu(attempt), None, "{attempt} has a process left");
        }
        let swept = self.machines.sweep(&HashSet::new()).await.expect("swept");
        assert!(swept.is_empty(), "{swept}");
    }
}

/// A test that failed on its way leaves no process to the host.
impl Drop for Master {
    fn drop(&mut self) {
        for attempt in [ONE, TWO] {
            if let Some(pid) = self.qemu(attempt) {
                kill(pid);
            }
        }
    }
}

fn uri() -> String {
    std::env::var("VIVARIUM_LIBVIRT_URI").unwrap_or_else(|_| {
        if nix::unistd::geteuid().is_root() {
            "qemu:///system".into()
        } else {
            "qemu:///session".into()
        }
    })
}

fn images() -> Result<PathBuf, String> {
    let images = std::env::var_os("VIVARIUM_IMAGES")
        .map_or_else(|| "/var/cache/vivarium/images".into(), PathBuf::from);
    let folder = images.join("tiny-linux");
    if folder.join("vmlinux").is_file() && folder.join("initrd.img").is_file() {
        Ok(folder)
    } else {
        Err(format!(
            "{} has no vmlinux and initrd.img",
            folder.display()
        ))
    }
}

fn tiny() -> Platform {
    let folder = images().expect("checked by Master::new");
    let text = "memory_mib = 384\n[kernel]\npath = 'vmlinux'\ninitrd = 'initrd.img'\n\
                cmdline = 'console=ttyS0 quiet panic=-1'\n[ssh]\nkey = 'ssh_key'\nhost_key = 'ssh_host_key.pub'\n";
    parse_platform(&folder, text).expect("a platform")
}

/// The same guest, changed.
fn tiny_with(change: impl FnOnce(&mut KernelSpec, &mut Option<DiskSpec>, &mut String)) -> Platform {
    let mut platform = tiny();
    if let PlatformKind::Vm {
        kernel: Some(kernel),
        disk,
        machine,
        ..
    } = &mut platform.kind
    {
        change(kernel, disk, machine);
    }
    platform
}

fn golden_disk(folder: &Path) -> DiskSpec {
    let path = folder.join("golden.qcow2");
    let made = std::process::Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2"])
        .arg(&path)
        .arg("64M")
        .status()
        .expect("qemu-img runs");
    assert!(made.success());
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).expect("opened");
    DiskSpec {
        path,
        format: DiskFormat::Qcow2,
        size_gib: Some(1),
        bus: DiskBus::VirtioBlk,
        sha256: None,
        url: None,
        packing: None,
    }
}

async fn patiently<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .unwrap_or_else(|_| panic!("{what} took longer than {PATIENCE:?}"))
}

/// The first bytes of the server behind the port.
fn greeting(port: u16) -> String {
    let mut connection = TcpStream::connect(("127.0.0.1", port)).expect("a connection");
    connection
        .set_read_timeout(Some(PATIENCE))
        .expect("a timeout");
    let mut bytes = [0; 4];
    connection.read_exact(&mut bytes).expect("a greeting");
    String::from_utf8_lossy(&bytes).into_owned()
}

fn kill(pid: i32) {
    use nix::sys::signal::{Signal, kill};
    kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL).expect("killed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_boots_answers_and_leaves_nothing() {
    let Some(master) = Master::new().await else {
        return;
    };
    let machines = &master.machines;
    for machine in ["pc", "q35"] {
        let platform = tiny_with(|_, _, own| *own = machine.into());
        machines
            .check_platform(&platform)
            .await
            .expect("a good platform");

        let began = Instant::now();
        let port = machines.start(ONE, &platform).await.expect("started");
        eprintln!("{machine}: start {:?}", began.elapsed());
        patiently("the boot", machines.wait_for_console(ONE, READY, &()))
            .await
            .expect("booted");
        eprintln!("{machine}: marker {:?}", began.elapsed());
        assert!(machines.is_running(ONE).await.expect("asked"));
        let greeted = tokio::task::spawn_blocking(move || greeting(port)).await;
        assert_eq!(greeted.expect("greeted"), "SSH-");
        assert!(machines.console_tail(ONE, 4096).await.contains(READY));

        let began = Instant::now();
        machines.destroy(ONE).await.expect("destroyed");
        eprintln!("{machine}: destroy {:?}", began.elapsed());
        machines.destroy(ONE).await.expect("destroyed again");
        master.assert_nothing_left().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_qemu_is_noticed_with_a_reason() {
    let Some(master) = Master::new().await else {
        return;
    };
    let machines = &master.machines;
    machines.start(ONE, &tiny()).await.expect("started");
    let waiter = machines.clone();
    let console =
        tokio::spawn(async move { waiter.wait_for_console(ONE, "never printed", &()).await });
    kill(master.qemu(ONE).expect("a QEMU"));

    let gone = patiently("the notice", machines.wait_gone(ONE)).await;
    assert!(gone.why.contains("QEMU died"), "{gone}");
    match patiently("the console's notice", console).await {
        Ok(Err(VmError::Gone(gone))) => assert_eq!(gone.attempt, ONE),
        other => panic!("{other:?}"),
    }
    machines.destroy(ONE).await.expect("destroyed");
    master.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_reboots_is_gone() {
    let Some(master) = Master::new().await else {
        return;
    };
    let machines = &master.machines;
    // No init: the kernel panics, and `panic=-1` reboots at once.
    let platform = tiny_with(|kernel, _, _| {
        kernel.initrd = None;
        kernel.cmdline = "console=ttyS0 panic=-1 root=/dev/none".into();
    });
    machines.start(ONE, &platform).await.expect("started");
    let gone = patiently("the end", machines.wait_gone(ONE)).await;
    assert!(gone.why.contains("powered off or rebooted"), "{gone}");
    assert!(
        machines
            .console_tail(ONE, 8192)
            .await
            .contains("Kernel panic")
    );
    machines.destroy(ONE).await.expect("destroyed");
    master.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sweep_removes_the_orphan_and_spares_the_living_and_the_strangers() {
    let (Some(master), Some(stranger)) = (Master::new().await, Master::new().await) else {
        return;
    };
    for attempt in [ONE, TWO] {
        master
            .machines
            .start(attempt, &tiny())
            .await
            .expect("started");
    }
    stranger
        .machines
        .start(TWO, &tiny())
        .await
        .expect("started");
    let leftover = master.config.dir.join("vm-3");
    std::fs::create_dir(&leftover).expect("made");

    let machines = master.restarted().await;
    let swept = machines.sweep(&HashSet::from([ONE])).await.expect("swept");
    assert_eq!(swept.machines, [TWO], "{swept}");
    assert_eq!(swept.folders, [AttemptId(3)], "{swept}");
    assert!(machines.is_running(ONE).await.expect("asked"));
    assert!(!machines.is_running(TWO).await.expect("asked"));
    assert!(stranger.machines.is_running(TWO).await.expect("asked"));

    machines.destroy(ONE).await.expect("destroyed");
    master.assert_nothing_left().await;
    stranger.machines.destroy(TWO).await.expect("destroyed");
    stranger.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_start_of_a_living_vm_keeps_it() {
    let Some(master) = Master::new().await else {
        return;
    };
    let port = master.machines.start(ONE, &tiny()).await.expect("started");
    let qemu = master.qemu(ONE);
    let restarted = master.restarted().await;
    assert_eq!(restarted.start(ONE, &tiny()).await.expect("kept"), port);
    assert_eq!(master.qemu(ONE), qemu);
    patiently("the boot", restarted.wait_for_console(ONE, READY, &()))
        .await
        .expect("booted");
    restarted.destroy(ONE).await.expect("destroyed");
    master.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn vms_share_golden_files_that_nobody_changes() {
    let Some(master) = Master::new().await else {
        return;
    };
    let machines = &master.machines;
    let disk = golden_disk(master.folder.path());
    let platform = tiny_with(|_, own, _| *own = Some(disk.clone()));
    let golden: Vec<PathBuf> = match &platform.kind {
        PlatformKind::Vm { kernel, .. } => kernel
            .iter()
            .flat_map(|kernel| [Some(kernel.path.clone()), kernel.initrd.clone()])
            .flatten()
            .chain([disk.path.clone()])
            .collect(),
        PlatformKind::Ssh { .. } => Vec::new(),
    };
    let look = |path: &PathBuf| {
        let metadata = std::fs::metadata(path).expect("a golden file");
        (
            metadata.uid(),
            metadata.gid(),
            metadata.mode(),
            metadata.len(),
            metadata.mtime_nsec(),
        )
    };
    let before: Vec<_> = golden.iter().map(look).collect();
    let assert_unchanged = |moment: &str| {
        let now: Vec<_> = golden.iter().map(look).collect();
        assert_eq!(now, before, "{moment}");
    };

    let (one, two) = tokio::join!(
        machines.start(ONE, &platform),
        machines.start(TWO, &platform)
    );
    assert_ne!(one.expect("started"), two.expect("started"));
    assert_unchanged("while two run");
    machines.destroy(TWO).await.expect("destroyed");
    assert_unchanged("after one ended");
    patiently("the boot", machines.wait_for_console(ONE, READY, &()))
        .await
        .expect("booted");
    machines.destroy(ONE).await.expect("destroyed");
    assert_unchanged("after both ended");
    master.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_platform_lacks_is_named() {
    let Some(master) = Master::new().await else {
        return;
    };
    let nowhere = master.folder.path().join("nowhere");
    let kernelless = tiny_with(|kernel, _, _| kernel.path = nowhere.clone());
    let diskless = tiny_with(|_, disk, _| {
        *disk = Some(DiskSpec {
            path: nowhere.clone(),
            format: DiskFormat::Qcow2,
            size_gib: None,
            bus: DiskBus::VirtioBlk,
            sha256: None,
            url: None,
            packing: None,
        });
    });
    for platform in [kernelless, diskless] {
        for outcome in [
            master.machines.check_platform(&platform).await,
            master.machines.start(ONE, &platform).await.map(|_| ()),
        ] {
            match outcome {
                Err(error @ VmError::Image { .. }) => assert!(
                    error.to_string().contains(&nowhere.display().to_string()),
                    "{error}"
                ),
                other => panic!("{other:?}"),
            }
        }
    }
    master.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_qemu_may_not_read_is_refused_with_a_remedy() {
    let Some(master) = Master::new().await else {
        return;
    };
    if !master.config.uri.ends_with("/system") {
        eprintln!("skipped: QEMU runs as this user, who can read it");
        return;
    }
    let disk = golden_disk(master.folder.path());
    std::fs::set_permissions(&disk.path, std::fs::Permissions::from_mode(0o600)).expect("closed");
    let platform = tiny_with(|_, own, _| *own = Some(disk.clone()));
    let error = master
        .machines
        .start(ONE, &platform)
        .await
        .expect_err("refused")
        .to_string();
    let remedy = format!("chmod o+r {}", disk.path.display());
    assert!(error.contains(&remedy), "{error}");
    master.machines.destroy(ONE).await.expect("destroyed");
    master.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_host_tells_its_size() {
    let Some(master) = Master::new().await else {
        return;
    };
    let capacity = master.machines.capacity().await.expect("asked");
    assert!(capacity.memory_mib > 256 && capacity.vcpus > 0);
    eprintln!(
        "{capacity:?}, {:?}: {}",
        master.machines.accelerator(),
        master.machines.accelerator_why()
    );
}

/// The value of a line of the process's status.
fn status_of(pid: i32, name: &str) -> Option<String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let lines = status.lines();
    let values = lines.filter_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let mut words = values.filter_map(|value| value.split_whitespace().next());
    words.next().map(str::to_owned)
}

/// The number in the innermost of the process's cgroups that has this file with a number in it.
fn bound_of(pid: i32, controller: &str, file: [&str; 2]) -> Option<u64> {
    let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("a process");
    cgroups.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?.trim_start_matches('/'));
        let (folder, file) = match controllers {
            "" => (PathBuf::from("/sys/fs/cgroup"), file[1]),
            names if names.split(',').any(|name| name == controller) => {
                (Path::new("/sys/fs/cgroup").join(names), file[0])
            }
            _ => return None,
        };
        folder.join(path).ancestors().find_map(|folder| {
            let text = std::fs::read_to_string(folder.join(file)).ok()?;
            text.split_whitespace().next()?.parse().ok()
        })
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn qemu_is_confined_as_far_as_the_host_can() {
    let Some(master) = Master::new().await else {
        return;
    };
    master.machines.start(ONE, &tiny()).await.expect("started");
    let qemu = master.qemu(ONE).expect("a QEMU");
    let sandbox = std::process::Command::new("qemu-system-x86_64")
        .args(["-sandbox", "on", "-version"])
        .output()
        .expect("it runs");
    if sandbox.status.success() {
        // 2: system calls pass a filter.
        assert_eq!(status_of(qemu, "Seccomp").as_deref(), Some("2"));
    } else {
        eprintln!("skipped: this QEMU has no sandbox");
    }
    let user = status_of(qemu, "Uid");
    let ours = nix::unistd::geteuid().to_string();
    match master.machines.qemu_user() {
        QemuUser::Ours => assert_eq!(user, Some(ours)),
        QemuUser::Libvirts(number) => {
            assert_eq!(user, Some(number.to_string()));
            assert_ne!(user, Some(ours));
            assert_eq!(
                status_of(qemu, "CapEff").as_deref(),
                Some("0000000000000000")
            );
            let memory = ["memory.limit_in_bytes", "memory.max"];
            match bound_of(qemu, "memory", memory) {
                // The guest's memory and two GiB, or one with KVM.
                Some(bound) => assert!(
                    [384 + 2048, 384 + 1024].contains(&(bound >> 20)),
                    "{} MiB",
                    bound >> 20
                ),
                None => eprintln!("skipped: this host has no cgroup for memory"),
            }
            match bound_of(qemu, "cpu", ["cpu.cfs_quota_us", "cpu.max"]) {
                Some(bound) => assert_eq!(bound, 200_000, "one processor, and one for QEMU"),
                None => eprintln!("skipped: this host has no cgroup for processor time"),
            }
        }
        QemuUser::Root => eprintln!("skipped: libvirt is told to run QEMU as root"),
    }
    master.machines.destroy(ONE).await.expect("destroyed");
    master.assert_nothing_left().await;
}

/// A disk whose first sector tells the serial port that it was started, and halts: the smallest guest that boots from
/// its disk.
fn bootable_disk(folder: &Path, format: &str) -> PathBuf {
    #[rustfmt::skip]
    const CODE: &[u8] = &[
        0xfc,                   //       cld
        0x31, 0xc0,             //       xor ax, ax
        0x8e, 0xd8,             //       mov ds, ax
        0xbe, 0x22, 0x7c,       //       mov si, text
        0xac,                   // next: lodsb
        0x84, 0xc0,             //       test al, al
        0x74, 0x12,             //       jz halt
        0x88, 0xc4,             //       mov ah, al
        0xba, 0xfd, 0x03,       //       mov dx, COM1 + 5
        0xec,                   // wait: in al, dx
        0xa8, 0x20,             //       test al, 0x20
        0x74, 0xfb,             //       jz wait
        0x88, 0xe0,             //       mov al, ah
        0xba, 0xf8, 0x03,       //       mov dx, COM1
        0xee,                   //       out dx, al
        0xeb, 0xe9,             //       jmp next
        0xf4,                   // halt: hlt
        0xeb, 0xfd,             //       jmp halt
    ];
    let mut sector = CODE.to_vec();
    sector.extend(b"Started from the disk\r\n\0");
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    sector.resize(1 << 20, 0);
    let (raw, path) = (folder.join("raw"), folder.join(format!("disk.{format}")));
    std::fs::write(&raw, sector).expect("written");
    let made = std::process::Command::new("qemu-img")
        .args(["convert", "-f", "raw", "-O", format])
        .args([&raw, &path])
        .status()
        .expect("qemu-img runs");
    assert!(made.success());
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).expect("opened");
    path
}

fn platform_of(folder: &Path, text: &str) -> Platform {
    let text = format!("memory_mib = 128\nseed = 'nocloud'\n{text}");
    parse_platform(folder, &text).expect("a platform")
}

/// With a seed beside the disk, so that there are two on each bus.
#[tokio::test(flavor = "multi_thread")]
async fn a_guest_starts_from_a_disk_of_each_bus_and_format() {
    let Some(master) = Master::new().await else {
        return;
    };
    let folder = master.folder.path().join("platform");
    std::fs::create_dir(&folder).expect("made");
    for (keys, format, bus) in [
        ("network_device = 'virtio'", "qcow2", "virtio-blk"),
        (
            "network_device = 'e1000'\nmachine = 'q35'",
            "raw",
            "virtio-scsi",
        ),
        ("network_device = 'e1000e'\nmachine = 'q35'", "vmdk", "sata"),
        (
            "network_device = 'rtl8139'\nclock = 'localtime'",
            "qcow2",
            "sata",
        ),
        ("cpu_model = 'Nehalem'", "raw", "ide"),
    ] {
        let path = bootable_disk(&folder, format);
        let text = format!("{keys}\n[disk]\npath = {path:?}\nbus = '{bus}'\nsize_gib = 1\n");
        let platform = platform_of(&folder, &text);
        let machines = &master.machines;
        machines.check_platform(&platform).await.expect("good");
        machines.start(ONE, &platform).await.expect("started");
        patiently(
            &format!("{format} on {bus}"),
            machines.wait_for_console(ONE, "Started from the disk", &()),
        )
        .await
        .expect("started from the disk");
        assert_eq!(machines.platform_of(ONE).await.as_ref(), Some(&platform));
        machines.destroy(ONE).await.expect("destroyed");
    }
    master.assert_nothing_left().await;
}

/// The firmware says on the console what it would start; its variables are the VM's own.
#[tokio::test(flavor = "multi_thread")]
async fn uefi_starts_with_and_without_secure_boot_and_leaves_nothing() {
    let Some(master) = Master::new().await else {
        return;
    };
    let folder = master.folder.path().join("platform");
    std::fs::create_dir(&folder).expect("made");
    let path = bootable_disk(&folder, "qcow2");
    for firmware in ["uefi", "uefi-without-secure-boot"] {
        let text = format!("firmware = '{firmware}'\n[disk]\npath = {path:?}\n");
        let machines = &master.machines;
        let started = machines.start(ONE, &platform_of(&folder, &text)).await;
        started.expect("started");
        patiently(firmware, machines.wait_for_console(ONE, "BdsDxe: ", &()))
            .await
            .expect("the firmware speaks");
        let variables = master.config.dir.join("vm-1/firmware-variables");
        assert!(variables.is_file(), "{}", variables.display());
        machines.destroy(ONE).await.expect("destroyed");
    }
    master.assert_nothing_left().await;
}
