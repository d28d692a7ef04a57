//! The supervisor's end of a connection's socket: orders in, wake-ups out. [`Link`](crate::link::Link) is the other end.

use crate::control::{Lines, Order};
use crate::record;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// What a connection and a supervisor talk over.
pub(crate) type Stream = UnixStream;

/// Calls the supervisor of the execution in `dir`.
pub(crate) fn dial(dir: &Path) -> std::io::Result<Stream> {
    UnixStream::connect(dir.join(record::CONTROL))
}

#[derive(Debug)]
pub(super) struct Client {
    stream: UnixStream,
    lines: Lines,
}

impl Client {
    pub(super) fn new(stream: UnixStream) -> std::io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            lines: Lines::default(),
        })
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Says "look again". A full socket is as good: the bytes in it say the same. One that was closed may still hold
    /// an order, so it is dropped only when it has been read to its end.
    pub(super) fn wake(&self) {
        (&self.stream).write_all(b".").ok();
    }

    /// Takes in what the connection says; `false` when it has ended or talks nonsense.
    pub(super) fn hear(&mut self, obey: impl FnMut(Order)) -> bool {
        let mut bytes = [0; 4096];
        match self.stream.read(&mut bytes) {
            Ok(0) => false,
            Ok(count) => self
                .lines
                .take(bytes.get(..count).unwrap_or_default(), obey),
            Err(error) => matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_dropped_when_it_talks_nonsense_and_not_when_it_is_silent() {
        let (mut far, near) = UnixStream::pair().unwrap();
        let mut client = Client::new(near).unwrap();
        let mut heard = Vec::new();
        assert!(client.hear(|order| heard.push(order)));
        far.write_all(b"ack 1\n").unwrap();
        assert!(client.hear(|order| heard.push(order)));
        assert_eq!(heard, [Order::Acknowledge(1)]);
        far.write_all(&[b'x'; 1000]).unwrap();
        assert!(!client.hear(|_| {}));
    }
}
