//! Runs git: its environment, its bounds in time and output, and what its failures mean.
//!
//! A [`Call`] is one command. It ends by itself, at its deadline, or when the caller stops waiting; in the latter two
//! cases the whole process group gets TERM, upon which git removes its lock files, and KILL if that does not help.

use super::SourceError;
use super::error::{Complaint, tail_of};
use super::mirror::Mirror;
use crate::config::RepositoryConfig;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

/// For commands that only read or write the mirror: seconds at most on a healthy disk.
const LOCAL_TIMEOUT: Duration = Duration::from_secs(120);
/// Between TERM and KILL.
const GRACE: Duration = Duration::from_secs(2);
/// The output of a command that names no bound of its own.
const DEFAULT_LIMIT: usize = 16 << 20;
/// Of what git says on stderr, the end is kept.
const STDERR_LIMIT: usize = 16 << 10;

/// Settings that git's child processes need too (for a local path `git upload-pack` runs with a cleared environment), so
/// they are in a file.
///
/// - `safe.directory`: repositories on this machine may belong to another user; nothing in them is executed.
/// - `fetch.unpackLimit`: what is fetched becomes visible as one pack, so a commit never is there without its files
///   although a fetch was killed half-way.
/// - `transfer.fsckObjects` stays off: it refuses repositories with harmless flaws of old, and what it protects
///   against happens on checkout, which is never done here. Each object's hash is verified nonetheless.
/// - `gc.auto`: the mirror is packed beside fetches, not in them.
/// - `http.lowSpeed*`: a connection that stalls for a minute is given up.
/// - `tar.umask`: modes as a checkout has them, 755 and 644.
const SETTINGS: &str = "\
[safe]
	directory = *
[core]
	hooksPath = /dev/null
	fsmonitor = false
[protocol]
	version = 2
[fetch]
	unpackLimit = 1
	recurseSubmodules = false
[transfer]
	fsckObjects = false
	bundleURI = false
[gc]
	auto = 0
	cruftPacks = true
[maintenance]
	auto = false
[http]
	lowSpeedLimit = 1000
	lowSpeedTime = 60
[tar]
	umask = 0022
[init]
	defaultBranch = main
[advice]
	fetchShowForcedUpdates = false
";

/// What git may take from the master's own environment: how to reach the network, nothing that changes what it does.
const INHERITED: [&str; 14] = [
    "PATH",
    "TMPDIR",
    "SSH_AUTH_SOCK",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "GIT_SSL_CAINFO",
    "http_proxy",
    "https_proxy",
    "HTTPS_PROXY",
    "all_proxy",
    "ALL_PROXY",
    "no_proxy",
    "NO_PROXY",
    "LD_LIBRARY_PATH",
];

/// How git is run for the mirrors of one folder.
pub(super) struct Git {
    dir: PathBuf,
    environment: Vec<(OsString, OsString)>,
}

impl Git {
    pub(super) fn new(dir: &Path) -> Git {
        let set = |name: &str, value: &OsStr| (name.into(), value.to_owned());
        let mut environment: Vec<(OsString, OsString)> = INHERITED
            .into_iter()
            .filter_map(|name| Some(set(name, &std::env::var_os(name)?)))
            .collect();
        environment.push(set("HOME", dir.as_os_str()));
        environment.push(set("GIT_CONFIG_GLOBAL", settings_file(dir).as_os_str()));
        for (name, value) in [
            ("LC_ALL", "C"),
            ("GIT_CONFIG_NOSYSTEM", "1"),
            ("GIT_ATTR_NOSYSTEM", "1"),
            ("GIT_TERMINAL_PROMPT", "0"),
            ("GIT_ALLOW_PROTOCOL", "file:http:https:ssh:git"),
            ("GIT_LITERAL_PATHSPECS", "1"),
            ("GIT_NO_REPLACE_OBJECTS", "1"),
            ("GIT_NO_LAZY_FETCH", "1"),
            (
                "GIT_SSH_COMMAND",
                "ssh -o BatchMode=yes -o ConnectTimeout=20 -o ServerAliveInterval=15",
            ),
        ] {
            environment.push(set(name, OsStr::new(value)));
        }
        Git {
            dir: dir.to_owned(),
            environment,
        }
    }

    /// Writes the settings; whole or not at all, since another process may be reading them.
    pub(super) fn write_settings(&self) -> io::Result<()> {
        let path = settings_file(&self.dir);
        if std::fs::read(&path).is_ok_and(|text| text == SETTINGS.as_bytes()) {
            return Ok(());
        }
        let mut file = tempfile::NamedTempFile::new_in(&self.dir)?;
        io::Write::write_all(&mut file, SETTINGS.as_bytes())?;
        file.persist(path)?;
        Ok(())
    }

    /// A command on the bare repository at `git_dir`; `what` completes "cannot …" in its errors.
    pub(super) fn call(
        &self,
        repository: &RepositoryConfig,
        git_dir: &Path,
        what: &'static str,
    ) -> Call {
        let mut command = Command::new("git");
        command
            .env_clear()
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .env("GIT_DIR", git_dir)
            .current_dir(&self.dir)
            .process_group(0)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Call {
            command,
            repository: repository.name.clone(),
            what,
            dir: self.dir.clone(),
            mirror: None,
            input: Vec::new(),
            limit: DEFAULT_LIMIT,
            timeout: LOCAL_TIMEOUT,
            secrets: Vec::new(),
        }
    }
}

fn settings_file(dir: &Path) -> PathBuf {
    dir.join("gitconfig")
}

/// One git command about to run.
pub(super) struct Call {
    command: Command,
    repository: String,
    what: &'static str,
    dir: PathBuf,
    mirror: Option<Arc<Mirror>>,
    input: Vec<u8>,
    limit: usize,
    timeout: Duration,
    secrets: Vec<String>,
}

/// What a command that ended has left.
#[derive(Debug)]
pub(super) struct Output {
    /// `None` when a signal ended it.
    pub(super) code: Option<i32>,
    pub(super) stdout: Vec<u8>,
    /// There was more than the limit; the command was stopped.
    pub(super) is_cut: bool,
    /// The end of it, without secrets.
    pub(super) stderr: String,
}

impl Output {
    pub(super) fn is_success(&self) -> bool {
        self.code == Some(0) || self.is_cut
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

impl Call {
    pub(super) fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Call {
        self.command.args(args);
        self
    }

    pub(super) fn input(mut self, input: impl Into<Vec<u8>>) -> Call {
        self.input = input.into();
        self
    }

    pub(super) fn limit(mut self, bytes: usize) -> Call {
        self.limit = bytes;
        self
    }

    pub(super) fn timeout(mut self, timeout: Duration) -> Call {
        self.timeout = timeout;
        self
    }

    pub(super) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Call {
        self.command.env(name, value);
        self
    }

    /// Configuration through the environment, where no other user of the machine can read it.
    pub(super) fn config(self, settings: &[(String, String)]) -> Call {
        let count = settings.len().to_string();
        settings
            .iter()
            .enumerate()
            .fold(self, |call, (index, (key, value))| {
                call.env(&format!("GIT_CONFIG_KEY_{index}"), key)
                    .env(&format!("GIT_CONFIG_VALUE_{index}"), value)
            })
            .env("GIT_CONFIG_COUNT", count)
    }

    /// Texts to leave out of every message.
    pub(super) fn hiding(mut self, secrets: &[String]) -> Call {
        self.secrets = secrets.to_vec();
        self
    }

    /// Tells the mirror when the command finds it damaged.
    pub(super) fn marking(mut self, mirror: Arc<Mirror>) -> Call {
        self.mirror = Some(mirror);
        self
    }

    /// Runs it; an exit status other than 0 is for the caller to judge.
    pub(super) async fn run(mut self) -> Result<Output, SourceError> {
        let (mut group, mut stdin) = self.spawn()?;
        let (Some(mut stdout), Some(stderr)) =
            (group.child.stdout.take(), group.child.stderr.take())
        else {
            return Err(self.failed("its output is not connected"));
        };
        let input = std::mem::take(&mut self.input);
        let write = async move {
            if let Some(mut stdin) = stdin.take() {
                // A command that ends early closes its input; its exit status says why.
                stdin.write_all(&input).await.ok();
            }
        };
        let limit = self.limit;
        let read = async move {
            let mut bytes = Vec::new();
            (&mut stdout)
                .take(limit as u64 + 1)
                .read_to_end(&mut bytes)
                .await?;
            let is_cut = bytes.len() > limit;
            bytes.truncate(limit);
            // Dropping the pipe ends a command that has more to say.
            drop(stdout);
            io::Result::Ok((bytes, is_cut))
        };
        let all = async {
            let ((), read, stderr, status) =
                tokio::join!(write, read, end_of(stderr), group.child.wait());
            io::Result::Ok((read?, stderr, status?))
        };
        let ended = tokio::time::timeout(self.timeout, all).await;
        let ((stdout, is_cut), stderr, status) = match ended {
            Ok(Ok(ended)) => ended,
            Ok(Err(error)) => return Err(self.failed(error)),
            Err(_) => {
                group.stop().await;
                return Err(SourceError::Timeout {
                    repository: self.repository,
                    what: self.what,
                    after: self.timeout,
                });
            }
        };
        Ok(Output {
            code: status.code(),
            stdout,
            is_cut,
            stderr: hide(&stderr, &self.secrets),
        })
    }

    /// Runs it; every exit status but 0 is an error.
    pub(super) async fn succeed(self) -> Result<Output, SourceError> {
        let judge = self.judge();
        let output = self.run().await?;
        match output.is_success() {
            true => Ok(output),
            false => Err(judge.error(&output.stderr)),
        }
    }

    /// Starts it for its stream of output.
    pub(super) async fn stream(mut self) -> Result<Running, SourceError> {
        let judge = self.judge();
        let (mut group, stdin) = self.spawn()?;
        let (Some(stdout), Some(stderr)) = (group.child.stdout.take(), group.child.stderr.take())
        else {
            return Err(self.failed("its output is not connected"));
        };
        if let Some(mut stdin) = stdin {
            // Read to its end before git writes the first byte, so this does not wait for the reader of the output.
            stdin.write_all(&self.input).await.ok();
        }
        Ok(Running {
            stdout,
            stderr: tokio::spawn(end_of(stderr)),
            group,
            judge,
        })
    }

    fn spawn(&mut self) -> Result<(Group, Option<tokio::process::ChildStdin>), SourceError> {
        self.command.stdin(match self.input.is_empty() {
            true => Stdio::null(),
            false => Stdio::piped(),
        });
        let mut child = self.command.spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                self.failed("the program `git` was not found; hint: install git 2.38 or newer")
            }
            _ => self.failed(error),
        })?;
        let stdin = child.stdin.take();
        Ok((Group { child }, stdin))
    }

    fn failed(&self, why: impl std::fmt::Display) -> SourceError {
        SourceError::Git {
            repository: self.repository.clone(),
            what: self.what,
            why: why.to_string(),
        }
    }

    pub(super) fn judge(&self) -> Judge {
        Judge {
            repository: self.repository.clone(),
            what: self.what,
            dir: self.dir.clone(),
            mirror: self.mirror.clone(),
        }
    }
}

/// Turns the words of a command that failed into an error.
pub(super) struct Judge {
    repository: String,
    what: &'static str,
    dir: PathBuf,
    mirror: Option<Arc<Mirror>>,
}

impl Judge {
    /// The error where the words tell of a damaged mirror: some commands go on and say that nothing was found.
    pub(super) fn damage(&self, stderr: &str) -> Option<SourceError> {
        (Complaint::read(stderr) == Complaint::Damaged).then(|| self.error(stderr))
    }

    pub(super) fn error(&self, stderr: &str) -> SourceError {
        let repository = self.repository.clone();
        let what = self.what;
        let why = tail_of(stderr);
        match Complaint::read(stderr) {
            Complaint::DiskFull => SourceError::DiskFull {
                repository,
                what,
                dir: self.dir.clone(),
            },
            Complaint::Damaged => {
                if let Some(mirror) = &self.mirror {
                    mirror.suspect();
                }
                SourceError::Damaged {
                    repository,
                    what,
                    why,
                }
            }
            Complaint::Unreachable { .. }
            | Complaint::NoSuchRef
            | Complaint::NotOurRef
            | Complaint::Locked
            | Complaint::Other => SourceError::Git {
                repository,
                what,
                why,
            },
        }
    }
}

/// A command that runs while its output is read.
pub(super) struct Running {
    pub(super) stdout: tokio::process::ChildStdout,
    stderr: tokio::task::JoinHandle<String>,
    group: Group,
    judge: Judge,
}

impl Running {
    /// Waits for the end; what has not been read is given up.
    pub(super) async fn finish(mut self) -> Result<(), SourceError> {
        drop(self.stdout);
        let status = match tokio::time::timeout(LOCAL_TIMEOUT, self.group.child.wait()).await {
            Ok(status) => status,
            Err(_) => {
                self.group.stop().await;
                return Err(SourceError::Timeout {
                    repository: self.judge.repository,
                    what: self.judge.what,
                    after: LOCAL_TIMEOUT,
                });
            }
        };
        let stderr = self.stderr.await.unwrap_or_default();
        match status {
            Ok(status) if status.success() => Ok(()),
            Ok(_) => Err(self.judge.error(&stderr)),
            Err(error) => Err(self.judge.error(&error.to_string())),
        }
    }
}

/// The process group of one command; ended when dropped.
struct Group {
    child: Child,
}

impl Group {
    async fn stop(&mut self) {
        self.signal(Signal::SIGTERM);
        if tokio::time::timeout(GRACE, self.child.wait())
            .await
            .is_err()
        {
            self.signal(Signal::SIGKILL);
            self.child.wait().await.ok();
        }
    }

    /// Does nothing once the leader was waited for: its number may be another's by then.
    fn signal(&self, signal: Signal) {
        if let Some(id) = self.child.id().and_then(|id| i32::try_from(id).ok()) {
            // It may have ended meanwhile.
            killpg(Pid::from_raw(id), signal).ok();
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let Some(id) = self.child.id().and_then(|id| i32::try_from(id).ok()) else {
            return;
        };
        self.signal(Signal::SIGTERM);
        // tokio reaps the child; the KILL is for one that ignores TERM, and is left out where no runtime is left.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                let pid = Pid::from_raw(id);
                tokio::time::sleep(GRACE).await;
                if killpg(pid, None).is_ok() {
                    killpg(pid, Signal::SIGKILL).ok();
                }
            });
        }
    }
}

/// Reads to the end and keeps the last part.
async fn end_of(mut pipe: impl AsyncRead + Unpin) -> String {
    let mut kept = Vec::new();
    let mut buffer = vec![0; 4096];
    while let Ok(count @ 1..) = pipe.read(&mut buffer).await {
        kept.extend_from_slice(&buffer[..count]);
        if kept.len() > 2 * STDERR_LIMIT {
            kept.drain(..kept.len() - STDERR_LIMIT);
        }
    }
    String::from_utf8_lossy(&kept).into_owned()
}

fn hide(text: &str, secrets: &[String]) -> String {
    secrets
        .iter()
        .filter(|secret| !secret.is_empty())
        .fold(text.to_owned(), |text, secret| {
            text.replace(secret.as_str(), "***")
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    /// A git command that runs the script.
    fn call(dir: &Path, script: &str) -> Call {
        let text = "[[repository]]\nname = 'a/b'\nurl = '/x'\n";
        let config = Config::parse(Path::new("/vivarium.toml"), text).unwrap();
        let git = Git::new(dir);
        git.write_settings().unwrap();
        git.call(&config.repositories[0], dir, "test").args([
            "-c",
            &format!("alias.run=!{script}"),
            "run",
        ])
    }

    #[tokio::test]
    async fn a_command_that_does_not_end_is_ended_with_its_children() {
        let dir = tempfile::tempdir().unwrap();
        let script = "echo $$ >pid; trap '' TERM; sleep 1000";
        let call = call(dir.path(), script).timeout(Duration::from_millis(300));
        let error = call.run().await.unwrap_err();
        assert!(matches!(error, SourceError::Timeout { .. }), "{error}");
        let pid = std::fs::read_to_string(dir.path().join("pid")).unwrap();
        let pid = Pid::from_raw(pid.trim().parse().unwrap());
        while nix::sys::signal::kill(pid, None).is_ok() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn output_and_messages_are_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let output = call(dir.path(), "yes").limit(1000).run().await.unwrap();
        assert!(output.is_cut && output.is_success());
        assert_eq!(output.stdout.len(), 1000);
        let script = "yes | head -c 1000000 >&2; echo last >&2; exit 1";
        let output = call(dir.path(), script).run().await.unwrap();
        assert!(output.stderr.len() <= 2 * STDERR_LIMIT + 4096);
        assert!(output.stderr.contains("last"));
    }

    #[tokio::test]
    async fn git_sees_little_of_the_masters_environment() {
        let dir = tempfile::tempdir().unwrap();
        let output = call(dir.path(), "env").run().await.unwrap();
        let text = output.text();
        assert!(text.contains(&format!("HOME={}", dir.path().display())));
        assert!(!text.contains("CARGO_MANIFEST_DIR"));
    }
}
