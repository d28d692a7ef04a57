//! What `doctor` asks: whether GitHub answers, knows us, and what it allows.

use super::auth::Whom;
use super::transport::Call;
use super::{GitHub, GitHubError};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What `check` found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GitHubCheck {
    Token(TokenCheck),
    App(AppCheck),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TokenCheck {
    /// Of a classic token: it needs `repo:status` or `repo`. Absent for other kinds.
    pub scopes: Option<Vec<String>>,
    /// When the token ends, in GitHub's words.
    pub token_expires: Option<String>,
    /// Requests allowed an hour, and left; absent where nothing is limited.
    pub limit: Option<u64>,
    pub remaining: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppCheck {
    pub slug: String,
    /// Such as `statuses: write`.
    #[serde(default)]
    pub permissions: BTreeMap<String, String>,
    #[serde(default)]
    pub events: Vec<String>,
}

/// What we may do with a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RepositoryCheck {
    /// Its present name.
    pub full_name: String,
    /// Whether the token's owner may write there; statuses need it. Absent where GitHub does not say.
    pub may_write: Option<bool>,
}

impl GitHub {
    /// Whether GitHub answers, knows the token or the App, and what it allows.
    pub async fn check(&self) -> Result<GitHubCheck, GitHubError> {
        match self.auth.is_app() {
            true => {
                let reply = self.ask(Whom::App, &Call::get("/app")).await?;
                Ok(GitHubCheck::App(reply.parsed("/app")?))
            }
            false => Ok(GitHubCheck::Token(self.check_token().await?)),
        }
    }

    async fn check_token(&self) -> Result<TokenCheck, GitHubError> {
        // Costs nothing of the limit; 404 on an Enterprise server without limits.
        let reply = self.send(Whom::App, &Call::get("/rate_limit")).await?;
        if !reply.status.is_success() && reply.status != StatusCode::NOT_FOUND {
            return Err(self.error_of(&reply));
        }
        let body: serde_json::Value = serde_json::from_slice(&reply.body).unwrap_or_default();
        let rate = |name: &str| body.pointer(&format!("/resources/core/{name}"))?.as_u64();
        Ok(TokenCheck {
            scopes: reply.header("x-oauth-scopes").map(|scopes| {
                scopes
                    .split(',')
                    .map(|scope| scope.trim().to_owned())
                    .filter(|scope| !scope.is_empty())
                    .collect()
            }),
            token_expires: reply
                .header("github-authentication-token-expiration")
                .map(str::to_owned),
            limit: rate("limit"),
            remaining: rate("remaining"),
        })
    }

    /// Whether the repository is there, and may be written to.
    pub async fn check_repository(&self, repository: &str) -> Result<RepositoryCheck, GitHubError> {
        let path = format!("/repos/{repository}");
        let reply = self
            .ask(Whom::Repository(repository), &Call::get(&path))
            .await?;
        let body: serde_json::Value = serde_json::from_slice(&reply.body).unwrap_or_default();
        let name = body.get("full_name").and_then(|name| name.as_str());
        Ok(RepositoryCheck {
            full_name: name.unwrap_or(repository).to_owned(),
            may_write: body
                .pointer("/permissions/push")
                .and_then(|push| push.as_bool()),
        })
    }
}
