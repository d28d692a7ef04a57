//! A Windows machine in small: an SSH server of ours under Wine, which runs commands in `cmd.exe`.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// The server, its keys, and its user's home.
#[derive(Debug)]
pub struct WindowsMachine {
    folder: tempfile::TempDir,
    /// What was built for Windows, the agent among it.
    built: PathBuf,
    pub port: u16,
    server: Child,
}

impl WindowsMachine {
    /// The first start of a Wine folder's processes takes seconds, on a busy machine many.
    const START_DEADLINE: Duration = Duration::from_secs(120);

    /// Builds what is needed, if it was not built before, and starts the server.
    pub async fn start() -> Result<WindowsMachine> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("windows/build");
        let output = Command::new(script)
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .await
            .context("cannot run tests/windows/build")?;
        if !output.status.success() {
            bail!("tests/windows/build ended with {}", output.status);
        }
        let built = PathBuf::from(String::from_utf8(output.stdout)?.trim());
        let folder = tempfile::Builder::new()
            .prefix("vivarium-windows-")
            .tempdir()?;
        std::fs::create_dir(folder.path().join("home"))?;
        for key in ["host_key", "user_key"] {
            super::ssh_server::make_key(&folder.path().join(key))?;
        }
        let log = std::fs::File::create(folder.path().join("sshd.log"))?;
        let mut server = Command::new(built.join("wine"))
            .arg(built.join("sshd.exe"))
            .args([
                folder.path().join("host_key"),
                folder.path().join("user_key.pub"),
            ])
            .current_dir(folder.path().join("home"))
            // It ends when this does.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .context("cannot run Wine")?;
        let mut line = String::new();
        let mut said = BufReader::new(server.stdout.take().context("the server has no output")?);
        tokio::time::timeout(Self::START_DEADLINE, said.read_line(&mut line))
            .await
            .context("the SSH server under Wine does not say its port")??;
        let port = line
            .trim()
            .strip_prefix("listening on ")
            .and_then(|port| port.parse().ok())
            .with_context(|| format!("the SSH server under Wine says {line:?}"))?;
        Ok(WindowsMachine {
            folder,
            built,
            port,
            server,
        })
    }

    /// Where a file or folder of this machine is, seen from here.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The same, seen from the machine: Wine shows the root of the file system as drive Z.
    pub fn guest_path(&self, name: &str) -> String {
        format!("Z:{}", self.path(name).display())
    }

    /// A folder with the agent for it, as the master takes it.
    pub fn agents(&self) -> PathBuf {
        self.built.join("agents")
    }

    /// The programs of which the tests' commands are made, seen from the machine.
    pub fn tool(&self) -> String {
        format!("Z:{}", self.built.join("tool.exe").display()).replace('/', "\\")
    }

    /// What the server has said.
    pub fn output(&self) -> String {
        std::fs::read_to_string(self.path("sshd.log")).unwrap_or_default()
    }

    /// Takes no more connections, and cuts those that are open.
    pub async fn stop(&mut self) -> Result<()> {
        self.server.kill().await.context("cannot end the server")
    }
}
