//! A GitHub App: it signs for itself with its key, and gets a token of an hour for each of its installations.

use super::error::GitHubError;
use super::is_repository;
use super::token::bearer;
use super::transport::{Call, Transport};
use crate::config::{GithubAppConfig, Reread, Watched};
use http::{Method, StatusCode};
use jiff::{SignedDuration, Timestamp};
use octocrab::auth::{EncodingKey, create_jwt};
use octocrab::models::AppId;
use secrecy::SecretString;
use serde::Deserialize;
use std::collections::HashMap;
use std::path::Path;

/// A token is not used in its last minutes, so that a long fetch does not outlive it.
const SPARE: SignedDuration = SignedDuration::from_mins(5);

#[derive(Debug)]
pub(super) struct App {
    id: u64,
    key: Watched<Key>,
    /// Set where the App is to act for one installation alone.
    installation: Option<u64>,
    known: tokio::sync::Mutex<Known>,
}

/// The private key; its `Debug` shows nothing of it.
#[derive(Clone)]
struct Key(EncodingKey);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key")
    }
}

/// What was asked for before. One at a time asks, so that an expired token is replaced once.
#[derive(Debug, Default)]
struct Known {
    /// The installation of each owner of repositories.
    installations: HashMap<String, u64>,
    tokens: HashMap<u64, Token>,
}

#[derive(Debug, Clone)]
struct Token {
    secret: SecretString,
    expires_at: Timestamp,
}

#[derive(Debug, Deserialize)]
struct Installation {
    id: u64,
}

/// Without `Debug`: the token is in the open here, for a moment.
#[derive(Deserialize)]
struct AccessToken {
    token: String,
    expires_at: Timestamp,
}

impl App {
    pub(super) fn new(config: &GithubAppConfig) -> App {
        App {
            id: config.id,
            key: Watched::new(&config.private_key_file),
            installation: config.installation_id,
            known: tokio::sync::Mutex::default(),
        }
    }

    pub(super) fn key_path(&self) -> &Path {
        self.key.path()
    }

    pub(super) fn has_changed(&self) -> bool {
        self.key.has_changed()
    }

    /// What proves for ten minutes that we are the App.
    pub(super) fn jwt(&self) -> Result<SecretString, GitHubError> {
        let wrong = |why: String| GitHubError::PrivateKey {
            path: self.key.path().to_owned(),
            why,
        };
        let Key(key) = self.key.get(Reread::IfChanged, |text| {
            let text = text.map_err(|error| wrong(error.to_string()))?;
            EncodingKey::from_rsa_pem(text.as_bytes())
                .map(Key)
                .map_err(|error| wrong(error.to_string()))
        })?;
        create_jwt(AppId(self.id), &key)
            .map(SecretString::from)
            .map_err(|error| wrong(error.to_string()))
    }

    /// The token of the installation that has the repository, made anew when it ends or when that is wished.
    pub(super) async fn token(
        &self,
        transport: &Transport,
        repository: &str,
        reread: Reread,
    ) -> Result<SecretString, GitHubError> {
        let mut known = self.known.lock().await;
        let installation = self
            .installation_of(transport, repository, &mut known)
            .await?;
        let now = Timestamp::now();
        if let (Reread::IfChanged, Some(token)) = (reread, known.tokens.get(&installation))
            && token.expires_at.duration_since(now) > SPARE
        {
            return Ok(token.secret.clone());
        }
        let path = format!("/app/installations/{installation}/access_tokens");
        let made: Result<AccessToken, _> = self.ask(transport, Method::POST, &path).await;
        let made = made.inspect_err(|error| {
            if error.status() == Some(StatusCode::NOT_FOUND) {
                // It was removed; perhaps there is another one by now.
                known.installations.retain(|_, id| *id != installation);
            }
        })?;
        let secret = SecretString::from(made.token);
        let token = Token {
            secret: secret.clone(),
            expires_at: made.expires_at,
        };
        known.tokens.insert(installation, token);
        Ok(secret)
    }

    async fn installation_of(
        &self,
        transport: &Transport,
        repository: &str,
        known: &mut Known,
    ) -> Result<u64, GitHubError> {
        if let Some(id) = self.installation {
            return Ok(id);
        }
        let owner = match repository.split_once('/') {
            Some((owner, _)) if is_repository(repository) => owner.to_ascii_lowercase(),
            Some(_) | None => {
                return Err(GitHubError::NoRepository {
                    name: repository.to_owned(),
                });
            }
        };
        if let Some(id) = known.installations.get(&owner) {
            return Ok(*id);
        }
        let path = format!("/repos/{repository}/installation");
        let found: Result<Installation, _> = self.ask(transport, Method::GET, &path).await;
        let found = found.map_err(|error| match error.status() {
            Some(StatusCode::NOT_FOUND) => GitHubError::NotInstalled {
                repository: repository.to_owned(),
            },
            _ => error,
        })?;
        known.installations.insert(owner, found.id);
        Ok(found.id)
    }

    /// Asks as the App itself.
    async fn ask<T: for<'de> Deserialize<'de>>(
        &self,
        transport: &Transport,
        method: Method,
        path: &str,
    ) -> Result<T, GitHubError> {
        let header = bearer(&self.jwt()?).ok_or_else(|| GitHubError::NoToken {
            path: self.key_path().to_owned(),
        })?;
        let reply = transport.send(&Call::new(method, path), &header).await?;
        if !reply.status.is_success() {
            return Err(GitHubError::of(&reply, self.key_path(), Timestamp::now()));
        }
        reply.parsed(path)
    }
}
