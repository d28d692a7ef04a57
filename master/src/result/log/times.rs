//! When a log reached which offset, sparsely: what a page needs to show the time beside a line.
//!
//! ```text
//!  file `times`:  (milliseconds, offset) (milliseconds, offset) …   16 bytes each, little-endian
//! ```
//!
//! A mark is made when a second has passed or 64 KiB have come since the last one. A log with very many loses every
//! second one and goes on with twice the distance, so the file stays below 128 KiB.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

const FILE: &str = "times";
const MOST: usize = 8192;
const EVERY_MILLIS: i64 = 1000;
const EVERY_BYTES: u64 = 64 << 10;

/// The byte at `offset` came at this time.
pub(super) type Mark = (i64, u64);

#[derive(Debug)]
pub(super) struct Times {
    path: PathBuf,
    file: File,
    marks: Vec<Mark>,
    every_millis: i64,
    every_bytes: u64,
}

impl Times {
    /// Goes on with the marks of a log that has `length` bytes.
    pub(super) fn open(folder: &Path, length: u64) -> io::Result<Times> {
        let marks = read(folder, length)?;
        let path = folder.join(FILE);
        let file = rewrite(&path, &marks)?;
        Ok(Times {
            path,
            file,
            marks,
            every_millis: EVERY_MILLIS,
            every_bytes: EVERY_BYTES,
        })
    }

    /// Notes that the byte at `offset` comes now.
    pub(super) fn note(&mut self, now_millis: i64, offset: u64) -> io::Result<()> {
        if let Some((time, last)) = self.marks.last()
            && now_millis - time < self.every_millis
            && offset.saturating_sub(*last) < self.every_bytes
        {
            return Ok(());
        }
        if self.marks.len() >= MOST {
            let mut keep = false;
            self.marks.retain(|_| {
                keep = !keep;
                keep
            });
            self.every_millis = self.every_millis.saturating_mul(2);
            self.every_bytes = self.every_bytes.saturating_mul(2);
            self.file = rewrite(&self.path, &self.marks)?;
        }
        let mark = (now_millis, offset);
        self.file.write_all(&encode(mark))?;
        self.marks.push(mark);
        Ok(())
    }

    /// The file, to be synced.
    pub(super) fn file(&self) -> io::Result<File> {
        self.file.try_clone()
    }
}

/// The marks of a log that has `length` bytes; none where there is no file.
pub(super) fn read(folder: &Path, length: u64) -> io::Result<Vec<Mark>> {
    let bytes = match std::fs::read(folder.join(FILE)) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut marks: Vec<Mark> = Vec::with_capacity(bytes.len() / 16);
    for record in bytes.chunks_exact(16) {
        let Some((time, rest)) = record.split_first_chunk::<8>() else {
            break;
        };
        let Some(offset) = rest.first_chunk::<8>() else {
            break;
        };
        let mark = (i64::from_le_bytes(*time), u64::from_le_bytes(*offset));
        // What a power cut tore is left aside.
        if mark.1 >= length || marks.last().is_some_and(|last| mark.1 < last.1) {
            break;
        }
        marks.push(mark);
    }
    Ok(marks)
}

fn rewrite(path: &Path, marks: &[Mark]) -> io::Result<File> {
    let new = path.with_extension("new");
    let bytes: Vec<u8> = marks.iter().copied().flat_map(encode).collect();
    std::fs::write(&new, bytes)?;
    std::fs::rename(&new, path)?;
    OpenOptions::new().append(true).open(path)
}

fn encode(mark: Mark) -> [u8; 16] {
    let mut record = [0; 16];
    let (time, offset) = record.split_at_mut(8);
    time.copy_from_slice(&mark.0.to_le_bytes());
    offset.copy_from_slice(&mark.1.to_le_bytes());
    record
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_sparse_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut times = Times::open(dir.path(), 0).unwrap();
        times.note(5_000, 0).unwrap();
        times.note(5_100, 100).unwrap();
        times.note(6_000, 200).unwrap();
        times.note(6_001, 70_000).unwrap();
        let expected = vec![(5_000, 0), (6_000, 200), (6_001, 70_000)];
        assert_eq!(read(dir.path(), 80_000).unwrap(), expected);
        // After a restart they go on; a mark beyond the end is none.
        drop(times);
        let mut times = Times::open(dir.path(), 60_000).unwrap();
        times.note(9_000, 60_000).unwrap();
        assert_eq!(
            read(dir.path(), 80_000).unwrap(),
            vec![(5_000, 0), (6_000, 200), (9_000, 60_000)]
        );
    }

    #[test]
    fn a_log_of_days_keeps_a_small_file() {
        let dir = tempfile::tempdir().unwrap();
        let mut times = Times::open(dir.path(), 0).unwrap();
        for second in 0..100_000u64 {
            times.note(second as i64 * 1000, second * 10).unwrap();
        }
        let marks = read(dir.path(), u64::MAX).unwrap();
        assert!(
            marks.len() <= MOST && marks.len() > MOST / 4,
            "{}",
            marks.len()
        );
        assert_eq!(marks.first(), Some(&(0, 0)));
        assert!(marks.is_sorted());
        let size = std::fs::metadata(dir.path().join(FILE)).unwrap().len();
        assert!(size <= 16 * MOST as u64);
    }
}
