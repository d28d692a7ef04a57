//! One git command: its bounds in time and output, and what its failure means.
//!
//! It ends by itself, at its deadline, or when the caller stops waiting; see [`super::process`] for the latter two.

use super::SourceError;
use super::error::{Complaint, tail_of};
use super::mirror::Mirror;
use super::process::{Group, Running, end_of};
use crate::config::RepositoryConfig;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

/// For commands that only read or write the mirror: seconds at most on a healthy disk.
pub(super) const LOCAL_TIMEOUT: Duration = Duration::from_secs(120);
/// The output of a command that names no bound of its own.
const DEFAULT_LIMIT: usize = 16 << 20;

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
    pub(super) fn new(
        command: Command,
        repository: &RepositoryConfig,
        dir: &Path,
        what: &'static str,
    ) -> Call {
        Call {
            command,
            repository: repository.name.clone(),
            what,
            dir: dir.to_owned(),
            mirror: None,
            input: Vec::new(),
            limit: DEFAULT_LIMIT,
            timeout: LOCAL_TIMEOUT,
            secrets: Vec::new(),
        }
    }

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
                return Err(self.judge().timeout(self.timeout));
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
        Ok(Running::new(stdout, stderr, group, judge))
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
        Ok((Group::new(child), stdin))
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
    pub(super) fn timeout(&self, after: Duration) -> SourceError {
        SourceError::Timeout {
            repository: self.repository.clone(),
            what: self.what,
            after,
        }
    }

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
    use super::super::git::Git;
    use super::super::process::STDERR_LIMIT;
    use super::*;
    use crate::config::Config;
    use nix::unistd::Pid;

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
