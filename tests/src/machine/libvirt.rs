//! A libvirtd of one's own, which may be killed: the machine's is left alone.
//!
//! ```text
//!   root:    libvirtd in a mount namespace with its own /run, /etc, /var/lib and /var/cache/libvirt
//!   others:  libvirtd with its own XDG folders
//!
//!   master ──qemu+unix:///…?socket=<folder>/run/…/libvirt-sock──► libvirtd ──► QEMU (outlives both)
//! ```

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// It reads what QEMU can do at its first start.
const START_DEADLINE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A private libvirtd. Dropped, it ends with all its machines.
#[derive(Debug)]
pub struct Libvirt {
    folder: tempfile::TempDir,
    child: Option<Child>,
}

impl Libvirt {
    pub async fn start() -> Result<Libvirt> {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::Builder::new()
            .prefix("vivarium-libvirt-")
            .tempdir()?;
        // QEMU's own user passes through.
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755))?;
        for name in ["run", "lib", "etc/libvirt", "cache"] {
            std::fs::create_dir_all(folder.path().join(name))?;
        }
        // QEMU writes the console by itself: there is no virtlogd here.
        let qemu = "stdio_handler = \"file\"\n";
        let etc = folder.path().join("etc/libvirt");
        std::fs::write(etc.join("qemu.conf"), qemu)?;
        let mut daemon = "auth_unix_rw = \"none\"\nauth_unix_ro = \"none\"\n".to_owned();
        if Uid::effective().is_root() {
            let run = folder.path().join("run");
            daemon.push_str(&format!("unix_sock_dir = \"{}\"\n", run.display()));
        }
        std::fs::write(etc.join("libvirtd.conf"), daemon)?;
        let mut libvirt = Libvirt {
            folder,
            child: None,
        };
        libvirt.start_again().await?;
        Ok(libvirt)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn socket(&self) -> PathBuf {
        match Uid::effective().is_root() {
            true => self.at("run/libvirt-sock"),
            false => self.at("run/libvirt/libvirt-sock"),
        }
    }

    /// How the master and `virsh` reach it.
    pub fn uri(&self) -> String {
        let kind = match Uid::effective().is_root() {
            true => "system",
            false => "session",
        };
        format!("qemu+unix:///{kind}?socket={}", self.socket().display())
    }

    /// Starts it after it was killed; returns once it answers.
    pub async fn start_again(&mut self) -> Result<()> {
        if self.child.is_some() {
            bail!("the private libvirtd runs already");
        }
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.at("libvirtd.log"))?;
        let mut command = match Uid::effective().is_root() {
            true => self.command_in_namespace(),
            false => self.command_of_user(),
        };
        command
            .arg("--pid-file")
            .arg(self.at("libvirtd.pid"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        self.child = Some(command.spawn().context("cannot run libvirtd")?);
        let until = tokio::time::Instant::now() + START_DEADLINE;
        while !self.answers().await {
            let ended = match &mut self.child {
                Some(child) => child.try_wait()?,
                None => None,
            };
            if ended.is_some() || tokio::time::Instant::now() > until {
                let log = std::fs::read_to_string(self.at("libvirtd.log")).unwrap_or_default();
                bail!("the private libvirtd does not answer; it said:\n{log}");
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    async fn answers(&self) -> bool {
        let asked = tokio::process::Command::new("virsh")
            .args(["--quiet", "--connect", &self.uri(), "uri"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .await;
        asked.is_ok_and(|status| status.success())
    }

    /// For root libvirt has one place for each thing; here other folders lie over them.
    fn command_in_namespace(&self) -> Command {
        let folder = self.folder.path().display();
        let binds = [
            ("run", "/run/libvirt"),
            ("lib", "/var/lib/libvirt"),
            ("etc/libvirt", "/etc/libvirt"),
            ("cache", "/var/cache/libvirt"),
        ];
        let mut script = String::from("set -e\n");
        for (name, over) in binds {
            script.push_str(&format!(
                "mkdir -p {over}\nmount --bind '{folder}/{name}' {over}\n"
            ));
        }
        script.push_str("exec libvirtd --config /etc/libvirt/libvirtd.conf \"$@\"");
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &script, "libvirtd"]);
        command
    }

    fn command_of_user(&self) -> Command {
        let mut command = Command::new("libvirtd");
        command
            .env("XDG_RUNTIME_DIR", self.at("run"))
            .env("XDG_CONFIG_HOME", self.at("etc"))
            .env("XDG_CACHE_HOME", self.at("cache"))
            .env("XDG_DATA_HOME", self.at("lib"))
            .arg("--config")
            .arg(self.at("etc/libvirt/libvirtd.conf"));
        command
    }

    /// SIGKILL. Its machines go on.
    pub fn kill(&mut self) -> Result<()> {
        let mut child = self.child.take().context("libvirtd does not run")?;
        child.kill().context("cannot kill libvirtd")?;
        child.wait()?;
        Ok(())
    }

    pub fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// The machines that it has started and that still run, by the files that it keeps of them.
    fn machines(&self) -> Vec<i32> {
        let mut files = Vec::new();
        let mut folders = vec![self.at("run")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                match entry.file_type() {
                    Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                    Ok(_) | Err(_) => files.push(entry.path()),
                }
            }
        }
        let pids: Vec<i32> = files
            .iter()
            .filter(|file| file.extension().is_some_and(|extension| extension == "pid"))
            .filter_map(|file| std::fs::read_to_string(file).ok()?.trim().parse().ok())
            .collect();
        let running = super::leftovers::qemu_processes();
        let pids = pids.into_iter();
        pids.filter(|pid| running.iter().any(|(other, _)| other == pid))
            .collect()
    }
}

impl Drop for Libvirt {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().ok();
        }
        for pid in self.machines() {
            kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
        }
    }
}
