//! Data frames from the connection, on their way into a file or an archive.
//!
//! ```text
//!   serve loop ──bounded queue──> worker thread (Unpack or Write) ──> disk, then one answer
//! ```
//!
//! The worker owns what it writes. If it fails it answers at once and goes on taking frames to the end of the data, so
//! that the connection stays usable.

use crate::outbox::Outbox;
use crate::{platform, unpack};
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use vivarium_protocol::ToMaster;

/// How many data frames may wait for the disk.
const QUEUE: usize = 8;

/// What is to be done with the data.
#[derive(Debug)]
pub(crate) enum Purpose {
    Unpack { dir: PathBuf, kept: Vec<PathBuf> },
    Write { path: PathBuf, executable: bool },
}

#[derive(Debug)]
enum Piece {
    Data(Vec<u8>),
    /// Everything has come. Its absence at the end of the queue means that the data was cut off.
    End,
}

/// Data on its way.
#[derive(Debug)]
pub(crate) struct Reception {
    pieces: SyncSender<Piece>,
    worker: JoinHandle<()>,
}

impl Reception {
    pub(crate) fn start(purpose: Purpose, outbox: Outbox) -> Result<Self> {
        let (pieces, queue) = sync_channel(QUEUE);
        let worker = std::thread::Builder::new()
            .name("receiver".into())
            .spawn(move || work(&purpose, Data::new(queue), &outbox))
            .context("cannot start a thread")?;
        Ok(Self { pieces, worker })
    }

    pub(crate) fn take(&self, data: Vec<u8>) {
        // The worker takes to the end whatever happens; if its thread is gone there is nobody to tell.
        self.pieces.send(Piece::Data(data)).ok();
    }

    /// Ends the data and waits for the answer to be on its way, so that the next request finds everything on disk.
    pub(crate) fn finish(self) {
        self.pieces.send(Piece::End).ok();
        drop(self.pieces);
        self.worker.join().ok();
    }

    /// Gives up in the middle of the data.
    pub(crate) fn abort(self) {
        drop(self.pieces);
        self.worker.join().ok();
    }
}

fn work(purpose: &Purpose, mut data: Data, outbox: &Outbox) {
    let (request, result) = match purpose {
        Purpose::Unpack { dir, kept } => (
            "unpack",
            unpack::unpack(dir, kept, &mut data).map(|entries| ToMaster::Unpacked { entries }),
        ),
        Purpose::Write { path, executable } => (
            "write",
            write(path, *executable, &mut data).map(|bytes| ToMaster::Written { bytes }),
        ),
    };
    match result {
        Ok(answer) => outbox.send(&answer),
        Err(error) => outbox.refuse(request, format_args!("{error:#}")),
    }
    .ok();
    std::io::copy(&mut data, &mut std::io::sink()).ok();
}

/// Writes beside the file and renames, so that nobody sees half of it.
fn write(path: &Path, executable: bool, data: &mut Data) -> Result<u64> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        bail!("cannot write {}: it names no file", path.display());
    };
    std::fs::create_dir_all(folder)
        .with_context(|| format!("cannot create {}", folder.display()))?;
    let mut beside = std::ffi::OsString::from(".vivarium-");
    beside.push(name);
    let beside = folder.join(beside);
    let mut write_beside = || -> Result<u64> {
        let mut file = File::create(&beside)?;
        let bytes = std::io::copy(data, &mut file)?;
        platform::set_executable(&file, executable)?;
        drop(file);
        platform::rename(&beside, path)?;
        Ok(bytes)
    };
    let written = write_beside();
    if written.is_err() {
        std::fs::remove_file(&beside).ok();
    }
    written.with_context(|| format!("cannot write {}", path.display()))
}

/// The queue as a byte stream.
#[derive(Debug)]
pub(crate) struct Data {
    queue: Receiver<Piece>,
    piece: Vec<u8>,
    taken: usize,
    ended: bool,
}

impl Data {
    fn new(queue: Receiver<Piece>) -> Self {
        Self {
            queue,
            piece: Vec::new(),
            taken: 0,
            ended: false,
        }
    }
}

impl Read for Data {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            let mut rest = self.piece.get(self.taken..).unwrap_or_default();
            if !rest.is_empty() {
                let count = rest.read(buffer)?;
                self.taken += count;
                return Ok(count);
            }
            if self.ended {
                return Ok(0);
            }
            match self.queue.recv() {
                Ok(Piece::Data(piece)) => {
                    self.piece = piece;
                    self.taken = 0;
                }
                Ok(Piece::End) => self.ended = true,
                Err(_) => {
                    self.ended = true;
                    return Err(std::io::Error::other("the data was cut off"));
                }
            }
        }
    }
}
