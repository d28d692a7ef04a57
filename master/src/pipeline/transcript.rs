//! The lines of ours between the suite's output in a job's log.

use crate::model::{Attempt, Build, Ending, Step};
use crate::result::log::LogWriter;

use super::work::log_error;

/// What a line of ours starts with.
const MARK: &str = "==> ";
/// Lines of the console that follow an infrastructure error.
const CONSOLE_LINES: usize = 40;

/// The first lines of an attempt.
pub(super) async fn opening(
    log: &mut LogWriter,
    attempt: &Attempt,
    build: &Build,
) -> Result<(), Ending> {
    let commit = build.new.head_sha.get(..12).unwrap_or(&build.new.head_sha);
    let merged = match (&build.base_sha, build.new.pull_request) {
        (Some(base), Some(number)) => format!(
            " of pull request {number}, merged into {}",
            base.get(..12).unwrap_or(base)
        ),
        (Some(_) | None, _) => String::new(),
    };
    let text = format!(
        "{MARK}{} on {}, attempt {}: commit {commit}{merged}\n",
        attempt.id, attempt.platform, attempt.number
    );
    write(log, &text).await
}

/// The line before a step's output.
pub(super) fn step_header(number: usize, count: usize, step: &Step) -> String {
    format!("{MARK}step {} of {count}: {}\n", number + 1, step.name)
}

/// The line after a machine answered.
pub(super) async fn note(log: &mut LogWriter, text: &str) -> Result<(), Ending> {
    write(log, &format!("{MARK}{text}\n")).await
}

/// The last lines of an attempt.
pub(super) async fn closing(
    log: &mut LogWriter,
    ending: &Ending,
    is_last: bool,
    console_tail: Option<&str>,
) -> Result<(), Ending> {
    let mut text = format!(
        "{MARK}{}: {}\n",
        ending.conclusion().as_str(),
        ending.message
    );
    if let Some(tail) = console_tail {
        let lines: Vec<&str> = tail.lines().collect();
        let from = lines.len().saturating_sub(CONSOLE_LINES);
        text.push_str(&format!("{MARK}the last lines of the console:\n"));
        for line in lines.iter().skip(from) {
            text.push_str(&format!("    {line}\n"));
        }
    }
    if !is_last {
        text.push_str(&format!("{MARK}trying again on a fresh machine\n"));
    }
    write(log, &text).await
}

async fn write(log: &mut LogWriter, text: &str) -> Result<(), Ending> {
    log.append(text.as_bytes()).await.map_err(log_error)
}
