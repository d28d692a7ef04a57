//! Which bytes of a log are kept, and in which segment: pure arithmetic.
//!
//! ```text
//!  offset 0            head_end        omitted_to                      length
//!    │■■■■■■■■■■■■■■■■■■■■│  left out      │■■■■■■■│■■■■■■■│■■■■         │
//!    └─ head: cap / 2 ────┘                └─ tail: at most cap / 2 ─────┘
//! ```
//!
//! The head is never dropped. Behind it segments come and, once the tail is over its half, the oldest of them goes. A
//! log within the cap keeps every byte.

use std::collections::VecDeque;

/// Largest segment. Small enough that dropping one loses little of the tail, large enough that files stay few.
const SEGMENT_BYTES: u64 = 8 << 20;

/// Bytes `from..to` of the stream, in one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) from: u64,
    pub(super) to: u64,
}

/// Where the next bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// The segment's first offset, which is its name. It may have to be created.
    pub(super) segment: u64,
    /// Where in the segment.
    pub(super) at: u64,
    /// How many bytes it still takes.
    pub(super) room: u64,
}

/// Where a byte is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// In this segment, with `available` bytes from there on.
    Kept {
        segment: u64,
        at: u64,
        available: u64,
    },
    /// Left out; the kept part goes on at `next`.
    Omitted { next: u64 },
    /// Not written yet; the log ends at `length`.
    Beyond { length: u64 },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layout {
    tail_cap: u64,
    segment_bytes: u64,
    head_end: u64,
    head: Vec<Segment>,
    tail: VecDeque<Segment>,
    length: u64,
}

impl Layout {
    pub(super) fn empty(cap: u64) -> Layout {
        Layout {
            tail_cap: cap / 2,
            segment_bytes: (cap / 16).clamp(1, SEGMENT_BYTES),
            head_end: (cap - cap / 2).max(1),
            head: Vec::new(),
            tail: VecDeque::new(),
            length: 0,
        }
    }

    /// The layout of the segments that were found, with their sizes; `cap` is the one they were written with. What does not join on is left aside: after a power
    /// cut a file may be shorter than it was, and the log then ends there.
    pub(super) fn of_found(cap: u64, mut found: Vec<Segment>) -> Layout {
        found.sort_by_key(|segment| segment.from);
        let mut layout = Layout::empty(cap);
        for segment in found {
            let joins = segment.from == layout.length;
            let behind_the_gap = layout.tail.is_empty()
                && layout.length == layout.head_end
                && segment.from > layout.length;
            if layout.length < layout.head_end && joins {
                layout.head_end = layout.head_end.max(segment.to);
                layout.head.push(segment);
            } else if joins || behind_the_gap {
                layout.tail.push_back(segment);
            } else {
                break;
            }
            layout.length = segment.to;
        }
        layout
    }

    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// The part that is left out, from and to; equal when nothing is.
    pub(super) fn omitted(&self) -> (u64, u64) {
        match self.tail.front() {
            Some(first) => (self.head_end.min(first.from), first.from),
            None => (self.length, self.length),
        }
    }

    /// Whether a segment of this name is part of the log.
    pub(super) fn has(&self, from: u64) -> bool {
        self.head.iter().chain(&self.tail).any(|s| s.from == from)
    }

    /// The segments' names.
    pub(super) fn names(&self) -> Vec<u64> {
        self.head.iter().chain(&self.tail).map(|s| s.from).collect()
    }

    pub(super) fn place(&self) -> Place {
        let limit = |from: u64| {
            let full = from.saturating_add(self.segment_bytes);
            if from < self.head_end {
                full.min(self.head_end)
            } else {
                full
            }
        };
        let open = self
            .tail
            .back()
            .or(self.head.last())
            .filter(|last| self.length < limit(last.from));
        let segment = open.map_or(self.length, |last| last.from);
        Place {
            segment,
            at: self.length - segment,
            room: limit(segment).saturating_sub(self.length),
        }
    }

    /// Counts bytes that were written at [`Layout::place`]; returns the segments that are over the cap now.
    pub(super) fn grow(&mut self, place: Place, bytes: u64) -> Vec<u64> {
        self.length += bytes;
        let grown = Segment {
            from: place.segment,
            to: self.length,
        };
        if place.segment < self.head_end {
            match self.head.last_mut().filter(|last| last.from == grown.from) {
                Some(last) => *last = grown,
                None => self.head.push(grown),
            }
        } else {
            match self.tail.back_mut().filter(|last| last.from == grown.from) {
                Some(last) => *last = grown,
                None => self.tail.push_back(grown),
            }
        }
        let mut dropped = Vec::new();
        while self.tail.len() > 1
            && let Some(first) = self.tail.front()
            && self.length - first.from > self.tail_cap
        {
            dropped.push(first.from);
            self.tail.pop_front();
        }
        dropped
    }

    pub(super) fn find(&self, offset: u64) -> Found {
        if offset >= self.length {
            return Found::Beyond {
                length: self.length,
            };
        }
        let kept = self
            .head
            .iter()
            .chain(&self.tail)
            .find(|segment| segment.from <= offset && offset < segment.to);
        match kept {
            Some(segment) => Found::Kept {
                segment: segment.from,
                at: offset - segment.from,
                available: segment.to - offset,
            },
            None => Found::Omitted {
                next: self.omitted().1,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn kept(layout: &Layout) -> u64 {
        let (from, to) = layout.omitted();
        layout.length() - (to - from)
    }

    fn append(layout: &mut Layout, mut bytes: u64) {
        while bytes > 0 {
            let place = layout.place();
            assert!(place.room > 0, "a place has room: {layout:?}");
            let n = bytes.min(place.room);
            layout.grow(place, n);
            bytes -= n;
        }
    }

    fn segments(layout: &Layout) -> Vec<Segment> {
        layout.head.iter().chain(&layout.tail).copied().collect()
    }

    proptest! {
        #[test]
        fn the_cap_holds_and_nothing_within_it_is_lost(
            cap in 16u64..5000, appends in prop::collection::vec(0u64..1500, 0..40),
        ) {
            let mut layout = Layout::empty(cap);
            for bytes in appends {
                append(&mut layout, bytes);
                prop_assert!(kept(&layout) <= cap);
                if layout.length() <= cap {
                    prop_assert_eq!(kept(&layout), layout.length());
                } else {
                    // Half for the head, and of the other half at most a segment is missing.
                    let (from, to) = layout.omitted();
                    prop_assert_eq!(from, cap - cap / 2);
                    prop_assert!(layout.length() - to + layout.segment_bytes >= cap / 2);
                }
            }
        }

        #[test]
        fn every_offset_is_kept_or_left_out_or_beyond(
            cap in 16u64..2000, bytes in 0u64..6000, offset in 0u64..7000,
        ) {
            let mut layout = Layout::empty(cap);
            append(&mut layout, bytes);
            let (from, to) = layout.omitted();
            match layout.find(offset) {
                Found::Kept { segment, at, available } => {
                    prop_assert_eq!(segment + at, offset);
                    prop_assert!(available > 0);
                    prop_assert!(offset < from || offset >= to);
                }
                Found::Omitted { next } => {
                    prop_assert!(from <= offset && offset < to);
                    prop_assert_eq!(next, to);
                }
                Found::Beyond { length } => prop_assert!(offset >= length),
            }
        }

        #[test]
        fn the_files_tell_the_layout_after_a_restart(cap in 16u64..2000, bytes in 0u64..6000, more in 0u64..3000) {
            let mut layout = Layout::empty(cap);
            append(&mut layout, bytes);
            let mut again = Layout::of_found(cap, segments(&layout));
            prop_assert_eq!(again.length(), layout.length());
            prop_assert_eq!(segments(&again), segments(&layout));
            append(&mut layout, more);
            append(&mut again, more);
            prop_assert_eq!(segments(&again), segments(&layout));
            prop_assert_eq!(again.length(), layout.length());
        }
    }

    #[test]
    fn a_segment_that_lost_its_end_ends_the_log() {
        let cap = 1600;
        let mut layout = Layout::empty(cap);
        append(&mut layout, 450);
        let mut found = segments(&layout);
        found[1].to -= 30;
        assert_eq!(Layout::of_found(cap, found).length(), 170);
        append(&mut layout, 3000);
        let mut found = segments(&layout);
        let last = found.len() - 2;
        found[last].to -= 30;
        let expected = found[last].to;
        assert_eq!(Layout::of_found(cap, found).length(), expected);
    }
}
