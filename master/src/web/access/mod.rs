//! Who asks, and what they may do.
//!
//! ```text
//!  Authorization: Bearer TOKEN ──┐
//!                                ├─► identify ─► Visitor ─► may_read · may_act · may_admin (the API)
//!  cookie of a login ────────────┘                      └─► ActByForm (the pages)
//! ```
//!
//! A token is sent on purpose, so requests with one act at once. A cookie is sent by the browser whatever page asks for
//! the request, so it acts only through a form of our own pages, with that form's secret (see `forgery`), and never
//! through the API. Of tokens and cookies alike, the database has the SHA-256 alone.

mod forgery;
mod login;
mod secret;
mod tokens;

pub(super) use forgery::{ActByForm, AnyForm};
pub(super) use login::{log_in, log_out, login_link, login_page};
pub use secret::{ApiToken, LOCAL_TOKEN};
pub use tokens::{MadeToken, TokenView};
pub(super) use tokens::{create, list, revoke};

use super::asker::Asker;
use super::error::ApiError;
use super::rates::Rates;
use crate::clock::Clock;
use crate::config::ServerConfig;
use crate::model::Right;
use crate::store::{Store, StoreError, TokenRow};
use axum::extract::{FromRequestParts, Request, State};
use axum::http::header::{AUTHORIZATION, COOKIE};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use jiff::SignedDuration;
use secret::digest;
use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use url::{Origin, Url};

/// The time of a token's last use is written down this often, so that reading does not write all the time.
const USE_NOTED_EVERY: SignedDuration = SignedDuration::from_mins(1);

/// What decides who may do what; clones share it.
#[derive(Debug, Clone)]
pub struct Access {
    store: Store,
    clock: Clock,
    settings: Arc<Settings>,
}

#[derive(Debug)]
struct Settings {
    /// Everybody may read.
    public: bool,
    /// People reach the pages by HTTPS alone, so cookies are never sent otherwise.
    https: bool,
    /// Where people reach the pages, as far as the configuration knows.
    origin: Origin,
    rates: Rates,
}

/// Who makes a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Visitor {
    Stranger,
    Token(Grant),
    Login(Grant, FormSecret),
}

/// What the token behind a request allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Grant {
    /// The token's name.
    pub(super) token: String,
    pub(super) may: Right,
}

/// Stands in the forms of a login's pages, where no other site can read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FormSecret(String);

impl FormSecret {
    /// Follows from the cookie's value, and does not lead back to it.
    fn of_login(cookie: &str) -> FormSecret {
        FormSecret(digest(&format!("form {cookie}")))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl Visitor {
    pub(super) fn grant(&self) -> Option<&Grant> {
        match self {
            Visitor::Stranger => None,
            Visitor::Token(grant) | Visitor::Login(grant, _) => Some(grant),
        }
    }

    pub(super) fn may(&self, right: Right) -> bool {
        self.grant().is_some_and(|grant| grant.may >= right)
    }
}

/// What `identify` found; a stranger where it did not look.
impl<S: Sync> FromRequestParts<S> for Visitor {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let found = parts.extensions.get::<Visitor>().cloned();
        Ok(found.unwrap_or(Visitor::Stranger))
    }
}

impl Access {
    /// Reads the local token's file, making both if they are not there. `public_url` is where people reach the pages.
    pub async fn open(
        config: &ServerConfig,
        token_file: &Path,
        public_url: &Url,
        store: Store,
        clock: Clock,
    ) -> anyhow::Result<Access> {
        let local = ApiToken::read_or_make(token_file)?;
        let local = digest(local.expose());
        store
            .replace_token(LOCAL_TOKEN, &local, Right::Admin, clock.now())
            .await?;
        Ok(Access {
            store,
            clock,
            settings: Arc::new(Settings {
                public: config.public,
                https: public_url.scheme() == "https",
                origin: public_url.origin(),
                rates: Rates::new(config.limits.requests_per_second),
            }),
        })
    }

    pub(super) fn lets_read(&self, visitor: &Visitor) -> bool {
        self.settings.public || visitor.may(Right::Read)
    }

    /// None if there is a token and it is wrong.
    async fn visitor(&self, headers: &HeaderMap) -> Result<Option<Visitor>, StoreError> {
        let bearer = headers
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
        if let Some(token) = bearer {
            let grant = self.by_token(token.trim()).await?;
            return Ok(grant.map(Visitor::Token));
        }
        let Some(cookie) = self.login_cookie(headers) else {
            return Ok(Some(Visitor::Stranger));
        };
        let token = self
            .store
            .token_of_login(&digest(cookie), self.clock.now())
            .await?;
        let Some(token) = token else {
            return Ok(Some(Visitor::Stranger));
        };
        let secret = FormSecret::of_login(cookie);
        Ok(Some(Visitor::Login(self.noted(token), secret)))
    }

    /// What a token allows; none if it is wrong.
    async fn by_token(&self, token: &str) -> Result<Option<Grant>, StoreError> {
        let row = self.store.token_of(&digest(token)).await?;
        Ok(row.map(|row| self.noted(row)))
    }

    /// Notes the use of a token; nobody waits for that.
    fn noted(&self, row: TokenRow) -> Grant {
        let now = self.clock.now();
        let is_noted = row
            .last_used_at
            .is_some_and(|at| now.duration_since(at) < USE_NOTED_EVERY);
        if !is_noted {
            let (store, name) = (self.store.clone(), row.name.clone());
            tokio::spawn(async move {
                if let Err(error) = store.token_was_used(&name, now).await {
                    tracing::warn!(token = name, %error, "the token's use was not noted");
                }
            });
        }
        Grant {
            token: row.name,
            may: row.may,
        }
    }

    fn login_cookie<'a>(&self, headers: &'a HeaderMap) -> Option<&'a str> {
        headers
            .get_all(COOKIE)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|line| line.split(';'))
            .filter_map(|pair| pair.trim().split_once('='))
            .find(|(name, _)| *name == self.cookie_name())
            .map(|(_, value)| value)
    }

    /// With the prefix, a browser takes the cookie from this very host by HTTPS alone.
    fn cookie_name(&self) -> &'static str {
        match self.settings.https {
            true => "__Host-vivarium",
            false => "vivarium",
        }
    }
}

/// Finds out who asks, for all that follows. A token that is wrong ends the request, also where none is needed: whoever
/// sends one wants to know. Whoever has none is bounded in how often.
pub(super) async fn identify(
    State(access): State<Access>,
    asker: Asker,
    mut request: Request,
    next: Next,
) -> Response {
    let found = match access.visitor(request.headers()).await {
        Ok(found) => found,
        Err(error) => return ApiError::from(error).into_response(),
    };
    let rates = &access.settings.rates;
    let allowed = match found {
        Some(Visitor::Token(_) | Visitor::Login(..)) => Ok(()),
        Some(Visitor::Stranger) => rates.request(asker),
        None => rates.request(asker).and(rates.try_secret(asker)),
    };
    match (allowed, found) {
        (Err(too_often), _) => ApiError::too_often(too_often).into_response(),
        (Ok(()), None) => ApiError::unauthorized("the token is wrong or revoked").into_response(),
        (Ok(()), Some(visitor)) => {
            request.extensions_mut().insert(visitor);
            next.run(request).await
        }
    }
}

/// Lets everybody through where the master is public; else those who may read.
pub(super) async fn may_read(
    State(access): State<Access>,
    visitor: Visitor,
    request: Request,
    next: Next,
) -> Response {
    if access.lets_read(&visitor) {
        return next.run(request).await;
    }
    let path = request.uri().path();
    if path.starts_with("/api/") || path == "/metrics" {
        return needs_a_token().into_response();
    }
    login::lead_to_login(request.uri(), request.headers())
}

/// Lets tokens that may act through to the API's acts.
pub(super) async fn may_act(visitor: Visitor, request: Request, next: Next) -> Response {
    only_token_with(Right::Act, visitor, request, next).await
}

/// Lets tokens that may do everything through.
pub(super) async fn may_admin(visitor: Visitor, request: Request, next: Next) -> Response {
    only_token_with(Right::Admin, visitor, request, next).await
}

async fn only_token_with(right: Right, visitor: Visitor, request: Request, next: Next) -> Response {
    let refused = match visitor {
        Visitor::Token(grant) if grant.may >= right => {
            tracing::info!(
                token = grant.token,
                method = %request.method(),
                path = request.uri().path(),
                "act"
            );
            return next.run(request).await;
        }
        Visitor::Token(grant) => ApiError::new(
            StatusCode::FORBIDDEN,
            format!(
                "the token `{}` may {}, and this needs one that may {}",
                grant.token,
                grant.may.as_str(),
                right.as_str()
            ),
        ),
        Visitor::Stranger | Visitor::Login(..) => needs_a_token(),
    };
    refused.into_response()
}

fn needs_a_token() -> ApiError {
    ApiError::unauthorized(
        "this needs the header `Authorization: Bearer TOKEN`; `vivarium token create NAME` makes a token",
    )
}
