//! Who we are to GitHub: the holder of a token, or an App.

use super::app::App;
use super::error::GitHubError;
use super::token::{TokenFile, bearer};
use super::transport::Transport;
use crate::config::{GithubConfig, Reread};
use http::HeaderValue;
use secrecy::SecretString;
use std::path::Path;

/// On whose behalf a request is made. A token is the same for all.
#[derive(Debug, Clone, Copy)]
pub(super) enum Whom<'a> {
    /// An installation of the App that has this repository.
    Repository(&'a str),
    /// The App itself.
    App,
}

#[derive(Debug)]
pub(super) enum Auth {
    Token(TokenFile),
    App(App),
}

impl Auth {
    pub(super) fn of(config: &GithubConfig) -> Result<Auth, GitHubError> {
        match (&config.app, &config.token_file) {
            (Some(app), _) => Ok(Auth::App(App::new(app))),
            (None, Some(path)) => Ok(Auth::Token(TokenFile::new(path))),
            (None, None) => Err(GitHubError::NoCredentials),
        }
    }

    pub(super) fn is_app(&self) -> bool {
        matches!(self, Auth::App(_))
    }

    /// The file that a person mends.
    pub(super) fn path(&self) -> &Path {
        match self {
            Auth::Token(file) => file.path(),
            Auth::App(app) => app.key_path(),
        }
    }

    pub(super) fn has_changed(&self) -> bool {
        match self {
            Auth::Token(file) => file.has_changed(),
            Auth::App(app) => app.has_changed(),
        }
    }

    pub(super) async fn token(
        &self,
        transport: &Transport,
        whom: Whom<'_>,
        reread: Reread,
    ) -> Result<SecretString, GitHubError> {
        match (self, whom) {
            (Auth::Token(file), _) => file.token(reread),
            (Auth::App(app), Whom::App) => app.jwt(),
            (Auth::App(app), Whom::Repository(repository)) => {
                app.token(transport, repository, reread).await
            }
        }
    }

    pub(super) async fn header(
        &self,
        transport: &Transport,
        whom: Whom<'_>,
        reread: Reread,
    ) -> Result<HeaderValue, GitHubError> {
        let token = self.token(transport, whom, reread).await?;
        bearer(&token).ok_or_else(|| GitHubError::NoToken {
            path: self.path().to_owned(),
        })
    }
}
