//! From the folder where a set waits to the object store, and out of both.
//!
//! ```text
//!  what an earlier run of the job stored: its manifest goes first, then what the new set does not have
//!  file by file: uploaded, then removed here      a crash anywhere: begin again with what is still here
//!  manifest.json, then the folder
//! ```

use super::receive::keep_error;
use super::{
    ArtifactError, Artifacts, MANIFEST, Manifest, READ_BYTES, blocking, file_of, remote_folder,
    remote_folder_of, remove_folder,
};
use crate::model::{Job, JobId};
use crate::result::objects::ObjectError;
use bytes::Bytes;
use futures::StreamExt;
use jiff::Timestamp;
use std::collections::HashSet;
use std::io;
use tokio_util::io::ReaderStream;

impl Artifacts {
    /// Stores the set of a job that has ended; what was only begun is removed. Repeating it is safe, and is what to do
    /// after an error. It gives way when the job runs again and has new artefacts.
    pub async fn send(&self, job: JobId) -> Result<(), ArtifactError> {
        let turn = self.turn(job);
        let _guard = turn.lock.lock().await;
        tokio::select! {
            biased;
            () = turn.give_way.notified() => Err(ArtifactError::Overtaken { job }),
            sent = self.send_set(job) => sent,
        }
    }

    async fn send_set(&self, job: JobId) -> Result<(), ArtifactError> {
        let folder = self.folder(job);
        let keep = |e| keep_error(job, &folder, e);
        let object = |source| ArtifactError::Object { job, source };
        let objects = &self.shared.objects;
        let text = match tokio::fs::read(folder.join(MANIFEST)).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return self.remove_waiting(job).await;
            }
            text => text.map_err(keep)?,
        };
        let manifest: Manifest = serde_json::from_slice(&text)
            .map_err(|source| ArtifactError::Manifest { job, source })?;
        if !self.is_recorded(job, &manifest).await? {
            // Whoever received it ended between the manifest and the rows, and had no other try.
            return self.remove_waiting(job).await;
        }
        let remote = remote_folder(
            &manifest.repository,
            &manifest.build,
            &manifest.suite,
            &manifest.platform,
        );
        let manifest_key = format!("{remote}/{MANIFEST}");
        let new: HashSet<&str> = manifest
            .artifacts
            .iter()
            .map(|e| e.object.as_str())
            .collect();
        let mut earlier = objects.list(remote.as_ref()).await.map_err(object)?;
        earlier.retain(|listed| !new.contains(listed.key.as_str()));
        // The manifest first: from then on there is no set.
        earlier.sort_by_key(|listed| listed.key != manifest_key);
        for listed in earlier {
            objects.delete(&listed.key).await.map_err(object)?;
        }
        for entry in &manifest.artifacts {
            let path = file_of(&folder, &entry.object);
            let file = match tokio::fs::File::open(&path).await {
                // Stored by an earlier try.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                file => file.map_err(keep)?,
            };
            let mut upload = objects.upload(&entry.object).map_err(object)?;
            let mut chunks = ReaderStream::with_capacity(file, READ_BYTES);
            while let Some(chunk) = chunks.next().await {
                upload.write(chunk.map_err(keep)?).await.map_err(object)?;
            }
            upload.finish().await.map_err(object)?;
            crate::crash::point("artifact_stored");
            tokio::fs::remove_file(&path).await.map_err(keep)?;
        }
        let put = objects.put(&manifest_key, Bytes::from(text)).await;
        put.map_err(object)?;
        crate::crash::point("manifest_written");
        self.remove_waiting(job).await
    }

    /// Removes all artefacts of a job that has ended, and notes that: the objects, manifest first, the rows, and what
    /// waits here.
    pub async fn remove(&self, job: &Job, now: Timestamp) -> Result<(), ArtifactError> {
        let id = job.id;
        let turn = self.turn(id);
        let _guard = turn.lock.lock().await;
        let object = |source: ObjectError| ArtifactError::Object { job: id, source };
        let objects = &self.shared.objects;
        let remote = remote_folder_of(job);
        let manifest_key = format!("{remote}/{MANIFEST}");
        let mut stored = objects.list(remote.as_ref()).await.map_err(object)?;
        stored.sort_by_key(|listed| listed.key != manifest_key);
        for listed in stored {
            objects.delete(&listed.key).await.map_err(object)?;
        }
        let noted = self.shared.store.note_removed_artifacts(id, now).await;
        match noted.map_err(|source| ArtifactError::Store { job: id, source })? {
            true => self.remove_waiting(id).await,
            // It runs again, and will have others.
            false => Ok(()),
        }
    }

    async fn is_recorded(&self, job: JobId, manifest: &Manifest) -> Result<bool, ArtifactError> {
        let rows = self.shared.store.artifacts(job).await;
        let rows = rows.map_err(|source| ArtifactError::Store { job, source })?;
        let recorded: HashSet<&str> = rows.iter().map(|row| row.object.as_str()).collect();
        let listed = manifest.artifacts.iter().map(|e| e.object.as_str());
        Ok(recorded == listed.collect())
    }

    async fn remove_waiting(&self, job: JobId) -> Result<(), ArtifactError> {
        let folder = self.folder(job);
        let removed = {
            let folder = folder.clone();
            blocking(move || remove_folder(&folder)).await
        };
        removed.map_err(|e| keep_error(job, &folder, e))
    }
}
