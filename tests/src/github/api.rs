//! The REST API: who asks, how often, what for; refusals in GitHub's own words.

use super::GitHub;
use super::server::{json_reply, percent_decode, text_reply};
use super::shape;
use super::state::{PullRequest, PullState, Repository, Status, StatusState, Token};
use axum::body::Bytes;
use axum::response::Response;
use base64::Engine;
use http::request::Parts;
use http::{HeaderName, HeaderValue, Method, StatusCode, header};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::collections::HashMap;

/// Undocumented; 422 beyond it.
const DESCRIPTION_LIMIT: usize = 140;
const CONTEXT_LIMIT: usize = 255;
/// Statuses of one SHA and context.
pub(super) const STATUS_LIMIT: usize = 1000;
const PER_PAGE: usize = 30;
const PER_PAGE_LIMIT: usize = 100;
const RATE_LIMIT_ANONYMOUS: u64 = 60;
const API_VERSIONS: [&str; 2] = ["2022-11-28", "2026-03-10"];

/// One request to the API.
struct Call<'a> {
    github: &'a GitHub,
    parts: &'a Parts,
    query: HashMap<String, String>,
    body: &'a [u8],
    caller: Option<Token>,
    token: Option<String>,
}

/// Boxed, because a response is large.
type Refusal = Box<Response>;
type Reply = Result<Response, Refusal>;

/// Answers a request; `path` is without the API's prefix.
pub(super) async fn answer(github: &GitHub, parts: &Parts, path: &str, body: &Bytes) -> Response {
    let token = credentials(parts);
    let mut response = match admit(github, parts, path, token.as_deref()) {
        Ok(caller) => {
            let call = Call {
                github,
                parts,
                query: query(parts),
                body,
                caller,
                token: token.clone(),
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

/// The token of a request: `Bearer`, `token`, or the password of `Basic`.
pub(super) fn credentials(parts: &Parts) -> Option<String> {
    let value = parts.headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, rest) = value.split_once(' ')?;
    match scheme.to_ascii_lowercase().as_str() {
        "bearer" | "token" => Some(rest.trim().to_owned()),
        "basic" => {
            let decoded = base64::engine::general_purpose::STANDARD
                .decode(rest.trim())
                .ok()?;
            let text = String::from_utf8(decoded).ok()?;
            text.split_once(':')
                .map(|(_, password)| password.to_owned())
        }
        _ => None,
    }
}

fn api_version(parts: &Parts) -> &str {
    parts
        .headers
        .get("x-github-api-version")
        .and_then(|value| value.to_str().ok())
        .unwrap_or(API_VERSIONS[0])
}

fn query(parts: &Parts) -> HashMap<String, String> {
    let text = parts.uri.query().unwrap_or_default();
    text.split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (
                percent_decode(name),
                percent_decode(&value.replace('+', " ")),
            )
        })
        .collect()
}

/// What every request must satisfy before it is looked at.
fn admit(
    github: &GitHub,
    parts: &Parts,
    path: &str,
    token: Option<&str>,
) -> Result<Option<Token>, Refusal> {
    if parts.headers.get(header::USER_AGENT).is_none() {
        return Err(Box::new(text_reply(
            StatusCode::FORBIDDEN,
            "Request forbidden by administrative rules. Please make sure your request has a User-Agent header.",
        )));
    }
    if !API_VERSIONS.contains(&api_version(parts)) {
        return Err(message(
            410,
            &format!("The API version {} is not supported.", api_version(parts)),
        ));
    }
    let mut state = github.state();
    if Timestamp::now() >= state.window_ends {
        state.window_ends = Timestamp::now() + jiff::SignedDuration::from_hours(1);
        state.anonymous_used = 0;
        for token in state.tokens.values_mut() {
            token.used = 0;
        }
    }
    let limit = state.rate_limit;
    let counts = path != "/rate_limit";
    match token {
        None => {
            if counts && state.anonymous_used >= RATE_LIMIT_ANONYMOUS.min(limit) {
                return Err(rate_limit_exceeded());
            }
            state.anonymous_used += u64::from(counts);
            Ok(None)
        }
        Some(token) => match state.tokens.get_mut(token) {
            None => Err(bad_credentials()),
            Some(holder) => {
                if counts && holder.used >= limit {
                    return Err(rate_limit_exceeded());
                }
                holder.used += u64::from(counts);
                Ok(Some(holder.clone()))
            }
        },
    }
}

/// Limit, used, and the second at which the count begins anew.
fn rate(github: &GitHub, token: Option<&str>) -> (u64, u64, u64) {
    let state = github.state();
    let reset = state.window_ends.as_second().unsigned_abs();
    match token.and_then(|token| state.tokens.get(token)) {
        Some(holder) => (state.rate_limit, holder.used, reset),
        None => (
            RATE_LIMIT_ANONYMOUS.min(state.rate_limit),
            state.anonymous_used,
            reset,
        ),
    }
}

pub(super) fn set_rate_headers(response: &mut Response, limit: u64, remaining: u64, reset: u64) {
    let headers = response.headers_mut();
    for (name, value) in [
        ("x-ratelimit-limit", limit),
        ("x-ratelimit-remaining", remaining),
        ("x-ratelimit-used", limit.saturating_sub(remaining)),
        ("x-ratelimit-reset", reset),
    ] {
        headers.insert(HeaderName::from_static(name), HeaderValue::from(value));
    }
    headers.insert("x-ratelimit-resource", HeaderValue::from_static("core"));
}

fn message(status: u16, text: &str) -> Refusal {
    Box::new(json_reply(
        status,
        &json!({
            "message": text,
            "documentation_url": "https://docs.github.com/rest",
            "status": status.to_string(),
        }),
    ))
}

fn not_found() -> Refusal {
    message(404, "Not Found")
}

pub(super) fn bad_credentials() -> Refusal {
    message(401, "Bad credentials")
}

pub(super) fn rate_limit_exceeded() -> Refusal {
    message(
        403,
        "API rate limit exceeded. (But here's the good news: Authenticated requests get a higher rate limit. Check out the documentation for more details.)",
    )
}

pub(super) fn no_commit(sha: &str) -> Refusal {
    message(422, &format!("No commit found for SHA: {sha}"))
}

/// 422 about one field of a status.
fn invalid_status(field: Option<&str>, text: &str) -> Refusal {
    let mut error = json!({ "resource": "Status", "code": "custom", "message": text });
    if let (Some(field), Some(object)) = (field, error.as_object_mut()) {
        object.insert("field".to_owned(), field.into());
    }
    Box::new(json_reply(
        422,
        &json!({
            "message": "Validation Failed",
            "errors": [error],
            "documentation_url": "https://docs.github.com/rest/commits/statuses#create-a-commit-status",
            "status": "422",
        }),
    ))
}

impl Call<'_> {
    async fn route(&self, path: &str) -> Reply {
        let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
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
            (_, ["hooks", ..]) if self.caller.is_none() => Err(not_found()),
            (&Method::GET, ["hooks"]) => Ok(self.list_hooks(repository)),
            (&Method::GET, ["hooks", hook, "deliveries"]) => self.list_deliveries(repository, hook),
            (&Method::GET, ["hooks", hook, "deliveries", id]) => {
                self.get_delivery(repository, hook, id)
            }
            (&Method::POST, ["hooks", hook, "deliveries", id, "attempts"]) => {
                self.redeliver(repository, hook, id)
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

    fn list_pulls(&self, repository: &str) -> Reply {
        let state = self.github.state();
        let found = state.repository(repository).ok_or_else(not_found)?;
        let wanted = self.query.get("state").map_or("open", String::as_str);
        let newest_first = self
            .query
            .get("direction")
            .is_none_or(|direction| direction == "desc");
        let mut pulls: Vec<&PullRequest> = found
            .pulls
            .values()
            .filter(|pull| match wanted {
                "all" => true,
                "closed" => pull.state == PullState::Closed,
                _ => pull.state == PullState::Open,
            })
            .filter(|pull| {
                self.query
                    .get("base")
                    .is_none_or(|base| *base == pull.base_branch)
            })
            .filter(|pull| {
                self.query.get("head").is_none_or(|head| {
                    let owner = pull
                        .head_repository
                        .as_deref()
                        .and_then(|name| name.split('/').next())
                        .unwrap_or_default();
                    *head == format!("{owner}:{}", pull.head_branch)
                })
            })
            .collect();
        if newest_first {
            pulls.reverse();
        }
        let shapes = self.github.shapes();
        let values: Vec<Value> = pulls
            .into_iter()
            .map(|pull| {
                let mut value = shapes.pull_request(&state, found, pull);
                shape::without_details(&mut value);
                value
            })
            .collect();
        drop(state);
        let page = self.page();
        let count = values.len();
        let shown: Vec<Value> = values
            .into_iter()
            .skip(page.skip())
            .take(page.size)
            .collect();
        Ok(self.with_links(json_reply(200, &shown.into()), &page, count))
    }

    /// As on GitHub, the first look at a changed pull request says `mergeable: null` and starts the computation.
    async fn get_pull(&self, repository: &str, number: &str) -> Reply {
        let number: i64 = number.parse().map_err(|_| not_found())?;
        let value = {
            let state = self.github.state();
            let found = state.repository(repository).ok_or_else(not_found)?;
            let pull = found.pulls.get(&number).ok_or_else(not_found)?;
            self.github.shapes().pull_request(&state, found, pull)
        };
        if let Err(error) = self.github.compute_mergeability(repository, number).await {
            tracing::error!("cannot compute mergeability: {error:#}");
        }
        Ok(json_reply(200, &value))
    }

    fn git_of(&self, repository: &str) -> Result<crate::git::BareRepository, Refusal> {
        let state = self.github.state();
        let found = state.repository(repository).ok_or_else(not_found)?;
        Ok(found.git.clone())
    }

    /// The commit that a SHA, a branch, a tag or `heads/…` names.
    async fn resolve(&self, repository: &str, reference: &str) -> Result<String, Refusal> {
        let git = self.git_of(repository)?;
        for revision in [
            format!("refs/heads/{reference}"),
            format!("refs/tags/{reference}"),
            format!("refs/{reference}"),
        ] {
            if let Some(sha) = git.resolve(&revision).await {
                return Ok(sha);
            }
        }
        let is_hex = reference.len() >= 7 && reference.chars().all(|c| c.is_ascii_hexdigit());
        match git.resolve(reference).await {
            Some(sha) if is_hex => Ok(sha),
            _ => Err(no_commit(reference)),
        }
    }

    async fn get_commit(&self, repository: &str, reference: &str) -> Reply {
        let sha = self.resolve(repository, reference).await?;
        let accept = self
            .parts
            .headers
            .get(header::ACCEPT)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        if accept.contains("sha") {
            return Ok(text_reply(StatusCode::OK, &sha));
        }
        let git = self.git_of(repository)?;
        let commit = git
            .commit_info(&sha)
            .await
            .map_err(|error| message(500, &format!("{error:#}")))?;
        let state = self.github.state();
        let found = state.repository(repository).ok_or_else(not_found)?;
        Ok(json_reply(
            200,
            &self.github.shapes().commit(found, &commit),
        ))
    }

    async fn list_branches(&self, repository: &str) -> Reply {
        let git = self.git_of(repository)?;
        let branches = git
            .branches()
            .await
            .map_err(|error| message(500, &format!("{error:#}")))?;
        let page = self.page();
        let values: Vec<Value> = branches
            .iter()
            .skip(page.skip())
            .take(page.size)
            .map(|(name, sha)| self.branch(repository, name, sha))
            .collect();
        Ok(self.with_links(json_reply(200, &values.into()), &page, branches.len()))
    }

    fn branch(&self, repository: &str, name: &str, sha: &str) -> Value {
        let url = format!("{}/repos/{repository}/commits/{sha}", self.github.api_url());
        json!({ "name": name, "commit": { "sha": sha, "url": url }, "protected": false })
    }

    async fn get_branch(&self, repository: &str, name: &str) -> Reply {
        let sha = self.git_of(repository)?.head_of(name).await;
        let sha = sha.ok_or_else(|| message(404, "Branch not found"))?;
        Ok(json_reply(200, &self.branch(repository, name, &sha)))
    }

    async fn get_reference(&self, repository: &str, name: &str) -> Reply {
        let sha = self
            .git_of(repository)?
            .resolve(&format!("refs/{name}"))
            .await
            .ok_or_else(not_found)?;
        let base = format!("{}/repos/{repository}/git", self.github.api_url());
        Ok(json_reply(
            200,
            &json!({
                "ref": format!("refs/{name}"),
                "node_id": "",
                "url": format!("{base}/refs/{name}"),
                "object": { "type": "commit", "sha": sha, "url": format!("{base}/commits/{sha}") },
            }),
        ))
    }

    async fn post_status(&self, repository: &str, sha: &str) -> Reply {
        let caller = self
            .caller
            .as_ref()
            .ok_or_else(|| message(401, "Requires authentication"))?;
        if !self.has_access(repository) {
            return Err(not_found());
        }
        if !caller.writes {
            return Err(message(
                403,
                "Resource not accessible by personal access token",
            ));
        }
        let wanted = WantedStatus::parse(self.body)?;
        // Only a full SHA will do here, unlike for reading.
        let is_sha = sha.len() == 40 && sha.chars().all(|c| c.is_ascii_hexdigit());
        let known = if is_sha {
            self.git_of(repository)?.resolve(sha).await
        } else {
            None
        };
        let sha = known.ok_or_else(|| no_commit(sha))?;

        let value = {
            let mut state = self.github.state();
            let before = state
                .statuses
                .iter()
                .filter(|status| {
                    status.repository == repository
                        && status.sha == sha
                        && status.is_of(&wanted.context)
                })
                .count();
            if before >= STATUS_LIMIT {
                return Err(invalid_status(
                    None,
                    "This SHA and context has reached the maximum number of statuses.",
                ));
            }
            let status = Status {
                id: state.next_id(),
                repository: repository.to_owned(),
                sha,
                context: wanted.context,
                state: wanted.state,
                description: wanted.description,
                target_url: wanted.target_url,
                creator: caller.login.clone(),
                at: Timestamp::now(),
            };
            state.statuses.push(status.clone());
            self.github.shapes().status(&state, &status)
        };
        self.github.notify();
        Ok(json_reply(201, &value))
    }

    async fn combined_status(&self, repository: &str, reference: &str) -> Reply {
        let sha = self.resolve(repository, reference).await?;
        let page = self.page();
        let state = self.github.state();
        let found = state.repository(repository).ok_or_else(not_found)?;
        let latest = state.latest_statuses(repository, &sha);
        let shown: Vec<Status> = latest
            .iter()
            .skip(page.skip())
            .take(page.size)
            .cloned()
            .collect();
        let value = self
            .github
            .shapes()
            .combined_status(&state, found, &sha, &latest, &shown);
        Ok(self.with_links(json_reply(200, &value), &page, latest.len()))
    }

    async fn list_statuses(&self, repository: &str, reference: &str) -> Reply {
        let sha = self.resolve(repository, reference).await?;
        let page = self.page();
        let state = self.github.state();
        let shapes = self.github.shapes();
        let all: Vec<&Status> = state
            .statuses
            .iter()
            .rev()
            .filter(|status| status.repository == repository && status.sha == sha)
            .collect();
        let shown: Vec<Value> = all
            .iter()
            .skip(page.skip())
            .take(page.size)
            .map(|status| shapes.status(&state, status))
            .collect();
        Ok(self.with_links(json_reply(200, &shown.into()), &page, all.len()))
    }

    fn list_hooks(&self, repository: &str) -> Response {
        let state = self.github.state();
        let shapes = self.github.shapes();
        let hooks: Vec<Value> = state
            .hooks
            .iter()
            .filter(|hook| hook.repository == repository)
            .map(|hook| shapes.ping(&state, hook)["hook"].clone())
            .collect();
        json_reply(200, &hooks.into())
    }

    /// The log of a hook, newest first: one row an attempt, under the GUID that they share.
    fn list_deliveries(&self, repository: &str, hook: &str) -> Reply {
        let state = self.github.state();
        let hook: i64 = hook.parse().map_err(|_| not_found())?;
        if !state
            .hooks
            .iter()
            .any(|known| known.id == hook && known.repository == repository)
        {
            return Err(not_found());
        }
        let mut rows: Vec<(i64, Value)> = Vec::new();
        for delivery in state.deliveries.iter().filter(|known| known.hook == hook) {
            for attempt in &delivery.attempts {
                rows.push((attempt.id, delivery_row(&state, delivery, attempt)));
            }
        }
        rows.sort_by_key(|(id, _)| std::cmp::Reverse(*id));
        let page = self.page();
        let cursor: i64 = self
            .query
            .get("cursor")
            .and_then(|cursor| cursor.parse().ok())
            .unwrap_or(i64::MAX);
        let mut rest = rows.into_iter().filter(|(id, _)| *id <= cursor);
        let shown: Vec<Value> = rest.by_ref().take(page.size).map(|(_, row)| row).collect();
        let mut response = json_reply(200, &shown.into());
        if let Some((next, _)) = rest.next() {
            let link = format!(
                "<{}/repos/{repository}/hooks/{hook}/deliveries?per_page={}&cursor={next}>; rel=\"next\"",
                self.github.api_url(),
                page.size
            );
            if let Ok(link) = HeaderValue::from_str(&link) {
                response.headers_mut().insert(header::LINK, link);
            }
        }
        Ok(response)
    }

    fn get_delivery(&self, repository: &str, hook: &str, id: &str) -> Reply {
        let state = self.github.state();
        let (delivery, attempt) = find_attempt(&state, repository, hook, id)?;
        let mut value = delivery_row(&state, delivery, attempt);
        if let Some(fields) = value.as_object_mut() {
            let payload: Value = serde_json::from_slice(&delivery.body).unwrap_or_default();
            fields.insert(
                "request".to_owned(),
                json!({
                    "headers": { "X-GitHub-Delivery": delivery.guid, "X-GitHub-Event": delivery.event },
                    "payload": payload,
                }),
            );
            fields.insert(
                "response".to_owned(),
                json!({ "headers": {}, "payload": attempt.answer }),
            );
        }
        Ok(json_reply(200, &value))
    }

    /// Accepted at once, sent soon after.
    fn redeliver(&self, repository: &str, hook: &str, id: &str) -> Reply {
        let delivery = {
            let state = self.github.state();
            find_attempt(&state, repository, hook, id)?.0.id
        };
        let github = self.github.clone();
        tokio::spawn(async move { github.attempt_delivery(delivery, true).await });
        Ok(json_reply(202, &json!({})))
    }

    fn page(&self) -> Page {
        let number = |name: &str, default: usize| {
            self.query
                .get(name)
                .and_then(|text| text.parse().ok())
                .unwrap_or(default)
        };
        Page {
            number: number("page", 1).max(1),
            size: number("per_page", PER_PAGE).clamp(1, PER_PAGE_LIMIT),
        }
    }

    /// The `Link` header of a page, with absolute addresses.
    fn with_links(&self, mut response: Response, page: &Page, count: usize) -> Response {
        let last = count.div_ceil(page.size).max(1);
        let path = self.parts.uri.path();
        let link = |number: usize, relation: &str| {
            let mut query: Vec<String> = self
                .query
                .iter()
                .filter(|(name, _)| *name != "page" && *name != "per_page")
                .map(|(name, value)| format!("{name}={value}"))
                .collect();
            query.sort();
            query.push(format!("per_page={}", page.size));
            query.push(format!("page={number}"));
            format!(
                "<{}{path}?{}>; rel=\"{relation}\"",
                self.github.url(),
                query.join("&")
            )
        };
        let mut links = Vec::new();
        if page.number > 1 {
            links.push(link(page.number - 1, "prev"));
        }
        if page.number < last {
            links.push(link(page.number + 1, "next"));
            links.push(link(last, "last"));
        }
        if page.number > 1 {
            links.push(link(1, "first"));
        }
        if let (false, Ok(value)) = (links.is_empty(), HeaderValue::from_str(&links.join(", "))) {
            response.headers_mut().insert(header::LINK, value);
        }
        response
    }

    /// Adds an `ETag` to what was read, and says 304 to whom has it already. Such an answer costs nothing.
    async fn if_changed(&self, response: Response) -> Response {
        if self.parts.method != Method::GET || response.status() != StatusCode::OK {
            return response;
        }
        let (mut parts, body) = response.into_parts();
        let bytes = axum::body::to_bytes(body, usize::MAX)
            .await
            .unwrap_or_default();
        let tag = format!("W/\"{}\"", hex::encode(Sha256::digest(&bytes)));
        if let Ok(value) = HeaderValue::from_str(&tag) {
            parts.headers.insert(header::ETAG, value);
        }
        let known = self
            .parts
            .headers
            .get(header::IF_NONE_MATCH)
            .is_some_and(|value| value.as_bytes() == tag.as_bytes());
        if !known {
            return Response::from_parts(parts, bytes.into());
        }
        if let Some(token) = &self.token
            && let Some(holder) = self.github.state().tokens.get_mut(token)
        {
            holder.used = holder.used.saturating_sub(1);
        }
        parts.status = StatusCode::NOT_MODIFIED;
        parts.headers.remove(header::CONTENT_TYPE);
        Response::from_parts(parts, axum::body::Body::empty())
    }
}

struct Page {
    number: usize,
    size: usize,
}

impl Page {
    fn skip(&self) -> usize {
        (self.number - 1) * self.size
    }
}

fn delivery_row(
    state: &super::state::State,
    delivery: &super::Delivery,
    attempt: &super::DeliveryAttempt,
) -> Value {
    let repository = state.repository(&delivery.repository).map(|known| known.id);
    json!({
        "id": attempt.id,
        "guid": delivery.guid,
        "delivered_at": shape::time(attempt.at),
        "redelivery": attempt.redelivery,
        "duration": 0.1,
        "status": match attempt.status {
            Some(200..=299) => "OK".to_owned(),
            Some(status) => format!("Invalid HTTP Response: {status}"),
            None => "failed to connect to host".to_owned(),
        },
        "status_code": attempt.status.unwrap_or(0),
        "event": delivery.event,
        "action": delivery.action,
        "installation_id": null,
        "repository_id": repository,
        "throttled_at": null,
    })
}

fn find_attempt<'a>(
    state: &'a super::state::State,
    repository: &str,
    hook: &str,
    id: &str,
) -> Result<(&'a super::Delivery, &'a super::DeliveryAttempt), Refusal> {
    let (hook, id): (i64, i64) = match (hook.parse(), id.parse()) {
        (Ok(hook), Ok(id)) => (hook, id),
        _ => return Err(not_found()),
    };
    state
        .deliveries
        .iter()
        .filter(|delivery| delivery.hook == hook && delivery.repository == repository)
        .find_map(|delivery| {
            let attempt = delivery.attempts.iter().find(|attempt| attempt.id == id)?;
            Some((delivery, attempt))
        })
        .ok_or_else(not_found)
}

/// The body of a status, checked.
struct WantedStatus {
    state: StatusState,
    context: String,
    description: Option<String>,
    target_url: Option<String>,
}

impl WantedStatus {
    fn parse(body: &[u8]) -> Result<WantedStatus, Refusal> {
        let fields: Map<String, Value> =
            serde_json::from_slice(body).map_err(|_| message(400, "Problems parsing JSON"))?;
        let text = |name: &str| match fields.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => Err(message(
                422,
                &format!("Invalid request.\n\nFor 'properties/{name}', the value is not a string."),
            )),
        };
        let state = text("state")?
            .ok_or_else(|| message(422, "Invalid request.\n\n\"state\" wasn't supplied."))?;
        let state = StatusState::from_name(&state)
            .ok_or_else(|| invalid_status(Some("state"), "state is not included in the list"))?;
        let context = text("context")?.unwrap_or_else(|| "default".to_owned());
        if context.chars().count() > CONTEXT_LIMIT {
            return Err(invalid_status(
                Some("context"),
                "context is too long (maximum is 255 characters)",
            ));
        }
        let description = text("description")?;
        for (name, text) in [
            ("context", Some(&context)),
            ("description", description.as_ref()),
        ] {
            if text.is_some_and(|text| text.chars().any(|c| c.len_utf8() == 4)) {
                return Err(invalid_status(
                    Some(name),
                    &format!("{name} doesn't accept 4-byte Unicode"),
                ));
            }
        }
        if description
            .as_ref()
            .is_some_and(|text| text.chars().count() > DESCRIPTION_LIMIT)
        {
            return Err(invalid_status(
                Some("description"),
                "description is too long (maximum is 140 characters)",
            ));
        }
        let target_url = text("target_url")?;
        let is_absolute = |url: &String| {
            url.parse::<http::Uri>().is_ok_and(|uri| {
                matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some()
            })
        };
        if target_url
            .as_ref()
            .is_some_and(|url| !url.is_empty() && !is_absolute(url))
        {
            return Err(invalid_status(
                Some("target_url"),
                "target_url must use http(s) scheme",
            ));
        }
        Ok(WantedStatus {
            state,
            context,
            description,
            target_url,
        })
    }
}
