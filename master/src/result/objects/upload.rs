//! An object written piece by piece: small ones in one request, larger ones as a multipart upload.
//!
//! ```text
//!  begin ──► write* ──► finish      the object is there, whole
//!               └─────► abort, or dropped: nothing is there, and the parts are given back
//! ```

use super::{ObjectError, Objects};
use bytes::Bytes;
use object_store::buffered::BufWriter;
use object_store::path::Path;
use tokio::io::AsyncWriteExt;

/// Size of a part. Stores allow 10,000 parts, so an object may have 80 GB; below this size one request does.
const PART_BYTES: usize = 8 << 20;
/// Parts on their way at once: with the one being filled this bounds the memory of an upload to 24 MiB.
const PARTS_AT_ONCE: usize = 2;

/// An object on its way into the store.
#[derive(Debug)]
pub struct Upload {
    objects: Objects,
    key: String,
    /// Gone once it is finished, aborted or has failed.
    writer: Option<BufWriter>,
    written: u64,
}

impl Upload {
    pub(super) fn begin(objects: Objects, key: String, path: Path) -> Upload {
        let writer = BufWriter::with_capacity(objects.inner.clone(), path, PART_BYTES)
            .with_max_concurrency(PARTS_AT_ONCE);
        Upload {
            objects,
            key,
            writer: Some(writer),
            written: 0,
        }
    }

    /// Bytes handed over so far.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Adds bytes at the end. An error gives the upload up.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), ObjectError> {
        let Some(writer) = self.writer.as_mut() else {
            return Err(self.given_up());
        };
        let length = bytes.len() as u64;
        match writer.put(bytes).await {
            Ok(()) => {
                self.written += length;
                Ok(())
            }
            Err(source) => {
                let error = self.objects.error("store", &self.key, source);
                self.give_up().await;
                Err(error)
            }
        }
    }

    /// Makes the object visible. After an error it is not there.
    pub async fn finish(mut self) -> Result<u64, ObjectError> {
        let Some(mut writer) = self.writer.take() else {
            return Err(self.given_up());
        };
        match writer.shutdown().await {
            Ok(()) => Ok(self.written),
            Err(error) => Err(self.objects.error("store", &self.key, from_io(error))),
        }
    }

    /// Gives the upload up: nothing of it stays.
    pub async fn abort(mut self) {
        self.give_up().await;
    }

    async fn give_up(&mut self) {
        if let Some(writer) = self.writer.take() {
            abort(writer, self.key.clone()).await;
        }
    }

    fn given_up(&self) -> ObjectError {
        self.objects.error(
            "store",
            &self.key,
            object_store::Error::Generic {
                store: "upload",
                source: "the upload was given up after an error".into(),
            },
        )
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let Some(writer) = self.writer.take() else {
            return;
        };
        // Whoever wrote was cancelled. Parts of a multipart upload cost money until they are given back.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(abort(writer, self.key.clone()));
        }
    }
}

async fn abort(mut writer: BufWriter, key: String) {
    if let Err(error) = writer.abort().await {
        tracing::warn!(key, %error, "cannot give back the parts of an upload that was given up");
    }
}

/// The store's error out of the one that the writer's `AsyncWrite` wraps around it.
fn from_io(error: std::io::Error) -> object_store::Error {
    match error.downcast::<object_store::Error>() {
        Ok(error) => error,
        Err(error) => object_store::Error::Generic {
            store: "upload",
            source: Box::new(error),
        },
    }
}
