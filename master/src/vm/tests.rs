//! The stage over a hypervisor that stops where a test wants it to. Real machines: `tests/machines.rs`.

use super::hypervisor::{CreateError, HostCapacity, Hypervisor, Life, MachineSpec, Seen};
use super::{Accelerator, Machines, QemuUser, VmError};
use crate::config::parse_platform;
use crate::model::{AttemptId, Platform};
use futures::FutureExt;
use futures::future::BoxFuture;
use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex};
use tokio::sync::Semaphore;

const VM: AttemptId = AttemptId(1);

/// Machines in a map.
#[derive(Debug)]
struct Fake {
    machines: Mutex<BTreeMap<AttemptId, Seen>>,
    /// A start takes one of these to go on.
    starts_allowed: Semaphore,
    /// That many starts find their port taken.
    ports_taken: Mutex<usize>,
    ports_tried: Mutex<Vec<u16>>,
    /// That many tries to destroy a machine fail.
    destroys_refused: Mutex<usize>,
}

#[derive(Debug)]
struct Shared(Arc<Fake>);

impl Hypervisor for Shared {
    fn accelerator(&self) -> Accelerator {
        Accelerator::Tcg
    }

    fn accelerator_why(&self) -> &str {
        "it is a test"
    }

    fn qemu_user(&self) -> QemuUser {
        QemuUser::Ours
    }

    fn create<'a>(&'a self, spec: &'a MachineSpec) -> BoxFuture<'a, Result<(), CreateError>> {
        async move {
            let fake = &self.0;
            fake.starts_allowed
                .acquire()
                .await
                .expect("never closed")
                .forget();
            fake.ports_tried.lock().expect("lock").push(spec.ssh_port);
            let mut taken = fake.ports_taken.lock().expect("lock");
            if *taken > 0 {
                *taken -= 1;
                return Err(CreateError::PortTaken(VmError::host("start", "taken")));
            }
            let seen = Seen {
                attempt: spec.attempt,
                ssh_port: spec.ssh_port,
                life: Life::Running,
            };
            fake.machines
                .lock()
                .expect("lock")
                .insert(spec.attempt, seen);
            Ok(())
        }
        .boxed()
    }

    fn find(&self, attempt: AttemptId) -> BoxFuture<'_, Result<Option<Seen>, VmError>> {
        let seen = self.0.machines.lock().expect("lock").get(&attempt).cloned();
        std::future::ready(Ok(seen)).boxed()
    }

    fn destroy(&self, attempt: AttemptId) -> BoxFuture<'_, Result<(), VmError>> {
        let mut refused = self.0.destroys_refused.lock().expect("lock");
        let destroyed = match refused.checked_sub(1) {
            Some(left) => {
                *refused = left;
                Err(VmError::host("destroy", "it is busy"))
            }
            None => {
                self.0.machines.lock().expect("lock").remove(&attempt);
                Ok(())
            }
        };
        std::future::ready(destroyed).boxed()
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<Seen>, VmError>> {
        let all = self.0.machines.lock().expect("lock");
        let all = all.values().cloned().collect();
        std::future::ready(Ok(all)).boxed()
    }

    fn how_it_ended(&self, _attempt: AttemptId) -> BoxFuture<'_, String> {
        std::future::ready("it ended".to_owned()).boxed()
    }

    fn screenshot(&self, _attempt: AttemptId) -> BoxFuture<'_, Result<Option<Vec<u8>>, VmError>> {
        std::future::ready(Ok(None)).boxed()
    }

    fn own_log(&self, _attempt: AttemptId) -> BoxFuture<'_, String> {
        std::future::ready(String::new()).boxed()
    }

    fn capacity(&self) -> BoxFuture<'_, Result<HostCapacity, VmError>> {
        let capacity = HostCapacity {
            memory_mib: 1024,
            vcpus: 1,
        };
        std::future::ready(Ok(capacity)).boxed()
    }
}

struct Stage {
    folder: tempfile::TempDir,
    machines: Machines,
    fake: Arc<Fake>,
    platform: Platform,
}

fn stage(starts_allowed: usize, ports_taken: usize) -> Stage {
    let folder = tempfile::tempdir().expect("a folder");
    let fake = Arc::new(Fake {
        machines: Mutex::default(),
        starts_allowed: Semaphore::new(starts_allowed),
        ports_taken: Mutex::new(ports_taken),
        ports_tried: Mutex::default(),
        destroys_refused: Mutex::default(),
    });
    let vms = folder.path().join("vms");
    super::folder::make_parent(&vms).expect("a folder of VMs");
    let kernel = folder.path().join("vmlinuz");
    std::fs::write(&kernel, b"kernel").expect("a kernel");
    Stage {
        machines: Machines::over(vms, Box::new(Shared(Arc::clone(&fake)))),
        platform: platform(&kernel),
        fake,
        folder,
    }
}

fn platform(kernel: &Path) -> Platform {
    let text = format!(
        "memory_mib = 64\n[kernel]\npath = {kernel:?}\n[ssh]\nkey = 'key'\nhost_key = 'key.pub'\n"
    );
    parse_platform(Path::new("/platforms/tiny"), &text).expect("a platform")
}

impl Stage {
    fn folders(&self) -> usize {
        std::fs::read_dir(self.folder.path().join("vms"))
            .expect("listed")
            .count()
    }
}

#[tokio::test]
async fn a_taken_port_is_passed_over() {
    let stage = stage(10, 2);
    let port = stage.machines.start(VM, &stage.platform).await;
    let tried = stage.fake.ports_tried.lock().expect("lock").clone();
    assert_eq!(tried.len(), 3);
    assert_eq!(port.expect("started"), tried[2]);
    assert!(!tried[..2].contains(&tried[2]), "{tried:?}");
}

#[tokio::test]
async fn ports_that_are_always_taken_end_the_start() {
    let stage = stage(10, 100);
    let error = stage.machines.start(VM, &stage.platform).await;
    assert!(matches!(error, Err(VmError::Host { .. })), "{error:?}");
    stage.machines.destroy(VM).await.expect("destroyed");
    assert_eq!(stage.folders(), 0);
}

#[tokio::test]
async fn a_destroy_that_overtakes_a_start_leaves_nothing() {
    let stage = stage(0, 0);
    {
        let start = stage.machines.start(VM, &stage.platform);
        tokio::pin!(start);
        // Far enough to have made its folder; then nobody waits for it any more.
        while stage.folders() == 0 {
            assert!(start.as_mut().now_or_never().is_none());
            tokio::task::yield_now().await;
        }
    }
    let destroy = stage.machines.destroy(VM);
    tokio::pin!(destroy);
    assert!(destroy.as_mut().now_or_never().is_none());
    stage.fake.starts_allowed.add_permits(1);
    destroy.await.expect("destroyed");
    assert_eq!(stage.fake.ports_tried.lock().expect("lock").len(), 1);
    assert!(stage.fake.machines.lock().expect("lock").is_empty());
    assert_eq!(stage.folders(), 0);
}

/// An attempt ended after three tries, its room was given to another, and more ran than the host has room for.
#[tokio::test]
async fn a_machine_that_does_not_die_is_not_given_up() {
    let stage = stage(1, 0);
    let started = stage.machines.start(VM, &stage.platform).await;
    started.expect("started");
    *stage.fake.destroys_refused.lock().expect("lock") = 4;
    stage.machines.destroy_until_gone(VM).await;
    assert_eq!(*stage.fake.destroys_refused.lock().expect("lock"), 0);
    assert!(stage.fake.machines.lock().expect("lock").is_empty());
    assert_eq!(stage.folders(), 0);
}

#[tokio::test]
async fn a_sweep_spares_what_is_being_started_while_it_looks() {
    let stage = stage(0, 0);
    let machines = stage.machines.clone();
    let platform = stage.platform.clone();
    let start = tokio::spawn(async move { machines.start(VM, &platform).await });
    while stage.folders() == 0 {
        tokio::task::yield_now().await;
    }
    let swept = stage.machines.sweep(&HashSet::new()).await.expect("swept");
    assert!(swept.is_empty(), "{swept}");
    stage.fake.starts_allowed.add_permits(1);
    start.await.expect("no panic").expect("started");
    let swept = stage.machines.sweep(&HashSet::new()).await.expect("swept");
    assert_eq!(swept.machines, [VM]);
    assert_eq!(stage.folders(), 0);
}

#[tokio::test]
async fn an_end_while_waiting_for_the_console_is_told() {
    let stage = stage(1, 0);
    stage
        .machines
        .start(VM, &stage.platform)
        .await
        .expect("started");
    let console = stage.folder.path().join("vms/vm-1/console.log");
    std::fs::write(&console, "Linux version 6.1").expect("written");
    let wait = stage.machines.wait_for_console(VM, "login:", &());
    tokio::pin!(wait);
    assert!(wait.as_mut().now_or_never().is_none());
    stage.fake.machines.lock().expect("lock").clear();
    match wait.await {
        Err(VmError::Gone(gone)) => assert_eq!(gone.to_string(), "vm-1 is gone: it ended"),
        other => panic!("{other:?}"),
    }
    assert_eq!(
        stage.machines.console_tail(VM, 7).await,
        "ion 6.1",
        "the console can be read until the VM is destroyed"
    );
}
