//! Object storage: a folder, S3, Google Cloud Storage or Azure, behind one handle.
//!
//! ```text
//!  Objects ──put, get, get_range, list, delete──► object_store ──► folder │ s3:// │ gs:// │ az://
//!     └─upload──► Upload ──write…write──► finish   (visible)
//!                              └────────► abort    (as if it had never begun)
//! ```
//!
//! A key is a relative path with `/`, as it stands in the bucket. Requests that fail for a reason that may pass are
//! repeated inside, a bounded number of times (see `open.rs`); what comes out of here is final.

mod open;
mod upload;

pub use upload::Upload;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{GetOptions, ObjectStore, ObjectStoreExt};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// A handle on the object store; clones share its connections.
#[derive(Clone)]
pub struct Objects {
    inner: Arc<dyn ObjectStore>,
    /// The same, where it is a folder.
    folder: Option<LocalFileSystem>,
    /// The place as a person reads it: the URL without anything secret.
    place: Arc<str>,
}

/// The object store did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    #[error("cannot use `{url}` as the object store: {reason}")]
    Url { url: String, reason: String },
    #[error("cannot use `{key}` as an option of the object store {url}: {reason}")]
    Option {
        url: String,
        key: String,
        reason: String,
    },
    #[error("cannot open the object store {url}: {source}")]
    Open {
        url: String,
        source: Box<object_store::Error>,
    },
    #[error("cannot create the folder {path} of the object store: {source}")]
    Folder {
        path: String,
        source: std::io::Error,
    },
    #[error("the object store {place} has no `{key}`")]
    NotFound { place: String, key: String },
    #[error("cannot {action} `{key}` in the object store {place}: {source}")]
    Request {
        action: &'static str,
        key: String,
        place: String,
        source: Box<object_store::Error>,
    },
    #[error("cannot read {path}, which waits for the object store: {source}")]
    Waiting {
        path: String,
        source: std::io::Error,
    },
    #[error("the object store {place} does not keep what it is given: {reason}")]
    Unsound { place: String, reason: String },
}

/// One object of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub key: String,
    pub size: u64,
    pub modified: Timestamp,
}

/// An object on its way to the reader.
pub struct Fetched {
    pub size: u64,
    pub bytes: BoxStream<'static, Result<Bytes, ObjectError>>,
}

impl fmt::Debug for Fetched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fetched")
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Objects").field(&self.place).finish()
    }
}

impl fmt::Display for Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.place)
    }
}

impl Objects {
    /// Opens the store at a folder's path, `file://`, `s3://bucket/prefix`, `gs://…` or `az://…`.
    ///
    /// `options` are those of the crate `object_store` (`aws_endpoint`, `aws_access_key_id`, `allow_http`, …); they go
    /// before the environment's (`AWS_…`, `GOOGLE_…`, `AZURE_…`). An unknown option is refused. Nothing is asked of
    /// the store yet; [`Objects::check`] does.
    pub fn open(url: &str, options: &BTreeMap<String, String>) -> Result<Objects, ObjectError> {
        let opened = open::open(url, options)?;
        Ok(Objects {
            folder: opened.folder,
            ..Objects::over(opened.store, &opened.place)
        })
    }

    /// Over a store that is open already.
    pub(crate) fn over(inner: Arc<dyn ObjectStore>, place: &str) -> Objects {
        Objects {
            inner,
            folder: None,
            place: place.into(),
        }
    }

    /// Stores a small object in one request, in the place of an older one.
    pub async fn put(&self, key: &str, bytes: Bytes) -> Result<(), ObjectError> {
        let path = self.path(key)?;
        self.inner
            .put(&path, bytes.into())
            .await
            .map_err(|e| self.error("store", key, e))?;
        Ok(())
    }

    /// Begins an object that is written piece by piece. It becomes visible when finished, and only whole.
    pub fn upload(&self, key: &str) -> Result<Upload, ObjectError> {
        let path = self.path(key)?;
        self.remove_unfinished(&path);
        Ok(Upload::begin(self.clone(), key.to_string(), path))
    }

    /// Removes what a process that was killed in an upload of this object left beside it in a folder. An object is
    /// uploaded by one at a time.
    fn remove_unfinished(&self, path: &Path) {
        let file = self
            .folder
            .as_ref()
            .map(|folder| folder.path_to_filesystem(path));
        let Some(Ok(file)) = file else { return };
        // The names that `LocalFileSystem` gives, in the order in which it tries them.
        for number in 1.. {
            let mut unfinished = file.clone().into_os_string();
            unfinished.push(format!("#{number}"));
            if std::fs::remove_file(unfinished).is_err() {
                return;
            }
        }
    }

    /// The object as a stream, with its size.
    pub async fn get(&self, key: &str) -> Result<Fetched, ObjectError> {
        let path = self.path(key)?;
        let result = self
            .inner
            .get_opts(&path, GetOptions::default())
            .await
            .map_err(|e| self.read_error(key, e))?;
        let size = result.meta.size;
        let objects = self.clone();
        let key = key.to_string();
        let bytes = result
            .into_stream()
            .map_err(move |e| objects.read_error(&key, e))
            .boxed();
        Ok(Fetched { size, bytes })
    }

    /// The bytes from `range.start` up to `range.end`.
    pub async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, ObjectError> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let path = self.path(key)?;
        self.inner
            .get_range(&path, range)
            .await
            .map_err(|e| self.read_error(key, e))
    }

    /// All objects below a folder-like prefix, sorted by key. Empty prefix: all.
    pub async fn list(&self, prefix: &str) -> Result<Vec<Listed>, ObjectError> {
        let path = match prefix {
            "" => None,
            prefix => Some(self.path(prefix)?),
        };
        let mut listed: Vec<Listed> = self
            .inner
            .list(path.as_ref())
            .map_ok(|meta| Listed {
                key: meta.location.to_string(),
                size: meta.size,
                modified: Timestamp::from_second(meta.last_modified.timestamp())
                    .unwrap_or(Timestamp::UNIX_EPOCH),
            })
            .try_collect()
            .await
            .map_err(|e| self.error("list", prefix, e))?;
        listed.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(listed)
    }

    /// Removes the object; one that is not there is fine.
    pub async fn delete(&self, key: &str) -> Result<(), ObjectError> {
        let path = self.path(key)?;
        match self.inner.delete(&path).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(self.error("delete", key, e)),
        }
    }

    /// Writes, reads back and deletes a tiny object.
    pub async fn check(&self) -> Result<(), ObjectError> {
        let nonce: u64 = rand::random();
        let key = format!("vivarium-check-{nonce:016x}");
        let written = Bytes::from(format!("vivarium {nonce}\n"));
        self.put(&key, written.clone()).await?;
        let read = self.get_range(&key, 0..written.len() as u64).await;
        self.delete(&key).await?;
        if read? != written {
            return Err(ObjectError::Unsound {
                place: self.place.to_string(),
                reason: "a test object read back differs from what was written".to_string(),
            });
        }
        Ok(())
    }

    fn path(&self, key: &str) -> Result<Path, ObjectError> {
        Path::parse(key).map_err(|e| self.error("address", key, e.into()))
    }

    fn read_error(&self, key: &str, source: object_store::Error) -> ObjectError {
        match source {
            object_store::Error::NotFound { .. } => ObjectError::NotFound {
                place: self.place.to_string(),
                key: key.to_string(),
            },
            source => self.error("read", key, source),
        }
    }

    fn error(&self, action: &'static str, key: &str, source: object_store::Error) -> ObjectError {
        ObjectError::Request {
            action,
            key: key.to_string(),
            place: self.place.to_string(),
            source: Box::new(source),
        }
    }
}
