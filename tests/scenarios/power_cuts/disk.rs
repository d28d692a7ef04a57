//! What a disk may have of an SQLite database after a power cut: all that was synced, and of the rest any part.
//!
//! The database keeps a log (`-wal`), and each commit syncs it before it returns. There is one writer, so every
//! transaction but the last in the log was synced. The file itself gets pages from the synced part of the log, in no
//! order, whenever a checkpoint runs: until the log begins anew, any sector of such a page may be as before or as in the
//! log. The index of the log (`-shm`) is memory, and gone.

use anyhow::{Context, Result};
use rand::Rng;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const LOG_HEADER: usize = 32;
const FRAME_HEADER: usize = 24;
/// Written whole or not at all.
const SECTOR: usize = 512;

/// A database and its log, as bytes.
#[derive(Debug, Clone)]
pub(super) struct Disk {
    database: Vec<u8>,
    log: Vec<u8>,
}

/// A page in the log.
#[derive(Debug, Clone, Copy)]
struct Frame {
    /// Counted from 1.
    page: usize,
    /// Where the frame ends in the log; the page's bytes are its last.
    end: usize,
    /// The last of its transaction.
    commits: bool,
}

impl Disk {
    pub(super) fn read(database: &Path) -> Result<Disk> {
        let read = |path: &Path| {
            std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
        };
        Ok(Disk {
            database: read(database)?,
            log: read(&beside(database, "-wal"))?,
        })
    }

    pub(super) fn write(&self, database: &Path) -> Result<()> {
        std::fs::write(database, &self.database)?;
        std::fs::write(beside(database, "-wal"), &self.log)?;
        let index = beside(database, "-shm");
        if index.exists() {
            std::fs::remove_file(index)?;
        }
        Ok(())
    }

    /// Up to here the log is synced when the last transaction in it is not.
    pub(super) fn synced(&self) -> usize {
        let frames = self.frames();
        let mut commits = frames.iter().rev().filter(|frame| frame.commits);
        let before = match frames.last() {
            Some(last) if last.commits => commits.nth(1),
            // Of the last one there is only the beginning.
            Some(_) | None => commits.next(),
        };
        before.map_or(LOG_HEADER.min(self.log.len()), |frame| frame.end)
    }

    /// As it may be after a power cut when the log was synced up to there.
    pub(super) fn torn(&self, synced: usize, random: &mut impl Rng) -> Disk {
        let mut torn = self.clone();
        let unsynced = torn.log.get_mut(synced..).unwrap_or_default();
        if !unsynced.is_empty() {
            let first = SECTOR - synced % SECTOR;
            let (first, rest) = unsynced.split_at_mut(first.min(unsynced.len()));
            for sector in std::iter::once(first).chain(rest.chunks_mut(SECTOR)) {
                if random.random_bool(0.3) {
                    sector.fill(0);
                }
            }
            if random.random_bool(0.5) {
                let end = random.random_range(synced..torn.log.len());
                torn.log.truncate(end);
            }
        }
        let size = self.page_size();
        let synced_pages: BTreeMap<usize, usize> = self
            .frames()
            .iter()
            .filter(|frame| frame.end <= synced)
            .map(|frame| (frame.page, frame.end))
            .collect();
        for (page, end) in synced_pages {
            let (from, to) = ((page - 1) * size, page * size);
            if !random.random_bool(0.5) {
                continue;
            }
            if torn.database.len() < to {
                torn.database.resize(to, 0);
            }
            let new = self.log[end - size..end].chunks(SECTOR);
            for (old, new) in torn.database[from..to].chunks_mut(SECTOR).zip(new) {
                if random.random_bool(0.5) {
                    old.copy_from_slice(new);
                }
            }
        }
        torn
    }

    /// The frames since the log began anew: they bear its salts.
    fn frames(&self) -> Vec<Frame> {
        let size = self.page_size();
        let salts = self.log.get(16..24);
        let rest = self.log.get(LOG_HEADER..).unwrap_or_default();
        let frames = rest.chunks_exact(FRAME_HEADER + size).enumerate();
        frames
            .take_while(|(_, frame)| frame.get(8..16) == salts)
            .map(|(number, frame)| Frame {
                page: number_at(frame, 0),
                end: LOG_HEADER + (number + 1) * (FRAME_HEADER + size),
                commits: number_at(frame, 4) != 0,
            })
            .collect()
    }

    fn page_size(&self) -> usize {
        match number_at(&self.log, 8) {
            0 => 4096,
            size => size,
        }
    }
}

/// A number of four bytes, the highest first.
fn number_at(bytes: &[u8], at: usize) -> usize {
    let digits = bytes.get(at..at + 4).unwrap_or_default();
    digits
        .iter()
        .fold(0, |number, digit| number << 8 | usize::from(*digit))
}

fn beside(database: &Path, end: &str) -> PathBuf {
    PathBuf::from(format!("{}{end}", database.display()))
}
