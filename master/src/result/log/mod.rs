//! Job logs: byte streams in files, never rows.
//!
//! ```text
//!  session ─► LogWriter ─► segments ──seal──► frames (zstd) ─► object store, row in `logs`
//!                             │                    │
//!  followers ◄── chunk(from) ─┴────────────────────┘      the same offsets before and after
//!            ◄── wait_beyond(offset)
//! ```
//!
//! An offset counts the bytes of the whole stream, from the first; it never changes its meaning, not across a restart,
//! not when the cap leaves out the middle, not when the log is sealed. A reader that is slow, or gone, costs the job
//! nothing: it reads files on its own, and no queue is kept for it.

mod find;
mod frames;
mod layout;
mod live;
mod mask;
mod notice;
mod seal;
mod times;
mod writer;

pub use mask::{Mask, Masking};
pub use writer::{LogWriter, Synced};

use crate::model::JobId;
use crate::result::objects::{ObjectError, Objects};
use crate::store::results::LogRow;
use crate::store::{Store, StoreError};
use bytes::Bytes;
use find::Whereabouts;
use frames::Frames;
use jiff::Timestamp;
use live::{Live, Read};
use notice::notice;
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};

/// What a log may have on disk when nothing else is configured.
pub const DEFAULT_CAP_BYTES: u64 = 200 << 20;
/// Most bytes of one chunk; a reader that asks for more gets this much.
const MOST_CHUNK: usize = 8 << 20;
/// How often a reader looks again when a segment went away under it. Each time the log has moved on by a segment.
const LOOKS: usize = 16;

/// The logs of all jobs; clones share them.
#[derive(Debug, Clone)]
pub struct Logs {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    cap: u64,
    store: Store,
    objects: Objects,
    /// Logs in use by somebody; the entry dies with its last user, for the files tell all of it.
    live: Mutex<HashMap<JobId, Weak<Live>>>,
    frames: Frames,
}

/// A piece of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    pub bytes: Bytes,
    /// The offset to ask for next.
    pub next: u64,
    /// No more will come, and `next` is the end.
    pub complete: bool,
}

/// How far a log has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    pub length: u64,
    /// No more will come.
    pub complete: bool,
}

/// A log could not be written, read or sealed: ours, never the suite's.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("cannot {action} the log of {job} in {path}: {source}")]
    Io {
        action: &'static str,
        job: JobId,
        path: String,
        source: io::Error,
    },
    #[error("cannot use the folder {path} for logs: {source}")]
    Folder { path: String, source: io::Error },
    #[error("the log of {job} has a writer already")]
    Busy { job: JobId },
    #[error("the log of {job} is complete: nothing can be added")]
    Complete { job: JobId },
    #[error("the log of {job} is not sealed, because the job runs again")]
    Overtaken { job: JobId },
    #[error("a write to the log of {job} was abandoned: open the writer again")]
    Abandoned { job: JobId },
    #[error("the sealed log of {job} is damaged: {reason}")]
    Damaged { job: JobId, reason: String },
    #[error("cannot reach the record of the log of {job}: {source}")]
    Store { job: JobId, source: StoreError },
    #[error("the log of {job}: {source}")]
    Object { job: JobId, source: ObjectError },
    #[error("a thread that worked on a log died: {source}")]
    Thread {
        #[from]
        source: tokio::task::JoinError,
    },
}

impl LogError {
    /// Whether there was no room for it: there may be later.
    pub fn is_disk_full(&self) -> bool {
        let LogError::Io { source, .. } = self else {
            return false;
        };
        matches!(
            source.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        )
    }

    fn io(action: &'static str, job: JobId, path: &Path, source: io::Error) -> LogError {
        LogError::Io {
            action,
            job,
            path: path.display().to_string(),
            source,
        }
    }
}

impl Logs {
    /// `dir` is where logs grow, `cap_bytes` what one of them may have there (at least 4 KiB): half for its head and
    /// half for its tail. A log that was begun with another cap keeps it.
    pub fn open(
        dir: PathBuf,
        cap_bytes: u64,
        store: Store,
        objects: Objects,
    ) -> Result<Logs, LogError> {
        std::fs::create_dir_all(&dir).map_err(|source| LogError::Folder {
            path: dir.display().to_string(),
            source,
        })?;
        Ok(Logs {
            shared: Arc::new(Shared {
                dir,
                cap: cap_bytes.max(4096),
                store,
                frames: Frames::new(objects.clone()),
                objects,
                live: Mutex::default(),
            }),
        })
    }

    /// Begins the job's log, or continues it at its end. One writer per job at a time.
    pub async fn writer(&self, job: JobId) -> Result<LogWriter, LogError> {
        let live = match self.find(job).await? {
            Whereabouts::Live(live) => live,
            Whereabouts::Sealed(_) => return Err(LogError::Complete { job }),
        };
        if live.progress().complete {
            return Err(LogError::Complete { job });
        }
        live.claim_writer()?;
        LogWriter::begin(live).await
    }

    /// At most `max` bytes from offset `from` on; fewer may come before the end. Where the cap left bytes out, a line
    /// that says so stands in their place. A job that has no log yet has an empty one.
    pub async fn chunk(&self, job: JobId, from: u64, max: usize) -> Result<Chunk, LogError> {
        let max = max.clamp(1, MOST_CHUNK);
        for _ in 0..LOOKS {
            match self.find(job).await? {
                Whereabouts::Sealed(row) => return self.chunk_of_sealed(&row, from, max).await,
                Whereabouts::Live(live) => match self.chunk_of_live(live, from, max).await {
                    // A segment was dropped, or the log was sealed, since we looked.
                    Err(LogError::Io { source, .. })
                        if source.kind() == io::ErrorKind::NotFound => {}
                    result => return result,
                },
            }
        }
        let path = self.folder(job);
        let gone = io::Error::from(io::ErrorKind::NotFound);
        Err(LogError::io("read", job, &path, gone))
    }

    /// Waits until the log is longer than `offset`, or is complete. The deadline is the caller's.
    pub async fn wait_beyond(&self, job: JobId, offset: u64) -> Result<Progress, LogError> {
        let live = match self.find(job).await? {
            Whereabouts::Live(live) => live,
            Whereabouts::Sealed(row) => {
                return Ok(Progress {
                    length: row.length,
                    complete: true,
                });
            }
        };
        let mut watch = live.watch();
        let reached = watch
            .wait_for(|progress| progress.complete || progress.length > offset)
            .await;
        // The sender lives as long as `live`, which is ours.
        Ok(reached.map_or_else(|_| live.progress(), |progress| *progress))
    }

    /// Bytes of the whole stream so far, those left out included.
    pub async fn length(&self, job: JobId) -> Result<u64, LogError> {
        Ok(match self.find(job).await? {
            Whereabouts::Live(live) => live.progress().length,
            Whereabouts::Sealed(row) => row.length,
        })
    }

    /// When the log reached which offset, in order and sparse: the byte at an offset came no earlier than the last time
    /// at or before it.
    pub async fn times(&self, job: JobId) -> Result<Vec<(Timestamp, u64)>, LogError> {
        let marks = match self.find(job).await? {
            Whereabouts::Live(live) => {
                blocking(move || {
                    times::read(&live.folder, live.progress().length)
                        .map_err(|e| LogError::io("read the times of", live.job, &live.folder, e))
                })
                .await??
            }
            Whereabouts::Sealed(row) => row.sealed.times.clone(),
        };
        Ok(marks
            .into_iter()
            .map(|(millis, offset)| {
                let time = Timestamp::from_millisecond(millis).unwrap_or(Timestamp::UNIX_EPOCH);
                (time, offset)
            })
            .collect())
    }

    /// Jobs whose logs are still in files: those to go on with, or to seal, after a start.
    pub async fn unsealed(&self) -> Result<Vec<JobId>, LogError> {
        let dir = self.shared.dir.clone();
        blocking(move || list_folders(&dir)).await?
    }

    /// Bytes of the job's log that are in files here.
    pub async fn waiting_bytes(&self, job: JobId) -> Result<u64, LogError> {
        let folder = self.folder(job);
        blocking(move || {
            live::bytes_in(&folder).map_err(|e| LogError::io("look at", job, &folder, e))
        })
        .await?
    }

    /// No more comes: readers that follow learn it. Sealing is for later.
    pub async fn close(&self, job: JobId) -> Result<(), LogError> {
        if let Whereabouts::Live(live) = self.find(job).await? {
            live.tell_complete();
        }
        Ok(())
    }

    /// Forgets the job's log, sealed or not, because the job runs again. An object is left: the new log's will take its
    /// place, and the store need not be there for this.
    pub async fn begin_anew(&self, job: JobId) -> Result<(), LogError> {
        let live = match self.find(job).await? {
            Whereabouts::Live(live) => Some(live),
            Whereabouts::Sealed(_) => None,
        };
        let _lease = match &live {
            Some(live) => Some(live.lease_from_sealing().await?),
            None => None,
        };
        // The record first: with it and without files the log would seem to be as it was.
        self.forget(job).await?;
        self.remove_segments(job).await?;
        if let Some(live) = live {
            live.tell_complete();
        }
        Ok(())
    }

    /// Removes the sealed log of a job that has ended, and notes that; nothing happens to the log of one that runs again.
    pub async fn remove(&self, job: JobId, now: Timestamp) -> Result<(), LogError> {
        // The object first: without its record nobody would find it again.
        let deleted = self.shared.objects.delete(&seal::key(job)).await;
        deleted.map_err(|source| LogError::Object { job, source })?;
        let noted = self.shared.store.note_removed_log(job, now).await;
        if noted.map_err(|source| LogError::Store { job, source })? {
            self.shared.frames.forget(job);
        }
        Ok(())
    }

    async fn chunk_of_live(
        &self,
        live: Arc<Live>,
        from: u64,
        max: usize,
    ) -> Result<Chunk, LogError> {
        blocking(move || {
            // Before the read: nothing comes after it was true.
            let complete = live.progress().complete;
            let read = live
                .read(from, max)
                .map_err(|e| LogError::io("read", live.job, &live.folder, e))?;
            let (bytes, next) = match read {
                Read::Bytes(bytes) => {
                    let next = from + bytes.len() as u64;
                    (Bytes::from(bytes), next)
                }
                Read::Omitted { next } => (notice(next - from, live.cap), next),
                Read::Beyond { length } => (Bytes::new(), length),
            };
            Ok(Chunk {
                bytes,
                next,
                complete: complete && next >= live.progress().length,
            })
        })
        .await?
    }

    async fn chunk_of_sealed(
        &self,
        row: &LogRow,
        from: u64,
        max: usize,
    ) -> Result<Chunk, LogError> {
        let (bytes, next) = if from >= row.length {
            (Bytes::new(), row.length)
        } else if (row.omitted_from..row.omitted_to).contains(&from) {
            (
                notice(row.omitted_to - from, row.sealed.cap),
                row.omitted_to,
            )
        } else {
            let bytes = self.shared.frames.read(row, from, max).await?;
            let next = from + bytes.len() as u64;
            (bytes, next)
        };
        Ok(Chunk {
            bytes,
            next,
            complete: next >= row.length,
        })
    }

    fn folder(&self, job: JobId) -> PathBuf {
        self.shared.dir.join(job.to_string())
    }
}

fn list_folders(dir: &Path) -> Result<Vec<JobId>, LogError> {
    let error = |source| LogError::Folder {
        path: dir.display().to_string(),
        source,
    };
    let mut jobs = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(error)? {
        let name = entry.map_err(error)?.file_name();
        // Only our own names: what a person left here is not ours to seal.
        let job = name.to_str().and_then(|name| name.strip_prefix("job-"));
        if let Some(number) = job.and_then(|number| number.parse().ok()) {
            jobs.push(JobId(number));
        }
    }
    jobs.sort_unstable();
    Ok(jobs)
}

/// Runs blocking file work on a thread for it.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, LogError> {
    Ok(tokio::task::spawn_blocking(work).await?)
}

#[cfg(test)]
mod tests;
