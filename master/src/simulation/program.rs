//! What a step does in a simulated guest: a known text comes out at known times, then it ends in a known way.
//!
//! ```text
//! print 900 2500 0     900 bytes, the last of them after 2.5 s, then status 0
//! hang 300             300 bytes within a second, then nothing until it is stopped
//! stubborn 300         the same, and a stop does not help either
//! ```

use super::world::Moment;
use std::time::Duration;
use vivarium_protocol::Exit;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Program {
    pub(super) bytes: u64,
    length: Duration,
    pub(super) end: End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Exits(i32),
    /// Only when it is stopped.
    Hangs,
    /// Not even then.
    Stays,
}

/// Bytes that come out at once.
const BURST: u64 = 180;
/// From a stop to the end of what obeys it.
const OBEYS: Duration = Duration::from_millis(300);

impl Program {
    pub(super) fn parse(script: &str) -> Option<Program> {
        let words: Vec<&str> = script.split_whitespace().collect();
        let number = |word: &str| word.parse::<u64>().ok();
        let (bytes, length, end) = match *words.as_slice() {
            ["print", bytes, length, exit] => {
                (bytes, number(length)?, End::Exits(exit.parse().ok()?))
            }
            ["hang", bytes] => (bytes, 1000, End::Hangs),
            ["stubborn", bytes] => (bytes, 1000, End::Stays),
            _ => return None,
        };
        Some(Program {
            bytes: number(bytes)?,
            length: Duration::from_millis(length),
            end,
        })
    }
}

/// The byte at an offset of a program's output. Lines of ten, and never a mark of the master's.
pub(super) fn byte_at(offset: u64) -> u8 {
    match offset % 10 {
        9 => b'\n',
        0 => b'a' + (offset / 10 % 26) as u8,
        place => b'0' + (offset / 10_u64.pow(place as u32) % 10) as u8,
    }
}

pub(super) fn text(from: u64, to: u64) -> Vec<u8> {
    (from..to).map(byte_at).collect()
}

/// A program that was started; what it does at any time follows from this.
#[derive(Debug, Clone)]
pub(super) struct Run {
    pub(super) program: Program,
    pub(super) began: Moment,
    pub(super) stopped: Option<Moment>,
    /// What the master said it has: the guest keeps no earlier byte.
    pub(super) acknowledged: u64,
}

impl Run {
    pub(super) fn new(program: Program, began: Moment) -> Run {
        Run {
            program,
            began,
            stopped: None,
            acknowledged: 0,
        }
    }

    fn bursts(&self) -> u64 {
        self.program.bytes.div_ceil(BURST)
    }

    /// When a burst comes, counted from 1.
    fn burst_at(&self, number: u64) -> Moment {
        let share = self.program.length * number as u32 / (self.bursts() as u32 + 1);
        self.began + share
    }

    /// When it ends, as far as that is certain.
    fn end(&self) -> Option<(Moment, Exit)> {
        let by_itself = match self.program.end {
            End::Exits(code) => Some((self.began + self.program.length, Exit::Code { code })),
            End::Hangs | End::Stays => None,
        };
        let stopped = match (self.program.end, self.stopped) {
            (End::Stays, _) | (_, None) => None,
            (End::Exits(_) | End::Hangs, Some(at)) => {
                Some((at + OBEYS, Exit::Signal { signal: 15 }))
            }
        };
        match (by_itself, stopped) {
            (Some(a), Some(b)) => Some(if a.0 <= b.0 { a } else { b }),
            (a, b) => a.or(b),
        }
    }

    /// The bytes that are out.
    pub(super) fn printed(&self, now: Moment) -> u64 {
        let now = self.end().map_or(now, |(end, _)| now.min(end));
        let bursts = (1..=self.bursts())
            .take_while(|number| self.burst_at(*number) <= now)
            .count() as u64;
        (bursts * BURST).min(self.program.bytes)
    }

    pub(super) fn exit(&self, now: Moment) -> Option<Exit> {
        self.end()
            .filter(|(at, _)| *at <= now)
            .map(|(_, exit)| exit)
    }

    /// When there is something new.
    pub(super) fn next_change(&self, now: Moment) -> Option<Moment> {
        let burst = (1..=self.bursts())
            .map(|number| self.burst_at(number))
            .find(|at| *at > now);
        let end = self.end().map(|(at, _)| at).filter(|at| *at > now);
        match (burst, end) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }
}
