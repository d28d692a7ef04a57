//! The JSON that GitHub sends: recorded payloads as templates, filled in with what the fake knows.
//!
//! A template gives the full official shape; every name, address, id, SHA and time in it is replaced.

use super::hook::Hook;
use super::state::{
    Account, AccountKind, Mergeability, PullRequest, PullState, Repository, State, Status,
};
use crate::git::CommitInfo;
use base64::Engine;
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use std::sync::LazyLock;

fn template(text: &str) -> Value {
    serde_json::from_str(text)
        .unwrap_or_else(|error| unreachable!("a template is no JSON: {error}"))
}

macro_rules! templates {
    ($($name:ident = $file:literal;)*) => {
        $(static $name: LazyLock<Value> =
            LazyLock::new(|| template(include_str!(concat!("../../fixtures/github/", $file))));)*
    };
}

templates! {
    PING = "ping.json";
    PUSH = "push.json";
    PULL_REQUEST = "pull_request_opened.json";
}

/// The names in the templates.
const LOGIN: &str = "Codertocat";
const FULL_NAME: &str = "Codertocat/Hello-World";
const HEAD_SHA: &str = "ec26c3e57ca3a959ca5aad62de7213c562f8c821";

/// An event of a push, as far as it is not read from the repository.
#[derive(Debug, Clone)]
pub(super) struct PushFacts {
    pub(super) reference: String,
    pub(super) before: Option<String>,
    pub(super) after: Option<String>,
    pub(super) forced: bool,
    pub(super) commits: Vec<CommitInfo>,
    pub(super) head: Option<CommitInfo>,
    pub(super) pusher: String,
}

pub(super) const NO_SHA: &str = "0000000000000000000000000000000000000000";

/// Makes JSON with the addresses of this server.
#[derive(Debug, Clone)]
pub(super) struct Shapes {
    /// Base of the API, with its prefix.
    pub(super) api: String,
    /// Base of pages and of Git.
    pub(super) html: String,
}

pub(super) fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn optional_time(at: Option<Timestamp>) -> Value {
    at.map_or(Value::Null, |at| time(at).into())
}

fn node_id(kind: &str, id: i64) -> String {
    base64::engine::general_purpose::STANDARD.encode(format!("{:03}:{kind}{id}", kind.len()))
}

/// Replaces text in every string of a value.
fn rewrite(value: &mut Value, pairs: &[(&str, &str)]) {
    match value {
        Value::String(text) => {
            for (from, to) in pairs {
                if text.contains(from) {
                    *text = text.replace(from, to);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| rewrite(item, pairs)),
        Value::Object(fields) => fields.values_mut().for_each(|field| rewrite(field, pairs)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Sets fields of an object.
fn set(value: &mut Value, fields: Value) {
    if let (Value::Object(target), Value::Object(fields)) = (value, fields) {
        target.extend(fields);
    }
}

impl Shapes {
    fn hosts<'a>(&'a self, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
        let mut pairs = more.to_vec();
        pairs.extend([
            ("https://api.github.com", self.api.as_str()),
            ("https://github.com", self.html.as_str()),
        ]);
        pairs
    }

    pub(super) fn account(&self, account: &Account) -> Value {
        let mut value = PULL_REQUEST["sender"].clone();
        rewrite(&mut value, &self.hosts(&[(LOGIN, &account.login)]));
        set(
            &mut value,
            json!({
                "id": account.id,
                "node_id": node_id("User", account.id),
                "avatar_url": format!("{}/avatars/u/{}?v=4", self.html, account.id),
                "type": account.kind.as_str(),
            }),
        );
        value
    }

    fn organization(&self, account: &Account) -> Value {
        let url = format!("{}/orgs/{}", self.api, account.login);
        json!({
            "login": account.login,
            "id": account.id,
            "node_id": node_id("Organization", account.id),
            "url": url,
            "repos_url": format!("{url}/repos"),
            "events_url": format!("{url}/events"),
            "hooks_url": format!("{url}/hooks"),
            "issues_url": format!("{url}/issues"),
            "members_url": format!("{url}/members{{/member}}"),
            "public_members_url": format!("{url}/public_members{{/member}}"),
            "avatar_url": format!("{}/avatars/u/{}?v=4", self.html, account.id),
            "description": null,
        })
    }

    pub(super) fn repository(&self, state: &State, repository: &Repository) -> Value {
        let mut value = PULL_REQUEST["repository"].clone();
        let full_name = repository.full_name();
        rewrite(&mut value, &self.hosts(&[(FULL_NAME, &full_name)]));
        let open = repository
            .pulls
            .values()
            .filter(|pull| pull.state == PullState::Open)
            .count();
        set(
            &mut value,
            json!({
                "id": repository.id,
                "node_id": node_id("Repository", repository.id),
                "name": repository.name,
                "full_name": full_name,
                "owner": self.account(&state.known_account(&repository.owner)),
                "private": repository.private,
                "visibility": if repository.private { "private" } else { "public" },
                "fork": repository.fork_of.is_some(),
                "default_branch": repository.default_branch,
                "created_at": time(repository.created_at),
                "updated_at": time(repository.pushed_at),
                "pushed_at": time(repository.pushed_at),
                "open_issues": open,
                "open_issues_count": open,
                "has_pages": false,
            }),
        );
        value
    }

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

    pub(super) fn pull_request(
        &self,
        state: &State,
        repository: &Repository,
        pull: &PullRequest,
    ) -> Value {
        let mut value = PULL_REQUEST["pull_request"].clone();
        let full_name = repository.full_name();
        let numbered = |kind: &str, number: i64| format!("{FULL_NAME}/{kind}/{number}");
        let rename: Vec<(String, String)> = ["pulls", "pull", "issues"]
            .into_iter()
            .map(|kind| (numbered(kind, 2), numbered(kind, pull.number)))
            .collect();
        let mut pairs: Vec<(&str, &str)> = rename
            .iter()
            .map(|(from, to)| (from.as_str(), to.as_str()))
            .collect();
        pairs.extend([(HEAD_SHA, pull.head_sha.as_str()), (FULL_NAME, &full_name)]);
        rewrite(&mut value, &self.hosts(&pairs));

        let head_owner = pull
            .head_repository
            .as_deref()
            .and_then(|name| name.split('/').next())
            .unwrap_or(&pull.author);
        let head_repository = pull
            .head_repository
            .as_deref()
            .and_then(|name| state.repository(name))
            .map_or(Value::Null, |head| self.repository_in_pull(state, head));
        let author = self.account(&state.known_account(&pull.author));
        let (mergeable, mergeable_state) = match &pull.mergeability {
            Mergeability::Unknown => (Value::Null, "unknown"),
            Mergeability::Clean { .. } => (true.into(), "clean"),
            Mergeability::Conflict => (false.into(), "dirty"),
        };
        let merge_commit = match (&pull.merge_commit_sha, &pull.mergeability) {
            (Some(sha), _) => Value::from(sha.clone()),
            (None, Mergeability::Clean { test_merge }) => Value::from(test_merge.clone()),
            (None, Mergeability::Unknown | Mergeability::Conflict) => Value::Null,
        };
        set(
            &mut value,
            json!({
                "id": pull.id,
                "node_id": node_id("PullRequest", pull.id),
                "number": pull.number,
                "title": pull.title,
                "body": null,
                "user": author,
                "state": match pull.state { PullState::Open => "open", PullState::Closed => "closed" },
                "draft": pull.draft,
                "created_at": time(pull.created_at),
                "updated_at": time(pull.updated_at),
                "closed_at": optional_time(pull.closed_at),
                "merged_at": optional_time(pull.merged_at),
                "merged": pull.merged,
                "merged_by": pull.merged_by.as_ref().map_or(Value::Null, |login| self.account(&state.known_account(login))),
                "merge_commit_sha": merge_commit,
                "mergeable": mergeable,
                "rebaseable": mergeable,
                "mergeable_state": mergeable_state,
                "assignee": null,
                "assignees": [],
                "requested_reviewers": [],
                "requested_teams": [],
                "labels": [],
                "author_association": if pull.author == repository.owner { "OWNER" } else { "CONTRIBUTOR" },
                "head": {
                    "label": format!("{head_owner}:{}", pull.head_branch),
                    "ref": pull.head_branch,
                    "sha": pull.head_sha,
                    "user": self.account(&state.known_account(head_owner)),
                    "repo": head_repository,
                },
                "base": {
                    "label": format!("{}:{}", repository.owner, pull.base_branch),
                    "ref": pull.base_branch,
                    "sha": pull.base_sha,
                    "user": self.account(&state.known_account(&repository.owner)),
                    "repo": self.repository_in_pull(state, repository),
                },
            }),
        );
        value
    }

    /// Inside a pull request a repository also carries its merge settings.
    fn repository_in_pull(&self, state: &State, repository: &Repository) -> Value {
        let mut value = self.repository(state, repository);
        for field in [
            "allow_squash_merge",
            "allow_merge_commit",
            "allow_rebase_merge",
            "delete_branch_on_merge",
        ] {
            let known = &PULL_REQUEST["pull_request"]["head"]["repo"][field];
            if !known.is_null() {
                set(&mut value, json!({ field: known }));
            }
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

    pub(super) fn push(&self, state: &State, repository: &Repository, facts: &PushFacts) -> Value {
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
    pub(super) fn pull_request_event(
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

    fn add_organization(&self, value: &mut Value, state: &State, repository: &Repository) {
        let owner = state.known_account(&repository.owner);
        if owner.kind == AccountKind::Organization {
            set(value, json!({ "organization": self.organization(&owner) }));
        }
    }

    pub(super) fn ping(&self, state: &State, hook: &Hook) -> Value {
        let mut value = PING.clone();
        let url = format!("{}/repos/{}/hooks/{}", self.api, hook.repository, hook.id);
        let mut hook_value = value["hook"].clone();
        if let Value::Object(fields) = &mut hook_value {
            // Hooks of an App carry it; this one is a repository's.
            fields.remove("app_id");
        }
        set(
            &mut hook_value,
            json!({
                "id": hook.id,
                "events": hook.events,
                "config": { "content_type": "json", "url": hook.url, "insecure_ssl": "0", "secret": "********" },
                "created_at": time(hook.created_at),
                "updated_at": time(hook.created_at),
                "url": url,
                "test_url": format!("{url}/test"),
                "ping_url": format!("{url}/pings"),
                "deliveries_url": format!("{url}/deliveries"),
            }),
        );
        set(
            &mut value,
            json!({ "hook_id": hook.id, "hook": hook_value }),
        );
        if let Some(repository) = state.repository(&hook.repository) {
            set(
                &mut value,
                json!({
                    "repository": self.repository(state, repository),
                    "sender": self.account(&state.known_account(&repository.owner)),
                }),
            );
            self.add_organization(&mut value, state, repository);
        }
        value
    }

    pub(super) fn status(&self, state: &State, status: &Status) -> Value {
        let mut value = self.status_without_creator(status);
        set(
            &mut value,
            json!({ "creator": self.account(&state.known_account(&status.creator)) }),
        );
        value
    }

    fn status_without_creator(&self, status: &Status) -> Value {
        json!({
            "url": format!("{}/repos/{}/statuses/{}", self.api, status.repository, status.sha),
            "avatar_url": format!("{}/avatars/u/{}?v=4", self.html, status.id),
            "id": status.id,
            "node_id": node_id("StatusContext", status.id),
            "state": status.state.as_str(),
            "description": status.description,
            "target_url": status.target_url,
            "context": status.context,
            "created_at": time(status.at),
            "updated_at": time(status.at),
        })
    }

    /// The combined status; `page` of `latest` is shown, the sum is of all.
    pub(super) fn combined_status(
        &self,
        state: &State,
        repository: &Repository,
        sha: &str,
        latest: &[Status],
        page: &[Status],
    ) -> Value {
        use super::state::StatusState::{Error, Failure, Pending};
        let any = |wanted: &[_]| latest.iter().any(|status| wanted.contains(&status.state));
        let sum = if any(&[Failure, Error]) {
            "failure"
        } else if latest.is_empty() || any(&[Pending]) {
            "pending"
        } else {
            "success"
        };
        let url = format!(
            "{}/repos/{}/commits/{sha}",
            self.api,
            repository.full_name()
        );
        json!({
            "state": sum,
            "statuses": page.iter().map(|status| self.status_without_creator(status)).collect::<Vec<_>>(),
            "sha": sha,
            "total_count": latest.len(),
            "repository": self.repository(state, repository),
            "commit_url": url,
            "url": format!("{url}/status"),
        })
    }

    pub(super) fn commit(&self, repository: &Repository, commit: &CommitInfo) -> Value {
        let base = format!("{}/repos/{}", self.api, repository.full_name());
        let page = format!("{}/{}/commit", self.html, repository.full_name());
        let person = json!({ "name": commit.author_name, "email": commit.author_email, "date": commit.date });
        let file = |status: &'static str| move |path: &String| json!({ "filename": path, "status": status });
        let files: Vec<Value> = commit
            .added
            .iter()
            .map(file("added"))
            .chain(commit.removed.iter().map(file("removed")))
            .chain(commit.modified.iter().map(file("modified")))
            .collect();
        json!({
            "sha": commit.sha,
            "node_id": node_id("Commit", 0),
            "url": format!("{base}/commits/{}", commit.sha),
            "html_url": format!("{page}/{}", commit.sha),
            "comments_url": format!("{base}/commits/{}/comments", commit.sha),
            "commit": {
                "url": format!("{base}/git/commits/{}", commit.sha),
                "author": person,
                "committer": person,
                "message": commit.message,
                "tree": { "sha": commit.tree, "url": format!("{base}/git/trees/{}", commit.tree) },
                "comment_count": 0,
                "verification": { "verified": false, "reason": "unsigned", "signature": null, "payload": null, "verified_at": null },
            },
            "author": null,
            "committer": null,
            "parents": commit.parents.iter().map(|sha| json!({
                "sha": sha,
                "url": format!("{base}/commits/{sha}"),
                "html_url": format!("{page}/{sha}"),
            })).collect::<Vec<_>>(),
            "files": files,
        })
    }
}

fn email(account: &Account) -> String {
    format!("{}+{}@users.noreply.example.com", account.id, account.login)
}

/// Fields that a pull request has only when it is asked for alone.
pub(super) fn without_details(pull: &mut Value) {
    let fields: Option<&mut Map<String, Value>> = pull.as_object_mut();
    if let Some(fields) = fields {
        for field in [
            "merged",
            "mergeable",
            "rebaseable",
            "mergeable_state",
            "merged_by",
            "comments",
            "review_comments",
            "maintainer_can_modify",
            "commits",
            "additions",
            "deletions",
            "changed_files",
        ] {
            fields.remove(field);
        }
    }
}
