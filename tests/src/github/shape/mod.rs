//! The JSON that GitHub sends: recorded payloads as templates, filled in with what the fake knows.
//!
//! A template gives the full official shape; every name, address, id, SHA and time in it is replaced.

mod commits;
mod events;
mod pulls;
mod statuses;

pub(super) use events::PushFacts;
pub(super) use pulls::without_details;

use super::state::{Account, PullState, Repository, State};
use base64::Engine;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::sync::LazyLock;

fn template(text: &str) -> Value {
    serde_json::from_str(text)
        .unwrap_or_else(|error| unreachable!("a template is no JSON: {error}"))
}

macro_rules! templates {
    ($($name:ident = $file:literal;)*) => {
        $(static $name: LazyLock<Value> =
            LazyLock::new(|| template(include_str!(concat!("../../../fixtures/github/", $file))));)*
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
}
