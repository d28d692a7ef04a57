//! Repositories come, are forked and go.

use crate::git::{BareRepository, Commit};
use crate::github::GitHub;
use crate::github::state::{AccountKind, Repository};
use anyhow::{Context, Result};
use jiff::Timestamp;
use std::collections::BTreeMap;

impl GitHub {
    /// Makes a repository `owner/name` with a first commit of these files on `main`; returns its SHA. The owner is
    /// an organisation unless it is known as something else.
    pub async fn create_repository(&self, name: &str, files: &[(&str, &str)]) -> Result<String> {
        let _turn = self.inner.turn.lock().await;
        let git = BareRepository::init(&self.folder_of(name)).await?;
        let mut commit = Commit::on("main").message("First commit");
        for (path, content) in files {
            commit = commit.file(path, *content);
        }
        let sha = git.commit(&commit).await?;
        self.add_repository(name, git, None)?;
        Ok(sha)
    }

    fn folder_of(&self, name: &str) -> std::path::PathBuf {
        self.repositories_folder().join(format!("{name}.git"))
    }

    fn add_repository(&self, name: &str, git: BareRepository, fork_of: Option<&str>) -> Result<()> {
        let (owner, short) = name
            .split_once('/')
            .with_context(|| format!("`{name}` is not owner/name"))?;
        let mut state = self.state();
        let kind = if fork_of.is_some() {
            AccountKind::User
        } else {
            AccountKind::Organization
        };
        state.account(owner, kind);
        let now = Timestamp::now();
        let repository = Repository {
            id: state.next_id(),
            owner: owner.to_owned(),
            name: short.to_owned(),
            private: false,
            fork_of: fork_of.map(str::to_owned),
            default_branch: "main".to_owned(),
            created_at: now,
            pushed_at: now,
            git,
            pulls: BTreeMap::new(),
        };
        state.repositories.insert(name.to_owned(), repository);
        Ok(())
    }

    /// Forks a repository to another owner; returns the fork's name.
    pub async fn fork(&self, name: &str, owner: &str) -> Result<String> {
        let _turn = self.inner.turn.lock().await;
        let origin = self.git(name)?;
        let short = name.split('/').next_back().unwrap_or(name);
        let fork = format!("{owner}/{short}");
        let git = BareRepository::clone_of(&self.folder_of(&fork), &origin).await?;
        self.add_repository(&fork, git, Some(name))?;
        Ok(fork)
    }

    /// Deletes a repository; pull requests from it keep their commits, but have no head repository any more.
    pub fn delete_repository(&self, name: &str) {
        let mut state = self.state();
        state.repositories.remove(name);
        for repository in state.repositories.values_mut() {
            for pull in repository.pulls.values_mut() {
                if pull.head_repository.as_deref() == Some(name) {
                    pull.head_repository = None;
                }
            }
        }
    }

    pub fn set_private(&self, name: &str, private: bool) {
        if let Some(repository) = self.state().repositories.get_mut(name) {
            repository.private = private;
        }
    }
}
