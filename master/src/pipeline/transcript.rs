//! The lines of ours between the suite's output in a job's log.
//!
//! A master that died may have written a line, a part of it or nothing: each is put at its place, and what is there
//! already is not written again.

use super::work::log_error;
use crate::model::{Architecture, Attempt, Build, Ending, OsFamily, Step};
use crate::result::log::{LogWriter, Logs};

/// What a line of ours starts with.
const MARK: &str = "==> ";
/// Lines of the console that follow an infrastructure error.
const CONSOLE_LINES: usize = 40;

/// The first lines of an attempt; `without_agent` is the system that has the agent in `sh` because none is built for it.
pub(super) fn opening(
    attempt: &Attempt,
    build: &Build,
    without_agent: Option<(OsFamily, Architecture)>,
) -> String {
    let commit = build.new.head_sha.get(..12).unwrap_or(&build.new.head_sha);
    let merged = match (&build.base_sha, build.new.pull_request) {
        (Some(base), Some(number)) => format!(
            " of pull request {number}, merged into {}",
            base.get(..12).unwrap_or(base)
        ),
        (Some(_) | None, _) => String::new(),
    };
    let mut text = format!(
        "{MARK}{} on {}, attempt {}: commit {commit}{merged}\n",
        attempt.id, attempt.platform, attempt.number
    );
    if let Some((os, arch)) = without_agent {
        text.push_str(&note(&format!(
            "no agent is built for {}/{}: the one in sh is used",
            os.as_str(),
            arch.as_str()
        )));
    }
    text
}

/// The line before a step's output.
pub(super) fn step_header(number: usize, count: usize, step: &Step) -> String {
    format!("{MARK}step {} of {count}: {}\n", number + 1, step.name)
}

/// The line after a machine answered.
pub(super) fn note(text: &str) -> String {
    format!("{MARK}{text}\n")
}

/// The last lines of an attempt.
pub(super) fn closing(ending: &Ending, is_last: bool, console_tail: Option<&str>) -> String {
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
    text
}

/// Puts the text at this place and returns where it ends. Where something else stands there, it goes to the end.
pub(super) async fn put_at(
    log: &mut LogWriter,
    logs: &Logs,
    at: u64,
    text: &str,
) -> Result<u64, Ending> {
    let there = read(log, logs, at, text.len()).await?;
    let missing = text.as_bytes().strip_prefix(there.as_slice());
    let missing = missing.unwrap_or(text.as_bytes());
    log.append(missing).await.map_err(log_error)?;
    Ok(match missing.is_empty() {
        true => at + text.len() as u64,
        false => log.len(),
    })
}

/// Puts the text at the end, unless the log ends with it or with a beginning of it.
pub(super) async fn put_last(log: &mut LogWriter, logs: &Logs, text: &str) -> Result<(), Ending> {
    let from = log.len().saturating_sub(text.len() as u64);
    let tail = read(log, logs, from, text.len()).await?;
    let missing = (0..=tail.len())
        .find_map(|start| text.as_bytes().strip_prefix(tail.get(start..)?))
        .unwrap_or(text.as_bytes());
    log.append(missing).await.map_err(log_error)
}

/// What the log has from there on, at most `length` bytes of it.
async fn read(log: &LogWriter, logs: &Logs, from: u64, length: usize) -> Result<Vec<u8>, Ending> {
    let mut bytes = Vec::new();
    while bytes.len() < length && from + (bytes.len() as u64) < log.len() {
        let chunk = logs
            .chunk(log.job(), from + bytes.len() as u64, length - bytes.len())
            .await
            .map_err(log_error)?;
        if chunk.bytes.is_empty() {
            break;
        }
        bytes.extend_from_slice(&chunk.bytes);
    }
    bytes.truncate(length);
    Ok(bytes)
}
