//! A terminal for a command whose output looks different on one: a pseudo-console.
//!
//! ```text
//!   supervisor: open ──> pseudo-console ──its screen, as escape codes──> read like a pipe
//!                  └──> this program again on it, "terminal PIPE PIPE DIR" ──standard output, error──> the command
//! ```
//!
//! The second start of this program is there because the standard library starts nothing on a pseudo-console, and because
//! Ctrl-Break can be pressed on a console by those alone who share it. From one pipe it reads the command and then, byte by
//! byte, when to press; on the other it says why the command could not be started. It ends as the command does.

use super::child::{exit_of, prepare};
use super::sys::{Console, Job, KILLED, Process, ask_to_end, be_deaf, inherited, wide_pipe};
use crate::keeper::complain;
use anyhow::{Context, Result, bail};
use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Read, Write};
use std::os::windows::io::AsRawHandle;
use std::path::Path;
use std::process::{Child, Stdio};
use vivarium_protocol::{Exit, Pty, StepCommand};

/// The longest sentence about a command that could not be started, in bytes.
const MAX_WHY: u64 = 8192;
/// What programs take from `TERM` when the step does not say.
const TERM: &str = "xterm-256color";
/// What asks for Ctrl-Break.
const PRESS: &[u8] = b"\n";

/// A terminal with a command on it.
#[derive(Debug)]
pub(super) struct Terminal {
    /// Closes at the drop, which waits until all that is on it has been read.
    _console: Console,
    /// Nobody types; but a console whose keyboard is gone ends.
    _keys: PipeWriter,
    ask: PipeWriter,
}

impl Terminal {
    /// Asks all that share the terminal to end.
    pub(super) fn ask_to_end(&mut self) -> std::io::Result<()> {
        self.ask.write_all(PRESS)
    }
}

/// Starts the command on a terminal of this size.
pub(super) fn spawn(
    pty: Pty,
    command: &StepCommand,
    job: &Job,
    here: &Path,
) -> Result<(Process, PipeReader, Terminal)> {
    let (keys_read, keys) = std::io::pipe().context("cannot create a pipe")?;
    let (output, screen) = wide_pipe().context("cannot create a pipe")?;
    let console = Console::open(pty.columns, pty.rows, &keys_read, &screen).context(
        "cannot open a pseudo-console; it needs Windows 10 1809 or Server 2019, or no pty",
    )?;
    // The console has its own.
    drop((keys_read, screen));
    let (asked, mut ask) = wide_pipe().context("cannot create a pipe")?;
    let (mut status, say) = std::io::pipe().context("cannot create a pipe")?;
    let handles = [asked.as_raw_handle(), say.as_raw_handle()];
    let program = std::env::current_exe().context("cannot find this program")?;
    let mut line = OsString::from("\"");
    line.push(program);
    line.push("\" terminal");
    for handle in handles {
        line.push(format!(" {}", handle as usize));
    }
    line.push(" \"");
    line.push(here);
    line.push("\"");
    let process = console
        .start(&line, &handles)
        .context("cannot start a program on a pseudo-console")?;
    drop((asked, say));
    job.hold(&process)?;
    let mut why = String::new();
    let mut json = serde_json::to_vec(command).context("cannot write the command as JSON")?;
    json.push(b'\n');
    // It may end before it has read it; then it has said why.
    let handed_over = ask.write_all(&json);
    let read = status.by_ref().take(MAX_WHY).read_to_string(&mut why);
    read.context("cannot read how the command started")?;
    if !why.is_empty() {
        bail!("{why}");
    }
    handed_over.context("cannot hand over the command")?;
    Ok((
        process,
        output,
        Terminal {
            _console: console,
            _keys: keys,
            ask,
        },
    ))
}

/// Runs the command that comes through the first pipe, and ends as it does. What keeps it from starting is said through
/// the second.
pub(crate) fn enter_terminal(command: &str, status: &str, here: &Path) -> Result<()> {
    let pipe = |number: &str| -> Result<File> {
        let number = number.parse().context("a pipe is named by its number")?;
        inherited(number).context("a pipe was not inherited")
    };
    let (command, mut status) = (pipe(command)?, pipe(status)?);
    be_deaf();
    let mut orders = BufReader::new(command);
    match start(&mut orders, here) {
        Ok(mut child) => {
            drop(status);
            std::thread::spawn(move || {
                for _ in orders.bytes().map_while(Result::ok) {
                    if let Err(error) = ask_to_end() {
                        complain(format_args!("cannot press Ctrl-Break: {error}"));
                    }
                }
            });
            let code = match child.wait().map_or(Exit::Lost, exit_of) {
                Exit::Code { code } => code,
                Exit::Signal { .. } | Exit::Lost => KILLED.cast_signed(),
            };
            std::process::exit(code)
        }
        Err(error) => {
            write!(status, "{error:#}").context("cannot tell why the command does not start")
        }
    }
}

fn start(orders: &mut impl BufRead, here: &Path) -> Result<Child> {
    let mut json = String::new();
    orders
        .read_line(&mut json)
        .context("cannot read the command")?;
    let command: StepCommand = serde_json::from_str(&json).context("the command does not parse")?;
    let mut console = File::options();
    let console = console.read(true).write(true).open("CONOUT$");
    let console = console.context("cannot open the terminal")?;
    let mut prepared = prepare(&command, here)?;
    if !command
        .env
        .keys()
        .any(|name| name.eq_ignore_ascii_case("TERM"))
    {
        prepared.env("TERM", TERM);
    }
    let program = command.shell.first().map_or("", String::as_str);
    prepared
        .stdin(Stdio::null())
        .stdout(
            console
                .try_clone()
                .context("cannot duplicate the terminal")?,
        )
        .stderr(console)
        .spawn()
        .with_context(|| format!("cannot start {program} in {}", command.dir))
}
