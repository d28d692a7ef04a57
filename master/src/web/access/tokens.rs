//! `/api/tokens`: making, listing and revoking tokens.

use super::{Access, ApiToken, LOCAL_TOKEN, digest};
use crate::model::Right;
use crate::store::{Added, TokenRow};
use crate::web::error::{ApiError, Body};
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Nobody has that many; whoever makes more has a script gone wild.
const MOST_TOKENS: usize = 1000;
const LONGEST_NAME: usize = 64;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::web) struct NewToken {
    name: String,
    may: Right,
}

/// What is known of a token.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TokenView {
    pub name: String,
    pub may: Right,
    pub created_at: Timestamp,
    /// To the minute.
    pub last_used_at: Option<Timestamp>,
}

/// A token just made: the only time that it is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MadeToken {
    pub name: String,
    pub may: Right,
    pub token: String,
}

impl From<TokenRow> for TokenView {
    fn from(row: TokenRow) -> Self {
        TokenView {
            name: row.name,
            may: row.may,
            created_at: row.created_at,
            last_used_at: row.last_used_at,
        }
    }
}

pub(in crate::web) async fn list(
    State(access): State<Access>,
) -> Result<Json<Vec<TokenView>>, ApiError> {
    let rows = access.store.tokens().await?;
    Ok(Json(rows.into_iter().map(TokenView::from).collect()))
}

pub(in crate::web) async fn create(
    State(access): State<Access>,
    Body(new): Body<NewToken>,
) -> Result<(StatusCode, Json<MadeToken>), ApiError> {
    if !is_name(&new.name) {
        return Err(ApiError::bad_request(format!(
            "a token's name has 1 to {LONGEST_NAME} letters, digits, `.`, `_` and `-`"
        )));
    }
    if access.store.tokens().await?.len() >= MOST_TOKENS {
        return Err(ApiError::new(
            StatusCode::CONFLICT,
            format!("there are {MOST_TOKENS} tokens already: revoke some first"),
        ));
    }
    let token = ApiToken::make();
    let added = access
        .store
        .add_token(
            &new.name,
            &digest(token.expose()),
            new.may,
            access.clock.now(),
        )
        .await?;
    match added {
        Added::New => Ok((
            StatusCode::CREATED,
            Json(MadeToken {
                name: new.name,
                may: new.may,
                token: token.expose().to_owned(),
            }),
        )),
        Added::NameTaken => Err(ApiError::new(
            StatusCode::CONFLICT,
            format!("there is a token `{}` already: revoke it first", new.name),
        )),
    }
}

pub(in crate::web) async fn revoke(
    State(access): State<Access>,
    Path(name): Path<String>,
) -> Result<Json<Value>, ApiError> {
    if name == LOCAL_TOKEN {
        return Err(ApiError::new(
            StatusCode::CONFLICT,
            "the token `local` follows the master's api-token file: remove that file and restart the master, which makes another",
        ));
    }
    match access.store.remove_token(&name).await? {
        true => Ok(Json(json!({ "revoked": name }))),
        false => Err(ApiError::not_found(format!("token `{name}`"))),
    }
}

fn is_name(name: &str) -> bool {
    (1..=LONGEST_NAME).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}
