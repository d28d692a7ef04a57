//! Artefacts: files that a job leaves, under names that a stranger chose.
//!
//! ```text
//!  session ─name─► check_name ─► not taken? ─► Reception ─► <data>/artifacts/job-204/files/…, manifest.json last, then rows
//!          ─bytes──────────────────────────────┘  SHA-256, size          │
//!                                                                         │ send, once the job has ended
//!                                                                         ▼
//!              artifacts/<repository>/<build-12>/<suite>/<platform>/<path>, manifest.json last; then the folder goes
//! ```
//!
//! A machine never waits for the object store: its files are kept here first, and are there to be read from then on. A
//! manifest says that a set is whole: whoever fetches artefacts from the store waits for it, and finds size and SHA-256
//! of each file in it.

mod name;
mod receive;
mod send;

pub use name::{ArtifactName, NameError, check_name};
pub use receive::{Caps, Reception};

use crate::model::{Job, JobId};
use crate::result::objects::{Fetched, ObjectError, Objects};
use crate::store::results::ArtifactRow;
use crate::store::{Store, StoreError};
use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use name::MANIFEST;
use object_store::path::Path as Key;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tokio::sync::{Notify, OwnedMutexGuard};
use tokio_util::io::ReaderStream;

/// The files of a set, beside its manifest.
const FILES: &str = "files";

/// The artefacts of all jobs; clones share them.
#[derive(Debug, Clone)]
pub struct Artifacts {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Where sets wait for the object store, a folder for each job.
    dir: PathBuf,
    store: Store,
    objects: Objects,
    turns: Mutex<HashMap<JobId, Weak<Turn>>>,
}

/// The right to change the set of a job.
#[derive(Debug, Default)]
struct Turn {
    lock: Arc<tokio::sync::Mutex<()>>,
    /// Told to whoever sends the set when a new one is to be received.
    give_way: Notify,
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

/// An artefact was not kept, or not stored.
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
        source: io::Error,
    },
    #[error("cannot keep the artefacts of {job} in {path}: {source}")]
    Keep {
        job: JobId,
        path: String,
        source: io::Error,
    },
    #[error("the artefacts of {job}: {source}")]
    Object { job: JobId, source: ObjectError },
    #[error("cannot record the artefacts of {job}: {source}")]
    Store { job: JobId, source: StoreError },
    #[error("the manifest of {job} is no manifest: {source}")]
    Manifest {
        job: JobId,
        source: serde_json::Error,
    },
    #[error("the artefacts of {job} are not stored, because the job runs again")]
    Overtaken { job: JobId },
}

/// Whose fault it is that an artefact was not kept.
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
            ArtifactError::Keep { .. }
            | ArtifactError::Object { .. }
            | ArtifactError::Store { .. }
            | ArtifactError::Manifest { .. }
            | ArtifactError::Overtaken { .. } => Fault::Storage,
        }
    }
}

impl Artifacts {
    /// `dir` is where sets wait for the object store.
    pub fn open(dir: PathBuf, store: Store, objects: Objects) -> io::Result<Artifacts> {
        std::fs::create_dir_all(&dir)?;
        Ok(Artifacts {
            shared: Arc::new(Shared {
                dir,
                store,
                objects,
                turns: Mutex::default(),
            }),
        })
    }

    /// An artefact's bytes: from here as long as they wait here, else from the object store.
    pub async fn read(&self, job: JobId, row: &ArtifactRow) -> Result<Fetched, ObjectError> {
        let path = file_of(&self.folder(job), &row.object);
        let waiting = |source| ObjectError::Waiting {
            path: path.display().to_string(),
            source,
        };
        match tokio::fs::File::open(&path).await {
            Ok(file) => Ok(Fetched {
                size: file.metadata().await.map_err(waiting)?.len(),
                bytes: ReaderStream::with_capacity(file, READ_BYTES)
                    .map_err({
                        let path = path.display().to_string();
                        move |source| ObjectError::Waiting {
                            path: path.clone(),
                            source,
                        }
                    })
                    .boxed(),
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.shared.objects.get(&row.object).await
            }
            Err(error) => Err(waiting(error)),
        }
    }

    /// Jobs with a set, or a part of one, that is not in the object store.
    pub async fn waiting(&self) -> io::Result<Vec<JobId>> {
        let dir = self.shared.dir.clone();
        blocking(move || {
            let mut jobs = Vec::new();
            for entry in std::fs::read_dir(&dir)? {
                let name = entry?.file_name();
                jobs.extend(name.to_str().and_then(|name| name.parse::<JobId>().ok()));
            }
            jobs.sort_unstable();
            Ok(jobs)
        })
        .await
    }

    /// Bytes of a job's files that wait here.
    pub async fn waiting_bytes(&self, job: JobId) -> io::Result<u64> {
        let files = self.folder(job).join(FILES);
        blocking(move || {
            let entries = match std::fs::read_dir(&files) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
                entries => entries?,
            };
            let mut bytes = 0;
            for entry in entries {
                match entry?.metadata() {
                    // Stored since.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    metadata => bytes += metadata?.len(),
                }
            }
            Ok(bytes)
        })
        .await
    }

    fn folder(&self, job: JobId) -> PathBuf {
        self.shared.dir.join(job.to_string())
    }

    fn turn(&self, job: JobId) -> Arc<Turn> {
        let mut turns = self
            .shared
            .turns
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| turn.strong_count() > 0);
        if let Some(turn) = turns.get(&job).and_then(Weak::upgrade) {
            return turn;
        }
        let turn = Arc::<Turn>::default();
        turns.insert(job, Arc::downgrade(&turn));
        turn
    }
}

impl Turn {
    /// Takes the turn from whoever sends the set, if somebody does.
    async fn take(&self) -> OwnedMutexGuard<()> {
        if let Ok(guard) = Arc::clone(&self.lock).try_lock_owned() {
            return guard;
        }
        self.give_way.notify_one();
        Arc::clone(&self.lock).lock_owned().await
    }
}

/// Bytes read at once: few calls into the hash and the file, and no more memory than that.
const READ_BYTES: usize = 256 << 10;

/// Where the artefacts of a job are in the object store.
fn remote_folder(repository: &str, build: &str, suite: &str, platform: &str) -> Key {
    // `from_iter` escapes what is no plain file name: the suite's name is a stranger's as well.
    Key::from_iter(
        std::iter::once("artifacts")
            .chain(repository.split('/'))
            .chain([build, suite, platform]),
    )
}

fn remote_folder_of(job: &Job) -> Key {
    let build = job.build.to_string();
    remote_folder(&job.repository, &build, &job.suite, &job.platform)
}

/// Where a file waits. Its name here is none that a stranger chose.
fn file_of(folder: &Path, object: &str) -> PathBuf {
    let name = hex::encode(Sha256::digest(object.as_bytes()));
    folder.join(FILES).join(name)
}

/// File work on a thread for it.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)?
}

fn remove_folder(path: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests;
