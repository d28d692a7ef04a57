//! The source of what is tested: a mirror per repository on the master, read and written by the git command line.
//!
//! ```text
//!             fetch                   resolve, merge, file_at                archive, bundle
//! repository ───────► <dir>/owner+name.git ───────► commits, trees, files ───────────► bytes for a guest
//! ```
//!
//! In come a repository's configuration and names of commits; out go commits, files and streams. The mirrors are owned by
//! [`Sources`] alone: fetches of one repository take turns, those of different ones run side by side, and reading never
//! waits for either. Git is the only program that is run, on bare repositories without hooks or filters: nothing of what
//! was checked in is ever executed here, and nothing is checked out.
//!
//! A mirror can always be made again from the repository, so a damaged one is replaced instead of repaired.

mod call;
mod credentials;
mod error;
mod fetch;
mod git;
mod history;
mod merge;
mod mirror;
mod names;
mod process;
mod stage;
mod stream;
mod tree;

pub use credentials::{Credentials, Login};
pub use error::SourceError;
pub use history::CommitInfo;
pub use merge::Merge;
pub use stage::{Source, SourceStream};
pub use stream::Archive;

use crate::config::RepositoryConfig;
use call::Call;
use git::Git;
use mirror::Mirror;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// The mirrors of all repositories. Clones share them.
#[derive(Clone)]
pub struct Sources {
    inner: Arc<Inner>,
}

struct Inner {
    dir: PathBuf,
    git: Git,
    login: Box<dyn Login>,
    mirrors: Mutex<HashMap<String, Arc<Mirror>>>,
    /// Done once, before the first git runs: see [`Sources::prepare`].
    prepared: tokio::sync::OnceCell<()>,
}

impl Sources {
    /// Keeps the mirrors in `dir`, which is made when first needed and belongs to one master.
    ///
    /// `login` is asked before each fetch, so that a token can change under way.
    pub fn new(dir: PathBuf, login: impl Login + 'static) -> Sources {
        let dir = std::path::absolute(&dir).unwrap_or(dir);
        Sources {
            inner: Arc::new(Inner {
                git: Git::new(&dir),
                dir,
                login: Box::new(login),
                mirrors: Mutex::default(),
                prepared: tokio::sync::OnceCell::new(),
            }),
        }
    }

    fn mirror(&self, repository: &RepositoryConfig) -> Arc<Mirror> {
        let folder = names::folder_of(&repository.name);
        let mut mirrors = self
            .inner
            .mirrors
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let path = self.inner.dir.join(&folder);
        mirrors
            .entry(folder)
            .or_insert_with(|| Arc::new(Mirror::new(path)))
            .clone()
    }

    /// A git command that reads the repository's mirror; `what` completes "cannot …".
    async fn ask(
        &self,
        repository: &RepositoryConfig,
        what: &'static str,
    ) -> Result<Call, SourceError> {
        let mirror = self.mirror(repository);
        self.open(repository, &mirror).await?;
        if !mirror.is_made() {
            return Err(SourceError::Git {
                repository: repository.name.clone(),
                what,
                why: "it has not been fetched yet".into(),
            });
        }
        Ok(self
            .inner
            .git
            .call(repository, mirror.path(), what)
            .marking(mirror))
    }
}

impl std::fmt::Debug for Sources {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sources")
            .field("dir", &self.inner.dir)
            .finish_non_exhaustive()
    }
}
