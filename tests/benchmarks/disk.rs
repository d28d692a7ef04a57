//! What the disk alone takes to keep bytes: the floor under everything durable.

use super::samples::Samples;
use anyhow::Result;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// As SQLite's journal: written over from its beginning once it has this size, so that no write makes the file grow.
const FILE_BYTES: u64 = 4 << 20;

/// A file that is written in place, each write followed by `fdatasync`.
#[derive(Debug)]
pub(crate) struct Probe {
    file: File,
    at: u64,
    piece: Vec<u8>,
}

impl Probe {
    /// Pieces of this size, in a file below this folder.
    pub(crate) fn new(folder: &Path, piece: usize) -> Result<Probe> {
        let file = File::create(folder.join("probe"))?;
        let noise: Vec<u8> = (0..FILE_BYTES).map(|n| (n % 251) as u8).collect();
        file.write_all_at(&noise, 0)?;
        file.sync_all()?;
        Ok(Probe {
            file,
            at: 0,
            piece: vec![0x5a; piece],
        })
    }

    fn write(&mut self) -> Result<()> {
        if self.at + self.piece.len() as u64 > FILE_BYTES {
            self.at = 0;
        }
        self.file.write_all_at(&self.piece, self.at)?;
        self.at += self.piece.len() as u64;
        self.file.sync_data()?;
        Ok(())
    }

    /// One write after the other; how many a second.
    pub(crate) fn at_full_speed(&mut self, time: Duration) -> Result<f64> {
        let begun = Instant::now();
        let mut count = 0_u32;
        while begun.elapsed() < time {
            self.write()?;
            count += 1;
        }
        Ok(f64::from(count) / begun.elapsed().as_secs_f64())
    }

    /// A write is due at each tick; how long each took by itself.
    pub(crate) fn at_pace(&mut self, count: u32, tick: Duration) -> Result<Samples> {
        let begun = Instant::now();
        let mut times = Samples::default();
        for n in 0..count {
            let due = begun + tick * n;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            let begun = Instant::now();
            self.write()?;
            times.add_time(begun.elapsed());
        }
        Ok(times)
    }
}
