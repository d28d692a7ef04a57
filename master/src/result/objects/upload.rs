//! An object written piece by piece: small ones in one request, larger ones as a multipart upload.
//!
//! ```text
//!  begin ──► write* ──► finish      the object is there, whole
//!               └─────► abort, or dropped: nothing is there, and the parts are given back
//! ```

use super::{ObjectError, Objects};
use bytes::Bytes;
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStoreExt, PutPayload, PutPayloadMut};
use std::time::Duration;
use tokio::task::JoinSet;

/// Size of a part. Stores allow 10,000 parts, so an object may have 80 GB; below this size one request does.
const PART_BYTES: usize = 8 << 20;
/// Parts on their way at once: with the one being filled this bounds the memory of an upload to 24 MiB.
const PARTS_AT_ONCE: usize = 2;
/// How long parts that are on their way may take to arrive before an upload is given up under them.
const LAND_DEADLINE: Duration = Duration::from_secs(60);

/// An object on its way into the store.
#[derive(Debug)]
pub struct Upload {
    objects: Objects,
    key: String,
    path: Path,
    written: u64,
    /// The next part.
    buffer: PutPayloadMut,
    /// Since the first part was full.
    parts: Option<Parts>,
    /// An error came, and nothing more is taken.
    failed: bool,
}

#[derive(Debug)]
struct Parts {
    upload: Box<dyn MultipartUpload>,
    under_way: JoinSet<object_store::Result<()>>,
}

impl Upload {
    pub(super) fn begin(objects: Objects, key: String, path: Path) -> Upload {
        Upload {
            objects,
            key,
            path,
            written: 0,
            buffer: PutPayloadMut::new(),
            parts: None,
            failed: false,
        }
    }

    /// Bytes handed over so far.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Adds bytes at the end. An error gives the upload up.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), ObjectError> {
        match self.take(bytes).await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.fail(error).await),
        }
    }

    /// Makes the object visible. After an error it is not there.
    pub async fn finish(mut self) -> Result<u64, ObjectError> {
        match self.complete().await {
            Ok(()) => Ok(self.written),
            Err(error) => Err(self.fail(error).await),
        }
    }

    /// Gives the upload up: nothing of it stays.
    pub async fn abort(mut self) {
        self.give_up().await;
    }

    async fn take(&mut self, mut bytes: Bytes) -> object_store::Result<()> {
        self.refuse_after_failure()?;
        self.written += bytes.len() as u64;
        // Parts of one size but for the last: some stores insist on it.
        loop {
            let room = PART_BYTES - self.buffer.content_length();
            if bytes.len() < room {
                break;
            }
            self.buffer.push(bytes.split_to(room));
            self.send_part().await?;
        }
        if !bytes.is_empty() {
            self.buffer.push(bytes);
        }
        Ok(())
    }

    async fn send_part(&mut self) -> object_store::Result<()> {
        let parts = match &mut self.parts {
            Some(parts) => parts,
            None => self.parts.insert(Parts {
                upload: self.objects.inner.put_multipart(&self.path).await?,
                under_way: JoinSet::new(),
            }),
        };
        parts.land(PARTS_AT_ONCE - 1).await?;
        let part = std::mem::take(&mut self.buffer).freeze();
        parts.under_way.spawn(parts.upload.put_part(part));
        Ok(())
    }

    async fn complete(&mut self) -> object_store::Result<()> {
        self.refuse_after_failure()?;
        if self.parts.is_some() && !self.buffer.is_empty() {
            self.send_part().await?;
        }
        match &mut self.parts {
            Some(parts) => {
                parts.land(0).await?;
                parts.upload.complete().await?;
            }
            None => {
                let whole: PutPayload = std::mem::take(&mut self.buffer).freeze();
                self.objects.inner.put(&self.path, whole).await?;
            }
        }
        self.parts = None;
        Ok(())
    }

    fn refuse_after_failure(&self) -> object_store::Result<()> {
        match self.failed {
            false => Ok(()),
            true => Err(object_store::Error::Generic {
                store: "upload",
                source: "the upload was given up after an error".into(),
            }),
        }
    }

    async fn fail(&mut self, error: object_store::Error) -> ObjectError {
        self.failed = true;
        self.give_up().await;
        self.objects.error("store", &self.key, error)
    }

    async fn give_up(&mut self) {
        if let Some(parts) = self.parts.take() {
            parts.give_back(self.key.clone()).await;
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let Some(parts) = self.parts.take() else {
            return;
        };
        // Whoever wrote was cancelled. Parts of a multipart upload cost money until they are given back.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(parts.give_back(self.key.clone()));
        }
    }
}

impl Parts {
    /// Waits until no more than `most` parts are under way.
    async fn land(&mut self, most: usize) -> object_store::Result<()> {
        while self.under_way.len() > most
            && let Some(landed) = self.under_way.join_next().await
        {
            landed??;
        }
        Ok(())
    }

    /// Gives the upload up. Parts under way are let through first: one that arrives after the end of its upload would
    /// stay in the store, seen by nobody.
    async fn give_back(mut self, key: String) {
        let landing = async { while self.under_way.join_next().await.is_some() {} };
        if tokio::time::timeout(LAND_DEADLINE, landing).await.is_err() {
            self.under_way.shutdown().await;
        }
        if let Err(error) = self.upload.abort().await {
            tracing::warn!(key, %error, "cannot give back the parts of an upload that was given up");
        }
    }
}
