//! The spool: a command's output on disk, in segments named by the offset of their first byte.
//!
//! ```text
//!   out-00000000000000000000   out-00000000000004194304   out-00000000000008388608
//!   [ acknowledged: deleted ]  [ whole                 ]  [ growing              ]
//! ```
//!
//! The supervisor owns the [`SpoolWriter`]: it alone appends and, while it lives, it alone deletes. A follower reads with a
//! [`SpoolReader`], from any offset that is still there. After the supervisor has gone, [`forget`] deletes for it.

use crate::platform;
use anyhow::{Context, Result, bail};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use vivarium_protocol::{MAX_DATA, OUTPUT_HEAD, output_head};

/// A segment is a quarter of the bound, within these limits: small enough that a small spool stays small, large enough
/// that a large one does not become thousands of files.
const SEGMENT_BYTES: std::ops::RangeInclusive<u64> = 64 * 1024..=4 * 1024 * 1024;
/// Room that the first segment takes before the command runs: a command that fills the disk can still say so.
const RESERVED_BYTES: u64 = 32 * 1024;

fn segment_path(dir: &Path, start: u64) -> PathBuf {
    dir.join(format!("out-{start:020}"))
}

/// The offsets at which the segments in `dir` start, in order.
fn segments(dir: &Path) -> std::io::Result<Vec<u64>> {
    let mut starts = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name();
        if let Some(start) = name
            .to_str()
            .and_then(|n| n.strip_prefix("out-")?.parse().ok())
        {
            starts.push(start);
        }
    }
    starts.sort_unstable();
    Ok(starts)
}

#[derive(Debug)]
pub(crate) struct SpoolWriter {
    dir: PathBuf,
    segment_bytes: u64,
    /// Where each kept segment starts, oldest first; the last one is the one that grows.
    starts: VecDeque<u64>,
    growing: Option<File>,
    end: u64,
    acknowledged: u64,
    bound: u64,
}

impl SpoolWriter {
    /// Begins an empty spool, with room for the first output where the disk has any.
    pub(crate) fn create(dir: &Path, bound: u64) -> std::io::Result<Self> {
        let first = File::create(segment_path(dir, 0))?;
        platform::reserve(&first, RESERVED_BYTES);
        Ok(Self {
            dir: dir.to_owned(),
            segment_bytes: (bound / 4).clamp(*SEGMENT_BYTES.start(), *SEGMENT_BYTES.end()),
            starts: VecDeque::from([0]),
            growing: Some(first),
            end: 0,
            acknowledged: 0,
            bound: bound.max(*SEGMENT_BYTES.start()),
        })
    }

    /// How many bytes have been spooled since the start.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// How many more bytes may be spooled before an acknowledgement is needed.
    pub(crate) fn room(&self) -> u64 {
        self.bound.saturating_sub(self.end - self.acknowledged)
    }

    /// Appends some of `bytes`, at least one, and says how many. After an error nothing of them was appended.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let filled = self.starts.back().map_or(0, |start| self.end - start);
        if filled >= self.segment_bytes {
            self.growing = None;
        }
        let (file, left) = match &mut self.growing {
            Some(file) => (file, self.segment_bytes - filled),
            None => {
                let file = File::create(segment_path(&self.dir, self.end))?;
                if self.starts.back() != Some(&self.end) {
                    self.starts.push_back(self.end);
                }
                (self.growing.insert(file), self.segment_bytes)
            }
        };
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        let count = match write_some(file, bytes.get(..most).unwrap_or(bytes)) {
            Ok(count) => count,
            // The disk is full, of output that nobody needs any more perhaps.
            Err(error) => match self.renew_segment() {
                Ok(Some(file)) => write_some(file, bytes.get(..most).unwrap_or(bytes))?,
                Ok(None) | Err(_) => return Err(error),
            },
        };
        self.end += count as u64;
        self.delete_acknowledged();
        Ok(count)
    }

    /// Gives up the growing segment for a new one, if it is acknowledged to its end: then it is deleted.
    fn renew_segment(&mut self) -> std::io::Result<Option<&mut File>> {
        if self.acknowledged < self.end || self.starts.back() == Some(&self.end) {
            return Ok(None);
        }
        let file = File::create(segment_path(&self.dir, self.end))?;
        self.starts.push_back(self.end);
        self.delete_acknowledged();
        Ok(Some(self.growing.insert(file)))
    }

    /// The master has what stands before `until`: whole segments before it are deleted.
    pub(crate) fn acknowledge(&mut self, until: u64) {
        self.acknowledged = until.min(self.end).max(self.acknowledged);
        self.delete_acknowledged();
    }

    /// The growing segment stays, so that there is always one that says where the output stands.
    fn delete_acknowledged(&mut self) {
        while let (Some(first), Some(next)) = (self.starts.front(), self.starts.get(1))
            && *next <= self.acknowledged
        {
            std::fs::remove_file(segment_path(&self.dir, *first)).ok();
            self.starts.pop_front();
        }
    }
}

fn write_some(file: &mut File, bytes: &[u8]) -> std::io::Result<usize> {
    loop {
        match file.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// Deletes the segments whose last byte stands before `until`, for an execution without a supervisor.
pub(crate) fn forget(dir: &Path, until: u64) -> std::io::Result<()> {
    let starts = segments(dir)?;
    let ends = starts.iter().skip(1).copied().map(Some).chain([None]);
    for (start, end) in starts.iter().zip(ends) {
        let path = segment_path(dir, *start);
        // Another connection may be deleting the same.
        let deleted = match end {
            Some(end) if end > until => Ok(()),
            Some(_) => std::fs::remove_file(path),
            None => std::fs::metadata(&path).and_then(|metadata| {
                if start.saturating_add(metadata.len()) > until {
                    return Ok(());
                }
                std::fs::remove_file(path)
            }),
        };
        match deleted {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

#[derive(Debug)]
pub(crate) struct SpoolReader {
    dir: PathBuf,
    segment: Option<File>,
    /// Where the open segment starts.
    start: u64,
    offset: u64,
}

impl SpoolReader {
    /// Opens the output at byte `from`. `total` is its length if the execution has ended.
    pub(crate) fn open(dir: &Path, from: u64, total: Option<u64>) -> Result<Self> {
        // Between the look at the names and the opening of a file, the supervisor may delete that file.
        for _ in 0..8 {
            match Self::try_open(dir, from, total) {
                Err(error) if is_not_found(&error) => continue,
                other => return other,
            }
        }
        bail!("the output at byte {from} is being deleted")
    }

    fn try_open(dir: &Path, from: u64, total: Option<u64>) -> Result<Self> {
        let mut reader = Self {
            dir: dir.to_owned(),
            segment: None,
            start: from,
            offset: from,
        };
        let starts = segments(dir).context("cannot list the spool")?;
        let Some(start) = starts.iter().rev().find(|s| **s <= from) else {
            match (starts.first(), total) {
                (Some(first), _) => bail!(
                    "the output before byte {first} was acknowledged and deleted, byte {from} with it"
                ),
                (None, Some(total)) if from < total => {
                    bail!("the output was acknowledged and deleted, byte {from} with it")
                }
                (None, Some(total)) if from > total => {
                    bail!("byte {from} is beyond the output's end at {total}")
                }
                (None, None) if from > 0 => bail!("byte {from} is beyond the output's end at 0"),
                (None, _) => return Ok(reader),
            }
        };
        let mut file =
            File::open(segment_path(dir, *start)).context("cannot open a segment of the spool")?;
        let end = start.saturating_add(file.metadata()?.len());
        if from > end {
            match starts.iter().find(|s| **s > from) {
                // The segment in between has just been deleted, or the output has gone on since the look.
                Some(next) => bail!(
                    "the output before byte {next} was acknowledged and deleted, byte {from} with it"
                ),
                None => bail!("byte {from} is beyond the output's end at {end}"),
            }
        }
        file.seek(SeekFrom::Start(from - start))?;
        reader.start = *start;
        reader.segment = Some(file);
        Ok(reader)
    }

    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Makes `frame` the next output frame, encoded; false at the end of what is there now.
    pub(crate) fn next_frame(&mut self, frame: &mut Vec<u8>) -> Result<bool> {
        loop {
            let Some(file) = &mut self.segment else {
                match File::open(segment_path(&self.dir, self.offset)) {
                    Ok(file) => {
                        self.start = self.offset;
                        self.segment = Some(file);
                        continue;
                    }
                    Err(error) if error.kind() == ErrorKind::NotFound => {
                        return self.refuse_gap().map(|()| false);
                    }
                    Err(error) => return Err(error).context("cannot open a segment of the spool"),
                }
            };
            let length = file.metadata()?.len();
            let left = self
                .start
                .saturating_add(length)
                .saturating_sub(self.offset);
            if left > 0 {
                return self.read_frame(left, frame).map(|()| true);
            }
            // A follower waits for the segment to grow, or for the next one to appear at its end.
            if self.offset == self.start || !segment_path(&self.dir, self.offset).exists() {
                return self.refuse_gap().map(|()| false);
            }
            self.segment = None;
        }
    }

    /// An error if the next byte will never come because it was acknowledged, by another connection, and deleted.
    fn refuse_gap(&self) -> Result<()> {
        // The usual case is a follower that has caught up: then the newest segment holds, or starts at, its offset.
        let starts = segments(&self.dir).context("cannot list the spool")?;
        match (
            starts.iter().any(|s| *s <= self.offset),
            starts.iter().find(|s| **s > self.offset),
        ) {
            (false, Some(first)) => bail!(
                "the output before byte {first} was acknowledged and deleted, byte {} with it",
                self.offset
            ),
            (true, _) | (false, None) => Ok(()),
        }
    }

    fn read_frame(&mut self, left: u64, frame: &mut Vec<u8>) -> Result<()> {
        let most = usize::try_from(left).unwrap_or(MAX_DATA).min(MAX_DATA);
        frame.resize(OUTPUT_HEAD + most, 0);
        let mut count = 0;
        if let (Some(file), Some(content)) = (&mut self.segment, frame.get_mut(OUTPUT_HEAD..)) {
            count = file.read(content).context("cannot read the spool")?;
        }
        frame.truncate(OUTPUT_HEAD + count);
        if let Some(head) = frame.first_chunk_mut::<OUTPUT_HEAD>() {
            *head = output_head(self.offset, count);
        }
        self.offset += count as u64;
        Ok(())
    }
}

fn is_not_found(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|e| e.kind() == ErrorKind::NotFound)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content_of(frame: &[u8]) -> &[u8] {
        &frame[OUTPUT_HEAD..]
    }

    fn read_all(reader: &mut SpoolReader) -> Vec<u8> {
        let (mut output, mut frame) = (Vec::new(), Vec::new());
        while reader.next_frame(&mut frame).unwrap() {
            output.extend_from_slice(content_of(&frame));
        }
        output
    }

    fn append_all(spool: &mut SpoolWriter, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let count = spool.append(bytes).unwrap();
            bytes = &bytes[count..];
        }
    }

    #[test]
    fn a_reader_follows_a_writer_over_segments_from_any_byte() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = SpoolWriter::create(dir.path(), 0).unwrap();
        let mut follower = SpoolReader::open(dir.path(), 0, None).unwrap();
        assert!(read_all(&mut follower).is_empty());
        let expected: Vec<u8> = (0..500_000u32).map(|i| (i % 251) as u8).collect();
        let mut followed = Vec::new();
        for piece in expected.chunks(33_333) {
            append_all(&mut spool, piece);
            followed.extend(read_all(&mut follower));
        }
        assert!(followed == expected);
        assert!(segments(dir.path()).unwrap().len() > 5);
        for from in [0, 1, 65_535, 65_536, 65_537, 499_999, 500_000] {
            let mut reader = SpoolReader::open(dir.path(), from, None).unwrap();
            assert!(
                read_all(&mut reader) == expected[from as usize..],
                "from {from}"
            );
        }
        assert!(SpoolReader::open(dir.path(), 500_001, None).is_err());
    }

    #[test]
    fn only_whole_acknowledged_segments_are_deleted_and_never_the_last() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = SpoolWriter::create(dir.path(), 0).unwrap();
        append_all(&mut spool, &[7; 200_000]);
        assert_eq!(segments(dir.path()).unwrap(), [0, 65_536, 131_072, 196_608]);
        assert_eq!(spool.room(), 0);
        spool.acknowledge(131_071);
        assert_eq!(segments(dir.path()).unwrap(), [65_536, 131_072, 196_608]);
        assert!(SpoolReader::open(dir.path(), 65_535, None).is_err());
        assert!(SpoolReader::open(dir.path(), 65_536, None).is_ok());
        spool.acknowledge(u64::MAX);
        assert_eq!(segments(dir.path()).unwrap(), [196_608]);
        assert_eq!(spool.room(), 65_536);
        forget(dir.path(), 199_999).unwrap();
        assert_eq!(segments(dir.path()).unwrap(), [196_608]);
        forget(dir.path(), 200_000).unwrap();
        assert!(segments(dir.path()).unwrap().is_empty());
        assert!(SpoolReader::open(dir.path(), 200_000, Some(200_000)).is_ok());
        assert!(SpoolReader::open(dir.path(), 199_999, Some(200_000)).is_err());
        assert!(SpoolReader::open(dir.path(), 200_001, Some(200_000)).is_err());
    }

    #[test]
    fn a_reader_whose_next_byte_was_deleted_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = SpoolWriter::create(dir.path(), 0).unwrap();
        append_all(&mut spool, &[7; 65_536]);
        let mut reader = SpoolReader::open(dir.path(), 0, None).unwrap();
        read_all(&mut reader);
        append_all(&mut spool, &[7; 100_000]);
        spool.acknowledge(165_536);
        assert!(reader.next_frame(&mut Vec::new()).is_err());
    }
}
