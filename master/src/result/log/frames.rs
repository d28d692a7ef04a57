//! Reading sealed logs: the frames that hold a range, and no more.
//!
//! ```text
//!  offset ──► record: frames with offsets ──► one ranged request ──► decompress ──► the last frame is kept a while
//! ```
//!
//! A page reads a log in order and in small pieces, so the frame where it stopped is the one that it wants next.

use super::{LogError, blocking};
use crate::model::JobId;
use crate::result::objects::Objects;
use crate::store::results::{Frame, LogRow};
use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Decompressed frames that are kept: 16 MiB at most, for about as many readers at once.
const FRAMES_KEPT: usize = 16;
/// Records that are kept: a large one has some 12 KiB.
const RECORDS_KEPT: usize = 64;

#[derive(Debug)]
pub(super) struct Frames {
    objects: Objects,
    kept: Mutex<Kept>,
}

/// The most recently used are in front.
#[derive(Debug, Default)]
struct Kept {
    frames: VecDeque<(JobId, u64, Bytes)>,
    records: VecDeque<Arc<LogRow>>,
}

impl Frames {
    pub(super) fn new(objects: Objects) -> Frames {
        Frames {
            objects,
            kept: Mutex::default(),
        }
    }

    /// The record, if it was read lately.
    pub(super) fn known(&self, job: JobId) -> Option<Arc<LogRow>> {
        let mut kept = self.kept();
        let position = kept.records.iter().position(|row| row.job == job)?;
        let row = kept.records.remove(position)?;
        kept.records.push_front(row.clone());
        Some(row)
    }

    pub(super) fn remember(&self, row: LogRow) -> Arc<LogRow> {
        let row = Arc::new(row);
        let mut kept = self.kept();
        kept.records.retain(|other| other.job != row.job);
        kept.records.push_front(row.clone());
        kept.records.truncate(RECORDS_KEPT);
        row
    }

    pub(super) fn forget(&self, job: JobId) {
        let mut kept = self.kept();
        kept.records.retain(|row| row.job != job);
        kept.frames.retain(|(other, _, _)| *other != job);
    }

    /// At most `max` bytes at `from`, which must not be left out nor beyond the end. At least one byte comes.
    pub(super) async fn read(
        &self,
        row: &LogRow,
        from: u64,
        max: usize,
    ) -> Result<Bytes, LogError> {
        let job = row.job;
        let damaged = |reason: String| LogError::Damaged { job, reason };
        let frames = &row.sealed.frames;
        let first = frames.partition_point(|frame| frame.from + frame.length <= from);
        let to = from.saturating_add(max as u64);
        // Across the left-out part there are none, and that is where the range ends.
        let mut wanted: Vec<Frame> = Vec::new();
        for frame in frames
            .iter()
            .skip(first)
            .take_while(|frame| frame.from < to)
        {
            if wanted
                .last()
                .is_some_and(|last| last.from + last.length != frame.from)
            {
                break;
            }
            wanted.push(*frame);
        }
        let Some(first) = wanted.first().filter(|frame| frame.from <= from).copied() else {
            return Err(damaged(format!("no frame holds offset {from}")));
        };
        let cut = |frame: Frame, bytes: &Bytes| {
            let start = from.saturating_sub(frame.from).min(frame.length);
            let end = (to - frame.from).min(frame.length);
            bytes.slice(usize::try_from(start).unwrap_or(0)..usize::try_from(end).unwrap_or(0))
        };
        if let Some(bytes) = self.kept_frame(job, first.at) {
            return Ok(cut(first, &bytes));
        }
        let (Some(last), Some(key)) = (wanted.last().copied(), row.sealed.object.as_deref()) else {
            return Err(damaged("its record names no object".to_string()));
        };
        let packed = self
            .objects
            .get_range(key, first.at..last.at + last.size)
            .await;
        let packed = packed.map_err(|source| LogError::Object { job, source })?;
        let unpacked = blocking(move || unpack(&wanted, packed))
            .await?
            .map_err(damaged)?;
        let mut pieces: Vec<Bytes> = unpacked
            .iter()
            .map(|(frame, bytes)| cut(*frame, bytes))
            .collect();
        if let Some((frame, bytes)) = unpacked.last() {
            self.keep_frame(job, frame.at, bytes.clone());
        }
        if pieces.len() == 1
            && let Some(only) = pieces.pop()
        {
            return Ok(only);
        }
        let mut joined = BytesMut::with_capacity(pieces.iter().map(Bytes::len).sum());
        for piece in pieces {
            joined.extend_from_slice(&piece);
        }
        Ok(joined.freeze())
    }

    fn kept_frame(&self, job: JobId, at: u64) -> Option<Bytes> {
        let kept = self.kept();
        let found = kept.frames.iter().find(|(j, a, _)| *j == job && *a == at);
        found.map(|(_, _, bytes)| bytes.clone())
    }

    fn keep_frame(&self, job: JobId, at: u64, bytes: Bytes) {
        let mut kept = self.kept();
        kept.frames.push_front((job, at, bytes));
        kept.frames.truncate(FRAMES_KEPT);
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Decompresses frames that lie one behind the other.
fn unpack(frames: &[Frame], mut packed: Bytes) -> Result<Vec<(Frame, Bytes)>, String> {
    let mut unpacked = Vec::with_capacity(frames.len());
    for frame in frames {
        let (Ok(size), Ok(length)) = (usize::try_from(frame.size), usize::try_from(frame.length))
        else {
            return Err(format!("the frame at {} is too large", frame.at));
        };
        if packed.len() < size {
            return Err(format!("the object ends inside the frame at {}", frame.at));
        }
        let bytes = zstd::bulk::decompress(&packed.split_to(size), length)
            .map_err(|e| format!("the frame at {} does not decompress: {e}", frame.at))?;
        if bytes.len() != length {
            return Err(format!(
                "the frame at {} has not the length it should",
                frame.at
            ));
        }
        unpacked.push((*frame, Bytes::from(bytes)));
    }
    Ok(unpacked)
}
