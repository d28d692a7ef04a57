//! The command itself: started in a job object, with its output in one pipe, or on a terminal.

use super::sys::{self, Job, KILLED, Process};
use super::terminal::{self, Terminal};
use super::words::{self, Script};
use crate::record;
use anyhow::{Context, Result, bail};
use std::io::PipeReader;
use std::os::windows::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use vivarium_protocol::{Exit, StepCommand};

const CREATE_SUSPENDED: u32 = 0x0000_0004;

/// A command that was started.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) process: Process,
    pub(super) output: PipeReader,
    /// Where it is on one.
    pub(super) terminal: Option<Terminal>,
}

/// Starts the command in the job. `here` is the execution's folder.
pub(super) fn spawn(command: &StepCommand, job: &Job, here: &Path) -> Result<Started> {
    if let Some(pty) = command.pty {
        let (process, output, terminal) = terminal::spawn(pty, command, job, here)?;
        return Ok(Started {
            process,
            output,
            terminal: Some(terminal),
        });
    }
    let mut prepared = prepare(command, here)?;
    let (output, input) = sys::wide_pipe().context("cannot create a pipe")?;
    let program = command.shell.first().map_or("", String::as_str);
    // Both ends of the writing side close with the `Command`, at this function's end: else the pipe would never end.
    // The first process waits until it is in the job, so that none that it starts can be outside.
    let child = prepared
        .stdin(Stdio::null())
        .stdout(input.try_clone().context("cannot duplicate a pipe")?)
        .stderr(input)
        .creation_flags(CREATE_SUSPENDED)
        .spawn()
        .with_context(|| format!("cannot start {program} in {}", command.dir))?;
    let process = Process::from(child);
    job.hold(&process)?;
    Ok(Started {
        process,
        output,
        terminal: None,
    })
}

/// The command as it is to be run, wherever its output goes.
pub(super) fn prepare(command: &StepCommand, here: &Path) -> Result<Command> {
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
    shell.current_dir(&dir).envs(&command.env);
    Ok(shell)
}

/// How a process ended. There are no signals: one that was killed here has a code of ours.
pub(super) fn exit_of(status: ExitStatus) -> Exit {
    match status.code() {
        Some(code) if code == KILLED.cast_signed() => Exit::Signal { signal: 9 },
        Some(code) => Exit::Code { code },
        None => Exit::Lost,
    }
}
