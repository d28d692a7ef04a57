//! A fetch by the one whose turn it is: into the mirror that is there, or into a new one.

use super::call::Output;
use super::credentials::Remote;
use super::error::{Complaint, missing_ref, tail_of};
use super::history::not_found;
use super::mirror::{Mirror, WHAT, attributes_of, sweep};
use super::names::Name;
use super::tree::ATTRIBUTES;
use super::{SourceError, Sources};
use crate::config::RepositoryConfig;
use std::io;
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;

/// A fetch into a mirror that is there. A connection that stalls ends earlier.
const FETCH_TIMEOUT: Duration = Duration::from_secs(15 * 60);
/// The first fetch has the whole history.
const FIRST_FETCH_TIMEOUT: Duration = Duration::from_secs(2 * 3600);
/// A webhook can be faster than the server's own copies of the repository.
const LAG: Duration = Duration::from_secs(2);
/// Another git that was just ended may need this long to remove its lock files.
const LOCK_PAUSE: Duration = Duration::from_millis(500);

/// One fetch, by the one whose turn it is.
pub(super) struct Fetch<'a> {
    pub(super) sources: &'a Sources,
    pub(super) repository: &'a RepositoryConfig,
    pub(super) remote: &'a Remote,
    pub(super) wanted: &'a [Name],
}

impl Fetch<'_> {
    /// Into the mirror that is there.
    pub(super) async fn update(&self, mirror: &Mirror) -> Result<(), SourceError> {
        self.run(mirror.path(), FETCH_TIMEOUT).await
    }

    /// A mirror appears whole or not at all.
    pub(super) async fn make(&self, mirror: &Mirror) -> Result<(), SourceError> {
        let (made, result) = self.make_apart().await?;
        let renamed = tokio::fs::rename(made.path(), mirror.path()).await;
        self.files(renamed)?;
        // The folder is gone from `tmp`: there is nothing left to remove.
        drop(made.keep());
        result
    }

    /// The old one serves until the new one is whole.
    pub(super) async fn replace(&self, mirror: &Mirror, why: &str) -> Result<(), SourceError> {
        tracing::warn!(
            "the mirror of {} is damaged ({why}): a new one is made",
            self.repository.name
        );
        let (made, result) = self.make_apart().await?;
        let old = self.files(TempDir::new_in(self.sources.tmp()))?;
        let renamed = async {
            tokio::fs::rename(mirror.path(), old.path().join("old")).await?;
            tokio::fs::rename(made.path(), mirror.path()).await
        };
        let renamed = renamed.await;
        self.files(renamed)?;
        drop(made.keep());
        mirror.trust();
        // Large, and in nobody's way.
        tokio::task::spawn_blocking(move || old.close().ok());
        result
    }

    /// A whole mirror in `tmp`, and whether it has all that is wanted: it is kept although it has not.
    async fn make_apart(&self) -> Result<(TempDir, Result<(), SourceError>), SourceError> {
        let folder = self.files(TempDir::new_in(self.sources.tmp()))?;
        self.sources
            .inner
            .git
            .call(self.repository, folder.path(), "make a mirror of")
            .args(["init", "--quiet", "--bare", "--template="])
            .succeed()
            .await?;
        let attributes = attributes_of(folder.path());
        let written = async {
            if let Some(info) = attributes.parent() {
                tokio::fs::create_dir_all(info).await?;
            }
            tokio::fs::write(&attributes, ATTRIBUTES).await
        };
        let written = written.await;
        self.files(written)?;
        let fetched = self.run(folder.path(), FIRST_FETCH_TIMEOUT).await;
        if fetched.is_ok() {
            // Each fetch reads all refs, and one file is read faster than a thousand.
            self.sources
                .inner
                .git
                .call(self.repository, folder.path(), "make a mirror of")
                .args(["pack-refs", "--all"])
                .succeed()
                .await?;
        }
        match fetched {
            result @ (Ok(()) | Err(SourceError::NotFound { .. })) => Ok((folder, result)),
            // A mirror made a moment ago is sound: it is the other side.
            Err(SourceError::Damaged {
                repository,
                what,
                why,
            }) => Err(SourceError::Git {
                repository,
                what,
                why: format!("the repository itself seems to be damaged: {why}"),
            }),
            Err(error) => Err(error),
        }
    }

    fn files<T>(&self, result: io::Result<T>) -> Result<T, SourceError> {
        result.map_err(|error| {
            self.sources
                .file_error(self.repository, "keep a mirror of", &error)
        })
    }

    /// Fetches until everything wanted is there, or is known not to be.
    async fn run(&self, git_dir: &Path, timeout: Duration) -> Result<(), SourceError> {
        let mut is_last = !self.remote.is_distant;
        loop {
            let shas = self.missing_shas(git_dir).await?;
            let missing = match self.once(git_dir, &shas, timeout).await? {
                Some(name) => Some(name),
                None => self.first_missing(git_dir).await?,
            };
            match missing {
                None => return Ok(()),
                Some(name) if is_last => return Err(not_found(self.repository, &name)),
                Some(_) => {
                    is_last = true;
                    tokio::time::sleep(LAG).await;
                }
            }
        }
    }

    async fn first_missing(&self, git_dir: &Path) -> Result<Option<String>, SourceError> {
        let found = self
            .sources
            .find(self.repository, git_dir, self.wanted)
            .await?;
        let missing = self.wanted.iter().zip(found).find(|(_, found)| !found);
        Ok(missing.map(|(name, _)| name.as_str().to_owned()))
    }

    /// Wanted shas that have to be asked for by name, in case no branch leads to them.
    async fn missing_shas(&self, git_dir: &Path) -> Result<Vec<&str>, SourceError> {
        let shas: Vec<Name> = self
            .wanted
            .iter()
            .filter(|name| matches!(name, Name::Sha(_)))
            .cloned()
            .collect();
        let found = self.sources.find(self.repository, git_dir, &shas).await?;
        Ok(self
            .wanted
            .iter()
            .filter(|name| matches!(name, Name::Sha(_)))
            .zip(found)
            .filter(|(_, is_there)| !is_there)
            .map(|(name, _)| name.as_str())
            .collect())
    }

    /// Fetches branches, tags and what else is wanted: one connection in the usual case. Returns a ref that is not there.
    async fn once(
        &self,
        git_dir: &Path,
        shas: &[&str],
        timeout: Duration,
    ) -> Result<Option<String>, SourceError> {
        let mut shas = shas;
        let mut gone: Option<String> = None;
        let mut may_be_locked = true;
        loop {
            let refs = match gone {
                None => self.other_refs(),
                Some(_) => Vec::new(),
            };
            let output = self.git_fetch(git_dir, &refs, shas, timeout).await?;
            if output.is_success() {
                return Ok(gone);
            }
            match Complaint::read(&output.stderr) {
                // One unknown name fails the whole fetch, and the rest is worth having all the same.
                Complaint::NotOurRef if !shas.is_empty() => shas = &[],
                Complaint::NoSuchRef if gone.is_none() => {
                    let name = missing_ref(&output.stderr).unwrap_or("such ref");
                    gone = Some(name.to_owned());
                }
                Complaint::Locked if may_be_locked => {
                    may_be_locked = false;
                    tokio::time::sleep(LOCK_PAUSE).await;
                    sweep(git_dir.to_owned()).await;
                }
                complaint => return Err(self.error(complaint, &output.stderr)),
            }
        }
    }

    /// Wanted refs that are neither branches nor tags, as refspecs.
    fn other_refs(&self) -> Vec<String> {
        let others = self.wanted.iter().filter_map(|name| match name {
            Name::Ref(name) => Some(name)
                .filter(|name| !name.starts_with("refs/heads/") && !name.starts_with("refs/tags/")),
            Name::Sha(_) | Name::Short(_) => None,
        });
        others.map(|name| format!("+{name}:{name}")).collect()
    }

    async fn git_fetch(
        &self,
        git_dir: &Path,
        refs: &[String],
        shas: &[&str],
        timeout: Duration,
    ) -> Result<Output, SourceError> {
        let mut config = vec![("remote.origin.url".to_owned(), self.remote.url.clone())];
        config.extend(self.remote.config.iter().cloned());
        self.sources
            .inner
            .git
            .call(self.repository, git_dir, WHAT)
            .args([
                "fetch",
                "--quiet",
                "--prune",
                "--no-tags",
                "--no-write-fetch-head",
                "--no-auto-maintenance",
                "--no-show-forced-updates",
                "origin",
                "+refs/heads/*:refs/heads/*",
                "+refs/tags/*:refs/tags/*",
            ])
            .args(refs)
            .args(shas)
            .config(&config)
            .hiding(&self.remote.secrets)
            .timeout(timeout)
            .run()
            .await
    }

    fn error(&self, complaint: Complaint, stderr: &str) -> SourceError {
        match complaint {
            Complaint::Unreachable { hint } => SourceError::Unreachable {
                repository: self.repository.name.clone(),
                why: tail_of(stderr),
                hint,
            },
            Complaint::NoSuchRef
            | Complaint::NotOurRef
            | Complaint::Locked
            | Complaint::Damaged
            | Complaint::DiskFull
            | Complaint::Other => self
                .sources
                .inner
                .git
                .call(self.repository, &self.sources.inner.dir, WHAT)
                .judge()
                .error(stderr),
        }
    }
}
