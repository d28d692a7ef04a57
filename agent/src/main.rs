//! The program Vivarium pushes into a guest.
//!
//! ```text
//!   master ==SSH channel==> serve ──starts──> supervise ──starts──> the command and its descendants
//!                             |                   |  one pipe: stdout and stderr, in order
//!                             |                   v
//!                             └──follows── spool on disk (survives the connection)
//! ```
//!
//! This file knows the arguments only. [`serve`] speaks the protocol on stdin and stdout for as long as one
//! connection lasts; `supervise` is started by it, one process per command, and outlives it.

#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::print_stdout,
        clippy::print_stderr
    )
)]

mod clock;
mod collect;
mod control;
mod execution;
mod follow;
mod identity;
mod keeper;
mod lifetime;
mod link;
mod outbox;
mod receive;
mod record;
mod serve;
mod spool;
mod supervise;
#[cfg(unix)]
mod unix;
mod unpack;
#[cfg(windows)]
mod windows;
/// It only decides, so it is tested wherever tests run.
#[cfg(all(test, not(windows)))]
#[path = "windows/words.rs"]
mod words;

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

/// What differs between systems: each system's module offers the same names.
#[cfg(unix)]
use unix as platform;
#[cfg(windows)]
use windows as platform;

const USAGE: &str = "usage: vivarium-agent serve NONCE --state DIR [--sha256 HASH]\n       vivarium-agent supervise DIR\n       vivarium-agent --version";

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let words: Vec<&str> = arguments
        .iter()
        .map(|a| a.to_str().unwrap_or_default())
        .collect();
    let result = match (words.as_slice(), arguments.as_slice()) {
        (["serve", nonce, "--state", _], [_, _, _, state])
        | (["serve", "--state", _, nonce], [_, _, state, _])
            if is_nonce(nonce) && !state.is_empty() =>
        {
            serve::run(nonce, Path::new(state))
        }
        #[cfg(unix)]
        (["terminal", _, ..], [_, command @ ..]) => platform::enter_terminal(command),
        #[cfg(windows)]
        (["terminal", command, status, _], [.., here]) => {
            platform::enter_terminal(command, status, Path::new(here))
        }
        (["serve", nonce, "--state", _, "--sha256", hash], [_, _, _, state, _, _])
            if is_nonce(nonce) && !state.is_empty() =>
        {
            identity::check(hash).and_then(|()| serve::run(nonce, Path::new(state)))
        }
        (["supervise", _], [_, dir]) => supervise::supervise(Path::new(dir)),
        (["--version"], _) => writeln!(
            std::io::stdout(),
            "vivarium-agent {}",
            env!("CARGO_PKG_VERSION")
        )
        .map_err(Into::into),
        _ => {
            writeln!(std::io::stderr(), "{USAGE}").ok();
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            writeln!(std::io::stderr(), "vivarium-agent: {error:#}").ok();
            ExitCode::FAILURE
        }
    }
}

/// The nonce is printed back in a line of its own, so it has to be one plain word.
fn is_nonce(nonce: &str) -> bool {
    (1..=128).contains(&nonce.len())
        && nonce
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}
