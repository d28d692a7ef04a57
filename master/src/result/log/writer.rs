//! The one writer of a log.
//!
//! ```text
//!  append(bytes) ──► a thread for blocking calls: write at the end of the segment, count, wake followers
//!  sync()        ──► the same: fsync of every segment written since, so that the guest may forget its copy
//!  sync_beside() ──► a thread of its own: the same while more is appended
//! ```
//!
//! The files travel into the thread and back with each call. When the caller is cancelled in between, they stay with the
//! thread until it is done, and only then may another writer begin.

use super::live::{Lease, Live, remove_if_there};
use super::times::Times;
use super::{LogError, blocking};
use crate::model::JobId;
use jiff::Timestamp;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// A full disk is waited out this long. What reads the guest's output waits with it, and with that a wish to cancel.
const FULL_DISK_PATIENCE: Duration = Duration::from_secs(5 * 60);
const FULL_DISK_PAUSE: Duration = Duration::from_millis(500);

/// Appends to the log of a job.
#[derive(Debug)]
pub struct LogWriter {
    live: Arc<Live>,
    /// Away while a call is under way, and for good when that call was cancelled.
    files: Option<Box<Files>>,
}

#[derive(Debug)]
struct Files {
    live: Arc<Live>,
    buffer: Vec<u8>,
    /// The segment that grows, by its first offset.
    open: Option<(u64, File)>,
    /// Segments that may not be on the disk yet: at first all, for a process before this one may have written them.
    unsynced: Vec<u64>,
    /// Files created in the folder, and how many of them the last sync made durable.
    folder_changes: u64,
    folder_synced: u64,
    times: Times,
    /// Last: it goes after the files are closed.
    _lease: Lease,
}

impl LogWriter {
    /// Continues the log at its end. The writer's place must have been claimed; it is given back when this is dropped.
    pub(super) async fn begin(live: Arc<Live>) -> Result<LogWriter, LogError> {
        let mut writer = LogWriter {
            live: live.clone(),
            files: None,
        };
        let lease = live.lease().await?;
        if live.progress().complete {
            return Err(LogError::Complete { job: live.job });
        }
        let files = blocking(move || {
            let error = |e| LogError::io("continue", live.job, &live.folder, e);
            Files::open(live.clone(), lease).map_err(error)
        })
        .await??;
        writer.files = Some(Box::new(files));
        Ok(writer)
    }

    pub fn job(&self) -> JobId {
        self.live.job
    }

    /// Bytes of the whole stream, those left out included: the offset of the next byte.
    #[expect(clippy::len_without_is_empty, reason = "it is a position")]
    pub fn len(&self) -> u64 {
        self.live.progress().length
    }

    /// Adds bytes at the end; readers see them at once. Where the disk is full it waits a while for room, since the guest
    /// keeps what comes next. After an error [`LogWriter::len`] tells how many were taken.
    pub async fn append(&mut self, bytes: &[u8]) -> Result<(), LogError> {
        let start = self.len();
        let until = Instant::now() + FULL_DISK_PATIENCE;
        loop {
            let taken = usize::try_from(self.len() - start).unwrap_or(usize::MAX);
            let rest = bytes.get(taken..).unwrap_or_default();
            match self.append_once(rest).await {
                Err(error) if error.is_disk_full() && Instant::now() < until => {
                    tracing::debug!(job = %self.live.job, %error, "waiting for room");
                    tokio::time::sleep(FULL_DISK_PAUSE).await;
                }
                result => return result,
            }
        }
    }

    async fn append_once(&mut self, bytes: &[u8]) -> Result<(), LogError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let mut files = self.take_files()?;
        files.buffer.clear();
        files.buffer.extend_from_slice(bytes);
        let now = Timestamp::now().as_millisecond();
        let (files, result) = blocking(move || {
            let result = files.append(now);
            (files, result)
        })
        .await?;
        self.files = Some(files);
        result.map_err(|e| LogError::io("write", self.live.job, &self.live.folder, e))
    }

    /// Makes all that was appended outlive a power cut; returns the offset up to which that holds. It waits for room as
    /// [`LogWriter::append`] does.
    pub async fn sync(&mut self) -> Result<u64, LogError> {
        let until = Instant::now() + FULL_DISK_PATIENCE;
        loop {
            match self.sync_once().await {
                Err(error) if error.is_disk_full() && Instant::now() < until => {
                    tokio::time::sleep(FULL_DISK_PAUSE).await;
                }
                result => return result,
            }
        }
    }

    async fn sync_once(&mut self) -> Result<u64, LogError> {
        let mut files = self.take_files()?;
        let (files, result) = blocking(move || {
            let result = files.sync();
            (files, result)
        })
        .await?;
        self.files = Some(files);
        result.map_err(|e| LogError::io("sync", self.live.job, &self.live.folder, e))
    }

    /// [`LogWriter::sync`] beside what is appended meanwhile; its end is for [`LogWriter::synced`].
    pub fn sync_beside(
        &self,
    ) -> Result<impl Future<Output = Result<Synced, LogError>> + Send + use<>, LogError> {
        let live = self.live.clone();
        let job = live.job;
        let files = self.files.as_ref().ok_or(LogError::Abandoned { job })?;
        let failed = move |error| LogError::io("sync", job, &live.folder, error);
        let unsynced = files.unsynced().map_err(&failed)?;
        Ok(async move { blocking(move || unsynced.sync()).await?.map_err(failed) })
    }

    /// Notes what has reached the disk, which need not be synced again; returns the offset up to which all has.
    pub fn synced(&mut self, synced: &Synced) -> u64 {
        if let Some(files) = &mut self.files {
            files.note(synced);
        }
        synced.length
    }

    fn take_files(&mut self) -> Result<Box<Files>, LogError> {
        self.files
            .take()
            .ok_or(LogError::Abandoned { job: self.live.job })
    }
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        self.live.release_writer();
    }
}

impl Files {
    fn open(live: Arc<Live>, lease: Lease) -> io::Result<Files> {
        live.create_folder()?;
        live.remove_strays()?;
        let (length, unsynced) = {
            let layout = live.layout();
            (layout.length(), layout.names())
        };
        let times = Times::open(&live.folder, length)?;
        Ok(Files {
            live,
            buffer: Vec::new(),
            open: None,
            unsynced,
            folder_changes: 1,
            folder_synced: 0,
            times,
            _lease: lease,
        })
    }

    fn append(&mut self, now_millis: i64) -> io::Result<()> {
        self.times.note(now_millis, self.live.layout().length())?;
        let buffer = std::mem::take(&mut self.buffer);
        let result = self.write(&buffer);
        self.buffer = buffer;
        result
    }

    fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let place = self.live.layout().place();
            let room = usize::try_from(place.room).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            // At a position: what an earlier write left behind when the disk was full is written over.
            self.segment(place.segment)?.write_all_at(now, place.at)?;
            let (length, dropped) = {
                let mut layout = self.live.layout();
                let dropped = layout.grow(place, now.len() as u64);
                (layout.length(), dropped)
            };
            self.live.tell_length(length);
            for from in dropped {
                self.unsynced.retain(|unsynced| *unsynced != from);
                remove_if_there(&self.live.segment_path(from))?;
            }
            bytes = later;
        }
        Ok(())
    }

    /// The file of the segment that begins at `from`.
    fn segment(&mut self, from: u64) -> io::Result<&File> {
        let file = match self.open.take() {
            Some((open, file)) if open == from => file,
            Some(_) | None => {
                self.folder_changes += 1;
                if !self.unsynced.contains(&from) {
                    self.unsynced.push(from);
                }
                OpenOptions::new()
                    .write(true)
                    .create(true)
                    .truncate(false)
                    .open(self.live.segment_path(from))?
            }
        };
        let (_, file) = self.open.insert((from, file));
        Ok(file)
    }

    fn sync(&mut self) -> io::Result<u64> {
        let synced = self.unsynced()?.sync()?;
        self.note(&synced);
        Ok(synced.length)
    }

    /// What has to be synced for the log to be on the disk as it is now.
    fn unsynced(&self) -> io::Result<Unsynced> {
        Ok(Unsynced {
            live: self.live.clone(),
            times: self.times.file()?,
            folder: self.folder_synced < self.folder_changes,
            target: Synced {
                length: self.live.layout().length(),
                segments: self.unsynced.clone(),
                open: self.open.as_ref().map(|(from, _)| *from),
                folder_changes: self.folder_changes,
            },
        })
    }

    fn note(&mut self, synced: &Synced) {
        // The one that was open may have grown further.
        self.unsynced
            .retain(|from| synced.open == Some(*from) || !synced.segments.contains(from));
        self.folder_synced = self.folder_synced.max(synced.folder_changes);
    }
}

/// What may not be on the disk yet.
struct Unsynced {
    live: Arc<Live>,
    times: File,
    folder: bool,
    target: Synced,
}

/// What has reached the disk.
#[derive(Debug)]
pub struct Synced {
    length: u64,
    segments: Vec<u64>,
    open: Option<u64>,
    folder_changes: u64,
}

impl Unsynced {
    fn sync(self) -> io::Result<Synced> {
        for from in &self.target.segments {
            match File::open(self.live.segment_path(*from)) {
                Ok(file) => file.sync_data()?,
                // Dropped since, because the log has reached its cap.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        self.times.sync_data()?;
        if self.folder {
            File::open(&self.live.folder)?.sync_all()?;
            if let Some(parent) = self.live.folder.parent() {
                File::open(parent)?.sync_all()?;
            }
        }
        Ok(self.target)
    }
}
