//! What the fake GitHub knows: the nouns, and the one struct behind its lock.

use super::app::AppRecord;
use super::fault::Fault;
use super::hook::{Delivery, DeliveryMode, Hook, HookOf};
use crate::git::BareRepository;
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet, HashMap};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccountKind {
    User,
    Organization,
    Bot,
}

impl AccountKind {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            AccountKind::User => "User",
            AccountKind::Organization => "Organization",
            AccountKind::Bot => "Bot",
        }
    }
}

#[derive(Debug, Clone)]
pub struct Account {
    pub id: i64,
    pub login: String,
    pub kind: AccountKind,
}

#[derive(Debug, Clone)]
pub(super) struct Repository {
    pub(super) id: i64,
    pub(super) owner: String,
    pub(super) name: String,
    pub(super) private: bool,
    pub(super) fork_of: Option<String>,
    pub(super) default_branch: String,
    pub(super) created_at: Timestamp,
    pub(super) pushed_at: Timestamp,
    pub(super) git: BareRepository,
    pub(super) pulls: BTreeMap<i64, PullRequest>,
}

impl Repository {
    pub(super) fn full_name(&self) -> String {
        format!("{}/{}", self.owner, self.name)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullState {
    Open,
    Closed,
}

/// Whether the head merges into the base, as far as GitHub has worked it out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mergeability {
    /// Being computed: the API says `null`.
    Unknown,
    Clean {
        test_merge: String,
    },
    Conflict,
}

#[derive(Debug, Clone)]
pub struct PullRequest {
    pub id: i64,
    pub number: i64,
    pub title: String,
    pub author: String,
    /// The repository of the head; gone when a fork was deleted.
    pub head_repository: Option<String>,
    pub head_branch: String,
    pub head_sha: String,
    pub base_branch: String,
    /// The base's commit when the pull request was last touched.
    pub base_sha: String,
    pub state: PullState,
    pub draft: bool,
    pub merged: bool,
    pub merged_by: Option<String>,
    pub merge_commit_sha: Option<String>,
    pub mergeability: Mergeability,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    pub closed_at: Option<Timestamp>,
    pub merged_at: Option<Timestamp>,
}

/// GitHub's four states of a commit status.
pub use vivarium::model::StatusState;

/// A status that was accepted.
#[derive(Debug, Clone)]
pub struct Status {
    pub id: i64,
    pub repository: String,
    pub sha: String,
    pub context: String,
    pub state: StatusState,
    pub description: Option<String>,
    pub target_url: Option<String>,
    pub creator: String,
    pub at: Timestamp,
}

impl Status {
    /// Contexts are the same without regard to case.
    pub fn is_of(&self, context: &str) -> bool {
        self.context.to_lowercase() == context.to_lowercase()
    }
}

/// A request to the API or to Git, as it was answered.
#[derive(Debug, Clone)]
pub struct Request {
    pub at: Timestamp,
    pub method: String,
    /// Without the API's prefix, with the query.
    pub path: String,
    /// `None`: the connection was reset instead of answered.
    pub status: Option<u16>,
    /// The body, of requests that have one and are no Git traffic.
    pub body: Option<String>,
}

/// What the holder of a token may do.
#[derive(Debug, Clone)]
pub struct Token {
    pub login: String,
    /// Repositories it sees although they are private, and may write to.
    pub repositories: BTreeSet<String>,
    /// May set commit statuses there.
    pub writes: bool,
    /// May see their webhooks and what was delivered to these.
    pub sees_hooks: bool,
    /// An installation's ends after an hour.
    pub expires_at: Option<Timestamp>,
    /// Requests used of the hour's limit.
    pub(super) used: u64,
}

#[derive(Debug)]
pub(super) struct State {
    next_id: i64,
    pub(super) accounts: BTreeMap<String, Account>,
    pub(super) repositories: BTreeMap<String, Repository>,
    pub(super) tokens: HashMap<String, Token>,
    pub(super) apps: Vec<AppRecord>,
    pub(super) statuses: Vec<Status>,
    /// Of one SHA and context.
    pub(super) status_limit: usize,
    pub(super) requests: Vec<Request>,
    pub(super) hooks: Vec<Hook>,
    pub(super) deliveries: Vec<Delivery>,
    /// Ids of deliveries that wait for a release.
    pub(super) held: Vec<i64>,
    pub(super) delivery_mode: DeliveryMode,
    pub(super) faults: Vec<Fault>,
    pub(super) rate_limit: u64,
    pub(super) anonymous_used: u64,
    pub(super) window_ends: Timestamp,
}

impl State {
    pub(super) fn new() -> State {
        State {
            next_id: 1000,
            accounts: BTreeMap::new(),
            repositories: BTreeMap::new(),
            tokens: HashMap::new(),
            apps: Vec::new(),
            statuses: Vec::new(),
            status_limit: super::api::STATUS_LIMIT,
            requests: Vec::new(),
            hooks: Vec::new(),
            deliveries: Vec::new(),
            held: Vec::new(),
            delivery_mode: DeliveryMode::Deliver,
            faults: Vec::new(),
            rate_limit: 5000,
            anonymous_used: 0,
            window_ends: Timestamp::now() + jiff::SignedDuration::from_hours(1),
        }
    }

    pub(super) fn next_id(&mut self) -> i64 {
        self.next_id += 1;
        self.next_id
    }

    /// The account of that name, made as `kind` when it is new.
    pub(super) fn account(&mut self, login: &str, kind: AccountKind) -> Account {
        if let Some(account) = self.accounts.get(login) {
            return account.clone();
        }
        let account = Account {
            id: self.next_id(),
            login: login.to_owned(),
            kind,
        };
        self.accounts.insert(login.to_owned(), account.clone());
        account
    }

    pub(super) fn known_account(&self, login: &str) -> Account {
        self.accounts.get(login).cloned().unwrap_or(Account {
            id: 1,
            login: login.to_owned(),
            kind: AccountKind::User,
        })
    }

    /// Names of users and repositories are the same without regard to case.
    pub(super) fn repository(&self, name: &str) -> Option<&Repository> {
        self.repositories.get(name).or_else(|| {
            self.repositories
                .values()
                .find(|repository| repository.full_name().eq_ignore_ascii_case(name))
        })
    }

    pub(super) fn pull(&self, repository: &str, number: i64) -> Option<&PullRequest> {
        self.repository(repository)?.pulls.get(&number)
    }

    pub(super) fn pull_mut(&mut self, repository: &str, number: i64) -> Option<&mut PullRequest> {
        self.repositories
            .get_mut(repository)?
            .pulls
            .get_mut(&number)
    }

    pub(super) fn app(&self, id: u64) -> Option<AppRecord> {
        self.apps.iter().find(|app| app.id == id).cloned()
    }

    /// Whether events of the repository go to the hook.
    pub(super) fn hears_of(&self, hook: &Hook, repository: &str) -> bool {
        match &hook.of {
            HookOf::Repository(name) => name == repository,
            HookOf::App(id) => self
                .app(*id)
                .is_some_and(|app| app.repositories.contains(repository)),
        }
    }

    /// The latest status of each context, newest first.
    pub(super) fn latest_statuses(&self, repository: &str, sha: &str) -> Vec<Status> {
        let mut latest: Vec<Status> = Vec::new();
        for status in self.statuses.iter().rev() {
            if status.repository == repository
                && status.sha == sha
                && !latest.iter().any(|known| known.is_of(&status.context))
            {
                latest.push(status.clone());
            }
        }
        latest
    }
}
