//! From the guest to the folder where a set waits.
//!
//! ```text
//!  begin: what an earlier attempt left here is removed, and its rows
//!  store*: name checked, written, hashed, size compared; removed if anything is wrong
//!  finish: manifest.json, then the rows: from now on the artefacts are there
//! ```

use super::name::{ArtifactName, MANIFEST, NameError, Names, check_name};
use super::{
    ArtifactError, Artifacts, Entry, FILES, Manifest, READ_BYTES, blocking, file_of,
    remote_folder_of, remove_folder,
};
use crate::model::{Job, JobId};
use crate::store::Store;
use crate::store::results::ArtifactRow;
use bytes::BytesMut;
use jiff::Timestamp;
use object_store::path::Path as Key;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::sync::OwnedMutexGuard;

/// Longest key that S3 and Google Cloud Storage take, in bytes.
const MOST_KEY: usize = 1024;

/// What one job may leave behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caps {
    pub files: usize,
    /// All files together, in bytes.
    pub bytes: u64,
}

/// The artefacts of one job, being received.
#[derive(Debug)]
pub struct Reception {
    store: Store,
    job: JobId,
    /// Where they wait.
    folder: PathBuf,
    /// Where they will be in the object store.
    remote: Key,
    caps: Caps,
    names: Names,
    bytes: u64,
    manifest: Manifest,
    _turn: OwnedMutexGuard<()>,
}

impl Artifacts {
    /// Begins the artefacts of a job. What an earlier attempt of it left is forgotten.
    pub async fn receive(
        &self,
        job: &Job,
        tested_sha: &str,
        caps: Caps,
    ) -> Result<Reception, ArtifactError> {
        let id = job.id;
        let turn = self.turn(id).take().await;
        let store = self.shared.store.clone();
        let forgotten = store.record_artifacts(id, &[]).await;
        forgotten.map_err(|source| ArtifactError::Store { job: id, source })?;
        let folder = self.folder(id);
        let files = folder.join(FILES);
        let made = {
            let folder = folder.clone();
            blocking(move || {
                remove_folder(&folder)?;
                std::fs::create_dir_all(files)
            })
        };
        made.await.map_err(|e| keep_error(id, &folder, e))?;
        Ok(Reception {
            store,
            job: id,
            folder,
            remote: remote_folder_of(job),
            caps,
            names: Names::default(),
            bytes: 0,
            manifest: Manifest {
                repository: job.repository.clone(),
                commit: tested_sha.to_string(),
                build: job.build.to_string(),
                job: id.to_string(),
                suite: job.suite.clone(),
                platform: job.platform.clone(),
                time: Timestamp::now(),
                artifacts: Vec::new(),
            },
            _turn: turn,
        })
    }
}

impl Reception {
    /// Keeps one file that has `size` bytes; `reader` ends with it. It can go on after an error that is the job's
    /// [`super::Fault`]: the file is then not part of the set.
    pub async fn store(
        &mut self,
        path: &str,
        size: u64,
        executable: bool,
        reader: impl AsyncRead + Unpin,
    ) -> Result<Entry, ArtifactError> {
        let name = check_name(path)?;
        if self.names.len() >= self.caps.files {
            let most = self.caps.files;
            return Err(ArtifactError::TooMany { most });
        }
        if size > self.caps.bytes.saturating_sub(self.bytes) {
            let most = self.caps.bytes;
            return Err(ArtifactError::TooLarge { name, most });
        }
        let object = Key::from_iter(self.remote.parts().chain(name.parts().map(Into::into)));
        if object.as_ref().len() > MOST_KEY {
            return Err(NameError::TooLong(format!("`{name}`")).into());
        }
        self.names.claim(&name)?;
        let file = file_of(&self.folder, object.as_ref());
        match self.write(&name, size, &file, reader).await {
            Ok(sha256) => {
                crate::crash::point("artifact_received");
                self.bytes += size;
                let entry = Entry {
                    path: path.to_string(),
                    size,
                    sha256,
                    executable,
                    object: object.to_string(),
                };
                self.manifest.artifacts.push(entry.clone());
                Ok(entry)
            }
            Err(error) => {
                self.names.release(&name);
                if let Err(error) = tokio::fs::remove_file(&file).await {
                    tracing::debug!(%error, "nothing of the artefact was written");
                }
                Err(error)
            }
        }
    }

    /// Writes the manifest, then the rows: from now on the artefacts are there, also after a power cut.
    pub async fn finish(mut self) -> Result<Manifest, ArtifactError> {
        let job = self.job;
        self.manifest.time = Timestamp::now();
        self.manifest.artifacts.sort_by(|a, b| a.path.cmp(&b.path));
        let text = serde_json::to_vec_pretty(&self.manifest);
        let text = text.map_err(|source| ArtifactError::Manifest { job, source })?;
        let folder = self.folder.clone();
        let sealed = blocking(move || seal(&folder, &text)).await;
        sealed.map_err(|e| keep_error(job, &self.folder, e))?;
        crate::crash::point("artifacts_received");
        let rows: Vec<ArtifactRow> = self
            .manifest
            .artifacts
            .iter()
            .map(|entry| ArtifactRow {
                path: entry.path.clone(),
                size: entry.size,
                sha256: entry.sha256.clone(),
                object: entry.object.clone(),
            })
            .collect();
        let recorded = self.store.record_artifacts(job, &rows).await;
        recorded.map_err(|source| ArtifactError::Store { job, source })?;
        Ok(self.manifest)
    }

    /// Streams the file onto the disk; returns its SHA-256.
    async fn write(
        &self,
        name: &ArtifactName,
        size: u64,
        path: &Path,
        mut reader: impl AsyncRead + Unpin,
    ) -> Result<String, ArtifactError> {
        let error = |source| keep_error(self.job, path, source);
        let mut file = tokio::fs::File::create(path).await.map_err(error)?;
        let mut written = 0;
        let mut hash = Sha256::new();
        let mut buffer = BytesMut::with_capacity(READ_BYTES);
        loop {
            let read = reader.read_buf(&mut buffer).await;
            let read = read.map_err(|source| ArtifactError::Receive {
                name: name.clone(),
                source,
            })?;
            let so_far = written + buffer.len() as u64;
            let sent = match (read, so_far.cmp(&size)) {
                (_, std::cmp::Ordering::Greater) => Some("more"),
                (0, std::cmp::Ordering::Less) => Some("fewer"),
                (_, _) => None,
            };
            if let Some(sent) = sent {
                return Err(ArtifactError::Size {
                    name: name.clone(),
                    announced: size,
                    sent,
                });
            }
            if read == 0 || buffer.len() == buffer.capacity() {
                hash.update(&buffer);
                file.write_all(&buffer).await.map_err(error)?;
                written = so_far;
                buffer.clear();
            }
            if read == 0 {
                break;
            }
        }
        // `write_all` hands over to a thread: an error of the last write is told here.
        file.flush().await.map_err(error)?;
        file.sync_data().await.map_err(error)?;
        Ok(hex::encode(hash.finalize()))
    }
}

pub(super) fn keep_error(job: JobId, path: &Path, source: io::Error) -> ArtifactError {
    ArtifactError::Keep {
        job,
        path: path.display().to_string(),
        source,
    }
}

/// Makes all names outlive a power cut, the manifest's last.
fn seal(folder: &Path, manifest: &[u8]) -> io::Result<()> {
    File::open(folder.join(FILES))?.sync_all()?;
    let new = folder.join("manifest.new");
    let mut file = File::create(&new)?;
    file.write_all(manifest)?;
    file.sync_data()?;
    std::fs::rename(new, folder.join(MANIFEST))?;
    File::open(folder)?.sync_all()?;
    if let Some(parent) = folder.parent() {
        File::open(parent)?.sync_all()?;
    }
    Ok(())
}
