//! Executions as a connection sees them: names on disk, each with its supervisor or its end.
//!
//! In come the requests of one connection; the state is on disk ([`record`] lists it) and belongs to the supervisors.

use crate::link::{self, Link};
use crate::record::{self, End};
use crate::{platform, spool, supervise};
use anyhow::{Context, Result, bail};
use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use vivarium_protocol::{Execution, StepCommand};

/// All executions of this guest.
#[derive(Debug)]
pub(crate) struct Executions {
    dir: PathBuf,
    /// Numbers the folders in the making.
    made: u64,
}

/// What became of a request to start.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Start {
    New,
    Existed,
}

impl Executions {
    /// Opens (or creates) the executions in the state folder.
    pub(crate) fn open(state: &Path) -> Result<Self> {
        let dir = state.join("exec");
        platform::create_private_dir(&dir).context("cannot create the folder of the executions")?;
        Ok(Self { dir, made: 0 })
    }

    /// The folder of an execution; `None` if this guest never heard of it.
    pub(crate) fn find(&self, execution: &Execution) -> Result<Option<PathBuf>> {
        if !execution.is_valid() {
            bail!("the execution's id is not made of at most 64 letters, digits, '-' and '_'");
        }
        let dir = self.dir.join(&execution.0);
        Ok(dir.is_dir().then_some(dir))
    }

    /// Starts the command under this name unless the name exists.
    pub(crate) fn start(&mut self, execution: &Execution, command: &StepCommand) -> Result<Start> {
        if self.find(execution)?.is_some() {
            return Ok(Start::Existed);
        }
        check(command)?;
        // The name appears complete and locked, by one rename; of two connections that start it, one is told that it exists.
        let making = self
            .dir
            .join(format!(".making-{}-{}", std::process::id(), self.made));
        self.made += 1;
        let dir = self.dir.join(&execution.0);
        let prepared =
            prepare(&making, command).and_then(|()| platform::lock_execution(&making, &dir));
        let named = prepared.and_then(|lock| {
            let Some(lock) = lock else {
                return Ok(None);
            };
            match platform::rename(&making, &dir) {
                Ok(()) => Ok(Some((dir, lock))),
                Err(_) if dir.is_dir() => Ok(None),
                Err(error) => Err(error).context("cannot name the execution's folder"),
            }
        });
        if !matches!(named, Ok(Some(_))) {
            std::fs::remove_dir_all(&making).ok();
        }
        match named? {
            Some((dir, lock)) => supervise::launch(&dir, lock).map(|()| Start::New),
            None => Ok(Start::Existed),
        }
    }

    /// Passes an acknowledgement on; `link` is the connection to the supervisor, if the execution is being followed.
    pub(crate) fn acknowledge(dir: &Path, link: Option<&mut Link>, until: u64) -> Result<()> {
        // Once the end is recorded the supervisor has done its work, and the segments are ours to delete.
        if record::read_end(dir)?.is_some() {
            return forget(dir, until);
        }
        if let Some(link) = link
            && link.acknowledge(until).is_ok()
        {
            return Ok(());
        }
        match link::connect(dir)? {
            Some(mut link) => link.acknowledge(until).or_else(|error| {
                if platform::is_supervised(dir)? {
                    return Err(error).context("cannot reach the command's supervisor");
                }
                forget(dir, until)
            }),
            None => forget(dir, until),
        }
    }

    /// Asks the supervisor to end the command. One that has ended is left as it is.
    pub(crate) fn stop(dir: &Path, grace_ms: u64) -> Result<()> {
        match link::connect(dir)? {
            Some(mut link) => match link.stop(grace_ms) {
                Err(error) if error.kind() != ErrorKind::BrokenPipe => {
                    Err(error).context("cannot reach the command's supervisor")
                }
                Ok(()) | Err(_) => Ok(()),
            },
            None => Ok(()),
        }
    }
}

/// The length of an ended execution's output.
pub(crate) fn output_bytes(end: &End) -> u64 {
    match end {
        End::Exited { output_bytes, .. } | End::Failed { output_bytes, .. } => *output_bytes,
    }
}

fn forget(dir: &Path, until: u64) -> Result<()> {
    spool::forget(dir, until).context("cannot delete acknowledged output")
}

/// What the operating system would misunderstand rather than refuse.
fn check(command: &StepCommand) -> Result<()> {
    if command.shell.first().is_none_or(String::is_empty) {
        bail!("the command has no shell");
    }
    for name in command.env.keys() {
        if name.is_empty() || name.contains(['=', '\0']) {
            bail!("{name:?} cannot be the name of an environment variable");
        }
    }
    Ok(())
}

/// Makes the execution's folder under a temporary name.
fn prepare(dir: &Path, command: &StepCommand) -> Result<()> {
    platform::create_private_dir(dir).context("cannot create the execution's folder")?;
    let json = serde_json::to_vec(command)?;
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(dir.join(record::COMMAND))
        .and_then(|mut file| file.write_all(&json))
        .context("cannot write the command's file")
}
