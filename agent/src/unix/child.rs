//! The command itself: starting it, and learning of its end and of its descendants'.

use super::launch::widen_pipe;
use super::memory::Sacrifice;
use super::{terminal, tree};
use anyhow::{Context, Result, bail};
use nix::sys::signal::kill;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::Sender;
use vivarium_protocol::{Exit, StepCommand};

/// What the reaper thread saw.
#[derive(Debug)]
pub(super) enum Ended {
    Main(Exit),
    Tree,
}

/// Starts the command in a process group of its own, and gives its id and what its output is read from: a pipe, or a
/// terminal.
pub(super) fn spawn(command: &StepCommand) -> Result<(Pid, File)> {
    let Some((program, arguments)) = command.shell.split_first() else {
        bail!("the command has no shell");
    };
    if !Path::new(&command.dir).is_dir() {
        bail!(
            "cannot run the command in {}: there is no such folder",
            command.dir
        );
    }
    let what = || format!("cannot start {program} in {}", command.dir);
    let (mut prepared, output, starting) = match command.pty {
        Some(pty) => {
            let (prepared, output, starting) = terminal::prepare(pty, command)?;
            (prepared, output, Some(starting))
        }
        None => {
            let (prepared, output) = prepare_piped(program, arguments)?;
            (prepared, output, None)
        }
    };
    let _inherited = Sacrifice::begin();
    let child = prepared
        .arg(&command.script)
        .current_dir(&command.dir)
        .envs(&command.env)
        .spawn()
        .with_context(what)?;
    // Our copies of the writing side close here: else the output would never end.
    drop(prepared);
    if let Some(starting) = starting {
        starting.wait().with_context(what)?;
    }
    Ok((Pid::from_raw(i32::try_from(child.id())?), output))
}

fn prepare_piped(program: &str, arguments: &[String]) -> Result<(Command, File)> {
    let (output, input) = std::io::pipe().context("cannot create a pipe")?;
    widen_pipe(&input);
    let mut prepared = Command::new(program);
    prepared
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(input.try_clone().context("cannot duplicate a pipe")?)
        .stderr(input)
        .process_group(0);
    Ok((prepared, File::from(OwnedFd::from(output))))
}

/// Waits for every child, the adopted ones too, until none is left.
pub(super) fn reap(main: Pid, tell: &Sender<Ended>, mut ringer: &UnixStream) {
    let mut ring = |ended| {
        tell.send(ended).ok();
        ringer.write_all(b".").ok();
    };
    let whom = if tree::is_exact() {
        Pid::from_raw(-1)
    } else {
        main
    };
    loop {
        match waitpid(whom, None) {
            Ok(WaitStatus::Exited(pid, code)) if pid == main => {
                ring(Ended::Main(Exit::Code { code }))
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == main => {
                ring(Ended::Main(Exit::Signal {
                    signal: signal as i32,
                }));
            }
            Ok(_) | Err(nix::Error::EINTR) => {}
            // A real-time signal ended somebody: this call does not say whom, nor which signal.
            Err(nix::Error::EINVAL) => {
                if kill(main, None) == Err(nix::Error::ESRCH) {
                    ring(Ended::Main(Exit::Signal { signal: 0 }));
                }
            }
            Err(_) => break,
        }
    }
    if tree::is_exact() {
        ring(Ended::Tree);
    }
}
