//! A GitHub with state, and strict, on a loopback port.
//!
//! ```text
//!  actions (a test)  ──►  state + bare repositories  ──►  webhooks by real HTTP, with a log of the answers
//!                                   ▲
//!     REST and Git (the master)  ───┘   faults as settings, every request and status recorded
//! ```
//!
//! [`GitHub`] is a handle; clones share one server, which ends with the last of them. Repositories are real and are
//! fetched over smart HTTP. Pull requests, pushes, merges are made by methods of the handle; each sends the webhooks
//! that GitHub sends. The API refuses what GitHub refuses: the sources are GitHub's documentation and OpenAPI text
//! and the reports of those who met the undocumented limits.

mod action;
mod api;
mod app;
mod cgi;
mod fault;
mod history;
mod hook;
mod listener;
mod server;
mod shape;
mod state;
#[cfg(test)]
mod tests;

pub use action::{MergeMethod, PullRequestSpec};
pub use app::App;
pub use fault::{Fault, FaultKind};
pub use history::{StatusHistory, Verdict};
pub use hook::{
    Delivery, DeliveryAttempt, DeliveryMode, Hook, HookOf, ReleaseOrder, WebhookAnswer,
    WebhookPost, guid, signature,
};
pub use state::{
    Account, AccountKind, Mergeability, PullRequest, PullState, Request, Status, StatusState, Token,
};

use anyhow::{Context, Result};
use shape::Shapes;
use state::State;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

/// How a server is started.
#[derive(Debug, Clone)]
pub struct GitHubBuilder {
    api_prefix: String,
}

impl GitHubBuilder {
    /// Where the API lives below the server's root: `/api/v3` as on GitHub Enterprise Server (the default), or
    /// nothing as on api.github.com.
    pub fn api_prefix(mut self, prefix: &str) -> GitHubBuilder {
        prefix
            .trim_end_matches('/')
            .clone_into(&mut self.api_prefix);
        self
    }

    pub async fn start(self) -> Result<GitHub> {
        let folder = tempfile::tempdir().context("cannot make a folder for repositories")?;
        let (changed, _) = watch::channel(0);
        let inner = Arc::new(Inner {
            state: Mutex::new(State::new()),
            changed,
            turn: tokio::sync::Mutex::new(()),
            folder,
            api_prefix: self.api_prefix,
            address: std::sync::OnceLock::new(),
            listening: Mutex::new(None),
        });
        let github = GitHub { inner };
        github.listen(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
        Ok(github)
    }
}

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    /// Counts changes; who waits for a state looks again at each.
    changed: watch::Sender<u64>,
    /// Held by an action while it changes repositories and state together.
    turn: tokio::sync::Mutex<()>,
    folder: tempfile::TempDir,
    api_prefix: String,
    address: std::sync::OnceLock<SocketAddr>,
    /// Dropping it closes the listener and resets its connections.
    listening: Mutex<Option<DropGuard>>,
}

/// The server, and everything one does on GitHub.
#[derive(Debug, Clone)]
pub struct GitHub {
    inner: Arc<Inner>,
}

impl GitHub {
    pub fn builder() -> GitHubBuilder {
        GitHubBuilder {
            api_prefix: "/api/v3".to_owned(),
        }
    }

    pub async fn start() -> Result<GitHub> {
        GitHub::builder().start().await
    }

    async fn listen(&self, address: SocketAddr) -> Result<()> {
        let stop = CancellationToken::new();
        let listener = listener::ResettableListener::bind(address, stop.clone())
            .await
            .with_context(|| format!("cannot listen on {address}"))?;
        self.inner
            .address
            .get_or_init(|| listener.address().unwrap_or(address));
        server::spawn(listener, Arc::downgrade(&self.inner), stop.clone());
        *lock(&self.inner.listening) = Some(stop.drop_guard());
        Ok(())
    }

    /// From now on connections are refused, and those that are open are reset.
    pub async fn stop_listening(&self) {
        lock(&self.inner.listening).take();
        // The listener is closed by its own task.
        while tokio::net::TcpStream::connect(self.address()).await.is_ok() {
            tokio::task::yield_now().await;
        }
    }

    /// Listens again on the same port.
    pub async fn listen_again(&self) -> Result<()> {
        self.listen(self.address()).await
    }

    pub fn address(&self) -> SocketAddr {
        *self
            .inner
            .address
            .get_or_init(|| SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    /// Base of pages and repositories, without a slash at the end.
    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    /// Base of the API, without a slash at the end.
    pub fn api_url(&self) -> String {
        format!("{}{}", self.url(), self.inner.api_prefix)
    }

    /// Where a repository is fetched from.
    pub fn clone_url(&self, repository: &str) -> String {
        format!("{}/{repository}.git", self.url())
    }

    /// Makes a token of an account that sees and writes to these repositories.
    pub fn issue_token(&self, login: &str, repositories: &[&str]) -> String {
        self.issue(login, repositories, true, true)
    }

    /// Makes a token that may set statuses, but sees no webhooks: enough for a master.
    pub fn issue_modest_token(&self, login: &str, repositories: &[&str]) -> String {
        self.issue(login, repositories, true, false)
    }

    /// Makes a token that may read these repositories, but set no status.
    pub fn issue_reading_token(&self, login: &str, repositories: &[&str]) -> String {
        self.issue(login, repositories, false, false)
    }

    fn issue(&self, login: &str, repositories: &[&str], writes: bool, sees_hooks: bool) -> String {
        let token = format!("ghp_{}", guid().replace('-', ""));
        let mut state = self.state();
        state.account(login, AccountKind::User);
        state.tokens.insert(
            token.clone(),
            Token {
                login: login.to_owned(),
                repositories: repositories.iter().map(|&name| name.to_owned()).collect(),
                writes,
                sees_hooks,
                expires_at: None,
                used: 0,
            },
        );
        token
    }

    /// Lets a token set statuses, or not any more.
    pub fn let_write(&self, token: &str, writes: bool) {
        if let Some(holder) = self.state().tokens.get_mut(token) {
            holder.writes = writes;
        }
    }

    pub fn revoke_token(&self, token: &str) {
        self.state().tokens.remove(token);
    }

    /// Requests an hour for each token; what was used is forgotten.
    pub fn set_rate_limit(&self, limit: u64) {
        let mut state = self.state();
        state.rate_limit = limit;
        state.anonymous_used = 0;
        for token in state.tokens.values_mut() {
            token.used = 0;
        }
    }

    /// Lets each token have used its requests of this hour, but for so many.
    pub fn leave_requests(&self, left: u64) {
        let mut state = self.state();
        let used = state.rate_limit.saturating_sub(left);
        for token in state.tokens.values_mut() {
            token.used = used;
        }
    }

    /// How many statuses one context of one commit takes, instead of GitHub's thousand.
    pub fn set_status_limit(&self, limit: usize) {
        self.state().status_limit = limit;
    }

    /// Lets something go wrong; returns the id to ask for its hits. Faults are tried in the order they came.
    pub fn inject(&self, mut fault: Fault) -> i64 {
        let mut state = self.state();
        fault.id = state.next_id();
        let id = fault.id;
        state.faults.push(fault);
        id
    }

    /// How many requests the fault has met.
    pub fn fault_hits(&self, id: i64) -> u32 {
        let state = self.state();
        state
            .faults
            .iter()
            .find(|fault| fault.id == id)
            .map_or(0, |fault| fault.hits)
    }

    pub fn clear_faults(&self) {
        self.state().faults.clear();
    }

    /// Every request so far, oldest first.
    pub fn requests(&self) -> Vec<Request> {
        self.state().requests.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.inner.state)
    }

    fn shapes(&self) -> Shapes {
        Shapes {
            api: self.api_url(),
            html: self.url(),
        }
    }

    fn notify(&self) {
        self.inner.changed.send_modify(|count| *count += 1);
    }

    fn repositories_folder(&self) -> &Path {
        self.inner.folder.path()
    }
}

/// A panic while the lock was held has failed its test already; the others may go on.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}
