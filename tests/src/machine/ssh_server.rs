//! An SSH server of our own on a loopback port.

use anyhow::{Context, Result, bail};
use nix::unistd::{Uid, User};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// A real `sshd` on a loopback port, with keys of its own, for the user who runs the tests.
#[derive(Debug)]
pub struct SshServer {
    folder: tempfile::TempDir,
    pub port: u16,
    pub user: String,
    child: tokio::process::Child,
}

impl SshServer {
    const START_DEADLINE: Duration = Duration::from_secs(30);

    pub async fn start() -> Result<SshServer> {
        SshServer::configured("").await
    }

    /// One that runs this command whatever it is asked to run; `SSH_ORIGINAL_COMMAND` has that.
    pub async fn that_runs(command: &str) -> Result<SshServer> {
        SshServer::configured(&format!("ForceCommand {command}\n")).await
    }

    /// With these lines of configuration too.
    async fn configured(lines: &str) -> Result<SshServer> {
        let folder = tempfile::Builder::new()
            .prefix("vivarium-sshd-")
            .tempdir()?;
        let user = User::from_uid(Uid::effective())?
            .context("the user who runs the tests has no name")?
            .name;
        let port = crate::master::free_port()?;
        for key in ["host_key", "user_key"] {
            make_key(&folder.path().join(key))?;
        }
        let at = |name: &str| folder.path().join(name).display().to_string();
        let config = format!(
            "ListenAddress 127.0.0.1:{port}\nHostKey {}\nAuthorizedKeysFile {}\nPidFile {}\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\n\
             StrictModes no\nUsePAM no\nPrintMotd no\n{lines}",
            at("host_key"),
            at("user_key.pub"),
            at("sshd.pid")
        );
        std::fs::write(folder.path().join("sshd_config"), config)?;
        if Uid::effective().is_root() {
            // Where Debian's sshd goes to separate its privileges; made by its service otherwise.
            std::fs::create_dir_all("/run/sshd").context("cannot make /run/sshd")?;
        }
        let log = std::fs::File::create(folder.path().join("sshd.log"))?;
        let child = tokio::process::Command::new(sshd()?)
            .args(["-D", "-e", "-f"])
            .arg(folder.path().join("sshd_config"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .context("cannot run sshd")?;
        let server = SshServer {
            folder,
            port,
            user,
            child,
        };
        server.wait_for_banner().await?;
        Ok(server)
    }

    async fn wait_for_banner(&self) -> Result<()> {
        use tokio::io::AsyncReadExt;
        let greeted = async {
            loop {
                if let Ok(mut stream) =
                    tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await
                {
                    let mut start = [0; 4];
                    if stream.read_exact(&mut start).await.is_ok() && &start == b"SSH-" {
                        return;
                    }
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(Self::START_DEADLINE, greeted)
            .await
            .is_err()
        {
            bail!("sshd did not answer; it said:\n{}", self.output());
        }
        Ok(())
    }

    /// Where a file or folder of this server is; `work` and `state` are the platform's.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The private key that may log in.
    pub fn user_key(&self) -> PathBuf {
        self.path("user_key")
    }

    /// The server's public key.
    pub fn host_key(&self) -> PathBuf {
        self.path("host_key.pub")
    }

    /// OpenSSH's client, about to run this command here.
    pub fn command(&self, command: &str) -> Result<tokio::process::Command> {
        let known = self.path("known_hosts");
        let host_key = std::fs::read_to_string(self.host_key())?;
        std::fs::write(&known, format!("[127.0.0.1]:{} {host_key}", self.port))?;
        let mut ssh = ssh(self.port, &self.user, &self.user_key(), &known);
        ssh.arg(command).stdin(Stdio::null());
        Ok(ssh)
    }

    /// What sshd has said.
    pub fn output(&self) -> String {
        std::fs::read_to_string(self.path("sshd.log")).unwrap_or_default()
    }

    /// Takes no more connections; those that are open go on.
    pub async fn stop(&mut self) -> Result<()> {
        self.child.kill().await.context("cannot end sshd")
    }
}

/// A pair of keys in this file and the one beside it that ends in `.pub`.
pub(super) fn make_key(path: &Path) -> Result<()> {
    let status = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-f"])
        .arg(path)
        .stdin(Stdio::null())
        .status()
        .context("cannot run ssh-keygen")?;
    if !status.success() {
        bail!("ssh-keygen ended with {status}");
    }
    Ok(())
}

/// OpenSSH's client for a loopback port, without the user's own settings; the command is still to be added.
pub fn ssh(port: u16, user: &str, key: &Path, known_hosts: &Path) -> tokio::process::Command {
    let mut ssh = tokio::process::Command::new("ssh");
    ssh.args(["-F", "none", "-o", "BatchMode=yes"])
        .args(["-o", "IdentitiesOnly=yes", "-o"])
        .arg(format!("UserKnownHostsFile={}", known_hosts.display()))
        .arg("-i")
        .arg(key)
        .args(["-p", &port.to_string()])
        .arg(format!("{user}@127.0.0.1"));
    ssh
}

/// sshd insists on being called by its absolute path.
fn sshd() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/usr/local/sbin".into()])
        .map(|folder| folder.join("sshd"))
        .find(|program| program.is_file())
        .context("no sshd on this machine\nhint: install openssh-server")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_ssh_server_lets_its_key_in() {
        let server = SshServer::start().await.unwrap();
        let output = server
            .command("echo hello")
            .unwrap()
            .output()
            .await
            .unwrap();
        assert_eq!(output.stdout, b"hello\n", "{}", server.output());
    }
}
