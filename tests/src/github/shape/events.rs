//! The bodies of webhooks.

use super::{PING, PUSH, Shapes, set, time};
use crate::git::CommitInfo;
use crate::github::hook::{Hook, HookOf};
use crate::github::state::{Account, AccountKind, PullRequest, Repository, State};
use serde_json::{Value, json};

/// An event of a push, as far as it is not read from the repository.
#[derive(Debug, Clone)]
pub(in crate::github) struct PushFacts {
    pub(in crate::github) reference: String,
    pub(in crate::github) before: Option<String>,
    pub(in crate::github) after: Option<String>,
    pub(in crate::github) forced: bool,
    pub(in crate::github) commits: Vec<CommitInfo>,
    pub(in crate::github) head: Option<CommitInfo>,
    pub(in crate::github) pusher: String,
}

pub(in crate::github) const NO_SHA: &str = "0000000000000000000000000000000000000000";

impl Shapes {
    /// In push events the repository has other fields, and times as numbers.
    fn repository_of_push(&self, state: &State, repository: &Repository) -> Value {
        let mut value = self.repository(state, repository);
        let owner = state.known_account(&repository.owner);
        let mut owner_value = self.account(&owner);
        set(
            &mut owner_value,
            json!({ "name": owner.login, "email": email(&owner) }),
        );
        set(
            &mut value,
            json!({
                "url": format!("{}/{}", self.html, repository.full_name()),
                "owner": owner_value,
                "created_at": repository.created_at.as_second(),
                "pushed_at": repository.pushed_at.as_second(),
                "stargazers": 0,
                "master_branch": repository.default_branch,
            }),
        );
        if owner.kind == AccountKind::Organization {
            set(&mut value, json!({ "organization": owner.login }));
        }
        value
    }

    fn commit_of_push(&self, repository: &Repository, commit: &CommitInfo) -> Value {
        let person = json!({ "name": commit.author_name, "email": commit.author_email });
        let mut author = person.clone();
        set(
            &mut author,
            json!({ "username": commit.author_name.to_lowercase().replace(' ', "-") }),
        );
        json!({
            "id": commit.sha,
            "tree_id": commit.tree,
            "distinct": true,
            "message": commit.message,
            "timestamp": commit.date,
            "url": format!("{}/{}/commit/{}", self.html, repository.full_name(), commit.sha),
            "author": author,
            "committer": person,
            "added": commit.added,
            "removed": commit.removed,
            "modified": commit.modified,
        })
    }

    pub(in crate::github) fn push(
        &self,
        state: &State,
        repository: &Repository,
        facts: &PushFacts,
    ) -> Value {
        let pusher = state.known_account(&facts.pusher);
        let short = |sha: &Option<String>| {
            sha.as_deref()
                .unwrap_or(NO_SHA)
                .get(..12)
                .unwrap_or_default()
                .to_owned()
        };
        let full_name = repository.full_name();
        let mut value = PUSH.clone();
        if let Value::Object(fields) = &mut value {
            fields.remove("installation");
        }
        set(
            &mut value,
            json!({
                "ref": facts.reference,
                "before": facts.before.as_deref().unwrap_or(NO_SHA),
                "after": facts.after.as_deref().unwrap_or(NO_SHA),
                "created": facts.before.is_none(),
                "deleted": facts.after.is_none(),
                "forced": facts.forced,
                "base_ref": null,
                "compare": format!("{}/{full_name}/compare/{}...{}", self.html, short(&facts.before), short(&facts.after)),
                "commits": facts.commits.iter().map(|commit| self.commit_of_push(repository, commit)).collect::<Vec<_>>(),
                "head_commit": facts.head.as_ref().map_or(Value::Null, |commit| self.commit_of_push(repository, commit)),
                "repository": self.repository_of_push(state, repository),
                "pusher": { "name": pusher.login, "email": email(&pusher) },
                "sender": self.account(&pusher),
            }),
        );
        self.add_organization(&mut value, state, repository);
        value
    }

    /// A `pull_request` event; `more` are the fields that some actions have.
    pub(in crate::github) fn pull_request_event(
        &self,
        state: &State,
        repository: &Repository,
        pull: &PullRequest,
        action: &str,
        sender: &str,
        more: Value,
    ) -> Value {
        let mut value = json!({
            "action": action,
            "number": pull.number,
            "pull_request": self.pull_request(state, repository, pull),
            "repository": self.repository(state, repository),
            "sender": self.account(&state.known_account(sender)),
        });
        set(&mut value, more);
        self.add_organization(&mut value, state, repository);
        value
    }

    /// A `merge_group` event: `checks_requested`, or `destroyed` with the reason. `branches`: the queue's and its base.
    pub(in crate::github) fn merge_group_event(
        &self,
        state: &State,
        repository: &Repository,
        head: &CommitInfo,
        branches: (&str, &str),
        base_sha: &str,
        destroyed: Option<&str>,
    ) -> Value {
        let (branch, base) = branches;
        let person = json!({ "name": head.author_name, "email": head.author_email });
        let mut value = json!({
            "action": if destroyed.is_some() { "destroyed" } else { "checks_requested" },
            "merge_group": {
                "head_sha": head.sha,
                "head_ref": format!("refs/heads/{branch}"),
                "base_sha": base_sha,
                "base_ref": format!("refs/heads/{base}"),
                "head_commit": {
                    "id": head.sha,
                    "tree_id": head.tree,
                    "message": head.message,
                    "timestamp": head.date,
                    "author": person,
                    "committer": person,
                },
            },
            "repository": self.repository(state, repository),
            "sender": self.account(&state.known_account(&repository.owner)),
        });
        if let Some(reason) = destroyed {
            set(&mut value, json!({ "reason": reason }));
        }
        self.add_organization(&mut value, state, repository);
        value
    }

    fn add_organization(&self, value: &mut Value, state: &State, repository: &Repository) {
        let owner = state.known_account(&repository.owner);
        if owner.kind == AccountKind::Organization {
            set(value, json!({ "organization": self.organization(&owner) }));
        }
    }

    /// What a new hook hears first; a hook of a repository says of which.
    pub(in crate::github) fn ping(&self, state: &State, hook: &Hook, repository: &str) -> Value {
        let mut value = PING.clone();
        set(
            &mut value,
            json!({ "hook_id": hook.id, "hook": self.hook(hook) }),
        );
        if let (HookOf::Repository(_), Some(repository)) = (&hook.of, state.repository(repository))
        {
            set(
                &mut value,
                json!({
                    "repository": self.repository(state, repository),
                    "sender": self.account(&state.known_account(&repository.owner)),
                }),
            );
            self.add_organization(&mut value, state, repository);
        } else if let Value::Object(fields) = &mut value {
            fields.remove("repository");
            fields.remove("sender");
        }
        value
    }

    pub(in crate::github) fn hook(&self, hook: &Hook) -> Value {
        let mut value = PING["hook"].clone();
        let (url, app) = match &hook.of {
            HookOf::Repository(name) => {
                (format!("{}/repos/{name}/hooks/{}", self.api, hook.id), None)
            }
            HookOf::App(id) => (format!("{}/app/hook", self.api), Some(*id)),
        };
        set(
            &mut value,
            json!({
                "id": hook.id,
                "type": if app.is_some() { "App" } else { "Repository" },
                "events": hook.events,
                "active": hook.active,
                "config": { "content_type": "json", "url": hook.url, "insecure_ssl": "0", "secret": "********" },
                "created_at": time(hook.created_at),
                "updated_at": time(hook.created_at),
                "url": url,
                "test_url": format!("{url}/test"),
                "ping_url": format!("{url}/pings"),
                "deliveries_url": format!("{url}/deliveries"),
            }),
        );
        if let Value::Object(fields) = &mut value {
            match app {
                Some(id) => fields.insert("app_id".to_owned(), id.into()),
                None => fields.remove("app_id"),
            };
        }
        value
    }
}

fn email(account: &Account) -> String {
    format!("{}+{}@users.noreply.example.com", account.id, account.login)
}
