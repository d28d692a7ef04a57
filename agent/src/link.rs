//! The line between a connection's side and an execution's supervisor, seen from the connection.
//!
//! ```text
//!   towards the supervisor   "ack OFFSET\n"   "stop GRACE_MS\n"
//!   from the supervisor      one byte for "look at the spool again", and the end when the supervisor has gone
//! ```
//!
//! Output does not travel here: the spool is its one path, so that what arrives is what was recorded.

use crate::platform::{self, Stream};
use anyhow::{Context, Result, bail};
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a living supervisor may take to open its socket.
const OPENING: Duration = Duration::from_secs(10);
const OPENING_PAUSE: Duration = Duration::from_millis(5);

#[derive(Debug)]
pub(crate) struct Link {
    stream: Stream,
}

/// Connects to the supervisor of the execution in `dir`; `None` when it has gone.
pub(crate) fn connect(dir: &Path) -> Result<Option<Link>> {
    let deadline = Instant::now() + OPENING;
    loop {
        let error = match platform::dial(dir) {
            Ok(stream) => return Ok(Some(Link { stream })),
            Err(error) => error,
        };
        if !platform::is_supervised(dir)? {
            return Ok(None);
        }
        if Instant::now() > deadline {
            bail!("the execution's supervisor does not answer: {error}");
        }
        std::thread::sleep(OPENING_PAUSE);
    }
}

impl Link {
    /// Another handle of the same connection, for a second thread.
    pub(crate) fn try_clone(&self) -> Result<Self> {
        let stream = self
            .stream
            .try_clone()
            .context("cannot duplicate a socket")?;
        Ok(Self { stream })
    }

    pub(crate) fn acknowledge(&mut self, until: u64) -> std::io::Result<()> {
        self.stream.write_all(format!("ack {until}\n").as_bytes())
    }

    pub(crate) fn stop(&mut self, grace_ms: u64) -> std::io::Result<()> {
        self.stream
            .write_all(format!("stop {grace_ms}\n").as_bytes())
    }

    /// Waits until there is something new in the spool; `false` when the supervisor has gone (or [`Link::hang_up`] was called).
    pub(crate) fn wait(&mut self) -> bool {
        let mut wakes = [0; 4096];
        loop {
            match self.stream.read(&mut wakes) {
                Ok(0) => return false,
                Ok(_) => return true,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
    }

    /// Ends the waiting of the thread that has the other handle.
    pub(crate) fn hang_up(&self) {
        self.stream.shutdown(Shutdown::Both).ok();
    }
}
