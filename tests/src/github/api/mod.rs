//! The REST API: who asks, how often, what for; refusals in GitHub's own words.

mod admission;
mod apps;
mod commits;
mod hooks;
mod pages;
mod pulls;
mod refusal;
mod statuses;

pub(super) use admission::{credentials, set_rate_headers};
pub(super) use refusal::{bad_credentials, no_commit, rate_limit_exceeded};
pub(super) use statuses::STATUS_LIMIT;

use super::GitHub;
use super::server::json_reply;
use super::state::{Repository, Token};
use admission::{Admitted, admit, api_version, query, rate};
use axum::body::Bytes;
use axum::response::Response;
use http::request::Parts;
use http::{HeaderName, HeaderValue, Method};
use refusal::{message, not_found};
use serde_json::json;
use std::collections::HashMap;

/// One request to the API.
struct Call<'a> {
    github: &'a GitHub,
    parts: &'a Parts,
    query: HashMap<String, String>,
    body: &'a [u8],
    caller: Option<Token>,
    token: Option<String>,
    /// Set when an App signed the request itself.
    app: Option<u64>,
}

/// Boxed, because a response is large.
type Refusal = Box<Response>;
type Reply = Result<Response, Refusal>;

/// Answers a request; `path` is without the API's prefix.
pub(super) async fn answer(github: &GitHub, parts: &Parts, path: &str, body: &Bytes) -> Response {
    let token = credentials(parts);
    let mut response = match admit(github, parts, path, token.as_deref()) {
        Ok(Admitted { caller, app }) => {
            let call = Call {
                github,
                parts,
                query: query(parts),
                body,
                caller,
                token: token.clone(),
                app,
            };
            let response = call.route(path).await.unwrap_or_else(|refusal| *refusal);
            call.if_changed(response).await
        }
        Err(refusal) => *refusal,
    };
    let (limit, used, reset) = rate(github, token.as_deref());
    set_rate_headers(&mut response, limit, limit.saturating_sub(used), reset);
    for (name, value) in [
        ("x-github-media-type", "github.v3; format=json"),
        ("x-github-api-version-selected", api_version(parts)),
        ("server", "github.com"),
    ] {
        if let Ok(value) = HeaderValue::from_str(value) {
            response
                .headers_mut()
                .insert(HeaderName::from_static(name), value);
        }
    }
    if let Ok(id) = HeaderValue::from_str(&super::guid()) {
        response.headers_mut().insert("x-github-request-id", id);
    }
    response
}

impl Call<'_> {
    async fn route(&self, path: &str) -> Reply {
        let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
        if Call::is_for_apps(&segments) {
            return self.route_app(&segments);
        }
        if self.app.is_some() {
            // As itself an App sees no repository.
            return Err(bad_credentials());
        }
        match (&self.parts.method, segments.as_slice()) {
            (&Method::GET, [""] | ["meta"]) => Ok(json_reply(
                200,
                &json!({ "verifiable_password_authentication": false, "hooks": ["127.0.0.1/32"], "installed_version": "3.19.0" }),
            )),
            (&Method::GET, ["rate_limit"]) => Ok(self.rate_limit()),
            (&Method::GET, ["user"]) => self.user(),
            (&Method::GET, ["repositories", id]) => {
                let name = {
                    let state = self.github.state();
                    let id: i64 = id.parse().map_err(|_| not_found())?;
                    let found = state.repositories.values().find(|known| known.id == id);
                    found.map(Repository::full_name).ok_or_else(not_found)?
                };
                self.get_repository(&name)
            }
            (method, ["repos", owner, name, rest @ ..]) => {
                let full_name = self.visible(&format!("{owner}/{name}"))?;
                self.route_repository(method, &full_name, rest).await
            }
            _ => Err(not_found()),
        }
    }

    async fn route_repository(&self, method: &Method, repository: &str, rest: &[&str]) -> Reply {
        match (method, rest) {
            (&Method::GET, []) => self.get_repository(repository),
            (&Method::GET, ["pulls"]) => self.list_pulls(repository),
            (&Method::GET, ["pulls", number]) => self.get_pull(repository, number).await,
            (&Method::GET, ["branches"]) => self.list_branches(repository).await,
            (&Method::GET, ["branches", branch @ ..]) => {
                self.get_branch(repository, &branch.join("/")).await
            }
            (&Method::GET, ["git", "ref", reference @ ..]) => {
                self.get_reference(repository, &reference.join("/")).await
            }
            (&Method::GET, ["git", "matching-refs", reference @ ..]) => {
                self.matching_references(repository, &reference.join("/"))
                    .await
            }
            (&Method::POST, ["statuses", sha]) => self.post_status(repository, sha).await,
            (&Method::GET, ["commits", reference @ .., "status"]) => {
                self.combined_status(repository, &reference.join("/")).await
            }
            (
                &Method::GET,
                ["commits", reference @ .., "statuses"] | ["statuses", reference @ ..],
            ) => self.list_statuses(repository, &reference.join("/")).await,
            (&Method::GET, ["commits", reference @ ..]) if !reference.is_empty() => {
                self.get_commit(repository, &reference.join("/")).await
            }
            (_, ["hooks", ..]) if !self.caller.as_ref().is_some_and(|known| known.sees_hooks) => {
                Err(not_found())
            }
            (&Method::GET, ["hooks"]) => Ok(self.list_hooks(repository)),
            (&Method::GET, ["hooks", hook, "deliveries"]) => {
                self.list_deliveries(&self.repository_log(repository, hook)?)
            }
            (&Method::GET, ["hooks", hook, "deliveries", id]) => {
                self.get_delivery(&self.repository_log(repository, hook)?, id)
            }
            (&Method::POST, ["hooks", hook, "deliveries", id, "attempts"]) => {
                self.redeliver(&self.repository_log(repository, hook)?, id)
            }
            _ => Err(not_found()),
        }
    }

    /// The repository's true name, if the caller may know of it.
    fn visible(&self, name: &str) -> Result<String, Refusal> {
        let state = self.github.state();
        let repository = state.repository(name).ok_or_else(not_found)?;
        if repository.private && !self.has_access(&repository.full_name()) {
            return Err(not_found());
        }
        Ok(repository.full_name())
    }

    fn has_access(&self, repository: &str) -> bool {
        self.caller
            .as_ref()
            .is_some_and(|caller| caller.repositories.contains(repository))
    }

    fn rate_limit(&self) -> Response {
        let (limit, used, reset) = rate(self.github, self.token.as_deref());
        let core = json!({ "limit": limit, "used": used, "remaining": limit.saturating_sub(used), "reset": reset });
        json_reply(200, &json!({ "resources": { "core": core }, "rate": core }))
    }

    fn user(&self) -> Reply {
        let caller = self
            .caller
            .as_ref()
            .ok_or_else(|| message(401, "Requires authentication"))?;
        let state = self.github.state();
        let account = state.known_account(&caller.login);
        Ok(json_reply(200, &self.github.shapes().account(&account)))
    }

    fn get_repository(&self, name: &str) -> Reply {
        let name = self.visible(name)?;
        let state = self.github.state();
        let repository = state.repository(&name).ok_or_else(not_found)?;
        let mut value = self.github.shapes().repository(&state, repository);
        if let (Some(fields), Some(_)) = (value.as_object_mut(), &self.caller) {
            let push = self.has_access(&name);
            fields.insert(
                "permissions".to_owned(),
                json!({ "admin": push, "maintain": push, "push": push, "triage": push, "pull": true }),
            );
        }
        Ok(json_reply(200, &value))
    }

    fn git_of(&self, repository: &str) -> Result<crate::git::BareRepository, Refusal> {
        let state = self.github.state();
        let found = state.repository(repository).ok_or_else(not_found)?;
        Ok(found.git.clone())
    }
}
