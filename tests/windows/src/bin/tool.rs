//! The small programs that commands in the tests are made of: Wine has no `cat`, no `sleep` and no `head`.
//!
//! `tool WORD [ARGUMENT]`; each word is a function below.

use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::{IsTerminal, Read, Seek, SeekFrom, Write, copy, sink, stderr, stdin, stdout};
use std::path::Path;
use std::process::{Command, Stdio, exit};
use std::time::Duration;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["say", what @ ..] => writeln!(stdout(), "{}", what.join(" "))?,
        ["complain", what @ ..] => writeln!(stderr(), "{}", what.join(" "))?,
        ["cat", file] => copy_out(File::open(file)?)?,
        ["head", bytes, file] => copy_out(File::open(file)?.take(bytes.parse()?))?,
        ["tail", bytes, file] => {
            let mut file = File::open(file)?;
            file.seek(SeekFrom::End(-bytes.parse::<i64>()?))?;
            copy_out(file)?;
        }
        ["zeros"] => copy_out(std::io::repeat(0))?,
        ["zeros", bytes] => copy_out(std::io::repeat(0).take(bytes.parse()?))?,
        ["order"] => {
            for number in 1..=8 {
                writeln!(stdout(), "out {number}")?;
                writeln!(stderr(), "err {number}")?;
            }
        }
        ["input"] => writeln!(stdout(), "{} bytes", copy(&mut stdin(), &mut sink())?)?,
        ["terminal"] => terminal()?,
        ["arguments", rest @ ..] => writeln!(stdout(), "{rest:?}")?,
        ["value", name] => writeln!(stdout(), "{}", std::env::var(name)?)?,
        ["sleep", seconds] => std::thread::sleep(Duration::from_secs_f64(seconds.parse()?)),
        ["until", file] => until(file),
        ["hold", file] => hold(file)?,
        ["exit", code] => exit(code.parse()?),
        ["later", seconds, what] => drop(this(&["say-later", seconds, what])?.spawn()?),
        ["say-later", seconds, what] => {
            std::thread::sleep(Duration::from_secs_f64(seconds.parse()?));
            writeln!(stdout(), "{what}")?;
        }
        ["orphan"] => drop(this(&["sleep", "600"])?.spawn()?),
        ["daemon"] => daemon()?,
        ["polite"] => hear_ctrl_break(Deaf::No)?,
        ["stubborn"] => hear_ctrl_break(Deaf::Yes)?,
        ["bomb"] => {
            for _ in 0..5 {
                apart(&mut this(&["fork"])?, NEW_GROUP).spawn()?;
            }
            hear_ctrl_break(Deaf::Yes)?;
        }
        ["fork"] => fork()?,
        _ => bail!("tool: {words:?} is nothing that it does"),
    }
    Ok(())
}

fn copy_out(mut from: impl Read) -> Result<()> {
    let mut buffer = vec![0; 256 * 1024];
    loop {
        let count = from.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        stdout().write_all(&buffer[..count])?;
        stdout().flush()?;
    }
}

/// Says what its output goes to.
fn terminal() -> Result<()> {
    let size = terminal_size::terminal_size_of(stdout());
    let error = stderr().is_terminal();
    let kind = std::env::var("TERM");
    match size {
        Some((width, height)) => writeln!(stdout(), "{}x{} {error} {kind:?}", width.0, height.0)?,
        None => writeln!(stdout(), "no terminal")?,
    }
    Ok(())
}

fn until(file: &str) {
    while !Path::new(file).exists() {
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Opens a file so that nobody else may remove it, says so, and waits until `release` appears.
fn hold(file: &str) -> Result<()> {
    let mut options = File::options();
    options.read(true);
    #[cfg(windows)]
    std::os::windows::fs::OpenOptionsExt::share_mode(&mut options, 0);
    let _held = options.open(file).context("cannot open it")?;
    writeln!(stdout(), "held")?;
    until("release");
    Ok(())
}

fn this(arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(arguments);
    Ok(command)
}

const NEW_GROUP: u32 = 0x0000_0200;
const NO_CONSOLE: u32 = 0x0000_0008;

/// For a process that Ctrl-C does not reach.
fn apart(command: &mut Command, how: u32) -> &mut Command {
    #[cfg(windows)]
    std::os::windows::process::CommandExt::creation_flags(command, how);
    #[cfg(not(windows))]
    let _ = how;
    command
}

fn daemon() -> Result<()> {
    let mut command = this(&["sleep", "601"])?;
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    apart(&mut command, NEW_GROUP | NO_CONSOLE).spawn()?;
    Ok(())
}

/// Starts ever new processes, for a minute at most.
fn fork() -> Result<()> {
    for _ in 0..600 {
        apart(&mut this(&["sleep", "1"])?, NEW_GROUP).spawn()?;
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum Deaf {
    Yes,
    No,
}

#[cfg(windows)]
fn hear_ctrl_break(deaf: Deaf) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut ctrl_break = tokio::signal::windows::ctrl_break()?;
        let mut ctrl_c = tokio::signal::windows::ctrl_c()?;
        writeln!(stdout(), "ready")?;
        loop {
            tokio::select! {
                _ = ctrl_break.recv() => {}
                _ = ctrl_c.recv() => {}
            }
            match deaf {
                Deaf::Yes => {}
                Deaf::No => {
                    writeln!(stdout(), "cleaned")?;
                    exit(7);
                }
            }
        }
    })
}

#[cfg(not(windows))]
fn hear_ctrl_break(_deaf: Deaf) -> Result<()> {
    bail!("there is no Ctrl-Break here")
}
