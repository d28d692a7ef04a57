//! The real `vivarium serve`, with a data folder, a configuration file and a port of its own.
//!
//! ```text
//!  MasterBuilder ──config file──► vivarium serve ──► /healthz answers ──► Master (HTTP helpers)
//!                                      │
//!                                 master.log, shown when the test fails
//! ```
//!
//! The program is `$VIVARIUM_BIN`, or `vivarium` in the folder of the build that the test belongs to.

mod authority;
mod builder;
mod events;
mod views;

pub use authority::Authority;
pub use builder::{MasterBuilder, RepositoryEntry};
pub use events::{LogEvent, LogFrom};
pub use views::{
    ArtifactView, AttemptView, BootView, BuildView, JobView, PlatformsView, RefusedView, StepView,
    TestsView,
};

use crate::machine;
use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::de::DeserializeOwned;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Where GitHub posts its webhooks.
const WEBHOOK_PATH: &str = "/webhook/github";
/// Opening the database and reaching libvirt takes a second or two; slow machines take longer.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// After SIGTERM; then it is killed.
const STOP_DEADLINE: Duration = Duration::from_secs(30);
/// Between two looks at something that announces itself to nobody.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Where a master with crash points is told of them.
const CRASH_POINTS: &str = "FAILPOINTS";
/// Lines of the master's log that a failed test shows.
const LOG_LINES: usize = 200;

/// A running master. Dropping it stops the program and ends its machines.
#[derive(Debug)]
pub struct Master {
    binary: PathBuf,
    folder: tempfile::TempDir,
    data_dir: PathBuf,
    port: u16,
    /// libvirt's address.
    hypervisor: String,
    environment: Vec<(String, String)>,
    /// The moment at which the next start ends, as the master is told of it.
    dies_at: Option<String>,
    /// It serves HTTPS with a certificate of this authority.
    authority: Option<Authority>,
    child: Option<Child>,
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// By itself after SIGTERM, with exit code 0.
    Orderly,
    /// With another code, by another signal, or not before it was killed.
    Otherwise,
}

impl Master {
    pub fn builder() -> MasterBuilder {
        MasterBuilder::default()
    }

    /// Starts the program (again) with the same configuration, data and port.
    pub async fn start(&mut self) -> Result<()> {
        self.spawn()?;
        self.wait_until_it_answers().await
    }

    /// The same without waiting for its first answer.
    pub fn spawn(&mut self) -> Result<()> {
        if self.child.is_some() {
            bail!("the master runs already");
        }
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_file())?;
        let mut command = Command::new(&self.binary);
        command
            .arg("serve")
            .arg("--config")
            .arg(self.config_file())
            .env("RUST_LOG", "info,vivarium=debug")
            .env("TMPDIR", self.temporary_dir())
            .envs(self.environment.iter().cloned())
            .envs(self.dies_at.take().map(|point| (CRASH_POINTS, point)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let child = command
            .spawn()
            .with_context(|| format!("cannot run {}", self.binary.display()))?;
        self.child = Some(child);
        Ok(())
    }

    pub async fn wait_until_it_answers(&mut self) -> Result<()> {
        let client = self.http_client()?;
        let health = self.url("/healthz");
        let started = async {
            loop {
                if let Some(status) = self.exit_status()? {
                    bail!("the master ended with {status} while it started");
                }
                let answer = client.get(&health).send().await;
                if answer.is_ok_and(|answer| answer.status().is_success()) {
                    return Ok(());
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        let result = match tokio::time::timeout(START_DEADLINE, started).await {
            Ok(result) => result,
            Err(_) => Err(anyhow::anyhow!(
                "the master did not answer on {health} within {} s",
                START_DEADLINE.as_secs()
            )),
        };
        result.with_context(|| format!("the end of its log:\n{}", self.log_tail()))
    }

    fn exit_status(&mut self) -> Result<Option<std::process::ExitStatus>> {
        match &mut self.child {
            Some(child) => Ok(child.try_wait()?),
            None => Ok(None),
        }
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        let child = self.child.as_ref().context("the master does not run")?;
        let pid = Pid::from_raw(i32::try_from(child.id())?);
        kill(pid, signal).with_context(|| format!("cannot send {signal} to the master"))
    }

    pub fn process_id(&self) -> Result<u32> {
        let child = self.child.as_ref().context("the master does not run")?;
        Ok(child.id())
    }

    /// SIGTERM, and waits for the end.
    pub async fn stop(&mut self) -> Result<Stopped> {
        self.signal(Signal::SIGTERM)?;
        self.wait_for_end().await
    }

    /// Waits for the end that something else leads to; kills what does not end.
    pub async fn wait_for_end(&mut self) -> Result<Stopped> {
        let deadline = tokio::time::Instant::now() + STOP_DEADLINE;
        while tokio::time::Instant::now() < deadline {
            if let Some(status) = self.exit_status()? {
                self.child = None;
                return Ok(if status.success() {
                    Stopped::Orderly
                } else {
                    Stopped::Otherwise
                });
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        self.kill()?;
        Ok(Stopped::Otherwise)
    }

    /// Starts a second master with the same configuration and waits for its end; all that it said.
    pub async fn serve_again(&self) -> Result<(std::process::ExitStatus, String)> {
        let mut command = tokio::process::Command::new(&self.binary);
        command.args(["serve", "--config"]).arg(self.config_file());
        let output = self.outcome_of(command).await?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        Ok((output.status, said))
    }

    /// What `vivarium doctor` says of this master's configuration.
    pub async fn doctor(&self) -> Result<String> {
        let mut command = tokio::process::Command::new(&self.binary);
        command.args(["doctor", "--config"]).arg(self.config_file());
        let output = self.outcome_of(command).await?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs a command that works on this master's files; fails unless it ends well.
    pub async fn local_command(&self, arguments: &[&str]) -> Result<String> {
        let mut command = tokio::process::Command::new(&self.binary);
        command
            .args(arguments)
            .arg("--config")
            .arg(self.config_file());
        let output = self.outcome_of(command).await?;
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            bail!("vivarium {}: {stdout}{stderr}", arguments.join(" "));
        }
        Ok(stdout)
    }

    /// Runs a command that speaks to this master; fails unless it ends well.
    pub async fn command(&self, arguments: &[&str]) -> Result<String> {
        self.command_later(arguments).await
    }

    /// The same, for a command that runs beside the test.
    pub fn command_later(
        &self,
        arguments: &[&str],
    ) -> impl Future<Output = Result<String>> + Send + use<> {
        let mut command = tokio::process::Command::new(&self.binary);
        command
            .args(arguments)
            .args(["--url", &self.url("/")])
            .arg("--token-file")
            .arg(self.data_dir().join("api-token"))
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let said = arguments.join(" ");
        async move {
            let output = command.output().await.context("cannot run vivarium")?;
            let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
            if !output.status.success() {
                let stderr = String::from_utf8_lossy(&output.stderr);
                bail!("vivarium {said}: {}: {stdout}{stderr}", output.status);
            }
            Ok(stdout)
        }
    }

    async fn outcome_of(
        &self,
        mut command: tokio::process::Command,
    ) -> Result<std::process::Output> {
        command
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        tokio::time::timeout(START_DEADLINE, command.output())
            .await
            .context("the program did not end in time")?
            .context("cannot run vivarium")
    }

    /// Lets the program die, as by SIGKILL, when this has happened so many times after the next start.
    pub fn dies_at(&mut self, moment: &str, times: u32) {
        let before = times.saturating_sub(1);
        self.dies_at = Some(match before {
            0 => format!("{moment}=return"),
            _ => format!("{moment}={before}*off->return"),
        });
    }

    /// Waits until the program has died by itself.
    pub async fn wait_for_death(&mut self, deadline: Duration) -> Result<()> {
        let until = tokio::time::Instant::now() + deadline;
        while self.exit_status()?.is_none() {
            if tokio::time::Instant::now() > until {
                bail!(
                    "the master lives on\nhint: was it built with its crash points? `cargo build --workspace`\n{}",
                    self.log_tail()
                );
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        self.child = None;
        Ok(())
    }

    /// SIGKILL: as in a power cut, but that its machines go on.
    pub fn kill(&mut self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        if let Some(mut child) = self.child.take() {
            child.wait()?;
        }
        Ok(())
    }

    pub fn is_running(&mut self) -> bool {
        self.child.is_some() && matches!(self.exit_status(), Ok(None))
    }

    /// Where sealed logs and artefacts go.
    pub fn objects_dir(&self) -> PathBuf {
        self.folder.path().join("objects")
    }

    /// Where it and its commands put temporary files.
    pub fn temporary_dir(&self) -> PathBuf {
        self.folder.path().join("tmp")
    }

    /// Keeps its files when it is dropped; where they are.
    pub fn keep_files(&mut self) -> PathBuf {
        self.folder.disable_cleanup(true);
        self.folder.path().to_owned()
    }

    /// The address of the libvirt that its machines are in.
    pub fn hypervisor(&self) -> &str {
        &self.hypervisor
    }

    /// Kills the QEMU processes of its machines; how many there were.
    pub fn kill_machines(&self) -> Result<usize> {
        machine::kill_qemu_of(&self.hypervisor, &self.data_dir())
    }

    pub fn data_dir(&self) -> PathBuf {
        self.data_dir.clone()
    }

    /// The configuration that it was started with.
    pub fn config_file(&self) -> PathBuf {
        self.folder.path().join("vivarium.toml")
    }

    /// Writes another token into the file that the master was started with.
    pub fn replace_github_token(&self, token: &str) -> Result<()> {
        let file = self.folder.path().join("github-token");
        std::fs::write(&file, format!("{token}\n"))
            .with_context(|| format!("cannot write {}", file.display()))
    }

    pub fn api_token_file(&self) -> PathBuf {
        self.data_dir().join("api-token")
    }

    pub fn url(&self, path: &str) -> String {
        let scheme = self.authority.as_ref().map_or("http", |_| "https");
        format!("{scheme}://127.0.0.1:{}{path}", self.port)
    }

    /// A client that believes the master's authority, and no other.
    fn http_client(&self) -> Result<reqwest::Client> {
        let builder = crate::http_client_builder();
        let builder = match &self.authority {
            None => builder,
            Some(authority) => builder.tls_certs_only([authority.for_clients()?]),
        };
        Ok(builder.build()?)
    }

    /// Memory of the master that is not swapped out, in KiB.
    pub fn resident_kib(&self) -> Result<u64> {
        self.memory_kib("VmRSS:")
    }

    /// The most that it ever had of it, since its start.
    pub fn peak_kib(&self) -> Result<u64> {
        self.memory_kib("VmHWM:")
    }

    fn memory_kib(&self, name: &str) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process_id()?))?;
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|line| line.split_whitespace().next());
        Ok(number.context("no such line")?.parse()?)
    }

    /// The address to give to GitHub.
    pub fn webhook_url(&self) -> String {
        self.url(WEBHOOK_PATH)
    }

    fn log_file(&self) -> PathBuf {
        self.folder.path().join("master.log")
    }

    /// All that the master has said.
    pub fn output(&self) -> String {
        let bytes = std::fs::read(self.log_file()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn log_tail(&self) -> String {
        let output = self.output();
        let lines: Vec<&str> = output.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }

    /// The token that requests which change something must bear.
    pub fn api_token(&self) -> Result<String> {
        let file = self.api_token_file();
        let text = std::fs::read_to_string(&file)
            .with_context(|| format!("cannot read {}", file.display()))?;
        Ok(text.trim().to_owned())
    }

    async fn answer(&self, path: &str) -> Result<reqwest::Response> {
        let response = self.http_client()?.get(self.url(path)).send().await?;
        let status = response.status();
        if !status.is_success() {
            bail!("GET {path}: {status}: {}", response.text().await?);
        }
        Ok(response)
    }

    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let text = self.get_text(path).await?;
        serde_json::from_str(&text).with_context(|| format!("GET {path} answered {text}"))
    }

    pub async fn get_text(&self, path: &str) -> Result<String> {
        Ok(self.answer(path).await?.text().await?)
    }

    pub async fn get_bytes(&self, path: &str) -> Result<bytes::Bytes> {
        Ok(self.answer(path).await?.bytes().await?)
    }

    /// POST with the token; the status and the body of the answer.
    pub async fn post(&self, path: &str, body: &serde_json::Value) -> Result<(u16, String)> {
        let response = self
            .http_client()?
            .post(self.url(path))
            .bearer_auth(self.api_token()?)
            .header("Content-Type", "application/json")
            .body(body.to_string())
            .send()
            .await?;
        Ok((response.status().as_u16(), response.text().await?))
    }

    /// Builds, newest first.
    pub async fn builds(&self) -> Result<Vec<BuildView>> {
        self.get("/api/builds?limit=200").await
    }

    pub async fn build(&self, number: i64) -> Result<BuildView> {
        self.get(&format!("/api/builds/{number}")).await
    }

    /// With its attempts.
    pub async fn job(&self, number: i64) -> Result<JobView> {
        self.get(&format!("/api/jobs/{number}")).await
    }

    /// A job's log from a byte offset on.
    pub async fn log(&self, job: i64, from: u64) -> Result<bytes::Bytes> {
        self.get_bytes(&format!("/api/jobs/{job}/log?from={from}"))
            .await
    }

    /// How many bytes a job has printed so far, those that were left out included.
    pub async fn log_length(&self, job: i64) -> Result<u64> {
        let answer = self
            .answer(&format!("/api/jobs/{job}/log?from={}", u64::MAX))
            .await?;
        let length = answer.headers().get("vivarium-log-length");
        let length = length.context("the log has no length")?;
        Ok(length.to_str()?.parse()?)
    }

    /// A job's log as a browser reads it, from an offset until its end.
    pub async fn follow_log(&self, job: i64, from: LogFrom) -> Result<Vec<LogEvent>> {
        let request = self
            .http_client()?
            .get(self.url(&format!("/api/jobs/{job}/log/stream")));
        let request = match from {
            LogFrom::Offset(offset) => request.query(&[("from", offset)]),
            LogFrom::AfterEvent(id) => request.header("Last-Event-ID", id),
        };
        let answer = request.send().await?.error_for_status()?;
        events::parse(&answer.text().await?)
    }

    pub async fn platforms(&self) -> Result<PlatformsView> {
        self.get("/api/platforms").await
    }

    /// The sum of a metric's values over all labels.
    pub async fn metric(&self, name: &str) -> Result<f64> {
        let text = self.get_text("/metrics").await?;
        Ok(text
            .lines()
            .filter(|line| {
                line.strip_prefix(name)
                    .is_some_and(|rest| rest.starts_with(['{', ' ']))
            })
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum())
    }

    /// Looks at the master until `wanted` finds something.
    pub async fn wait_for<T>(
        &self,
        what: &str,
        deadline: Duration,
        mut wanted: impl AsyncFnMut(&Master) -> Result<Option<T>>,
    ) -> Result<T> {
        let waiting = async {
            loop {
                if let Some(found) = wanted(self).await? {
                    return Ok(found);
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        match tokio::time::timeout(deadline, waiting).await {
            Ok(result) => result,
            Err(_) => bail!("{what}: not within {} s", deadline.as_secs()),
        }
    }

    /// Waits until no delivery that was stored is still to be acted upon.
    pub async fn wait_until_deliveries_are_acted_upon(&self, deadline: Duration) -> Result<()> {
        self.wait_for("deliveries acted upon", deadline, async |master| {
            let waiting = master
                .metric("vivarium_deliveries{state=\"stored\"}")
                .await?;
            Ok((waiting == 0.0).then_some(()))
        })
        .await
    }

    /// Waits for a finished build of this commit.
    pub async fn wait_for_finished_build(
        &self,
        head_sha: &str,
        deadline: Duration,
    ) -> Result<BuildView> {
        let what = format!("a finished build of {head_sha}");
        self.wait_for(&what, deadline, async |master| {
            let builds = master.builds().await?;
            Ok(builds
                .into_iter()
                .find(|build| build.head_sha == head_sha && build.state == "finished"))
        })
        .await
    }

    /// Waits until a job of this commit on this platform is there.
    pub async fn wait_for_job(
        &self,
        head_sha: &str,
        platform: &str,
        deadline: Duration,
    ) -> Result<JobView> {
        let what = format!("a job of {head_sha} on {platform}");
        self.wait_for(&what, deadline, async |master| {
            let builds = master.builds().await?;
            Ok(builds
                .into_iter()
                .filter(|build| build.head_sha == head_sha)
                .flat_map(|build| build.jobs)
                .find(|job| job.platform == platform))
        })
        .await
    }

    /// Waits until a job's log contains these bytes.
    pub async fn wait_for_output(&self, job: i64, bytes: &[u8], deadline: Duration) -> Result<()> {
        let what = format!(
            "{:?} in the log of job {job}",
            String::from_utf8_lossy(bytes)
        );
        self.wait_for(&what, deadline, async |master| {
            let log = master.log(job, 0).await?;
            Ok(crate::find(&log, bytes).map(drop))
        })
        .await
    }

    /// Waits until nothing of the jobs is left on this machine: no domain, no file of a VM, no QEMU.
    pub async fn wait_until_nothing_is_left(&self, deadline: Duration) -> Result<()> {
        let data_dir = self.data_dir();
        let waited = self
            .wait_for("nothing left", deadline, async |_| {
                Ok(machine::leftovers(&self.hypervisor, &data_dir)?
                    .is_empty()
                    .then_some(()))
            })
            .await;
        match waited {
            Ok(()) => Ok(()),
            Err(_) => bail!(
                "left behind after {} s:\n{}",
                deadline.as_secs(),
                machine::leftovers(&self.hypervisor, &data_dir)?.join("\n")
            ),
        }
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Both fail only when the program is gone already.
            child.kill().ok();
            child.wait().ok();
        }
        if let Err(error) = machine::end_machines_of(&self.hypervisor, &self.data_dir()) {
            eprintln!("machines may be left behind: {error:#}");
        }
        if std::thread::panicking() {
            eprintln!("--- the end of the master's log ---\n{}", self.log_tail());
        }
    }
}

/// A port that nothing listens on just now.
pub fn free_port() -> Result<u16> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    Ok(listener.local_addr()?.port())
}

/// The program under test.
pub(crate) fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("VIVARIUM_BIN") {
        return Ok(path.into());
    }
    // The test is target/<profile>/deps/<name>-<hash>.
    let test = std::env::current_exe()?;
    let found = test
        .ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join("vivarium"))
        .find(|path| path.is_file());
    found.with_context(|| {
        format!(
            "no program `vivarium` beside {}\nhint: cargo build --workspace, or set VIVARIUM_BIN",
            test.display()
        )
    })
}
