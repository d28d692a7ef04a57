//! A merge queue: pull requests wait as commits of their own, each a merge into the branch, until these are green.

use super::Event;
use crate::git::Merge;
use crate::github::GitHub;
use anyhow::{Context, Result, bail};

/// Why a merge group went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Destroyed {
    Merged,
    Dequeued,
}

impl Destroyed {
    fn as_str(self) -> &'static str {
        match self {
            Destroyed::Merged => "merged",
            Destroyed::Dequeued => "dequeued",
        }
    }
}

impl GitHub {
    /// Puts a pull request into the queue; returns the commit whose checks the queue waits for.
    pub async fn enqueue(&self, repository: &str, number: i64) -> Result<String> {
        let (sha, events) = {
            let _turn = self.inner.turn.lock().await;
            let git = self.git(repository)?;
            let pull = self
                .pull_request(repository, number)
                .with_context(|| format!("no pull request {number} in {repository}"))?;
            let base = git
                .head_of(&pull.base_branch)
                .await
                .with_context(|| format!("no branch {} in {repository}", pull.base_branch))?;
            let tree = match git.merge(&base, &pull.head_sha).await? {
                Merge::Clean(tree) => tree,
                Merge::Conflict(paths) => bail!("it conflicts in {}", paths.join(", ")),
            };
            let message = format!(
                "Merge pull request #{number} from {}\n\n{}",
                pull.head_branch, pull.title
            );
            let sha = git
                .commit_tree(&tree, &[&base, &pull.head_sha], &message)
                .await?;
            let branch = queue_branch(&pull.base_branch, number, &base);
            git.update_ref(&format!("refs/heads/{branch}"), &sha)
                .await?;
            let mut events = self.branch_moved(repository, &branch, None, "ada").await?;
            events.push(
                self.merge_group_event(repository, &branch, &sha, &pull.base_branch, &base, None)
                    .await?,
            );
            (sha, events)
        };
        self.announce_all(events).await;
        Ok(sha)
    }

    /// Takes a pull request out of the queue again.
    pub async fn dequeue(&self, repository: &str, number: i64) -> Result<()> {
        let events = {
            let _turn = self.inner.turn.lock().await;
            self.leave_queue(repository, number, Destroyed::Dequeued)
                .await?
        };
        self.announce_all(events).await;
        Ok(())
    }

    /// Merges what the queue has found green: the branch becomes the queue's commit.
    pub async fn merge_from_queue(&self, repository: &str, number: i64) -> Result<()> {
        let events = {
            let _turn = self.inner.turn.lock().await;
            let git = self.git(repository)?;
            let pull = self
                .pull_request(repository, number)
                .with_context(|| format!("no pull request {number} in {repository}"))?;
            let base = git
                .head_of(&pull.base_branch)
                .await
                .with_context(|| format!("no branch {} in {repository}", pull.base_branch))?;
            let branch = queue_branch(&pull.base_branch, number, &base);
            let sha = git
                .head_of(&branch)
                .await
                .with_context(|| format!("pull request {number} is not in the queue"))?;
            let mut events = self
                .leave_queue(repository, number, Destroyed::Merged)
                .await?;
            git.update_ref(&format!("refs/heads/{}", pull.base_branch), &sha)
                .await?;
            events.push(self.mark_merged(repository, number, &sha)?);
            events.extend(
                self.branch_moved(repository, &pull.base_branch, Some(base), "ada")
                    .await?,
            );
            events
        };
        self.announce_all(events).await;
        Ok(())
    }

    async fn leave_queue(
        &self,
        repository: &str,
        number: i64,
        why: Destroyed,
    ) -> Result<Vec<Event>> {
        let git = self.git(repository)?;
        let pull = self
            .pull_request(repository, number)
            .with_context(|| format!("no pull request {number} in {repository}"))?;
        let base = git
            .head_of(&pull.base_branch)
            .await
            .with_context(|| format!("no branch {} in {repository}", pull.base_branch))?;
        let branch = queue_branch(&pull.base_branch, number, &base);
        let sha = git
            .head_of(&branch)
            .await
            .with_context(|| format!("pull request {number} is not in the queue"))?;
        let destroyed = self
            .merge_group_event(
                repository,
                &branch,
                &sha,
                &pull.base_branch,
                &base,
                Some(why),
            )
            .await?;
        git.delete_ref(&format!("refs/heads/{branch}")).await?;
        let mut events = vec![destroyed];
        events.extend(
            self.branch_moved(repository, &branch, Some(sha), "ada")
                .await?,
        );
        Ok(events)
    }

    async fn merge_group_event(
        &self,
        repository: &str,
        branch: &str,
        sha: &str,
        base_branch: &str,
        base: &str,
        destroyed: Option<Destroyed>,
    ) -> Result<Event> {
        let head = self.git(repository)?.commit_info(sha).await?;
        let state = self.state();
        let known = state
            .repository(repository)
            .with_context(|| format!("no repository {repository}"))?;
        let body = self.shapes().merge_group_event(
            &state,
            known,
            &head,
            (branch, base_branch),
            base,
            destroyed.map(Destroyed::as_str),
        );
        Ok(Event {
            repository: repository.to_owned(),
            name: "merge_group",
            body,
        })
    }
}

fn queue_branch(base_branch: &str, number: i64, base: &str) -> String {
    format!("gh-readonly-queue/{base_branch}/pr-{number}-{base}")
}
