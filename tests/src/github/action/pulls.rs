//! Pull requests are opened, changed, closed and merged.

use super::Event;
use crate::git::Merge;
use crate::github::GitHub;
use crate::github::state::{AccountKind, Mergeability, PullRequest, PullState};
use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use serde_json::{Value, json};

/// A pull request to be opened.
#[derive(Debug, Clone)]
pub struct PullRequestSpec {
    pub head_branch: String,
    /// The head's repository; `None`: the same as the base's.
    pub head_repository: Option<String>,
    pub base_branch: String,
    pub title: String,
    pub author: String,
    pub draft: bool,
}

impl PullRequestSpec {
    /// From a branch of the repository into `main`.
    pub fn from(head_branch: &str) -> PullRequestSpec {
        PullRequestSpec {
            head_branch: head_branch.to_owned(),
            head_repository: None,
            base_branch: "main".to_owned(),
            title: format!("Merge {head_branch}"),
            author: "ada".to_owned(),
            draft: false,
        }
    }

    pub fn of_fork(mut self, repository: &str) -> PullRequestSpec {
        self.head_repository = Some(repository.to_owned());
        self
    }

    pub fn into_branch(mut self, branch: &str) -> PullRequestSpec {
        branch.clone_into(&mut self.base_branch);
        self
    }

    pub fn title(mut self, title: &str) -> PullRequestSpec {
        title.clone_into(&mut self.title);
        self
    }

    pub fn author(mut self, login: &str) -> PullRequestSpec {
        login.clone_into(&mut self.author);
        self
    }

    pub fn draft(mut self) -> PullRequestSpec {
        self.draft = true;
        self
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MergeMethod {
    MergeCommit,
    Squash,
}

impl GitHub {
    /// Changes a pull request and makes the event of it.
    pub(super) fn change_pull(
        &self,
        repository: &str,
        number: i64,
        action: &str,
        sender: &str,
        more: Value,
        change: impl FnOnce(&mut PullRequest),
    ) -> Result<Event> {
        let mut state = self.state();
        state.account(sender, AccountKind::User);
        let pull = state
            .pull_mut(repository, number)
            .with_context(|| format!("no pull request {number} in {repository}"))?;
        change(pull);
        // Later events bear later times, although GitHub counts only seconds.
        pull.updated_at = Timestamp::now();
        let pull = pull.clone();
        let known = state
            .repository(repository)
            .with_context(|| format!("no repository {repository}"))?;
        let body = self
            .shapes()
            .pull_request_event(&state, known, &pull, action, sender, more);
        Ok(Event {
            repository: repository.to_owned(),
            name: "pull_request",
            body,
        })
    }

    /// Opens a pull request; returns its number.
    pub async fn open_pull_request(&self, repository: &str, spec: PullRequestSpec) -> Result<i64> {
        let (number, event) = {
            let _turn = self.inner.turn.lock().await;
            let head_name = spec
                .head_repository
                .clone()
                .unwrap_or_else(|| repository.to_owned());
            let (git, head_git) = (self.git(repository)?, self.git(&head_name)?);
            let head_sha = head_git
                .head_of(&spec.head_branch)
                .await
                .with_context(|| format!("no branch {} in {head_name}", spec.head_branch))?;
            let base_sha = git
                .head_of(&spec.base_branch)
                .await
                .with_context(|| format!("no branch {} in {repository}", spec.base_branch))?;
            let (id, number) = {
                let mut state = self.state();
                state.account(&spec.author, AccountKind::User);
                let id = state.next_id();
                let known = state.repositories.get(repository);
                let newest = known.and_then(|known| known.pulls.keys().next_back().copied());
                (id, newest.unwrap_or(0) + 1)
            };
            git.fetch(&head_git, &head_sha, &format!("refs/pull/{number}/head"))
                .await?;
            let now = Timestamp::now();
            let pull = PullRequest {
                id,
                number,
                title: spec.title,
                author: spec.author.clone(),
                head_repository: Some(head_name),
                head_branch: spec.head_branch,
                head_sha,
                base_branch: spec.base_branch,
                base_sha,
                state: PullState::Open,
                draft: spec.draft,
                merged: false,
                merged_by: None,
                merge_commit_sha: None,
                mergeability: Mergeability::Unknown,
                created_at: now,
                updated_at: now,
                closed_at: None,
                merged_at: None,
            };
            if let Some(known) = self.state().repositories.get_mut(repository) {
                known.pulls.insert(number, pull);
            }
            let event = self.change_pull(
                repository,
                number,
                "opened",
                &spec.author,
                json!({}),
                |_| {},
            )?;
            (number, event)
        };
        self.announce_all(vec![event]).await;
        Ok(number)
    }

    pub(super) fn close_in_turn(
        &self,
        repository: &str,
        number: i64,
        sender: &str,
    ) -> Result<Option<Event>> {
        if self
            .pull_request(repository, number)
            .is_none_or(|pull| pull.state == PullState::Closed)
        {
            return Ok(None);
        }
        self.change_pull(repository, number, "closed", sender, json!({}), |pull| {
            pull.state = PullState::Closed;
            pull.closed_at = Some(Timestamp::now());
        })
        .map(Some)
    }

    /// Closes a pull request without a merge.
    pub async fn close_pull_request(&self, repository: &str, number: i64) -> Result<()> {
        let event = {
            let _turn = self.inner.turn.lock().await;
            self.close_in_turn(repository, number, "ada")?
        };
        self.announce_all(event.into_iter().collect()).await;
        Ok(())
    }

    pub async fn reopen_pull_request(&self, repository: &str, number: i64) -> Result<()> {
        self.act_on_pull(repository, number, "reopened", json!({}), |pull| {
            pull.state = PullState::Open;
            pull.closed_at = None;
            pull.mergeability = Mergeability::Unknown;
        })
        .await
    }

    pub async fn convert_to_draft(&self, repository: &str, number: i64) -> Result<()> {
        self.act_on_pull(
            repository,
            number,
            "converted_to_draft",
            json!({}),
            |pull| {
                pull.draft = true;
            },
        )
        .await
    }

    pub async fn mark_ready_for_review(&self, repository: &str, number: i64) -> Result<()> {
        self.act_on_pull(repository, number, "ready_for_review", json!({}), |pull| {
            pull.draft = false;
        })
        .await
    }

    /// Changes what the pull request is to be merged into.
    pub async fn change_base(&self, repository: &str, number: i64, branch: &str) -> Result<()> {
        let sha = self
            .git(repository)?
            .head_of(branch)
            .await
            .with_context(|| format!("no branch {branch} in {repository}"))?;
        let old = self
            .pull_request(repository, number)
            .with_context(|| format!("no pull request {number} in {repository}"))?;
        let changes = json!({ "changes": { "base": {
            "ref": { "from": old.base_branch },
            "sha": { "from": old.base_sha },
        } } });
        self.act_on_pull(repository, number, "edited", changes, |pull| {
            branch.clone_into(&mut pull.base_branch);
            pull.base_sha = sha;
            pull.mergeability = Mergeability::Unknown;
        })
        .await
    }

    async fn act_on_pull(
        &self,
        repository: &str,
        number: i64,
        action: &str,
        more: Value,
        change: impl FnOnce(&mut PullRequest),
    ) -> Result<()> {
        let event = {
            let _turn = self.inner.turn.lock().await;
            self.change_pull(repository, number, action, "ada", more, change)?
        };
        self.announce_all(vec![event]).await;
        Ok(())
    }

    /// Merges a pull request; returns the merge commit. Events: `closed` with `merged`, then the base's `push`.
    pub async fn merge_pull_request(
        &self,
        repository: &str,
        number: i64,
        method: MergeMethod,
    ) -> Result<String> {
        let (sha, events) = {
            let _turn = self.inner.turn.lock().await;
            let git = self.git(repository)?;
            let pull = self
                .pull_request(repository, number)
                .with_context(|| format!("no pull request {number} in {repository}"))?;
            if pull.state == PullState::Closed {
                bail!("pull request {number} of {repository} is closed");
            }
            let base = git
                .head_of(&pull.base_branch)
                .await
                .with_context(|| format!("no branch {} in {repository}", pull.base_branch))?;
            let tree = match git.merge(&base, &pull.head_sha).await? {
                Merge::Clean(tree) => tree,
                Merge::Conflict(paths) => {
                    bail!("pull request {number} conflicts in {}", paths.join(", "))
                }
            };
            let sha = match method {
                MergeMethod::MergeCommit => {
                    let message = format!(
                        "Merge pull request #{number} from {}\n\n{}",
                        pull.head_branch, pull.title
                    );
                    git.commit_tree(&tree, &[&base, &pull.head_sha], &message)
                        .await?
                }
                MergeMethod::Squash => {
                    let message = format!("{} (#{number})", pull.title);
                    git.commit_tree(&tree, &[&base], &message).await?
                }
            };
            git.update_ref(&format!("refs/heads/{}", pull.base_branch), &sha)
                .await?;
            let mut events = vec![self.mark_merged(repository, number, &sha)?];
            events.extend(
                self.branch_moved(repository, &pull.base_branch, Some(base), "ada")
                    .await?,
            );
            (sha, events)
        };
        self.announce_all(events).await;
        Ok(sha)
    }

    /// Makes a pull request look as if nobody had touched it for so many days.
    pub fn age_pull_request(&self, repository: &str, number: i64, days: i64) {
        let age = jiff::SignedDuration::from_hours(24 * days);
        if let Some(pull) = self.state().pull_mut(repository, number) {
            pull.updated_at -= age;
            pull.created_at -= age;
        }
    }

    pub(super) fn mark_merged(&self, repository: &str, number: i64, sha: &str) -> Result<Event> {
        self.change_pull(repository, number, "closed", "ada", json!({}), |pull| {
            let now = Timestamp::now();
            pull.state = PullState::Closed;
            pull.merged = true;
            pull.merged_by = Some("ada".to_owned());
            pull.merge_commit_sha = Some(sha.to_owned());
            pull.closed_at = Some(now);
            pull.merged_at = Some(now);
            pull.mergeability = Mergeability::Unknown;
        })
    }

    /// Works out whether an open pull request merges, and keeps `refs/pull/N/merge` as GitHub does.
    pub(in crate::github) async fn compute_mergeability(
        &self,
        repository: &str,
        number: i64,
    ) -> Result<()> {
        let git = self.git(repository)?;
        let Some(pull) = self.pull_request(repository, number) else {
            return Ok(());
        };
        if pull.state == PullState::Closed || pull.mergeability != Mergeability::Unknown {
            return Ok(());
        }
        let base = git
            .head_of(&pull.base_branch)
            .await
            .with_context(|| format!("no branch {} in {repository}", pull.base_branch))?;
        let result = match git.merge(&base, &pull.head_sha).await? {
            Merge::Clean(tree) => {
                let message = format!("Merge {} into {base}", pull.head_sha);
                let test_merge = git
                    .commit_tree(&tree, &[&base, &pull.head_sha], &message)
                    .await?;
                git.update_ref(&format!("refs/pull/{number}/merge"), &test_merge)
                    .await?;
                Mergeability::Clean { test_merge }
            }
            Merge::Conflict(_) => Mergeability::Conflict,
        };
        if let Some(current) = self.state().pull_mut(repository, number)
            && current.head_sha == pull.head_sha
        {
            current.mergeability = result;
        }
        Ok(())
    }
}
