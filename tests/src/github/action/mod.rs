//! What people do on GitHub: each action changes repositories and state, then sends the webhooks that GitHub sends.

mod merge_queue;
mod pulls;
mod pushes;
mod repositories;

pub use pulls::{MergeMethod, PullRequestSpec};

use super::GitHub;
use super::state::PullRequest;
use crate::git::BareRepository;
use anyhow::{Context, Result};
use serde_json::Value;

/// An event that is ready to be announced once the action is done.
struct Event {
    repository: String,
    name: &'static str,
    body: Value,
}

impl GitHub {
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

    async fn announce_all(&self, events: Vec<Event>) {
        self.notify();
        for event in events {
            self.announce(&event.repository, event.name, &event.body)
                .await;
        }
    }
}
