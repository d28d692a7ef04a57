//! The token that acts must bear: `Authorization: Bearer …`. A browser never sends it by itself, so no other site's
//! page can act in a visitor's name.

use super::App;
use super::error::ApiError;
use anyhow::Context;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::header::AUTHORIZATION;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use constant_time_eq::constant_time_eq;
use secrecy::{ExposeSecret, SecretString};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// The secret; its `Debug` hides it.
#[derive(Debug)]
pub struct ApiToken(SecretString);

impl ApiToken {
    /// Reads the file, making it with a new random token if it is not there.
    pub fn read_or_make(path: &Path) -> anyhow::Result<ApiToken> {
        if !path.exists() {
            let token = hex::encode(rand::random::<[u8; 24]>());
            let mut file = std::fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(path)
                .with_context(|| format!("cannot make the token file {}", path.display()))?;
            writeln!(file, "{token}")
                .with_context(|| format!("cannot write the token file {}", path.display()))?;
        }
        ApiToken::read(path)
    }

    pub fn read(path: &Path) -> anyhow::Result<ApiToken> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the token file {}", path.display()))?;
        let token = text.trim();
        anyhow::ensure!(
            token.len() >= 16,
            "the token file {} holds fewer than 16 characters: remove it to have one made",
            path.display()
        );
        Ok(ApiToken(token.into()))
    }

    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

pub(super) async fn require_token(
    State(app): State<App>,
    request: Request,
    next: Next,
) -> Response {
    let given = request
        .headers()
        .get(AUTHORIZATION)
        .and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    match given {
        Some(given) if constant_time_eq(given, app.token.expose().as_bytes()) => {
            next.run(request).await
        }
        Some(_) => ApiError::new(StatusCode::UNAUTHORIZED, "the token is wrong").into_response(),
        None => ApiError::new(
            StatusCode::UNAUTHORIZED,
            "this needs the header `Authorization: Bearer TOKEN`; the token is in the master's api-token file",
        )
        .into_response(),
    }
}
