//! The gate in front of the socket: when too much of what arrived waits for our own consumers, nothing more is read.
//!
//! ```text
//!   socket ──gate──> russh ──> link ──charged──> Following, Collection ──> consumer (releases)
//!            shut above HIGH bytes, open again below LOW
//! ```
//!
//! russh gives channel window back as soon as data arrives, and when a channel's queue is full its whole connection
//! stands still, writing included: a stop, or an acknowledgement, could then never leave while output is unread.
//! So nothing behind the socket ever waits; the socket itself is what is not read. TCP's window fills, then the SSH
//! server's buffers, then the agent's pipe: the guest waits, our memory is bounded, and our requests still go out.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use tokio::io::{AsyncRead, AsyncWrite, BufReader, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;

/// With this many bytes unread by our consumers the socket is not read any more: a second of a quick log.
const HIGH: usize = 8 * 1024 * 1024;
/// Below this many it is read again: far enough below that it does not flutter.
const LOW: usize = HIGH / 2;
/// What a waiting item costs beside its bytes, so that a million empty ones are not free.
const ITEM: usize = 256;
/// How much is read from the socket at once. russh asks for a packet's head and body apart.
const READ_BYTES: usize = 256 * 1024;

#[derive(Debug, Default)]
struct State {
    held: usize,
    shut: bool,
    closed: bool,
    /// Any byte came since the connection was opened.
    greeted: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

#[derive(Debug, Default)]
pub(crate) struct Gate {
    state: Mutex<State>,
    /// The first byte came.
    greeting: Notify,
}

impl Gate {
    fn state(&self) -> MutexGuard<'_, State> {
        // Plain numbers: they are right even if a holder of the lock panicked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether our own consumers are what holds the connection up.
    pub(super) fn is_shut(&self) -> bool {
        self.state().shut
    }

    /// Whether the other side has said anything.
    pub(super) fn is_greeted(&self) -> bool {
        self.state().greeted
    }

    /// Resolves once it has; for one who waits.
    pub(super) async fn greeted(&self) {
        if !self.is_greeted() {
            self.greeting.notified().await;
        }
    }

    /// Ends the connection, whatever russh is waiting for.
    pub(super) fn close(&self) {
        let (reader, writer) = {
            let mut state = self.state();
            state.closed = true;
            (state.reader.take(), state.writer.take())
        };
        for waker in [reader, writer].into_iter().flatten() {
            waker.wake();
        }
    }

    fn hold(&self, bytes: usize) {
        let mut state = self.state();
        state.held += bytes;
        if state.held >= HIGH {
            state.shut = true;
        }
    }

    fn release(&self, bytes: usize) {
        let waker = {
            let mut state = self.state();
            state.held = state.held.saturating_sub(bytes);
            if !state.shut || state.held > LOW {
                return;
            }
            state.shut = false;
            state.reader.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// Something that waits for a consumer; its bytes are released when it is taken out or dropped.
#[derive(Debug)]
pub(super) struct Charged<T> {
    value: T,
    _charge: Charge,
}

#[derive(Debug)]
struct Charge {
    gate: Arc<Gate>,
    bytes: usize,
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.gate.release(self.bytes);
    }
}

impl<T> Charged<T> {
    pub(super) fn new(gate: &Arc<Gate>, value: T, bytes: usize) -> Self {
        let bytes = bytes + ITEM;
        gate.hold(bytes);
        Self {
            value,
            _charge: Charge {
                gate: Arc::clone(gate),
                bytes,
            },
        }
    }

    pub(super) fn take(self) -> T {
        self.value
    }
}

/// The socket behind its gate.
#[derive(Debug)]
pub(super) struct GatedStream {
    socket: BufReader<TcpStream>,
    gate: Arc<Gate>,
}

impl GatedStream {
    pub(super) fn new(socket: TcpStream, gate: Arc<Gate>) -> Self {
        Self {
            socket: BufReader::with_capacity(READ_BYTES, socket),
            gate,
        }
    }
}

fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "closed by us")
}

impl AsyncRead for GatedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        {
            let mut state = self.gate.state();
            if state.closed {
                return Poll::Ready(Err(closed()));
            }
            state.reader = Some(context.waker().clone());
            if state.shut {
                return Poll::Pending;
            }
        }
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.socket).poll_read(context, buffer);
        if buffer.filled().len() > before {
            let was_greeted = std::mem::replace(&mut self.gate.state().greeted, true);
            if !was_greeted {
                self.gate.greeting.notify_one();
            }
        }
        polled
    }
}

impl AsyncWrite for GatedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        {
            let mut state = self.gate.state();
            if state.closed {
                return Poll::Ready(Err(closed()));
            }
            state.writer = Some(context.waker().clone());
        }
        Pin::new(&mut self.socket).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gate_shuts_above_the_bound_and_opens_when_half_is_taken() {
        let gate = Arc::new(Gate::default());
        let waiting: Vec<_> = (0..8).map(|_| Charged::new(&gate, (), HIGH / 8)).collect();
        assert!(gate.is_shut());
        let mut waiting = waiting.into_iter();
        for _ in 0..4 {
            waiting.next();
        }
        assert!(gate.is_shut(), "the items themselves count too");
        waiting.next();
        assert!(!gate.is_shut());
        drop(waiting);
        assert_eq!(gate.state().held, 0);
    }
}
