//! Starting a supervisor so that it outlives the connection: it calls `setsid` itself, as its first act.

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::setsid;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Readies this process for a connection that may hang up at any time.
///
/// SIGHUP is blocked rather than ignored: a command would inherit an ignored one for good, while a blocked one is
/// unblocked by the supervisor. (SIGPIPE is ignored by Rust's runtime, and given back to children by it.)
pub(crate) fn prepare_connection() {
    let mut hang_up = SigSet::empty();
    hang_up.add(Signal::SIGHUP);
    hang_up.thread_block().ok();
    // Fewer and larger steps between this process and sshd; refused where stdout is no pipe, which does not matter.
    widen_pipe(std::io::stdout());
}

/// Makes a pipe as large as an ordinary user may on Linux.
pub(super) fn widen_pipe(pipe: impl std::os::fd::AsFd) {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    nix::fcntl::fcntl(pipe, nix::fcntl::FcntlArg::F_SETPIPE_SZ(1024 * 1024)).ok();
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    drop(pipe);
}

/// Starts this program as the supervisor of the execution in `dir`; what it says comes through its standard output.
pub(crate) fn spawn_supervisor(dir: &Path, lock: File, log: File) -> Result<Child> {
    let child = Command::new(own_program()?)
        .arg0("vivarium-agent")
        .arg("supervise")
        .arg(dir)
        .stdin(lock)
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()?;
    Ok(child)
}

/// The supervisor's first act: a session of its own, and no signal blocked.
pub(crate) fn detach() -> Result<()> {
    // Not the leader of a group yet, unless a person started this by hand: then it stays in that person's session.
    setsid().ok();
    SigSet::empty()
        .thread_set_mask()
        .context("cannot unblock the signals")
}

/// The way to this program's file.
pub(super) fn own_program() -> Result<PathBuf> {
    // On Linux this name leads to the running program even after its file was replaced.
    let running = Path::new("/proc/self/exe");
    if cfg!(target_os = "linux") && running.exists() {
        return Ok(running.to_owned());
    }
    std::env::current_exe().context("cannot find this program")
}
