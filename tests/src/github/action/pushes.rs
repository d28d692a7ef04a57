//! Branches move: pushes, forced ones, deletions.

use super::Event;
use crate::git::Commit;
use crate::github::GitHub;
use crate::github::shape::PushFacts;
use crate::github::state::{AccountKind, Mergeability, PullState};
use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use serde_json::json;

/// Commits listed in one push event.
const COMMITS_IN_PUSH: usize = 2048;

impl GitHub {
    /// Commits and pushes; returns the SHA.
    pub async fn commit(&self, repository: &str, commit: Commit) -> Result<String> {
        let shas = self.push(repository, &[commit]).await?;
        shas.into_iter().next_back().context("no commit was made")
    }

    /// Commits several times on one branch and pushes once; returns the SHAs.
    pub async fn push(&self, repository: &str, commits: &[Commit]) -> Result<Vec<String>> {
        let branch = commits.first().context("nothing to push")?.branch.clone();
        if commits.iter().any(|commit| commit.branch != branch) {
            bail!("one push moves one branch here");
        }
        let (shas, events) = {
            let _turn = self.inner.turn.lock().await;
            let git = self.git(repository)?;
            let before = git.head_of(&branch).await;
            let mut shas = Vec::new();
            for commit in commits {
                shas.push(git.commit(commit).await?);
            }
            let events = self
                .branch_moved(repository, &branch, before, "ada")
                .await?;
            (shas, events)
        };
        self.announce_all(events).await;
        Ok(shas)
    }

    /// Moves a branch to a commit that is there already, e.g. back: a forced push.
    pub async fn force_push(&self, repository: &str, branch: &str, sha: &str) -> Result<()> {
        let events = {
            let _turn = self.inner.turn.lock().await;
            let git = self.git(repository)?;
            let before = git.head_of(branch).await;
            git.update_ref(&format!("refs/heads/{branch}"), sha).await?;
            self.branch_moved(repository, branch, before, "ada").await?
        };
        self.announce_all(events).await;
        Ok(())
    }

    pub async fn delete_branch(&self, repository: &str, branch: &str) -> Result<()> {
        let events = {
            let _turn = self.inner.turn.lock().await;
            let git = self.git(repository)?;
            let before = git.head_of(branch).await;
            git.delete_ref(&format!("refs/heads/{branch}")).await?;
            let mut events = self.branch_moved(repository, branch, before, "ada").await?;
            // A pull request without its branch is closed.
            for (base, number) in self.open_pulls_of(repository, branch) {
                events.extend(self.close_in_turn(&base, number, "ada")?);
            }
            events
        };
        self.announce_all(events).await;
        Ok(())
    }

    fn open_pulls_of(&self, head_repository: &str, branch: &str) -> Vec<(String, i64)> {
        let state = self.state();
        state
            .repositories
            .values()
            .flat_map(|base| {
                base.pulls
                    .values()
                    .filter(|pull| {
                        pull.state == PullState::Open
                            && pull.head_branch == branch
                            && pull.head_repository.as_deref() == Some(head_repository)
                    })
                    .map(|pull| (base.full_name(), pull.number))
            })
            .collect()
    }

    /// The events of a branch that has moved: `push`, and `synchronize` of the pull requests from it.
    pub(super) async fn branch_moved(
        &self,
        repository: &str,
        branch: &str,
        before: Option<String>,
        pusher: &str,
    ) -> Result<Vec<Event>> {
        let git = self.git(repository)?;
        let after = git.head_of(branch).await;
        if before == after {
            return Ok(Vec::new());
        }
        let forced = match (&before, &after) {
            (Some(before), Some(after)) => !git.is_ancestor(before, after).await?,
            (None, _) | (_, None) => false,
        };
        let mut commits = Vec::new();
        let mut head = None;
        if let Some(after) = &after {
            let since = match &before {
                Some(before) => Some(before.clone()),
                None => self.default_head(repository).await,
            };
            let list = git.commits_between(since.as_deref(), after).await?;
            for sha in list.iter().take(COMMITS_IN_PUSH) {
                commits.push(git.commit_info(sha).await?);
            }
            head = Some(git.commit_info(after).await?);
        }
        let facts = PushFacts {
            reference: format!("refs/heads/{branch}"),
            before: before.clone(),
            after: after.clone(),
            forced,
            commits,
            head,
            pusher: pusher.to_owned(),
        };
        let mut events = Vec::new();
        {
            let mut state = self.state();
            state.account(pusher, AccountKind::User);
            if let Some(known) = state.repositories.get_mut(repository) {
                known.pushed_at = Timestamp::now();
                // The base of these pull requests moved: whether they merge is to be computed again.
                for pull in known.pulls.values_mut() {
                    if pull.base_branch == branch && pull.state == PullState::Open {
                        pull.mergeability = Mergeability::Unknown;
                    }
                }
            }
            if let Some(known) = state.repository(repository) {
                events.push(Event {
                    repository: repository.to_owned(),
                    name: "push",
                    body: self.shapes().push(&state, known, &facts),
                });
            }
        }
        if let Some(after) = after {
            for (base, number) in self.open_pulls_of(repository, branch) {
                let base_git = self.git(&base)?;
                let reference = format!("refs/pull/{number}/head");
                base_git.fetch(&git, &after, &reference).await?;
                let more = json!({ "before": before, "after": after });
                let event =
                    self.change_pull(&base, number, "synchronize", pusher, more, |pull| {
                        pull.head_sha.clone_from(&after);
                        pull.mergeability = Mergeability::Unknown;
                    })?;
                events.push(event);
            }
        }
        Ok(events)
    }

    async fn default_head(&self, repository: &str) -> Option<String> {
        let (git, branch) = {
            let state = self.state();
            let known = state.repositories.get(repository)?;
            (known.git.clone(), known.default_branch.clone())
        };
        git.head_of(&branch).await
    }
}
