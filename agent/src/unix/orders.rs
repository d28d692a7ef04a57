//! The supervisor's end of a connection's socket: orders in, wake-ups out. [`Link`](super::Link) is the other end.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// The longest unfinished line of a connection, in bytes.
const MAX_LINE: usize = 128;

#[derive(Debug)]
pub(super) struct Client {
    stream: UnixStream,
    line: Vec<u8>,
}

/// What a connection may ask of a supervisor.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Order {
    Acknowledge(u64),
    Stop(Duration),
}

fn parse_order(line: &[u8]) -> Option<Order> {
    let (word, number) = std::str::from_utf8(line).ok()?.split_once(' ')?;
    let number = number.parse().ok()?;
    match word {
        "ack" => Some(Order::Acknowledge(number)),
        "stop" => Some(Order::Stop(Duration::from_millis(number))),
        _ => None,
    }
}

impl Client {
    pub(super) fn new(stream: UnixStream) -> std::io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            line: Vec::new(),
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
    pub(super) fn hear(&mut self, mut obey: impl FnMut(Order)) -> bool {
        let mut bytes = [0; 4096];
        let count = match self.stream.read(&mut bytes) {
            Ok(0) => return false,
            Ok(count) => count,
            Err(error) => {
                return matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted);
            }
        };
        for byte in bytes.iter().take(count) {
            if *byte == b'\n' {
                let Some(order) = parse_order(&self.line) else {
                    return false;
                };
                obey(order);
                self.line.clear();
            } else if self.line.len() < MAX_LINE {
                self.line.push(*byte);
            } else {
                return false;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_a_word_and_a_number_and_nothing_else() {
        assert_eq!(parse_order(b"ack 12"), Some(Order::Acknowledge(12)));
        assert_eq!(
            parse_order(b"stop 5"),
            Some(Order::Stop(Duration::from_millis(5)))
        );
        for nonsense in [
            &b""[..],
            b"ack",
            b"ack -1",
            b"ack 1 2",
            b"halt 1",
            b"\xff\xff 1",
            b"ack 99999999999999999999",
        ] {
            assert_eq!(parse_order(nonsense), None);
        }
    }

    #[test]
    fn a_connection_is_dropped_when_its_line_has_no_end() {
        let (mut far, near) = UnixStream::pair().unwrap();
        let mut client = Client::new(near).unwrap();
        let mut heard = Vec::new();
        far.write_all(b"ack 1\nac").unwrap();
        assert!(client.hear(|order| heard.push(order)));
        far.write_all(b"k 2\n").unwrap();
        assert!(client.hear(|order| heard.push(order)));
        assert_eq!(heard, [Order::Acknowledge(1), Order::Acknowledge(2)]);
        far.write_all(&[b'x'; 1000]).unwrap();
        assert!(!client.hear(|_| {}));
    }
}
