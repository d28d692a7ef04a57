//! Starting a supervisor so that it outlives the connection.
//!
//! The supervisor is this program again. It calls `setsid` itself, as its first act. Its standard input is the
//! execution's lock: the lock is taken before the execution has its name and passes to the supervisor without a gap, so
//! nobody ever sees a named execution whose lock is free while its supervisor is about to start.

use crate::record;
use anyhow::{Context, Result, bail};
use nix::sys::signal::{SigSet, Signal};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The longest first line of a supervisor, in bytes.
const MAX_LINE: u64 = 8192;

/// What the supervisor says when the command runs.
pub(super) const RUNNING: &str = "running";

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

/// Starts the supervisor of the execution in `dir` and waits until the command runs, or is known not to.
pub(crate) fn launch_supervisor(dir: &Path, lock: File) -> Result<()> {
    let log = File::create(dir.join(record::LOG)).context("cannot create the supervisor's log")?;
    let mut child = Command::new(own_program()?)
        .arg0("vivarium-agent")
        .arg("supervise")
        .arg(dir)
        .stdin(lock)
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .context("cannot start the supervisor")?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout.take(MAX_LINE))
            .read_line(&mut line)
            .context("cannot read what the supervisor says")?;
    }
    // The supervisor is this process's child while this process lasts; it must not stay a zombie when it ends first.
    std::thread::Builder::new()
        .name("reaper".into())
        .spawn(move || child.wait().map(drop))
        .context("cannot start a thread")?;
    match line.trim_end() {
        RUNNING => Ok(()),
        "" => bail!("the command's supervisor ended before the command ran"),
        why => bail!("{why}"),
    }
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
