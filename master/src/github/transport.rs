//! One request and its answer, within deadlines and bounds, and the redirects between.

use super::error::GitHubError;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use jiff::Timestamp;
use octocrab::Octocrab;
use serde::de::DeserializeOwned;
use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use url::Url;

const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// Silence of the connection.
const READ_DEADLINE: Duration = Duration::from_secs(10);
/// A whole request with its answer.
const DEADLINE: Duration = Duration::from_secs(15);
/// A reply to a status has about 1,300 bytes, a repository about 8,000.
const MOST_REPLY_BYTES: usize = 256 << 10;
/// A renamed repository answers with one.
const MOST_REDIRECTS: usize = 3;

/// What is left of the hour's requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    pub limit: u64,
    pub remaining: u64,
    pub resets_at: Timestamp,
}

/// A request before it bears credentials.
#[derive(Debug)]
pub(super) struct Call<'a> {
    method: Method,
    /// With the query, without the API's prefix.
    path: &'a str,
    body: Option<serde_json::Value>,
    /// The answer is wanted only if it is not this one.
    unless: Option<&'a HeaderValue>,
    most_bytes: usize,
}

impl<'a> Call<'a> {
    pub(super) fn new(method: Method, path: &'a str) -> Call<'a> {
        Call {
            method,
            path,
            body: None,
            unless: None,
            most_bytes: MOST_REPLY_BYTES,
        }
    }

    pub(super) fn get(path: &'a str) -> Call<'a> {
        Call::new(Method::GET, path)
    }

    pub(super) fn post(path: &'a str, body: serde_json::Value) -> Call<'a> {
        Call {
            body: Some(body),
            ..Call::new(Method::POST, path)
        }
    }

    /// Only if the answer is not the one with this tag.
    pub(super) fn unless(self, tag: Option<&'a HeaderValue>) -> Call<'a> {
        Call {
            unless: tag,
            ..self
        }
    }

    /// Takes an answer of so many bytes.
    pub(super) fn at_most(self, most_bytes: usize) -> Call<'a> {
        Call { most_bytes, ..self }
    }
}

pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    /// Empty when it was too long or broke off: the status line is an answer without it.
    pub(super) body: Bytes,
}

impl Reply {
    pub(super) fn parsed<T: DeserializeOwned>(&self, path: &str) -> Result<T, GitHubError> {
        serde_json::from_slice(&self.body).map_err(|error| GitHubError::Form {
            path: path.to_owned(),
            why: error.to_string(),
        })
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

#[derive(Debug)]
pub(super) struct Transport {
    client: Octocrab,
    api_url: Url,
    deadline: Duration,
    /// Repositories known to have moved, so that each is mentioned once.
    moved: Mutex<BTreeSet<String>>,
    budget: Mutex<Option<Budget>>,
}

impl Transport {
    pub(super) fn new(api_url: &Url) -> Result<Transport, GitHubError> {
        let client_error = |error: &dyn std::error::Error| GitHubError::Client {
            api_url: api_url.clone(),
            why: chain(error),
        };
        // Without credentials of its own: each request bears those that are valid then.
        let client = Octocrab::builder()
            .base_uri(api_url.as_str())
            .map_err(|error| client_error(&error))?
            .set_connect_timeout(Some(CONNECT_DEADLINE))
            .set_read_timeout(Some(READ_DEADLINE))
            .set_write_timeout(Some(READ_DEADLINE))
            .build()
            .map_err(|error| client_error(&error))?;
        Ok(Transport {
            client,
            api_url: api_url.clone(),
            deadline: DEADLINE,
            moved: Mutex::default(),
            budget: Mutex::default(),
        })
    }

    pub(super) fn set_deadline(&mut self, deadline: Duration) {
        self.deadline = deadline;
    }

    pub(super) fn budget(&self) -> Option<Budget> {
        *self.budget.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One request, and those that its redirects lead to on the same server: a renamed repository has a new address.
    pub(super) async fn send(
        &self,
        call: &Call<'_>,
        credentials: &HeaderValue,
    ) -> Result<Reply, GitHubError> {
        let mut path = call.path.to_owned();
        for _ in 0..MOST_REDIRECTS {
            let reply = self.request(call, &path, credentials).await?;
            let Some(next) = self.redirected(&reply, &path) else {
                return Ok(reply);
            };
            let mut moved = self.moved.lock().unwrap_or_else(PoisonError::into_inner);
            if moved.insert(path) {
                tracing::warn!(to = %next, "a repository has another name on GitHub now: change it in the configuration");
            }
            drop(moved);
            path = next;
        }
        self.request(call, &path, credentials).await
    }

    async fn request(
        &self,
        call: &Call<'_>,
        path: &str,
        credentials: &HeaderValue,
    ) -> Result<Reply, GitHubError> {
        let mut request = Request::builder()
            .method(call.method.clone())
            .uri(path)
            .header(header::AUTHORIZATION, credentials)
            .header(header::ACCEPT, "application/vnd.github+json");
        if let Some(tag) = call.unless {
            request = request.header(header::IF_NONE_MATCH, tag);
        }
        let exchange = async {
            let request = self.client.build_request(request, call.body.as_ref())?;
            let response = self.client.execute(request).await?;
            let (parts, body) = response.into_parts();
            let body = axum::body::to_bytes(axum::body::Body::new(body), call.most_bytes).await;
            Ok::<_, octocrab::Error>(Reply {
                status: parts.status,
                headers: parts.headers,
                body: body.unwrap_or_default(),
            })
        };
        let why = match tokio::time::timeout(self.deadline, exchange).await {
            Ok(Ok(reply)) => return Ok(reply),
            Ok(Err(error)) => chain(&error),
            Err(_) => format!("no answer within {} s", self.deadline.as_secs_f32()),
        };
        Err(GitHubError::Unreachable {
            api_url: self.api_url.clone(),
            why,
        })
    }

    pub(super) fn note_budget(&self, reply: &Reply) {
        let number = |name: &str| reply.header(name)?.trim().parse::<u64>().ok();
        let read = || {
            let reset = i64::try_from(number("x-ratelimit-reset")?).ok()?;
            Some(Budget {
                limit: number("x-ratelimit-limit")?,
                remaining: number("x-ratelimit-remaining")?,
                resets_at: Timestamp::from_second(reset).ok()?,
            })
        };
        if let Some(budget) = read() {
            *self.budget.lock().unwrap_or_else(PoisonError::into_inner) = Some(budget);
        }
    }

    /// The path that a reply points to, if it is on the same server: credentials go nowhere else.
    fn redirected(&self, reply: &Reply, path: &str) -> Option<String> {
        if !matches!(reply.status.as_u16(), 301 | 302 | 307 | 308) {
            return None;
        }
        let location = reply.header(header::LOCATION.as_str())?;
        let base = self.api_url.as_str().trim_end_matches('/');
        let target = Url::parse(&format!("{base}{path}"))
            .ok()?
            .join(location)
            .ok()?;
        self.path_of(&target)
    }

    /// Path and query of an address of this server.
    pub(super) fn path_of(&self, target: &Url) -> Option<String> {
        if target.origin() != self.api_url.origin() {
            return None;
        }
        Some(match target.query() {
            Some(query) => format!("{}?{query}", target.path()),
            None => target.path().to_owned(),
        })
    }
}

/// An error with its causes, each said once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
