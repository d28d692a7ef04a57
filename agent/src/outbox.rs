//! The way out: encoded frames come in from any thread, one thread writes them to the connection.
//!
//! ```text
//!   serve loop ──┐
//!   follower   ──┼──> bounded queue ──> writer thread ──> stdout
//!   collector  ──┘
//! ```
//!
//! Written frames are kept for the next content (`spare_frame`): a quarter of a megabyte that is freed goes back to the
//! kernel, which then has to find and clear the pages of the next one.
//!
//! The queue is short, so that an answer to a ping waits behind a megabyte of output at most. The writer thread owns
//! the connection's output; when it cannot be written any more the process leaves quietly, for nobody listens and the
//! executions do not need it.

use anyhow::Result;
use std::io::Write;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use vivarium_protocol::{Frame, MAX_CONTROL, MAX_DATA, ToMaster};

/// How many frames may wait for the writer.
const QUEUE: usize = 4;
/// How long the last frames may take to be written after the master has closed its side.
const FAREWELL: Duration = Duration::from_secs(2);
/// The longest sentence of a refusal, in bytes; longer ones are cut.
const MAX_SENTENCE: usize = 4096;

/// The connection is gone. Whoever gets this stops.
#[derive(Debug)]
pub(crate) struct Closed;

impl std::fmt::Display for Closed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the connection is closed")
    }
}

impl std::error::Error for Closed {}

/// A handle for sending; each thread has its own.
#[derive(Debug, Clone)]
pub(crate) struct Outbox {
    queue: SyncSender<Vec<u8>>,
    spare: Arc<Spare>,
}

/// Frames that were written; at most as many as can be under way.
#[derive(Debug, Default)]
struct Spare(Mutex<Vec<Vec<u8>>>);

impl Spare {
    fn take(&self) -> Vec<u8> {
        let mut frames = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        frames.pop().unwrap_or_default()
    }

    /// Small ones are not worth it.
    fn keep(&self, frame: Vec<u8>) {
        let mut frames = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if frame.capacity() >= MAX_DATA && frames.len() < QUEUE {
            frames.push(frame);
        }
    }
}

/// Tells when everything has been written.
#[derive(Debug)]
pub(crate) struct Writer {
    done: Receiver<()>,
}

/// Starts the writer thread on `out`.
pub(crate) fn open(mut out: impl Write + Send + 'static) -> Result<(Outbox, Writer)> {
    let (queue, frames) = sync_channel::<Vec<u8>>(QUEUE);
    let (finished, done) = sync_channel(1);
    let spare = Arc::new(Spare::default());
    let written = Arc::clone(&spare);
    std::thread::Builder::new()
        .name("writer".into())
        .spawn(move || {
            for frame in frames {
                if out.write_all(&frame).and_then(|()| out.flush()).is_err() {
                    std::process::exit(0);
                }
                written.keep(frame);
            }
            finished.send(()).ok();
        })?;
    Ok((Outbox { queue, spare }, Writer { done }))
}

impl Outbox {
    pub(crate) fn send(&self, message: &ToMaster) -> Result<(), Closed> {
        let frame = Frame::to_master(message);
        if let Frame::Control(json) = &frame
            && json.len() > MAX_CONTROL
        {
            return self.refuse(
                "answer",
                "the answer is larger than a control message may be",
            );
        }
        self.send_encoded(frame.into_bytes())
    }

    /// A frame to be filled with content, with whatever was in it before.
    pub(crate) fn spare_frame(&self) -> Vec<u8> {
        self.spare.take()
    }

    /// Sends bytes that are a whole frame already.
    pub(crate) fn send_encoded(&self, frame: Vec<u8>) -> Result<(), Closed> {
        self.queue.send(frame).map_err(|_| Closed)
    }

    /// Says that a request was not met; `request` is the message's type as it stands on the wire.
    pub(crate) fn refuse(&self, request: &str, why: impl std::fmt::Display) -> Result<(), Closed> {
        let mut message = why.to_string();
        if message.len() > MAX_SENTENCE {
            let end = (0..=MAX_SENTENCE)
                .rev()
                .find(|i| message.is_char_boundary(*i));
            message.truncate(end.unwrap_or(0));
        }
        self.send(&ToMaster::Failed {
            request: request.to_owned(),
            message,
        })
    }
}

/// Ends this process in a while, whatever its threads wait for: the master has closed its side and may not read either.
pub(crate) fn leave_soon() {
    let leave = || {
        std::thread::sleep(FAREWELL);
        std::process::exit(0);
    };
    std::thread::Builder::new()
        .name("farewell".into())
        .spawn(leave)
        .ok();
}

impl Writer {
    /// Waits until what was queued is written and every other [`Outbox`] has been dropped.
    pub(crate) fn finish(self, outbox: Outbox) {
        drop(outbox);
        self.done.recv().ok();
    }
}
