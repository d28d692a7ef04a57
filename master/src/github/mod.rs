//! GitHub's REST API, as much as Vivarium needs of it; github.com or an Enterprise server.
//!
//! ```text
//!   report (statuses) ─┐                     ┌─ token: the file's
//!                      ├─► GitHub ─► auth ───┤                      ─► transport ─► GitHub
//!   pipeline (reads) ──┘   one call a        └─ app: JWT, installation's tokens
//!                          question
//! ```
//!
//! One request, one answer: nothing is repeated here but a redirect, and a 401 with credentials that were made anew.
//! All other repeating is the caller's, who knows what is still worth asking. [`answer`] says, purely, what a reply means.

#![cfg_attr(
    not(test),
    warn(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic
    )
)]

pub mod answer;
mod app;
mod auth;
mod check;
mod error;
mod hooks;
mod read;
mod statuses;
mod token;
mod transport;

pub use answer::Verdict;
pub use check::{AppCheck, GitHubCheck, RepositoryCheck, TokenCheck};
pub use error::GitHubError;
pub use hooks::{DeliveryLog, Hook, LoggedDelivery};
pub use read::{Listed, Pages};
pub use transport::Budget;

use crate::config::{GithubConfig, Reread};
use auth::{Auth, Whom};
use jiff::Timestamp;
use secrecy::SecretString;
use std::time::Duration;
use transport::{Call, Reply, Transport};

/// A handle on GitHub's API. Made inside a Tokio runtime.
#[derive(Debug)]
pub struct GitHub {
    transport: Transport,
    auth: Auth,
}

impl GitHub {
    pub fn new(config: &GithubConfig) -> Result<GitHub, GitHubError> {
        Ok(GitHub {
            transport: Transport::new(&config.api_url)?,
            auth: Auth::of(config)?,
        })
    }

    /// Gives up on a request after this long instead of 15 seconds.
    pub fn with_deadline(mut self, deadline: Duration) -> GitHub {
        self.transport.set_deadline(deadline);
        self
    }

    /// What is left of the hour's requests, as GitHub said last.
    pub fn budget(&self) -> Option<Budget> {
        self.transport.budget()
    }

    /// Whether the file with the token or key differs from what was read last.
    pub fn has_new_credentials(&self) -> bool {
        self.auth.has_changed()
    }

    /// What git fetches a repository with.
    pub async fn token_for(&self, repository: &str) -> Result<SecretString, GitHubError> {
        self.auth
            .token(
                &self.transport,
                Whom::Repository(repository),
                Reread::IfChanged,
            )
            .await
    }

    /// Sends with credentials for `whom`; when they are not accepted, once more with new ones.
    async fn send(&self, whom: Whom<'_>, call: &Call<'_>) -> Result<Reply, GitHubError> {
        let header = self
            .auth
            .header(&self.transport, whom, Reread::IfChanged)
            .await?;
        let mut reply = self.transport.send(call, &header).await?;
        if reply.status == http::StatusCode::UNAUTHORIZED {
            let fresh = self
                .auth
                .header(&self.transport, whom, Reread::Always)
                .await?;
            if fresh != header {
                reply = self.transport.send(call, &fresh).await?;
            }
        }
        // An App has another limit for what it asks as itself.
        if matches!(whom, Whom::Repository(_)) {
            self.transport.note_budget(&reply);
        }
        Ok(reply)
    }

    /// Sends, and takes everything but success for an error.
    async fn ask(&self, whom: Whom<'_>, call: &Call<'_>) -> Result<Reply, GitHubError> {
        let reply = self.send(whom, call).await?;
        match reply.status.is_success() {
            true => Ok(reply),
            false => Err(self.error_of(&reply)),
        }
    }

    fn error_of(&self, reply: &Reply) -> GitHubError {
        GitHubError::of(reply, self.auth.path(), Timestamp::now())
    }
}

/// Whether GitHub could have a repository of that name: what else goes into an address is made here.
fn is_repository(name: &str) -> bool {
    let parts: Vec<_> = name.split('/').collect();
    parts.len() == 2
        && parts.iter().all(|part| {
            !part.is_empty()
                && !part.starts_with('.')
                && part
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        })
}
