//! A running git with its children: followed to its end, or ended.
//!
//! The whole process group gets TERM, upon which git removes its lock files, and KILL if that does not help.

use super::SourceError;
use super::call::{Judge, LOCAL_TIMEOUT};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, ChildStderr, ChildStdout};

/// Between TERM and KILL.
const GRACE: Duration = Duration::from_secs(2);
/// Of what git says on stderr, the end is kept.
pub(super) const STDERR_LIMIT: usize = 16 << 10;

/// The process group of one command; ended when dropped.
pub(super) struct Group {
    pub(super) child: Child,
}

impl Group {
    pub(super) fn new(child: Child) -> Group {
        Group { child }
    }

    pub(super) async fn stop(&mut self) {
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
pub(super) async fn end_of(mut pipe: impl AsyncRead + Unpin) -> String {
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

/// A command that runs while its output is read.
pub(super) struct Running {
    pub(super) stdout: ChildStdout,
    stderr: tokio::task::JoinHandle<String>,
    group: Group,
    judge: Judge,
}

impl Running {
    pub(super) fn new(
        stdout: ChildStdout,
        stderr: ChildStderr,
        group: Group,
        judge: Judge,
    ) -> Running {
        Running {
            stdout,
            stderr: tokio::spawn(end_of(stderr)),
            group,
            judge,
        }
    }

    /// Waits for the end; what has not been read is given up.
    pub(super) async fn finish(mut self) -> Result<(), SourceError> {
        drop(self.stdout);
        let status = match tokio::time::timeout(LOCAL_TIMEOUT, self.group.child.wait()).await {
            Ok(status) => status,
            Err(_) => {
                self.group.stop().await;
                return Err(self.judge.timeout(LOCAL_TIMEOUT));
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
