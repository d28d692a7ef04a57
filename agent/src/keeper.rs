//! What becomes of a command's output, and when all is over: the supervisor's half that every system shares.
//!
//! ```text
//!   bytes of the command ──> Keeper ──> spool        (the disk is full: kept aside, tried again)
//!   orders of connections ─────┘  └──> Lifetime: what to do next
//! ```
//!
//! It owns the spool's writing end and the command's [`Lifetime`]. The system's own half brings it the bytes, no more
//! than are [`wanted`](Keeper::wanted), tells the lifetime who ended, and wakes the connections.

use crate::control::Order;
use crate::lifetime::Lifetime;
use crate::record::End;
use crate::spool::SpoolWriter;
use std::io::Write;
use std::time::{Duration, Instant};

/// How much is read from the command at once.
pub(crate) const READ_BYTES: usize = 256 * 1024;
/// The pause before a write that failed (the disk is full) is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

#[derive(Debug)]
pub(crate) struct Keeper {
    pub(crate) life: Lifetime,
    spool: SpoolWriter,
    /// Read from the command and not in the spool yet.
    unwritten: Vec<u8>,
    retry_at: Option<Instant>,
    /// Why the output was given up.
    failure: Option<String>,
}

/// Writes to the log, unless its disk is full: that is no reason to end (as `eprintln` would).
pub(crate) fn complain(what: std::fmt::Arguments<'_>) {
    writeln!(std::io::stderr(), "{what}").ok();
}

impl Keeper {
    pub(crate) fn new(spool: SpoolWriter) -> Self {
        Self {
            life: Lifetime::new(),
            spool,
            unwritten: Vec::new(),
            retry_at: None,
            failure: None,
        }
    }

    /// How much may be read from the command now.
    pub(crate) fn wanted(&self) -> usize {
        if !self.unwritten.is_empty() {
            return 0;
        }
        if self.life.is_tree_empty() {
            // What is left in the pipe is all there will ever be, and the end waits for it.
            return READ_BYTES;
        }
        usize::try_from(self.spool.room())
            .unwrap_or(READ_BYTES)
            .min(READ_BYTES)
    }

    /// When a write that failed is to be tried again.
    pub(crate) fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }

    pub(crate) fn obey(&mut self, order: &Order) {
        match order {
            Order::Acknowledge(until) => self.spool.acknowledge(*until),
            Order::Stop(grace) => self.life.stop(*grace, Instant::now()),
        }
    }

    /// Spools what was read, and keeps aside what the disk does not take. Connections are to be woken then.
    pub(crate) fn take(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            match self.spool.append(rest) {
                Ok(written) => rest = rest.get(written..).unwrap_or_default(),
                Err(_) => break,
            }
        }
        self.unwritten.extend_from_slice(rest);
        if self.unwritten.is_empty() {
            self.life.output_read(Instant::now());
        } else {
            self.retry();
        }
    }

    /// Tries again what the disk did not take. Connections are to be woken then, also when it was in vain: a follower may
    /// be what holds the blocks of a deleted segment, and moves on when it looks again.
    pub(crate) fn retry(&mut self) {
        while !self.unwritten.is_empty() {
            match self.spool.append(&self.unwritten) {
                Ok(written) => drop(self.unwritten.drain(..written)),
                Err(error) => {
                    let now = Instant::now();
                    if self.retry_at.is_none() {
                        complain(format_args!(
                            "cannot spool the command's output at byte {}: {error}",
                            self.spool.end()
                        ));
                    }
                    self.life.disk_full(now);
                    self.retry_at = Some(now + RETRY_PAUSE);
                    return;
                }
            }
        }
        self.retry_at = None;
        self.life.output_read(Instant::now());
    }

    /// Gives up the output; nothing more is to be read.
    pub(crate) fn abandon_output(&mut self, now: Instant) {
        self.failure = Some(format!(
            "the output could not be kept: the disk of the agent's state folder stayed full; {} bytes of it were kept, and the command was ended",
            self.spool.end()
        ));
        self.unwritten.clear();
        self.retry_at = None;
        self.life.output_ended(now);
    }

    pub(crate) fn end(&self) -> End {
        let output_bytes = self.spool.end();
        match (&self.failure, self.life.exit()) {
            (Some(message), _) => End::Failed {
                message: message.clone(),
                output_bytes,
            },
            (None, Some(exit)) => End::Exited { exit, output_bytes },
            (None, None) => End::Failed {
                message: "the command could not be ended: it survived KILL".to_owned(),
                output_bytes,
            },
        }
    }
}
