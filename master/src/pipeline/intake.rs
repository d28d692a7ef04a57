//! From events to builds: deliveries that were stored, branches that are polled, wishes of people.
//!
//! Each becomes an [`Intent`]; applying one twice does no harm, because a build's key says what it means.

pub(super) mod wanted;

use super::ledger::{Again, Ledger, OlderBuilds};
use crate::config::{Config, OnNewCommit, RepositoryConfig};
use crate::event::interpret::{Interpreted, interpret};
use crate::model::{BuildId, Ending, Intent, Learnt, NewBuild, PullRequest, Trigger};
use crate::pulse::Pulse;
use crate::report::wording;
use crate::source::Source;
use crate::store::builds::Inserted;
use anyhow::{Context, bail};
use std::sync::Arc;
use std::time::Duration;
use wanted::Publish;

/// How often stored deliveries are looked for without a wake-up.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// Deliveries taken in one look.
const BATCH: i64 = 50;

/// Turns events into builds; clones share it.
#[derive(Debug, Clone)]
pub struct Intake {
    pub ledger: Ledger,
    pub sources: Arc<dyn Source>,
    pub config: Arc<Config>,
}

impl Intake {
    /// Acts on stored deliveries, oldest first, for ever.
    pub async fn run_deliveries(self, wake: Arc<tokio::sync::Notify>, pulse: Pulse) {
        loop {
            pulse.beat();
            match self.look_at_deliveries(&pulse).await {
                Ok(0) => {
                    tokio::select! {
                        biased;
                        () = wake.notified() => {}
                        () = tokio::time::sleep(LOOK_INTERVAL) => {}
                    }
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::error!(
                        error = format!("{error:#}"),
                        "deliveries cannot be acted upon; trying again"
                    );
                    tokio::time::sleep(LOOK_INTERVAL).await;
                }
            }
        }
    }

    async fn look_at_deliveries(&self, pulse: &Pulse) -> anyhow::Result<usize> {
        let stored = self
            .ledger
            .store
            .next_deliveries(self.ledger.clock.now(), BATCH)
            .await?;
        let mut done = Vec::new();
        for delivery in &stored {
            pulse.beat();
            match self.act_on(&delivery.event, &delivery.body).await {
                Ok(outcome) => {
                    tracing::info!(
                        guid = delivery.guid,
                        event = delivery.event,
                        outcome,
                        "delivery acted upon"
                    );
                    crate::crash::point("delivery_acted_upon");
                    done.push((delivery.id, outcome));
                }
                Err(error) => {
                    let why = format!("{error:#}");
                    tracing::warn!(
                        guid = delivery.guid,
                        event = delivery.event,
                        why,
                        "delivery not acted upon"
                    );
                    self.ledger
                        .store
                        .fail_delivery(delivery.id, &why, self.ledger.clock.now())
                        .await?;
                }
            }
        }
        // Together: a wait for the disk for each would hold up the answers to those that are coming in.
        self.ledger.store.finish_deliveries(&done).await?;
        Ok(stored.len())
    }

    async fn act_on(&self, event: &str, body: &[u8]) -> anyhow::Result<String> {
        let (name, intents) = match interpret(event, body, &self.config) {
            Ok(Interpreted::Act {
                repository,
                intents,
            }) => (repository, intents),
            Ok(Interpreted::Nothing { why }) => return Ok(why),
            // Its form will not change by trying again.
            Err(error) => return Ok(format!("not acted upon: {error}")),
        };
        let repository = self
            .config
            .repository(&name)
            .with_context(|| format!("repository `{name}` is not configured"))?;
        self.carry_out(repository, intents).await
    }

    /// Does what is asked for, in this order; what became of it, in a sentence.
    pub(super) async fn carry_out(
        &self,
        repository: &RepositoryConfig,
        intents: Vec<Intent>,
    ) -> anyhow::Result<String> {
        let is_merged = intents.iter().any(|intent| {
            matches!(
                intent,
                Intent::BuildCommit {
                    merged_pull_request: Some(_),
                    ..
                }
            )
        });
        let closed = match is_merged {
            true => wording::MERGED,
            false => wording::CLOSED,
        };
        let mut outcomes = Vec::new();
        for intent in intents {
            outcomes.push(self.apply(repository, intent, closed).await?);
        }
        Ok(outcomes.join("; "))
    }

    /// Does what an intent asks for; the answer is a sentence for the delivery's record.
    async fn apply(
        &self,
        repository: &RepositoryConfig,
        intent: Intent,
        closed: &str,
    ) -> anyhow::Result<String> {
        match intent {
            Intent::BuildPullRequest(pull_request) => {
                self.build_pull_request(repository, pull_request).await
            }
            Intent::BuildCommit {
                branch,
                sha,
                title,
                author,
                merged_pull_request,
                learnt,
            } => {
                let trigger = match merged_pull_request {
                    Some(_) => Trigger::Merge,
                    None => Trigger::Push,
                };
                let new = wanted::commit(repository, &branch, sha, title, author, trigger);
                self.open_or_take_up(&new, &learnt, OlderBuilds::Keep).await
            }
            Intent::CancelPullRequest {
                number,
                reason,
                closed_at,
            } => {
                let ending = Ending::new(reason, closed);
                let count = self
                    .ledger
                    .cancel_pull_request(&repository.name, number, closed_at, &ending)
                    .await?;
                Ok(format!("{count} builds of pull request {number} cancelled"))
            }
            Intent::BuildMergeGroup(group) => {
                let learnt = group.learnt.clone();
                let new = wanted::merge_group(repository, group);
                self.open_or_take_up(&new, &learnt, OlderBuilds::Keep).await
            }
            Intent::CancelMergeGroup { head_sha, reason } => {
                let ending = Ending::new(reason, wording::UNQUEUED);
                let key = wanted::commit_key(&head_sha, Publish::No);
                Ok(
                    match self
                        .ledger
                        .cancel_merge_group(&repository.name, &key, &ending)
                        .await?
                    {
                        Some(id) => format!("{id} of the merge group cancelled"),
                        None => "no build of the merge group is under way".to_owned(),
                    },
                )
            }
            Intent::BuildRef {
                reference,
                platforms,
            } => {
                let id = self.build_ref(repository, &reference, platforms).await?;
                Ok(format!("{id}"))
            }
            Intent::Nothing { why } => Ok(why),
        }
    }

    async fn build_pull_request(
        &self,
        repository: &RepositoryConfig,
        pull_request: PullRequest,
    ) -> anyhow::Result<String> {
        let number = pull_request.number;
        let closed_at = self
            .ledger
            .store
            .closed_at(&repository.name, number)
            .await?;
        if matches!((closed_at, pull_request.updated_at), (Some(closed), Some(at)) if closed > at) {
            return Ok(format!(
                "not acted upon: pull request #{number} was closed after that"
            ));
        }
        let learnt = pull_request.learnt.clone();
        let new = wanted::pull_request(repository, pull_request);
        let older = match repository.on_new_commit {
            OnNewCommit::Cancel => OlderBuilds::Cancel {
                seen_at: match learnt {
                    Learnt::FromEvent { .. } => None,
                    Learnt::ByLooking { at } => Some(at),
                },
            },
            OnNewCommit::Queue => OlderBuilds::Keep,
        };
        self.open_or_take_up(&new, &learnt, older).await
    }

    /// Opens the build, or makes sure of the one that means the same.
    async fn open_or_take_up(
        &self,
        new: &NewBuild,
        learnt: &Learnt,
        older: OlderBuilds,
    ) -> anyhow::Result<String> {
        let inserted = self.ledger.open_build(new, older).await?;
        if let Inserted::Known(id) = inserted {
            match self.ledger.want_again(id, new, learnt, older).await? {
                Again::TakenUp => return Ok(format!("{id} taken up again: it is wanted again")),
                Again::Known => {}
            }
        }
        Ok(said(inserted))
    }

    /// Builds a ref because a person asks for it, whether or not it was built before.
    pub async fn build_ref(
        &self,
        repository: &RepositoryConfig,
        reference: &str,
        platforms: Vec<String>,
    ) -> anyhow::Result<BuildId> {
        self.sources.fetch(repository, &[reference]).await?;
        let sha = self.sources.resolve(repository, reference).await?;
        let info = self.sources.commit_info(repository, &sha).await?;
        let new = NewBuild {
            repository: repository.name.clone(),
            trigger: Trigger::Manual,
            key: format!("manual:{:032x}", rand::random::<u128>()),
            reference: reference.to_owned(),
            pull_request: None,
            base_ref: None,
            head_sha: sha,
            from_fork: false,
            publish: false,
            title: info.title,
            author: Some(info.author),
            event_at: None,
            before_sha: None,
            only_platforms: platforms,
        };
        match self.ledger.open_build(&new, OlderBuilds::Keep).await? {
            Inserted::New(id) => Ok(id),
            Inserted::Known(id) => bail!("{id} has the same random key; try again"),
        }
    }

    /// Polls one repository for ever.
    pub async fn run_poll(self, repository: RepositoryConfig, every: Duration) {
        let mut was_unreachable = false;
        loop {
            match self.poll(&repository).await {
                Ok(()) if was_unreachable => {
                    was_unreachable = false;
                    tracing::info!(repository = repository.name, "repository can be read again");
                }
                Ok(()) => {}
                Err(error) => {
                    // Said once, not every few seconds.
                    if !was_unreachable {
                        tracing::warn!(
                            repository = repository.name,
                            error = format!("{error:#}"),
                            "repository cannot be polled; trying again"
                        );
                    }
                    was_unreachable = true;
                }
            }
            tokio::time::sleep(every).await;
        }
    }

    /// One look: every commit since the last one that has a build, in order, branch by branch.
    async fn poll(&self, repository: &RepositoryConfig) -> anyhow::Result<()> {
        self.sources.refresh(repository).await?;
        let read = self.ledger.store.branches_of(&repository.name).await?;
        for (branch, tip) in self.sources.branches(repository).await? {
            if !repository.tests_branch(&branch) || read.get(&branch) == Some(&tip) {
                continue;
            }
            let since = read.get(&branch).map(String::as_str);
            for commit in self.sources.new_commits(repository, &tip, since).await? {
                let new = wanted::commit(
                    repository,
                    &branch,
                    commit.sha,
                    commit.title,
                    Some(commit.author),
                    Trigger::Poll,
                );
                let inserted = self.ledger.open_polled_build(&new, &branch).await?;
                tracing::info!(
                    repository = repository.name,
                    branch,
                    sha = new.head_sha,
                    outcome = said(inserted),
                    "commit"
                );
            }
            self.ledger
                .advance_branch(&repository.name, &branch, &tip)
                .await?;
        }
        Ok(())
    }
}

fn said(inserted: Inserted) -> String {
    match inserted {
        Inserted::New(id) => format!("{id}"),
        Inserted::Known(id) => format!("{id} already tests this commit"),
    }
}

#[cfg(test)]
mod tests;
