//! Sealing: from segments on disk to one compressed object.
//!
//! ```text
//!  complete ─► upload `logs/job-204.log.zst` ─► row in `logs` ─► remove the folder
//!     └── a crash anywhere: do all of it again; the object is overwritten, the row replaced, the folder gone already
//!
//!  object:  [frame: 1 MiB of the head] … [frame: the notice] [frame: 1 MiB of the tail] …
//! ```
//!
//! Frames are compressed independently, so a range is read by fetching its frames; together they are what `zstd -d`
//! reads. The notice of left-out bytes has a frame for that reader, and none in the record: offsets do not count it.

use super::live::{Live, Read, remove_folder};
use super::{LogError, Logs, Whereabouts, blocking, notice, times};
use crate::model::JobId;
use crate::result::objects::Upload;
use crate::store::results::{Frame, LogRow, SealedLog};
use bytes::Bytes;
use std::io;
use std::sync::Arc;

/// Raw bytes of a frame: what is decompressed to read one byte.
const FRAME_BYTES: usize = 1 << 20;
/// Three is zstd's own default: logs shrink to a tenth, faster than a disk delivers them.
const LEVEL: i32 = 3;

impl Logs {
    /// The job has ended: compresses its log into the object store, records that, and removes the files. Repeating it is
    /// safe, and is what to do after a crash. Refused while a writer is open, or where the job has not ended. A job
    /// without output is sealed empty.
    pub async fn seal(&self, job: JobId) -> Result<(), LogError> {
        let live = match self.find(job).await? {
            Whereabouts::Sealed(_) => return self.remove_segments(job).await,
            Whereabouts::Live(live) => live,
        };
        let _lease = live.lease_without_writer().await?;
        if !live.is_sealed() {
            let row = tokio::select! {
                biased;
                () = live.give_way.notified() => return Err(LogError::Overtaken { job }),
                row = self.upload_log(&live) => row?,
            };
            crate::crash::point("log_uploaded");
            self.record_sealed(&live, row).await?;
            crate::crash::point("log_recorded");
        }
        self.remove_segments(job).await
    }

    /// First step: the object.
    pub(super) async fn upload_log(&self, live: &Arc<Live>) -> Result<LogRow, LogError> {
        let job = live.job;
        let (length, (omitted_from, omitted_to)) = {
            let layout = live.layout();
            (layout.length(), layout.omitted())
        };
        let times = {
            let live = live.clone();
            let error =
                move |live: &Live, e| LogError::io("read the times of", job, &live.folder, e);
            blocking(move || times::read(&live.folder, length).map_err(|e| error(&live, e)))
                .await??
        };
        let mut sealed = SealedLog {
            cap: live.cap,
            object: None,
            frames: Vec::new(),
            times,
        };
        if length > 0 {
            let key = key(job);
            let error = |source| LogError::Object { job, source };
            let upload = self.shared.objects.upload(&key).map_err(error)?;
            let mut sealing = Sealing {
                live,
                upload,
                at: 0,
                frames: Vec::new(),
            };
            sealing.add_range(0, omitted_from).await?;
            if omitted_to > omitted_from {
                let notice = notice(omitted_to - omitted_from, live.cap);
                let compressed = blocking(move || compress(&notice)).await?;
                sealing.add(compressed.map_err(|e| sealing.io(e))?).await?;
            }
            sealing.add_range(omitted_to, length).await?;
            sealed.frames = sealing.frames;
            sealing.upload.finish().await.map_err(error)?;
            sealed.object = Some(key);
        } else {
            // An earlier run of the job may have left one.
            let deleted = self.shared.objects.delete(&key(job)).await;
            deleted.map_err(|source| LogError::Object { job, source })?;
        }
        Ok(LogRow {
            job,
            length,
            omitted_from,
            omitted_to,
            sealed,
        })
    }

    /// Second step: the record. From now on the object is read.
    pub(super) async fn record_sealed(&self, live: &Live, row: LogRow) -> Result<(), LogError> {
        let job = row.job;
        let recorded = self.shared.store.record_log(&row).await;
        if !recorded.map_err(|source| LogError::Store { job, source })? {
            return Err(LogError::Overtaken { job });
        }
        self.shared.frames.remember(row);
        live.set_sealed();
        live.tell_complete();
        Ok(())
    }

    /// Last step: the files.
    pub(super) async fn remove_segments(&self, job: JobId) -> Result<(), LogError> {
        let folder = self.folder(job);
        blocking(move || {
            remove_folder(&folder).map_err(|e| LogError::io("remove", job, &folder, e))
        })
        .await?
    }
}

/// Where the sealed log of a job is.
pub(super) fn key(job: JobId) -> String {
    format!("logs/{job}.log.zst")
}

/// An object that takes frames.
struct Sealing<'a> {
    live: &'a Arc<Live>,
    upload: Upload,
    at: u64,
    frames: Vec<Frame>,
}

impl Sealing<'_> {
    async fn add_range(&mut self, mut from: u64, to: u64) -> Result<(), LogError> {
        while from < to {
            let wanted = usize::try_from(to - from)
                .unwrap_or(FRAME_BYTES)
                .min(FRAME_BYTES);
            let live = self.live.clone();
            let packed = blocking(move || compress(&read_exactly(&live, from, wanted)?)).await?;
            let packed = packed.map_err(|e| self.io(e))?;
            self.frames.push(Frame {
                from,
                length: wanted as u64,
                at: self.at,
                size: packed.len() as u64,
            });
            self.add(packed).await?;
            from += wanted as u64;
        }
        Ok(())
    }

    async fn add(&mut self, packed: Vec<u8>) -> Result<(), LogError> {
        self.at += packed.len() as u64;
        let written = self.upload.write(Bytes::from(packed)).await;
        written.map_err(|source| LogError::Object {
            job: self.live.job,
            source,
        })
    }

    fn io(&self, source: io::Error) -> LogError {
        LogError::io("compress", self.live.job, &self.live.folder, source)
    }
}

/// Reads `wanted` bytes across segments.
fn read_exactly(live: &Live, from: u64, wanted: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(wanted);
    while bytes.len() < wanted {
        match live.read(from + bytes.len() as u64, wanted - bytes.len())? {
            Read::Bytes(more) => bytes.extend_from_slice(&more),
            Read::Omitted { .. } | Read::Beyond { .. } => {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
    Ok(bytes)
}

fn compress(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut compressor = zstd::bulk::Compressor::new(LEVEL)?;
    compressor.include_checksum(true)?;
    compressor.compress(bytes)
}
