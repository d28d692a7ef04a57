//! The live log as a browser gets it: server-sent events.

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Where a reader begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFrom {
    Offset(u64),
    /// As a browser that lost its connection says it.
    AfterEvent(u64),
}

/// A piece of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEvent {
    pub bytes: Vec<u8>,
    /// The offset to go on from: the event's id.
    pub next: u64,
}

/// The pieces of a stream that was read to its end.
pub(super) fn parse(text: &str) -> Result<Vec<LogEvent>> {
    let mut pieces = Vec::new();
    for block in text.split("\n\n") {
        let field = |name: &str| {
            block
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
        };
        match field("event") {
            Some("output") => pieces.push(LogEvent {
                bytes: STANDARD.decode(field("data").unwrap_or_default())?,
                next: field("id").context("an event has no id")?.parse()?,
            }),
            Some("end") => return Ok(pieces),
            // A comment keeps the connection alive.
            None if block.trim().is_empty() || block.starts_with(':') => {}
            _ => bail!("an event nobody knows: {block}"),
        }
    }
    bail!("the stream broke off after {} events", pieces.len())
}
