//! The program as a person or a script calls it, with its output caught.

use crate::master::{Master, binary};
use crate::world::DEADLINE;
use anyhow::{Context, Result};
use std::process::Stdio;
use tokio::process::{Child, Command};

/// What decides where the program looks, and whether it prints colours.
const VARIABLES: [&str; 8] = [
    "VIVARIUM_URL",
    "VIVARIUM_TOKEN_FILE",
    "VIVARIUM_CONFIG",
    "NO_COLOR",
    "FORCE_COLOR",
    "CLICOLOR",
    "CLICOLOR_FORCE",
    "RUST_BACKTRACE",
];

/// Calls of the program, all with the same environment.
#[derive(Debug, Clone, Default)]
pub struct CommandLine {
    environment: Vec<(String, String)>,
}

/// What a call came to.
#[derive(Debug)]
pub struct Said {
    /// `None` after a signal.
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl CommandLine {
    /// Told where the master is, as a person would in a profile.
    pub fn of(master: &Master) -> CommandLine {
        CommandLine::default()
            .environment("VIVARIUM_URL", &master.url(""))
            .environment(
                "VIVARIUM_TOKEN_FILE",
                &master.api_token_file().to_string_lossy(),
            )
    }

    pub fn environment(mut self, name: &str, value: &str) -> CommandLine {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts it; nobody writes to it, and its output waits in pipes.
    pub fn start(&self, arguments: &[&str]) -> Result<Child> {
        let mut command = Command::new(binary()?);
        for variable in VARIABLES {
            command.env_remove(variable);
        }
        command
            .args(arguments)
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot run vivarium {}", arguments.join(" ")))
    }

    /// Runs it to its end.
    pub async fn run(&self, arguments: &[&str]) -> Result<Said> {
        let child = self.start(arguments)?;
        ended(child)
            .await
            .with_context(|| format!("vivarium {}", arguments.join(" ")))
    }
}

/// Waits for the end of a call, and for what it says until then.
pub async fn ended(child: Child) -> Result<Said> {
    let output = tokio::time::timeout(DEADLINE, child.wait_with_output())
        .await
        .with_context(|| format!("not ended within {} s", DEADLINE.as_secs()))??;
    Ok(Said {
        code: output.status.code(),
        out: String::from_utf8(output.stdout)?,
        err: String::from_utf8(output.stderr)?,
    })
}
