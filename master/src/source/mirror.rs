//! A repository's mirror: made, brought up to date, replaced when damaged, packed now and then.
//!
//! ```text
//! fetch ─► all there? ─ yes ─────────────────────────────────────────► done
//!              │ no                                          ▲
//!              ▼                                             │
//!          my turn ─► no mirror ─► make in tmp/ ─► rename ───┤
//!              │                        ▲                    │
//!              └─► mirror ─► git fetch ─┴─ it is damaged     │
//!                                 └─────────── it is fine ───┘
//! ```
//!
//! Branches and tags keep their names; a pull request's head that was asked for by name is `refs/pull/N/head`. A commit
//! fetched by its sha alone, and a merge built here, have no ref: git keeps them for two weeks at least, and both can be
//! had again. The address is never written into the mirror, so a new one in the configuration takes effect at once.

use super::credentials::Remote;
use super::fetch::Fetch;
use super::names::{Name, is_sha};
use super::tree::ATTRIBUTES;
use super::{SourceError, Sources};
use crate::config::RepositoryConfig;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;
use tokio::sync::{Mutex, OnceCell};

pub(super) const WHAT: &str = "fetch";
const PACK_TIMEOUT: Duration = Duration::from_secs(3600);
/// Each fetch adds a pack; git decides whether it is time to join them, and is asked this often.
const FETCHES_BETWEEN_PACKING: u32 = 25;

/// The state of one mirror that is not in its folder.
pub(super) struct Mirror {
    path: PathBuf,
    /// Held while fetching.
    turn: Mutex<()>,
    /// Done once, before the first use: leftovers of an earlier master.
    opened: OnceCell<()>,
    is_suspect: AtomicBool,
    fetches: AtomicU32,
    is_packing: AtomicBool,
}

impl Mirror {
    pub(super) fn new(path: PathBuf) -> Mirror {
        Mirror {
            path,
            turn: Mutex::new(()),
            opened: OnceCell::new(),
            is_suspect: AtomicBool::new(false),
            fetches: AtomicU32::new(0),
            is_packing: AtomicBool::new(false),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn is_made(&self) -> bool {
        self.path.is_dir()
    }

    pub(super) fn is_suspect(&self) -> bool {
        self.is_suspect.load(Ordering::Relaxed)
    }

    /// The folder is a new one.
    pub(super) fn trust(&self) {
        self.is_suspect.store(false, Ordering::Relaxed);
    }

    /// Has the next fetch make a new mirror.
    pub(super) fn suspect(&self) {
        self.is_suspect.store(true, Ordering::Relaxed);
    }
}

impl Sources {
    /// Brings the mirror up to date, with every one of `wanted` (shas, refs, names of branches or tags) in it.
    ///
    /// Where all of them are shas that are there already, the network is left alone.
    pub async fn fetch(
        &self,
        repository: &RepositoryConfig,
        wanted: &[&str],
    ) -> Result<(), SourceError> {
        let wanted: Vec<Name> = wanted
            .iter()
            .map(|name| Name::parse(repository, name))
            .collect::<Result<_, _>>()?;
        let mirror = self.mirror(repository);
        self.open(repository, &mirror).await?;
        if self.has_all(repository, &mirror, &wanted).await? {
            return Ok(());
        }
        let _turn = match mirror.turn.try_lock() {
            Ok(turn) => turn,
            Err(_) => {
                let turn = mirror.turn.lock().await;
                // The one before may have brought what is wanted.
                if self.has_all(repository, &mirror, &wanted).await? {
                    return Ok(());
                }
                turn
            }
        };
        let credentials = self.inner.login.credentials(repository).await;
        let remote = Remote::new(repository, credentials);
        let fetch = Fetch {
            sources: self,
            repository,
            remote: &remote,
            wanted: &wanted,
        };
        if !mirror.is_made() {
            fetch.make(&mirror).await?;
        } else if mirror.is_suspect() {
            fetch.replace(&mirror, "it failed to be read").await?;
        } else {
            match fetch.update(&mirror).await {
                Err(SourceError::Damaged { why, .. }) => fetch.replace(&mirror, &why).await?,
                result => result?,
            }
        }
        self.pack_now_and_then(repository, &mirror);
        Ok(())
    }

    /// Brings branches and tags up to date.
    pub async fn refresh(&self, repository: &RepositoryConfig) -> Result<(), SourceError> {
        self.fetch(repository, &[]).await
    }

    /// Brings the base up to date and fetches the head of a pull request: by its sha, and through `reference`
    /// (`refs/pull/N/head`) where the repository gives out no commits by their sha.
    pub async fn fetch_pull_request(
        &self,
        repository: &RepositoryConfig,
        base_ref: &str,
        reference: &str,
        head: &str,
    ) -> Result<(), SourceError> {
        match self.fetch(repository, &[base_ref, head]).await {
            Err(SourceError::NotFound { what, .. }) if what.eq_ignore_ascii_case(head) => {
                self.fetch(repository, &[base_ref, reference, head]).await
            }
            result => result,
        }
    }

    /// Makes the folder of mirrors, once; whatever is in its `tmp` is from a master that was killed.
    async fn prepare(&self, repository: &RepositoryConfig) -> Result<(), SourceError> {
        self.inner
            .prepared
            .get_or_try_init(|| async {
                let tmp = self.tmp();
                if tokio::fs::try_exists(&tmp).await? {
                    tokio::fs::remove_dir_all(&tmp).await?;
                }
                tokio::fs::create_dir_all(&tmp).await?;
                self.inner.git.write_settings()
            })
            .await
            .map_err(|error| self.file_error(repository, "keep a mirror of", &error))?;
        Ok(())
    }

    pub(super) fn tmp(&self) -> PathBuf {
        self.inner.dir.join("tmp")
    }

    /// Removes what a git that was killed has left in the mirror, once.
    pub(super) async fn open(
        &self,
        repository: &RepositoryConfig,
        mirror: &Mirror,
    ) -> Result<(), SourceError> {
        self.prepare(repository).await?;
        mirror
            .opened
            .get_or_init(|| async {
                if mirror.is_made() {
                    sweep(mirror.path.clone()).await;
                    tokio::fs::write(attributes_of(&mirror.path), ATTRIBUTES)
                        .await
                        .unwrap_or_else(|_| mirror.suspect());
                }
            })
            .await;
        Ok(())
    }

    /// Whether the network can be left alone: only objects never change, refs do.
    async fn has_all(
        &self,
        repository: &RepositoryConfig,
        mirror: &Arc<Mirror>,
        wanted: &[Name],
    ) -> Result<bool, SourceError> {
        let are_shas = wanted.iter().all(|name| matches!(name, Name::Sha(_)));
        if wanted.is_empty() || !are_shas || !mirror.is_made() || mirror.is_suspect() {
            return Ok(false);
        }
        match self.find(repository, &mirror.path, wanted).await {
            Ok(found) => Ok(found.iter().all(|is_there| *is_there)),
            Err(SourceError::Damaged { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Which of the names mean something in the repository at `git_dir`.
    pub(super) async fn find(
        &self,
        repository: &RepositoryConfig,
        git_dir: &Path,
        names: &[Name],
    ) -> Result<Vec<bool>, SourceError> {
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let candidates: Vec<Vec<String>> = names.iter().map(Name::candidates).collect();
        let questions: String = candidates
            .iter()
            .flatten()
            .map(|candidate| format!("{candidate}\n"))
            .collect();
        let call = self.inner.git.call(repository, git_dir, WHAT);
        let judge = call.judge();
        let output = call
            .args(["cat-file", "--batch-check=%(objectname) %(objecttype)"])
            .input(questions)
            .succeed()
            .await?;
        if let Some(error) = judge.damage(&output.stderr) {
            return Err(error);
        }
        let text = output.text();
        let mut answers = text.lines().map(|line| {
            line.split_once(' ')
                .is_some_and(|(sha, kind)| is_sha(sha) && kind != "missing")
        });
        Ok(candidates
            .iter()
            // Every answer is taken, so that the next name meets its own.
            .map(|of_one| {
                answers
                    .by_ref()
                    .take(of_one.len())
                    .fold(false, |any, is_there| any | is_there)
            })
            .collect())
    }

    /// Joins packs beside everything else. Git keeps what is younger than two weeks, so nothing in use goes.
    fn pack_now_and_then(&self, repository: &RepositoryConfig, mirror: &Arc<Mirror>) {
        let is_time = mirror.fetches.fetch_add(1, Ordering::Relaxed) % FETCHES_BETWEEN_PACKING
            == FETCHES_BETWEEN_PACKING - 1;
        if !is_time || mirror.is_packing.swap(true, Ordering::Relaxed) {
            return;
        }
        let call = self
            .inner
            .git
            .call(repository, &mirror.path, "pack the mirror of")
            .args(["-c", "gc.auto=6700", "-c", "gc.autoDetach=false"])
            .args(["gc", "--auto", "--quiet"])
            .timeout(PACK_TIMEOUT);
        let mirror = mirror.clone();
        tokio::spawn(async move {
            if let Err(error) = call.succeed().await {
                tracing::warn!("{error}");
            }
            mirror.is_packing.store(false, Ordering::Relaxed);
        });
    }

    pub(super) fn file_error(
        &self,
        repository: &RepositoryConfig,
        what: &'static str,
        error: &io::Error,
    ) -> SourceError {
        let repository = repository.name.clone();
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => SourceError::DiskFull {
                repository,
                what,
                dir: self.inner.dir.clone(),
            },
            _ => SourceError::Git {
                repository,
                what,
                why: format!("{}: {error}", self.inner.dir.display()),
            },
        }
    }
}

pub(super) fn attributes_of(git_dir: &Path) -> PathBuf {
    git_dir.join("info").join("attributes")
}

/// Removes lock files and half packs. Only a git that was killed leaves them: the mirror is nobody else's.
pub(super) async fn sweep(git_dir: PathBuf) {
    /// A ref cannot be named `….lock`, but very well `tmp_…`.
    fn sweep_locks(folder: &Path) -> io::Result<()> {
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                sweep_locks(&entry.path())?;
            } else if entry.file_name().to_string_lossy().ends_with(".lock") {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
    fn sweep_files(folder: &Path, is_leftover: fn(&str) -> bool) -> io::Result<()> {
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_type()?.is_file() && is_leftover(&entry.file_name().to_string_lossy()) {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
    let swept = tokio::task::spawn_blocking(move || {
        let result = sweep_locks(&git_dir.join("refs"))
            .and_then(|()| sweep_locks(&git_dir.join("objects").join("info")))
            .and_then(|()| {
                sweep_files(&git_dir, |name| name.ends_with(".lock") || name == "gc.pid")
            })
            .and_then(|()| {
                sweep_files(&git_dir.join("objects").join("pack"), |name| {
                    name.ends_with(".lock") || name.starts_with("tmp_")
                })
            });
        (git_dir, result)
    })
    .await;
    // A folder that is missing is for git to complain of.
    if let Ok((git_dir, Err(error))) = swept
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!("cannot clean up {}: {error}", git_dir.display());
    }
}
