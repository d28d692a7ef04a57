//! The serial console's file: what is new in it, and its tail as text.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Most that one look reads; a guest that writes faster is caught up with by the next ones.
const LOOK_BYTES: u64 = 64 * 1024;

/// Follows the file from its beginning, through rotation by virtlogd.
#[derive(Debug)]
pub(super) struct ConsoleReader {
    path: PathBuf,
    inode: u64,
    offset: u64,
}

impl ConsoleReader {
    pub(super) fn new(path: PathBuf) -> ConsoleReader {
        ConsoleReader {
            path,
            inode: 0,
            offset: 0,
        }
    }

    /// What was written since the last look, a bounded part of it.
    pub(super) fn read_new(&mut self) -> io::Result<Vec<u8>> {
        let mut new = Vec::new();
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            // Between the two halves of a rotation.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(new),
            Err(error) => return Err(error),
        };
        let metadata = file.metadata()?;
        if metadata.ino() != self.inode || metadata.len() < self.offset {
            self.inode = metadata.ino();
            self.offset = 0;
        }
        if metadata.len() > self.offset {
            file.seek(SeekFrom::Start(self.offset))?;
            file.take(LOOK_BYTES).read_to_end(&mut new)?;
            self.offset += new.len() as u64;
        }
        Ok(new)
    }
}

/// Finds a text in pieces that come one after the other.
#[derive(Debug)]
pub(super) struct MarkerSearch {
    marker: Vec<u8>,
    /// The end of what was searched: less than a marker's length.
    carried: Vec<u8>,
}

impl MarkerSearch {
    pub(super) fn new(marker: &str) -> MarkerSearch {
        MarkerSearch {
            marker: marker.as_bytes().to_vec(),
            carried: Vec::new(),
        }
    }

    pub(super) fn is_found_in(&mut self, piece: &[u8]) -> bool {
        if self.marker.is_empty() {
            return true;
        }
        self.carried.extend_from_slice(piece);
        let found = self
            .carried
            .windows(self.marker.len())
            .any(|window| window == self.marker);
        let surplus = self.carried.len().saturating_sub(self.marker.len() - 1);
        self.carried.drain(..surplus);
        found
    }
}

/// Empties the file when it is longer than `most`: where no virtlogd keeps it short, a guest could fill the disk with
/// it. QEMU appends, and so goes on at the new end.
pub(super) fn keep_short(path: &Path, most: u64) -> io::Result<()> {
    if std::fs::metadata(path)?.len() > most {
        File::options().write(true).open(path)?.set_len(0)?;
    }
    Ok(())
}

/// The last bytes as text; where the file was just rotated, with the end of the one before.
pub(super) fn read_tail(path: &Path, max_bytes: usize) -> String {
    let mut bytes = last_bytes(path, max_bytes).unwrap_or_default();
    if bytes.len() < max_bytes {
        let mut rotated = path.as_os_str().to_owned();
        rotated.push(".0");
        if let Ok(mut before) = last_bytes(Path::new(&rotated), max_bytes - bytes.len()) {
            before.append(&mut bytes);
            bytes = before;
        }
    }
    clean(&String::from_utf8_lossy(&bytes))
}

fn last_bytes(path: &Path, max_bytes: usize) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let start = file.metadata()?.len().saturating_sub(max_bytes as u64);
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(max_bytes as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Text that a page or a terminal can show: no control characters but newline and tab, no escape sequences.
pub(super) fn clean(text: &str) -> String {
    let mut cleaned = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\n' | '\t' => cleaned.push(character),
            // A control sequence (colour, cursor): parameters up to its final letter.
            '\u{1b}' if characters.peek() == Some(&'[') => {
                characters.next();
                while characters.next_if(|c| (' '..='?').contains(c)).is_some() {}
                characters.next_if(|c| ('@'..='~').contains(c));
            }
            control if control.is_control() => {}
            other => cleaned.push(other),
        }
    }
    cleaned
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_console_that_grows_without_end_is_emptied_and_followed_on() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("console.log");
        let append = |text: &[u8]| {
            let mut file = File::options()
                .create(true)
                .append(true)
                .open(&path)
                .expect("opened");
            io::Write::write_all(&mut file, text).expect("written");
        };
        append(&[b'x'; 100]);
        let mut reader = ConsoleReader::new(path.clone());
        assert_eq!(reader.read_new().expect("read").len(), 100);
        keep_short(&path, 100).expect("kept");
        assert_eq!(reader.read_new().expect("read"), b"");
        append(b"y");
        keep_short(&path, 100).expect("emptied");
        append(b"ready");
        assert_eq!(reader.read_new().expect("read"), b"ready");
    }

    #[test]
    fn a_marker_split_over_two_looks_is_found() {
        let mut search = MarkerSearch::new("Server listening");
        assert!(!search.is_found_in(b"[    1.2] Server li"));
        assert!(!search.is_found_in(b"st"));
        assert!(search.is_found_in(b"ening on 0.0.0.0"));
    }

    #[test]
    fn the_file_is_followed_through_rotation_and_truncation() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("console.log");
        let mut reader = ConsoleReader::new(path.clone());
        assert_eq!(reader.read_new().expect("no file yet"), b"");
        fs::write(&path, "one").expect("written");
        assert_eq!(reader.read_new().expect("read"), b"one");
        assert_eq!(reader.read_new().expect("read"), b"");
        fs::rename(&path, folder.path().join("console.log.0")).expect("rotated");
        fs::write(&path, "two, longer").expect("written");
        assert_eq!(reader.read_new().expect("read"), b"two, longer");
        fs::write(&path, "3").expect("truncated");
        assert_eq!(reader.read_new().expect("read"), b"3");
        assert_eq!(read_tail(&path, 3), "ne3");
        assert_eq!(read_tail(&folder.path().join("none"), 10), "");
    }

    #[test]
    fn the_tail_is_safe_to_show() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("console.log");
        fs::write(&path, b"\x1b[1;31mred\x1b[0m\r\n\ttab \x07\xff\x1b[2Jend").expect("written");
        assert_eq!(read_tail(&path, 1000), "red\n\ttab \u{fffd}end");
        assert_eq!(read_tail(&path, 3), "end");
    }
}
