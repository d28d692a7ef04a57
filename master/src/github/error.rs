//! Why GitHub was not asked, or did not do what it was asked for.

use super::answer::{Verdict, judge};
use super::transport::Reply;
use http::StatusCode;
use jiff::Timestamp;
use std::path::{Path, PathBuf};
use std::time::Duration;
use url::Url;

#[derive(Debug, thiserror::Error)]
pub enum GitHubError {
    #[error("GitHub asks who we are: set `token_file` under [github], or [github.app]")]
    NoCredentials,
    #[error("cannot read GitHub's token {path}: {source}")]
    TokenFile {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{path} holds no token: one line of visible characters is expected")]
    NoToken { path: PathBuf },
    #[error(
        "cannot use the private key of the GitHub App {path}: {why}\nhint: the App's page on GitHub makes a new one; it is a file that begins with `-----BEGIN RSA PRIVATE KEY-----`"
    )]
    PrivateKey { path: PathBuf, why: String },
    #[error(
        "the GitHub App is not installed on `{repository}`\nhint: its page on GitHub has *Install App*; or mend `id` under [github.app]"
    )]
    NotInstalled { repository: String },
    #[error("`{name}` is no name of a repository on GitHub")]
    NoRepository { name: String },
    #[error("cannot prepare requests to {api_url}: {why}")]
    Client { api_url: Url, why: String },
    /// Whether GitHub carried the request out is not known.
    #[error("cannot reach {api_url}: {why}")]
    Unreachable { api_url: Url, why: String },
    #[error("{why}\nhint: put valid credentials into {path}; it is read again without a restart")]
    Unauthorized { path: PathBuf, why: String },
    /// Too much was asked; `wait` is GitHub's own hint.
    #[error("{why}")]
    Limited { wait: Option<Duration>, why: String },
    #[error("{why}")]
    Answer { status: StatusCode, why: String },
    #[error("GitHub's answer to {path} is not what it documents: {why}")]
    Form { path: String, why: String },
}

impl GitHubError {
    /// What a reply other than success means.
    pub(super) fn of(reply: &Reply, credentials: &Path, now: Timestamp) -> GitHubError {
        match judge(reply.status, &reply.headers, &reply.body, now) {
            Verdict::Unauthorized { why } => GitHubError::Unauthorized {
                path: credentials.to_owned(),
                why,
            },
            Verdict::Limited { wait, why } => GitHubError::Limited { wait, why },
            Verdict::Later { why } | Verdict::NotYet { why } | Verdict::Refused { why } => {
                GitHubError::Answer {
                    status: reply.status,
                    why,
                }
            }
            Verdict::Sent { .. } => GitHubError::Answer {
                status: reply.status,
                why: format!("GitHub answered {}", reply.status),
            },
        }
    }

    /// The status of GitHub's answer, where it is that which is wrong.
    pub fn status(&self) -> Option<StatusCode> {
        match self {
            GitHubError::Answer { status, .. } => Some(*status),
            GitHubError::NoCredentials
            | GitHubError::TokenFile { .. }
            | GitHubError::NoToken { .. }
            | GitHubError::PrivateKey { .. }
            | GitHubError::NotInstalled { .. }
            | GitHubError::NoRepository { .. }
            | GitHubError::Client { .. }
            | GitHubError::Unreachable { .. }
            | GitHubError::Unauthorized { .. }
            | GitHubError::Limited { .. }
            | GitHubError::Form { .. } => None,
        }
    }

    /// What it means for a status that was to be sent.
    pub fn into_verdict(self) -> Verdict {
        let why = self.to_string();
        match self {
            GitHubError::Limited { wait, .. } => Verdict::Limited { wait, why },
            GitHubError::NoCredentials
            | GitHubError::TokenFile { .. }
            | GitHubError::NoToken { .. }
            | GitHubError::PrivateKey { .. }
            | GitHubError::Unauthorized { .. } => Verdict::Unauthorized { why },
            GitHubError::Answer { status, .. } if !status.is_server_error() => {
                Verdict::Refused { why }
            }
            GitHubError::Client { .. }
            | GitHubError::Unreachable { .. }
            | GitHubError::Answer { .. }
            | GitHubError::Form { .. } => Verdict::Later { why },
            GitHubError::NotInstalled { .. } | GitHubError::NoRepository { .. } => {
                Verdict::Refused { why }
            }
        }
    }
}
