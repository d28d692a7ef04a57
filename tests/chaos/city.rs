//! The place where it happens: a master, its GitHub, its libvirt and machines; what goes wrong with them, and its end.

use crate::schedule::{Fault, Mood, Schedule};
use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};
use sqlx::Connection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use std::path::PathBuf;
use std::time::Duration;
use tests::github::{Fault as GitHubFault, FaultKind};
use tests::machine::{Libvirt, Platforms, Proxy, SshServer, domains_of, qemu_processes_of};
use tests::world::World;
use tokio::process::Command;
use tokio::time::{Instant, timeout};

/// A command of the harness that asks libvirt or the kernel for something.
const COMMAND_DEADLINE: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub(crate) struct City {
    // The master goes first: it would miss the others.
    pub(crate) world: World,
    pub(crate) libvirt: Libvirt,
    pub(crate) server: SshServer,
    proxy: Proxy,
    master: MasterState,
    /// What is to be put right, and when.
    repairs: Vec<(Instant, Repair)>,
    /// Until when another process holds the database.
    locked_until: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MasterState {
    Up,
    Frozen,
    Down,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Repair {
    StartMaster,
    ThawMaster,
    ThawMachine(i32),
    ResumeGuest(String),
    StartLibvirt,
    ThawWire,
    GitHubBack,
    OpenObjects,
}

/// Whether a fault found something to happen to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Met {
    Yes,
    Nothing,
}

impl City {
    pub(crate) async fn found() -> Result<City> {
        let libvirt = Libvirt::start().await?;
        let server = SshServer::start().await?;
        let proxy = Proxy::start(server.port).await?;
        let platforms = Platforms::new()?;
        platforms.add_changed("tiny-linux", "tiny-linux", |platform| {
            platform.insert("limit".to_owned(), 2.into());
        })?;
        platforms.add_ssh_at("desk", &server, proxy.port)?;
        let uri = libvirt.uri();
        let suites = crate::changes::suites();
        let world = World::with_platforms(platforms, &suites, |master, entry| {
            master
                .repository(entry.set("on_new_commit", "cancel"))
                .hypervisor(&uri)
                // Each fault may cost an attempt, and here is one every other second.
                .set("limits", "infrastructure_retries", 50)
                .set("limits", "heartbeat_secs", 2)
        })
        .await?;
        Ok(City {
            world,
            libvirt,
            server,
            proxy,
            master: MasterState::Up,
            repairs: Vec::new(),
            locked_until: Instant::now(),
        })
    }

    /// When something is to be put right next.
    pub(crate) fn next_repair(&self) -> Option<Instant> {
        self.repairs.iter().map(|(at, _)| *at).min()
    }

    /// Puts right what is due.
    pub(crate) async fn repair_due(&mut self) -> Result<()> {
        let now = Instant::now();
        let (due, rest) = self.repairs.drain(..).partition(|(at, _)| *at <= now);
        self.repairs = rest;
        for (_, repair) in due {
            self.repair(repair).await?;
        }
        Ok(())
    }

    /// Puts everything right.
    pub(crate) async fn repair_all(&mut self) -> Result<()> {
        while !self.repairs.is_empty() {
            for (_, repair) in std::mem::take(&mut self.repairs) {
                self.repair(repair).await?;
            }
        }
        self.world.github.clear_faults();
        tokio::time::sleep_until(self.locked_until).await;
        self.world.master.wait_until_it_answers().await
    }

    async fn repair(&mut self, repair: Repair) -> Result<()> {
        match repair {
            Repair::StartMaster => {
                self.world.master.spawn()?;
                self.master = MasterState::Up;
            }
            Repair::ThawMaster => {
                if self.master == MasterState::Frozen {
                    self.world.master.signal(Signal::SIGCONT)?;
                    self.master = MasterState::Up;
                }
            }
            // It may have been destroyed meanwhile.
            Repair::ThawMachine(pid) => drop(kill(Pid::from_raw(pid), Signal::SIGCONT)),
            Repair::ResumeGuest(domain) => {
                if self.libvirt.is_running() {
                    self.virsh("resume", &domain).await;
                } else {
                    self.later(Duration::from_millis(500), Repair::ResumeGuest(domain));
                }
            }
            Repair::StartLibvirt => self.libvirt.start_again().await?,
            Repair::ThawWire => self.proxy.thaw(),
            Repair::GitHubBack => self.world.github.listen_again().await?,
            Repair::OpenObjects => {
                for (folder, away) in self.object_folders() {
                    std::fs::remove_file(&folder)?;
                    if away.exists() {
                        std::fs::rename(away, folder)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The master must not have ended by itself.
    pub(crate) fn check(&mut self) -> Result<()> {
        ensure!(
            self.master == MasterState::Down || self.world.master.is_running(),
            "the master ended by itself"
        );
        Ok(())
    }

    fn later(&mut self, after: Duration, repair: Repair) {
        self.repairs.push((Instant::now() + after, repair));
    }

    fn is_due(&self, wanted: impl Fn(&Repair) -> bool) -> bool {
        self.repairs.iter().any(|(_, repair)| wanted(repair))
    }

    /// Lets it happen, if there is something for it to happen to.
    pub(crate) async fn suffer(&mut self, fault: Fault, schedule: &mut Schedule) -> Result<Met> {
        match fault {
            Fault::KillMaster(time) => {
                if self.master == MasterState::Down {
                    return Ok(Met::Nothing);
                }
                self.world.master.kill()?;
                self.master = MasterState::Down;
                self.later(time, Repair::StartMaster);
            }
            Fault::StopMaster => {
                if self.master != MasterState::Up {
                    return Ok(Met::Nothing);
                }
                self.world.master.stop().await?;
                self.master = MasterState::Down;
                self.later(Duration::ZERO, Repair::StartMaster);
            }
            Fault::FreezeMaster(time) => {
                if self.master != MasterState::Up {
                    return Ok(Met::Nothing);
                }
                self.world.master.signal(Signal::SIGSTOP)?;
                self.master = MasterState::Frozen;
                self.later(time, Repair::ThawMaster);
            }
            Fault::KillMachine | Fault::FreezeMachine(_) | Fault::CutConnection => {
                return self.strike_machine(fault, schedule).await;
            }
            Fault::PauseMachine(time) => return self.pause_guest(time, schedule).await,
            Fault::KillLibvirt(time) => {
                if !self.libvirt.is_running() {
                    return Ok(Met::Nothing);
                }
                self.libvirt.kill()?;
                self.later(time, Repair::StartLibvirt);
            }
            Fault::CutWire
            | Fault::ResetWire
            | Fault::HalfOpenWire
            | Fault::FreezeWire(_)
            | Fault::SlowWire(_) => return Ok(self.strike_wire(fault)),
            Fault::GitHub(mood) => {
                let fault = GitHubFault::on_status_post(kind_of(mood)).times(2);
                self.world.github.inject(fault);
            }
            Fault::GitHubAway(time) => {
                if self.is_due(|repair| *repair == Repair::GitHubBack) {
                    return Ok(Met::Nothing);
                }
                self.world.github.stop_listening().await;
                self.later(time, Repair::GitHubBack);
            }
            Fault::LockDatabase(time) => {
                if Instant::now() < self.locked_until {
                    return Ok(Met::Nothing);
                }
                let held =
                    hold_database(self.world.master.data_dir().join("vivarium.sqlite"), time);
                // A master that holds it for long is in the way.
                match timeout(COMMAND_DEADLINE, held).await {
                    Ok(held) => held?,
                    Err(_) => return Ok(Met::Nothing),
                }
                self.locked_until = Instant::now() + time;
            }
            Fault::CloseObjects(time) => {
                if self.is_due(|repair| *repair == Repair::OpenObjects) {
                    return Ok(Met::Nothing);
                }
                for (folder, away) in self.object_folders() {
                    if folder.exists() {
                        std::fs::rename(&folder, away)?;
                    }
                    // Below a file nothing can be made.
                    std::fs::write(folder, "")?;
                }
                self.later(time, Repair::OpenObjects);
            }
        }
        Ok(Met::Yes)
    }

    /// Where objects are, and where the folders are put while the store is down.
    fn object_folders(&self) -> [(PathBuf, PathBuf); 2] {
        let objects = self.world.master.objects_dir();
        ["logs", "artifacts"].map(|name| {
            let folder = objects.join(name);
            let away = objects.with_extension(format!("{name}-away"));
            (folder, away)
        })
    }

    async fn strike_machine(&mut self, fault: Fault, schedule: &mut Schedule) -> Result<Met> {
        let uri = self.world.master.hypervisor();
        let machines = qemu_processes_of(uri, &self.world.master.data_dir());
        let Some(chosen) = schedule.choose(machines.len()) else {
            return Ok(Met::Nothing);
        };
        let (pid, command) = &machines[chosen];
        match fault {
            // It may end at this moment.
            Fault::KillMachine => drop(kill(Pid::from_raw(*pid), Signal::SIGKILL)),
            Fault::FreezeMachine(time) => {
                if kill(Pid::from_raw(*pid), Signal::SIGSTOP).is_ok() {
                    self.later(time, Repair::ThawMachine(*pid));
                }
            }
            _ => return cut_connection_to(command).await,
        }
        Ok(Met::Yes)
    }

    async fn pause_guest(&mut self, time: Duration, schedule: &mut Schedule) -> Result<Met> {
        // A frozen QEMU does not answer, and libvirt would wait for it.
        let is_frozen = self.is_due(|repair| matches!(repair, Repair::ThawMachine(_)));
        if !self.libvirt.is_running() || is_frozen {
            return Ok(Met::Nothing);
        }
        let domains = domains_of(
            self.world.master.hypervisor(),
            &self.world.master.data_dir(),
        )?;
        let Some(chosen) = schedule.choose(domains.len()) else {
            return Ok(Met::Nothing);
        };
        let domain = domains[chosen].clone();
        if !self.virsh("suspend", &domain).await {
            return Ok(Met::Nothing);
        }
        self.later(time, Repair::ResumeGuest(domain));
        Ok(Met::Yes)
    }

    fn strike_wire(&mut self, fault: Fault) -> Met {
        let is_slow = self.is_due(|repair| *repair == Repair::ThawWire);
        let open = self.proxy.open_connections();
        match fault {
            Fault::CutWire => self.proxy.cut(),
            Fault::ResetWire => self.proxy.reset(),
            Fault::HalfOpenWire => self.proxy.half_open(),
            Fault::FreezeWire(_) | Fault::SlowWire(_) if is_slow => return Met::Nothing,
            Fault::FreezeWire(time) => {
                self.proxy.freeze();
                self.later(time, Repair::ThawWire);
            }
            Fault::SlowWire(time) => {
                self.proxy.slow(Duration::from_millis(30));
                self.later(time, Repair::ThawWire);
            }
            _ => return Met::Nothing,
        }
        match open {
            0 => Met::Nothing,
            _ => Met::Yes,
        }
    }

    /// Whether libvirt did it.
    async fn virsh(&self, act: &str, domain: &str) -> bool {
        let mut command = Command::new("virsh");
        command.args(["--quiet", "--connect", &self.libvirt.uri(), act, domain]);
        run(command).await.is_some()
    }
}

fn kind_of(mood: Mood) -> FaultKind {
    match mood {
        Mood::Breaks => FaultKind::Answer(502),
        Mood::BreaksAfter => FaultKind::AnswerAfter(500),
        Mood::Resets => FaultKind::ResetBefore,
        Mood::ResetsAfter => FaultKind::ResetAfter,
        Mood::Limits => FaultKind::SecondaryLimit {
            status: 429,
            retry_after_secs: Some(1),
        },
        Mood::Forgets => FaultKind::CommitNotVisible,
        Mood::Dawdles => FaultKind::Delay(Duration::from_secs(2)),
    }
}

/// The output of a command that succeeded in time.
async fn run(mut command: Command) -> Option<String> {
    command
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true);
    let output = timeout(COMMAND_DEADLINE, command.output())
        .await
        .ok()?
        .ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Takes the connections to a machine's forwarded port out of the kernel.
async fn cut_connection_to(qemu: &str) -> Result<Met> {
    let forward = "hostfwd=tcp:127.0.0.1:";
    let port = qemu
        .split_once(forward)
        .and_then(|(_, rest)| rest.split_once('-'))
        .context("a QEMU without a forwarded port")?
        .0;
    let mut command = match Uid::effective().is_root() {
        true => Command::new("ss"),
        false => {
            let mut sudo = Command::new("sudo");
            sudo.args(["-n", "ss"]);
            sudo
        }
    };
    command.args(["--no-header", "--kill", "--tcp", "--numeric"]);
    command.args(["dst", &format!("127.0.0.1:{port}")]);
    Ok(match run(command).await {
        Some(cut) if !cut.trim().is_empty() => Met::Yes,
        Some(_) | None => Met::Nothing,
    })
}

/// Begins to hold the database's write lock, and lets it go after this time.
async fn hold_database(path: PathBuf, time: Duration) -> Result<()> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .busy_timeout(COMMAND_DEADLINE);
    let mut connection = SqliteConnection::connect_with(&options).await?;
    sqlx::query("BEGIN IMMEDIATE")
        .execute(&mut connection)
        .await?;
    tokio::spawn(async move {
        tokio::time::sleep(time).await;
        if let Err(error) = sqlx::query("ROLLBACK").execute(&mut connection).await {
            tracing::warn!(%error, "the database was not let go by its statement");
        }
    });
    Ok(())
}
