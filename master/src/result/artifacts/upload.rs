//! One job's artefacts on their way into the object store.
//!
//! ```text
//!  begin: what an earlier attempt left is removed, its manifest first
//!  store*: name checked, streamed, hashed, size compared; given up if anything is wrong
//!  finish: manifest.json, then the rows
//! ```

use super::name::{ArtifactName, MANIFEST, NameError, Names, check_name};
use crate::model::{Job, JobId};
use crate::result::objects::{ObjectError, Objects};
use crate::store::results::ArtifactRow;
use crate::store::{Store, StoreError};
use bytes::{Bytes, BytesMut};
use jiff::Timestamp;
use object_store::path::Path;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Bytes read at once: few calls into the hash and the store, and no more memory than that.
const READ_BYTES: usize = 256 << 10;
/// Longest key that S3 and Google Cloud Storage take, in bytes.
const MOST_KEY: usize = 1024;

/// What one job may leave behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caps {
    pub files: usize,
    /// All files together, in bytes.
    pub bytes: u64,
}

/// The list of a job's artefacts, as `manifest.json` holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub repository: String,
    /// The commit that was tested.
    pub commit: String,
    pub build: String,
    pub job: String,
    pub suite: String,
    pub platform: String,
    pub time: Timestamp,
    /// Sorted by path.
    pub artifacts: Vec<Entry>,
}

/// One artefact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// As the job named it.
    pub path: String,
    pub size: u64,
    /// Lower-case hexadecimal.
    pub sha256: String,
    pub executable: bool,
    /// Key in the object store: the path with some characters escaped, below the job's folder.
    pub object: String,
}

/// An artefact was not stored.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    #[error("{0}")]
    Name(#[from] NameError),
    #[error("the job has more than {most} artefacts")]
    TooMany { most: usize },
    #[error("the artefacts of the job have more than {most} bytes together, with `{name}`")]
    TooLarge { name: ArtifactName, most: u64 },
    #[error("the artefact `{name}` was announced with {announced} bytes but has {sent}")]
    Size {
        name: ArtifactName,
        announced: u64,
        /// `fewer` or `more`, as it came.
        sent: &'static str,
    },
    #[error("cannot receive the artefact `{name}`: {source}")]
    Receive {
        name: ArtifactName,
        source: std::io::Error,
    },
    #[error("cannot keep the artefacts of {job}: {source}")]
    Object { job: JobId, source: ObjectError },
    #[error("cannot record the artefacts of {job}: {source}")]
    Store { job: JobId, source: StoreError },
    #[error("cannot write the manifest of {job}: {source}")]
    Manifest {
        job: JobId,
        source: serde_json::Error,
    },
}

/// Whose fault it is that an artefact was not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The job's: trying again does not help.
    Job,
    /// The guest or the connection to it.
    Session,
    /// Ours.
    Storage,
}

impl ArtifactError {
    pub fn fault(&self) -> Fault {
        match self {
            ArtifactError::Name(_)
            | ArtifactError::TooMany { .. }
            | ArtifactError::TooLarge { .. } => Fault::Job,
            ArtifactError::Size { .. } | ArtifactError::Receive { .. } => Fault::Session,
            ArtifactError::Object { .. }
            | ArtifactError::Store { .. }
            | ArtifactError::Manifest { .. } => Fault::Storage,
        }
    }
}

/// The artefacts of one job, being stored.
#[derive(Debug)]
pub struct ArtifactUpload {
    objects: Objects,
    store: Store,
    job: JobId,
    folder: Path,
    caps: Caps,
    names: Names,
    bytes: u64,
    manifest: Manifest,
}

impl ArtifactUpload {
    /// Begins the artefacts of a job. What an earlier attempt of it stored is removed.
    pub async fn begin(
        objects: Objects,
        store: Store,
        job: &Job,
        tested_sha: &str,
        caps: Caps,
    ) -> Result<ArtifactUpload, ArtifactError> {
        let build = job.build.to_string();
        // `from_iter` escapes what is no plain file name: the suite's name is a stranger's as well.
        let folder = Path::from_iter(
            std::iter::once("artifacts")
                .chain(job.repository.split('/'))
                .chain([build.as_str(), &job.suite, &job.platform]),
        );
        let upload = ArtifactUpload {
            objects,
            store,
            job: job.id,
            folder,
            caps,
            names: Names::default(),
            bytes: 0,
            manifest: Manifest {
                repository: job.repository.clone(),
                commit: tested_sha.to_string(),
                build,
                job: job.id.to_string(),
                suite: job.suite.clone(),
                platform: job.platform.clone(),
                time: Timestamp::now(),
                artifacts: Vec::new(),
            },
        };
        upload.remove_earlier().await?;
        Ok(upload)
    }

    /// Stores one file that has `size` bytes; `reader` ends with it. The upload can go on after an error that is the
    /// job's [`Fault`]: the file is then not part of it.
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
        let object = Path::from_iter(self.folder.parts().chain(name.parts().map(Into::into)));
        if object.as_ref().len() > MOST_KEY {
            return Err(NameError::TooLong(format!("`{name}`")).into());
        }
        self.names.claim(&name)?;
        match self.send(&name, size, object.as_ref(), reader).await {
            Ok(sha256) => {
                crate::crash::point("artifact_stored");
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
                Err(error)
            }
        }
    }

    /// Writes the manifest, then the rows: from now on the artefacts are there.
    pub async fn finish(mut self) -> Result<Manifest, ArtifactError> {
        let job = self.job;
        self.manifest.time = Timestamp::now();
        self.manifest.artifacts.sort_by(|a, b| a.path.cmp(&b.path));
        let text = serde_json::to_vec_pretty(&self.manifest);
        let text = text.map_err(|source| ArtifactError::Manifest { job, source })?;
        let put = self
            .objects
            .put(&self.manifest_key(), Bytes::from(text))
            .await;
        put.map_err(|source| ArtifactError::Object { job, source })?;
        crate::crash::point("manifest_written");
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

    /// Streams the file into the store; returns its SHA-256.
    async fn send(
        &self,
        name: &ArtifactName,
        size: u64,
        object: &str,
        mut reader: impl AsyncRead + Unpin,
    ) -> Result<String, ArtifactError> {
        let job = self.job;
        let error = |source| ArtifactError::Object { job, source };
        // Dropped on any way out but the last, which gives it up.
        let mut upload = self.objects.upload(object).map_err(error)?;
        let mut hash = Sha256::new();
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(READ_BYTES.saturating_sub(buffer.len()));
            let read = reader.read_buf(&mut buffer).await;
            let read = read.map_err(|source| ArtifactError::Receive {
                name: name.clone(),
                source,
            })?;
            let sent = if upload.written() + (buffer.len() as u64) > size {
                Some("more")
            } else if read == 0 && upload.written() + (buffer.len() as u64) < size {
                Some("fewer")
            } else {
                None
            };
            if let Some(sent) = sent {
                upload.abort().await;
                return Err(ArtifactError::Size {
                    name: name.clone(),
                    announced: size,
                    sent,
                });
            }
            if read == 0 || buffer.len() >= READ_BYTES {
                let bytes = buffer.split().freeze();
                hash.update(&bytes);
                upload.write(bytes).await.map_err(error)?;
            }
            if read == 0 {
                break;
            }
        }
        upload.finish().await.map_err(error)?;
        Ok(hex::encode(hash.finalize()))
    }

    async fn remove_earlier(&self) -> Result<(), ArtifactError> {
        let job = self.job;
        let error = |source| ArtifactError::Object { job, source };
        let earlier = self
            .objects
            .list(self.folder.as_ref())
            .await
            .map_err(error)?;
        if earlier.is_empty() {
            return Ok(());
        }
        let manifest = self.manifest_key();
        self.objects.delete(&manifest).await.map_err(error)?;
        let forgotten = self.store.record_artifacts(job, &[]).await;
        forgotten.map_err(|source| ArtifactError::Store { job, source })?;
        for listed in earlier {
            self.objects.delete(&listed.key).await.map_err(error)?;
        }
        Ok(())
    }

    fn manifest_key(&self) -> String {
        format!("{}/{MANIFEST}", self.folder)
    }
}

#[cfg(test)]
mod tests;
