//! A supervisor's life, from the command's file to the recorded end, and how a connection's side starts one.
//!
//! ```text
//!   serve ──start──> this program again, "supervise DIR" ──"running", or why not──> serve
//!                       └── the command, in the hands of platform::Supervisor ──> spool, end.json
//! ```
//!
//! The supervisor's standard input is the execution's lock: the lock is taken before the execution has its name and passes to
//! the supervisor without a gap, so nobody ever sees a named execution whose lock is free while its supervisor is about
//! to start.

use crate::platform;
use crate::record::{self, End, Reserve};
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use vivarium_protocol::StepCommand;

/// The longest first line of a supervisor, in bytes.
const MAX_LINE: u64 = 8192;
/// What the supervisor says when the command runs.
const RUNNING: &str = "running";

/// Starts the supervisor of the execution in `dir` and waits until the command runs, or is known not to.
pub(crate) fn launch(dir: &Path, lock: File) -> Result<()> {
    let log = File::create(dir.join(record::LOG)).context("cannot create the supervisor's log")?;
    let mut child =
        platform::spawn_supervisor(dir, lock, log).context("cannot start the supervisor")?;
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

/// Runs the command of the execution in `dir` to its recorded end. What goes wrong before the command runs is recorded
/// as the end too, and said on stdout to whoever launched this process.
pub(crate) fn supervise(dir: &Path) -> Result<()> {
    platform::detach()?;
    let here = platform::enter(dir)?;
    let reserve = match Reserve::create(&here) {
        Ok(reserve) => reserve,
        Err(error) => return say(&format!("{error:#}")),
    };
    match take_command(&here).and_then(|command| platform::Supervisor::start(&here, &command)) {
        Ok(supervisor) => {
            // The launcher may have gone already: that is no reason to stop.
            say(RUNNING).ok();
            reserve.record(supervisor.run()?)
        }
        Err(error) => {
            let message = format!("{error:#}").replace('\n', " ");
            reserve.record(End::Failed {
                message: message.clone(),
                output_bytes: 0,
            })?;
            say(&message)
        }
    }
}

fn take_command(dir: &Path) -> Result<StepCommand> {
    let path = dir.join(record::COMMAND);
    let json = std::fs::read(&path).context("cannot read the command")?;
    // It may hold secrets, and nobody needs it again.
    std::fs::remove_file(&path).context("cannot remove the command's file")?;
    serde_json::from_slice(&json).context("the command does not parse")
}

fn say(line: &str) -> Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{line}").and_then(|()| out.flush())?;
    Ok(())
}
