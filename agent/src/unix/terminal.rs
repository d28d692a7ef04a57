//! A pseudo-terminal for a command whose output looks different on one.
//!
//! ```text
//!   supervisor: open ──> master side, read like a pipe
//!                  └──> slave side ──stdout, stderr──> this program again, "terminal PROGRAM …"
//!                                                        setsid, controlling terminal, exec ──> PROGRAM …
//! ```
//!
//! Between fork and exec nothing of ours may run, hence the second start of this program. Its standard input is a pipe on
//! which it says why the command could not be started; it closes when the command runs, whose own input is empty.

use super::launch::own_program;
use anyhow::{Context, Result, bail};
use nix::pty::{OpenptyResult, Winsize, openpty};
use nix::sys::termios::{LocalFlags, OutputFlags, SetArg, tcgetattr, tcsetattr};
use nix::unistd::setsid;
use std::ffi::OsString;
use std::fs::File;
use std::io::{PipeReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use vivarium_protocol::{Pty, StepCommand};

/// The longest sentence about a command that could not be started, in bytes.
const MAX_WHY: u64 = 8192;
/// What programs take from `TERM` when the step does not say.
const TERM: &str = "xterm-256color";

/// The command on a terminal of this size, about to be started; the terminal's other side; and what to wait for afterwards.
pub(super) fn prepare(pty: Pty, command: &StepCommand) -> Result<(Command, File, Starting)> {
    let (master, slave) = open(pty).context("cannot open a pseudo-terminal")?;
    let (starting, status) = std::io::pipe().context("cannot create a pipe")?;
    let mut prepared = Command::new(own_program()?);
    prepared
        .arg0("vivarium-agent")
        .arg("terminal")
        .args(&command.shell)
        .stdin(status)
        .stdout(slave.try_clone().context("cannot duplicate a terminal")?)
        .stderr(slave)
        .env("TERM", TERM);
    Ok((prepared, master, Starting(starting)))
}

/// Both sides of a terminal of this size that passes output on as it is: no carriage returns are put into it.
fn open(pty: Pty) -> Result<(File, File)> {
    let size = Winsize {
        ws_row: pty.rows,
        ws_col: pty.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let OpenptyResult { master, slave } = openpty(&size, None)?;
    // No other process may inherit them: its copy would keep the output from ending.
    for side in [&master, &slave] {
        let close = nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC);
        nix::fcntl::fcntl(side, close)?;
    }
    let mut settings = tcgetattr(&slave)?;
    settings.output_flags.remove(OutputFlags::OPOST);
    settings.local_flags.remove(LocalFlags::ECHO);
    tcsetattr(&slave, SetArg::TCSANOW, &settings)?;
    Ok((master.into(), slave.into()))
}

/// The pipe that closes when the command runs.
pub(super) struct Starting(PipeReader);

impl Starting {
    /// Waits until the command runs, or says why it does not.
    pub(super) fn wait(self) -> Result<()> {
        let mut why = String::new();
        self.0.take(MAX_WHY).read_to_string(&mut why)?;
        if !why.is_empty() {
            bail!("{why}");
        }
        Ok(())
    }
}

/// Becomes the command, as the leader of a session whose terminal is this process's standard output. Returns only if it
/// could not, which has been said then.
pub(crate) fn enter_terminal(command: &[OsString]) -> Result<()> {
    let mut status = File::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    let error = become_command(command);
    write!(status, "{error:#}").context("cannot tell why the command does not start")
}

fn become_command(command: &[OsString]) -> anyhow::Error {
    let own_session = setsid().context("cannot begin a session").and_then(|_| {
        let terminal = std::io::stdout();
        rustix::process::ioctl_tiocsctty(terminal).context("cannot take the terminal")
    });
    if let Err(error) = own_session {
        return error;
    }
    let Some((program, arguments)) = command.split_first() else {
        return anyhow::anyhow!("the command has no shell");
    };
    Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .exec()
        .into()
}
