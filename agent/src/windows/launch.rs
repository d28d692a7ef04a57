//! Starting a supervisor so that it outlives the connection: out of sshd's job, with a console of its own, and without
//! the connection's pipes.

use super::sys;
use anyhow::{Context, Result};
use std::fs::File;
use std::os::windows::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

const CREATE_BREAKAWAY_FROM_JOB: u32 = 0x0100_0000;
/// A console that nobody sees: Ctrl-Break reaches what shares one.
const CREATE_NO_WINDOW: u32 = 0x0800_0000;

/// Readies this process for a connection that may hang up at any time.
pub(crate) fn prepare_connection() {
    // Else the supervisor would hold the connection open for as long as its command runs.
    sys::keep_standard_handles();
}

/// Starts this program as the supervisor of the execution in `dir`; what it says comes through its standard output.
pub(crate) fn spawn_supervisor(dir: &Path, lock: File, log: File) -> Result<Child> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let mut command = Command::new(program);
    command
        .arg("supervise")
        .arg(dir)
        .stdin(lock)
        .stdout(Stdio::piped())
        .stderr(log);
    command.creation_flags(CREATE_NO_WINDOW | CREATE_BREAKAWAY_FROM_JOB);
    // An SSH server's job may not let anybody out. Then the end of the login ends the command too.
    let child = command
        .spawn()
        .or_else(|_| command.creation_flags(CREATE_NO_WINDOW).spawn())?;
    Ok(child)
}

/// The supervisor's first act: what it holds is not for the command, and a program that crashes asks nobody.
pub(crate) fn detach() -> Result<()> {
    sys::keep_standard_handles();
    sys::crash_silently();
    sys::be_deaf();
    Ok(())
}
