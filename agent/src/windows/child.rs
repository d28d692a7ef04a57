//! The command itself: started in a job object, with its output in one pipe.

use super::sys::{self, Job, KILLED};
use super::words::{self, Script};
use crate::record;
use anyhow::{Context, Result, bail};
use std::io::PipeReader;
use std::os::windows::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use vivarium_protocol::{Exit, StepCommand};

const CREATE_SUSPENDED: u32 = 0x0000_0004;

/// Starts the command in the job, and gives it and the pipe that holds its output. `here` is the execution's folder.
pub(super) fn spawn(command: &StepCommand, job: &Job, here: &Path) -> Result<(Child, PipeReader)> {
    let Some((program, arguments)) = command.shell.split_first() else {
        bail!("the command has no shell");
    };
    let dir = std::path::absolute(&command.dir).unwrap_or_else(|_| command.dir.clone().into());
    if !dir.is_dir() {
        bail!(
            "cannot run the command in {}: there is no such folder",
            dir.display()
        );
    }
    if command.pty.is_some() {
        bail!(
            "the step asks for a terminal, and the agent for Windows has none to give; it runs without pty"
        );
    }
    let (output, input) = sys::wide_pipe().context("cannot create a pipe")?;
    let mut shell = Command::new(program);
    shell.args(arguments);
    match words::hand_over(&command.shell, &command.script) {
        Script::Argument(script) => shell.arg(script),
        Script::Raw(script) => shell.raw_arg(script),
        Script::File(content) => {
            let file = here.join(record::SCRIPT);
            std::fs::write(&file, content).context("cannot write the command's script")?;
            shell.raw_arg(words::run(&file))
        }
    };
    // Both ends of the writing side close with the `Command`, at this function's end: else the pipe would never end.
    // The first process waits until it is in the job, so that none that it starts can be outside.
    let mut child = shell
        .current_dir(&dir)
        .envs(&command.env)
        .stdin(Stdio::null())
        .stdout(input.try_clone().context("cannot duplicate a pipe")?)
        .stderr(input)
        .creation_flags(CREATE_SUSPENDED)
        .spawn()
        .with_context(|| format!("cannot start {program} in {}", dir.display()))?;
    let held = job
        .take_in(&child)
        .context("cannot put the command into a job object")
        .and_then(|()| sys::let_go(child.id()).context("cannot let the command run"));
    if let Err(error) = held {
        child.kill().ok();
        return Err(error);
    }
    Ok((child, output))
}

/// How a process ended. There are no signals: one that was killed here has a code of ours.
pub(super) fn exit_of(status: ExitStatus) -> Exit {
    match status.code() {
        Some(code) if code == KILLED.cast_signed() => Exit::Signal { signal: 9 },
        Some(code) => Exit::Code { code },
        None => Exit::Lost,
    }
}
