//! What a connection may say to a supervisor: lines of a word and a number, from bytes to orders.

use std::time::Duration;

/// The longest unfinished line of a connection, in bytes.
const MAX_LINE: usize = 128;

/// What a connection may ask of a supervisor.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Order {
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

/// The unfinished line of one connection.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    line: Vec<u8>,
}

impl Lines {
    /// Takes in what the connection says; `false` when it talks nonsense.
    pub(crate) fn take(&mut self, bytes: &[u8], mut obey: impl FnMut(Order)) -> bool {
        for byte in bytes {
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
    fn an_order_may_come_in_pieces_and_a_line_has_an_end() {
        let mut lines = Lines::default();
        let mut heard = Vec::new();
        assert!(lines.take(b"ack 1\nac", |order| heard.push(order)));
        assert!(lines.take(b"k 2\n", |order| heard.push(order)));
        assert_eq!(heard, [Order::Acknowledge(1), Order::Acknowledge(2)]);
        assert!(!lines.take(&[b'x'; 1000], |_| {}));
    }
}
