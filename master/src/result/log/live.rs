//! A log that still grows, or waits to be sealed: its files, and what is known of them in memory.
//!
//! ```text
//!  <data>/logs/job-204/00000000000000000000.seg   first offset of the stream in it
//!                      00000000000008388608.seg
//!                      times                      see `times.rs`
//!                      cap                        the cap it was begun with, in bytes
//!
//!  writer ──bytes──► segment file ──► layout ──► progress (watch) ──► followers wake
//!  reader ◄─────────── pread ◄─────── layout
//! ```
//!
//! Readers hold nothing that a writer waits for: they look at the layout, then read the file by themselves. A segment
//! that was dropped in between is missing, and they look again.

use super::layout::{Found, Layout, Segment};
use super::{LogError, Progress};
use crate::model::JobId;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, OwnedMutexGuard, watch};

const CAP_FILE: &str = "cap";
/// How long the next writer waits for a write of the one before, which was cancelled but still runs in its thread.
const LEASE_DEADLINE: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(super) struct Live {
    pub(super) job: JobId,
    pub(super) folder: PathBuf,
    /// The cap of this log. It is kept with it: the layout of the files follows from it.
    pub(super) cap: u64,
    layout: Mutex<Layout>,
    progress: watch::Sender<Progress>,
    /// Held by whoever may change the files: the writer, the sealing, the removal.
    lease: Arc<tokio::sync::Mutex<()>>,
    /// Told to whoever seals when the job runs again.
    pub(super) give_way: Notify,
    /// A [`super::LogWriter`] exists.
    writer: AtomicBool,
    /// The record in the database is there: read the object, not the files.
    sealed: AtomicBool,
}

/// The right to change the files of a log.
pub(super) type Lease = OwnedMutexGuard<()>;

impl Live {
    /// Looks at the files that are there; no folder is an empty log, with the cap that is configured.
    pub(super) fn open(job: JobId, folder: PathBuf, configured_cap: u64) -> io::Result<Live> {
        let cap = read_cap(&folder)?.unwrap_or(configured_cap);
        let layout = Layout::of_found(cap, list(&folder)?);
        let length = layout.length();
        Ok(Live {
            job,
            folder,
            cap,
            layout: Mutex::new(layout),
            progress: watch::Sender::new(Progress {
                length,
                complete: false,
            }),
            lease: Arc::default(),
            give_way: Notify::new(),
            writer: AtomicBool::new(false),
            sealed: AtomicBool::new(false),
        })
    }

    pub(super) fn layout(&self) -> MutexGuard<'_, Layout> {
        self.layout.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn progress(&self) -> Progress {
        *self.progress.borrow()
    }

    pub(super) fn watch(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// Tells the followers that the log has grown.
    pub(super) fn tell_length(&self, length: u64) {
        self.progress.send_modify(|p| p.length = length);
    }

    /// Tells the followers that no more will come.
    pub(super) fn tell_complete(&self) {
        self.progress.send_modify(|p| p.complete = true);
    }

    pub(super) fn is_sealed(&self) -> bool {
        self.sealed.load(Ordering::Acquire)
    }

    pub(super) fn set_sealed(&self) {
        self.sealed.store(true, Ordering::Release);
    }

    /// Takes the one place of a writer.
    pub(super) fn claim_writer(&self) -> Result<(), LogError> {
        match self.writer.swap(true, Ordering::AcqRel) {
            false => Ok(()),
            true => Err(LogError::Busy { job: self.job }),
        }
    }

    pub(super) fn release_writer(&self) {
        self.writer.store(false, Ordering::Release);
    }

    /// The right to change the files, for someone who is no writer.
    pub(super) async fn lease_without_writer(&self) -> Result<Lease, LogError> {
        if self.writer.load(Ordering::Acquire) {
            return Err(LogError::Busy { job: self.job });
        }
        self.lease().await
    }

    /// The same; a sealing under way gives it up.
    pub(super) async fn lease_from_sealing(&self) -> Result<Lease, LogError> {
        if self.lease.try_lock().is_err() {
            self.give_way.notify_one();
        }
        self.lease_without_writer().await
    }

    pub(super) async fn lease(&self) -> Result<Lease, LogError> {
        tokio::time::timeout(LEASE_DEADLINE, self.lease.clone().lock_owned())
            .await
            .map_err(|_| LogError::Busy { job: self.job })
    }

    pub(super) fn segment_path(&self, from: u64) -> PathBuf {
        self.folder.join(segment_name(from))
    }

    /// Reads at most `max` bytes of what is kept at `offset`, within one segment. Blocking.
    pub(super) fn read(&self, offset: u64, max: usize) -> io::Result<Read> {
        let found = self.layout().find(offset);
        match found {
            Found::Omitted { next } => Ok(Read::Omitted { next }),
            Found::Beyond { length } => Ok(Read::Beyond { length }),
            Found::Kept {
                segment,
                at,
                available,
            } => {
                let wanted = usize::try_from(available).unwrap_or(max).min(max);
                let mut bytes = vec![0; wanted];
                File::open(self.segment_path(segment))?.read_exact_at(&mut bytes, at)?;
                Ok(Read::Bytes(bytes))
            }
        }
    }

    /// Makes the folder and the file with the cap, if they are not there. Blocking.
    pub(super) fn create_folder(&self) -> io::Result<()> {
        std::fs::create_dir_all(&self.folder)?;
        if read_cap(&self.folder)?.is_none() {
            let new = self.folder.join("cap.new");
            let mut file = File::create(&new)?;
            writeln!(file, "{}", self.cap)?;
            file.sync_data()?;
            std::fs::rename(&new, self.folder.join(CAP_FILE))?;
        }
        Ok(())
    }

    /// Removes the segment files that are no part of the log. Blocking.
    pub(super) fn remove_strays(&self) -> io::Result<()> {
        for segment in list(&self.folder)? {
            if !self.layout().has(segment.from) {
                remove_if_there(&self.segment_path(segment.from))?;
            }
        }
        Ok(())
    }
}

pub(super) enum Read {
    Bytes(Vec<u8>),
    Omitted { next: u64 },
    Beyond { length: u64 },
}

pub(super) fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        Ok(()) | Err(_) => Ok(()),
    }
}

pub(super) fn remove_folder(path: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Bytes of all segments in a folder. Blocking.
pub(super) fn bytes_in(folder: &Path) -> io::Result<u64> {
    let segments = list(folder)?;
    Ok(segments
        .iter()
        .map(|segment| segment.to - segment.from)
        .sum())
}

fn read_cap(folder: &Path) -> io::Result<Option<u64>> {
    match std::fs::read_to_string(folder.join(CAP_FILE)) {
        Ok(text) => Ok(text.trim().parse().ok()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

fn segment_name(from: u64) -> String {
    format!("{from:020}.seg")
}

/// The offset that is a segment's name. Files with any other name are none of ours.
fn offset_in(name: &str) -> Option<u64> {
    let from = name.strip_suffix(".seg")?.parse().ok()?;
    (segment_name(from) == name).then_some(from)
}

fn list(folder: &Path) -> io::Result<Vec<Segment>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut segments = Vec::new();
    for entry in entries {
        let entry = entry?;
        let Some(from) = entry.file_name().to_str().and_then(offset_in) else {
            continue;
        };
        // An empty one counts: after a power cut it tells that bytes are missing which the cap did not leave out.
        if let Some(to) = from.checked_add(entry.metadata()?.len()) {
            segments.push(Segment { from, to });
        }
    }
    Ok(segments)
}
