//! GitHub's REST API, as much as statuses need of it; github.com or an Enterprise server.
//!
//! One request, one answer: nothing is repeated here but a redirect, and a 401 after the token file was read again.
//! All other repeating is the reporter's, which knows what is still worth sending.

use super::answer::{Verdict, judge};
use super::reporter::StatusSink;
use super::token::{Reread, TokenFile};
use crate::config::GithubConfig;
use crate::model::CommitStatus;
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use jiff::Timestamp;
use octocrab::Octocrab;
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::PathBuf;
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

#[derive(Debug, thiserror::Error)]
pub enum GitHubError {
    #[error("statuses need `token_file` under [github]")]
    NoTokenFile,
    #[error("cannot read GitHub's token {path}: {source}")]
    TokenFile {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{path} holds no token: one line of visible characters is expected")]
    NoToken { path: PathBuf },
    #[error("cannot prepare requests to {api_url}: {why}")]
    Client { api_url: Url, why: String },
    #[error("cannot reach {api_url}: {why}")]
    Unreachable { api_url: Url, why: String },
    #[error("{why}\nhint: put a valid token into {path}; it is read again without a restart")]
    Unauthorized { path: PathBuf, why: String },
    #[error("{why}")]
    Answer { why: String },
}

/// What `check` found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GitHubCheck {
    /// Of a classic token: it needs `repo:status` or `repo`. Absent for other kinds.
    pub scopes: Option<Vec<String>>,
    /// When the token ends, in GitHub's words.
    pub token_expires: Option<String>,
    /// Requests allowed an hour, and left; absent where nothing is limited.
    pub limit: Option<u64>,
    pub remaining: Option<u64>,
}

/// What the token may do with a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RepositoryCheck {
    /// Its present name.
    pub full_name: String,
    /// Whether the token's owner may write there; statuses need it. Absent where GitHub does not say.
    pub may_write: Option<bool>,
}

/// A handle on GitHub's API. Made inside a Tokio runtime.
#[derive(Debug)]
pub struct GitHub {
    client: Octocrab,
    api_url: Url,
    token: TokenFile,
    deadline: Duration,
    /// Repositories known to have moved, so that each is mentioned once.
    moved: Mutex<BTreeSet<String>>,
}

struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

/// No reply: whether GitHub saw the request is not known.
struct NoReply {
    why: String,
}

impl GitHub {
    pub fn new(config: &GithubConfig) -> Result<GitHub, GitHubError> {
        let token_file = config
            .token_file
            .as_deref()
            .ok_or(GitHubError::NoTokenFile)?;
        let client_error = |error: &dyn std::error::Error| GitHubError::Client {
            api_url: config.api_url.clone(),
            why: chain(error),
        };
        // Without a token of its own: each request bears the one that is in the file then.
        let client = Octocrab::builder()
            .base_uri(config.api_url.as_str())
            .map_err(|error| client_error(&error))?
            .set_connect_timeout(Some(CONNECT_DEADLINE))
            .set_read_timeout(Some(READ_DEADLINE))
            .set_write_timeout(Some(READ_DEADLINE))
            .build()
            .map_err(|error| client_error(&error))?;
        Ok(GitHub {
            client,
            api_url: config.api_url.clone(),
            token: TokenFile::new(token_file),
            deadline: DEADLINE,
            moved: Mutex::default(),
        })
    }

    /// Gives up on a request after this long instead of 15 seconds.
    pub fn with_deadline(mut self, deadline: Duration) -> GitHub {
        self.deadline = deadline;
        self
    }

    /// Whether GitHub answers, knows the token, and what it allows.
    pub async fn check(&self) -> Result<GitHubCheck, GitHubError> {
        // Costs nothing of the limit; 404 on an Enterprise server without limits.
        let reply = self.get("/rate_limit").await?;
        if !reply.status.is_success() && reply.status != StatusCode::NOT_FOUND {
            return Err(self.error_of(&reply));
        }
        let text = |name: &str| Some(reply.headers.get(name)?.to_str().ok()?.to_owned());
        let body: serde_json::Value = serde_json::from_slice(&reply.body).unwrap_or_default();
        let rate = |name: &str| body.pointer(&format!("/resources/core/{name}"))?.as_u64();
        Ok(GitHubCheck {
            scopes: text("x-oauth-scopes").map(|scopes| {
                scopes
                    .split(',')
                    .map(|scope| scope.trim().to_owned())
                    .filter(|scope| !scope.is_empty())
                    .collect()
            }),
            token_expires: text("github-authentication-token-expiration"),
            limit: rate("limit"),
            remaining: rate("remaining"),
        })
    }

    /// Whether the repository is there, and may be written to.
    pub async fn check_repository(&self, repository: &str) -> Result<RepositoryCheck, GitHubError> {
        let reply = self.get(&format!("/repos/{repository}")).await?;
        if !reply.status.is_success() {
            return Err(self.error_of(&reply));
        }
        let body: serde_json::Value = serde_json::from_slice(&reply.body).unwrap_or_default();
        let name = body.get("full_name").and_then(|name| name.as_str());
        Ok(RepositoryCheck {
            full_name: name.unwrap_or(repository).to_owned(),
            may_write: body
                .pointer("/permissions/push")
                .and_then(|push| push.as_bool()),
        })
    }

    async fn get(&self, path: &str) -> Result<Reply, GitHubError> {
        let token = self.token.header(Reread::IfChanged)?;
        self.follow(Method::GET, path, None, &token)
            .await
            .map_err(|NoReply { why }| GitHubError::Unreachable {
                api_url: self.api_url.clone(),
                why,
            })
    }

    fn error_of(&self, reply: &Reply) -> GitHubError {
        match judge(reply.status, &reply.headers, &reply.body, Timestamp::now()) {
            Verdict::Unauthorized { why } => GitHubError::Unauthorized {
                path: self.token.path().to_owned(),
                why,
            },
            Verdict::Later { why }
            | Verdict::NotYet { why }
            | Verdict::Limited { why, .. }
            | Verdict::Refused { why } => GitHubError::Answer { why },
            Verdict::Sent { .. } => GitHubError::Answer {
                why: format!("GitHub answered {}", reply.status),
            },
        }
    }

    async fn post_status(&self, repository: &str, sha: &str, status: &CommitStatus) -> Verdict {
        if !is_repository(repository) || !sha.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Verdict::Refused {
                why: format!("`{repository}` at `{sha}` is no commit of a GitHub repository"),
            };
        }
        let path = format!("/repos/{repository}/statuses/{sha}");
        match self.post(&path, status).await {
            Ok(Ok(reply)) => judge(reply.status, &reply.headers, &reply.body, Timestamp::now()),
            Ok(Err(NoReply { why })) => Verdict::Later { why },
            Err(error) => Verdict::Unauthorized {
                why: error.to_string(),
            },
        }
    }

    /// With the token of the file; read anew, and tried once more, when it is not accepted.
    async fn post(
        &self,
        path: &str,
        status: &CommitStatus,
    ) -> Result<Result<Reply, NoReply>, GitHubError> {
        let token = self.token.header(Reread::IfChanged)?;
        let reply = self.follow(Method::POST, path, Some(status), &token).await;
        if let Ok(refused) = &reply
            && refused.status == StatusCode::UNAUTHORIZED
        {
            let fresh = self.token.header(Reread::Always)?;
            if fresh != token {
                return Ok(self.follow(Method::POST, path, Some(status), &fresh).await);
            }
        }
        Ok(reply)
    }

    /// One request, and those that its redirects lead to on the same server: a renamed repository has a new address.
    async fn follow(
        &self,
        method: Method,
        path: &str,
        status: Option<&CommitStatus>,
        token: &HeaderValue,
    ) -> Result<Reply, NoReply> {
        let mut path = path.to_owned();
        for _ in 0..MOST_REDIRECTS {
            let reply = self.request(&method, &path, status, token).await?;
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
        self.request(&method, &path, status, token).await
    }

    async fn request(
        &self,
        method: &Method,
        path: &str,
        status: Option<&CommitStatus>,
        token: &HeaderValue,
    ) -> Result<Reply, NoReply> {
        let body = status.map(|status| {
            serde_json::json!({
                "state": status.state.as_str(),
                "context": status.context,
                // A row may hold a sentence that did not come from `wording`.
                "description": super::wording::description(&status.description),
                "target_url": status.target_url,
            })
        });
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::AUTHORIZATION, token)
            .header(header::ACCEPT, "application/vnd.github+json");
        let exchange = async {
            let request = self.client.build_request(request, body.as_ref())?;
            let response = self.client.execute(request).await?;
            let (parts, body) = response.into_parts();
            let body = axum::body::to_bytes(axum::body::Body::new(body), MOST_REPLY_BYTES).await;
            Ok::<_, octocrab::Error>(Reply {
                status: parts.status,
                headers: parts.headers,
                // The status line is the answer; without its explanation it is still one.
                body: body.unwrap_or_default(),
            })
        };
        match tokio::time::timeout(self.deadline, exchange).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(error)) => Err(NoReply { why: chain(&error) }),
            Err(_) => Err(NoReply {
                why: format!("no answer within {} s", self.deadline.as_secs_f32()),
            }),
        }
    }

    /// The path that a reply points to, if it is on the same server: the token goes nowhere else.
    fn redirected(&self, reply: &Reply, path: &str) -> Option<String> {
        if !matches!(reply.status.as_u16(), 301 | 302 | 307 | 308) {
            return None;
        }
        let location = reply.headers.get(header::LOCATION)?.to_str().ok()?;
        let base = self.api_url.as_str().trim_end_matches('/');
        let target = Url::parse(&format!("{base}{path}"))
            .ok()?
            .join(location)
            .ok()?;
        if target.origin() != self.api_url.origin() {
            return None;
        }
        Some(match target.query() {
            Some(query) => format!("{}?{query}", target.path()),
            None => target.path().to_owned(),
        })
    }
}

impl StatusSink for GitHub {
    fn post<'a>(
        &'a self,
        repository: &'a str,
        sha: &'a str,
        status: &'a CommitStatus,
    ) -> BoxFuture<'a, Verdict> {
        self.post_status(repository, sha, status).boxed()
    }
}

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
