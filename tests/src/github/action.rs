//! What people do on GitHub: each action changes repositories and state, then sends the webhooks that GitHub sends.

use super::GitHub;
use super::shape::PushFacts;
use super::state::{AccountKind, Mergeability, PullRequest, PullState, Repository};
use crate::git::{BareRepository, Commit, Merge};
use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Commits listed in one push event.
const COMMITS_IN_PUSH: usize = 2048;

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

/// An event that is ready to be announced once the action is done.
struct Event {
    repository: String,
    name: &'static str,
    body: Value,
}

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

    /// The bare repository behind a name.
    pub fn git(&self, name: &str) -> Result<BareRepository> {
        let state = self.state();
        let repository = state.repositories.get(name);
        Ok(repository
            .with_context(|| format!("no repository {name}"))?
            .git
            .clone())
    }

    pub fn pull_request(&self, repository: &str, number: i64) -> Option<PullRequest> {
        self.state().pull(repository, number).cloned()
    }

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
    async fn branch_moved(
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

    /// Changes a pull request and makes the event of it.
    fn change_pull(
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

    async fn announce_all(&self, events: Vec<Event>) {
        self.notify();
        for event in events {
            self.announce(&event.repository, event.name, &event.body)
                .await;
        }
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

    fn close_in_turn(&self, repository: &str, number: i64, sender: &str) -> Result<Option<Event>> {
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
            let closed =
                self.change_pull(repository, number, "closed", "ada", json!({}), |pull| {
                    let now = Timestamp::now();
                    pull.state = PullState::Closed;
                    pull.merged = true;
                    pull.merged_by = Some("ada".to_owned());
                    pull.merge_commit_sha = Some(sha.clone());
                    pull.closed_at = Some(now);
                    pull.merged_at = Some(now);
                    pull.mergeability = Mergeability::Unknown;
                })?;
            let mut events = vec![closed];
            events.extend(
                self.branch_moved(repository, &pull.base_branch, Some(base), "ada")
                    .await?,
            );
            (sha, events)
        };
        self.announce_all(events).await;
        Ok(sha)
    }

    /// Works out whether an open pull request merges, and keeps `refs/pull/N/merge` as GitHub does.
    pub(super) async fn compute_mergeability(&self, repository: &str, number: i64) -> Result<()> {
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
