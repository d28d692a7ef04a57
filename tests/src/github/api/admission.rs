//! Who asks, and how often: what every request must satisfy before it is looked at.

use super::Refusal;
use super::refusal::{bad_credentials, message, rate_limit_exceeded};
use crate::github::GitHub;
use crate::github::server::{percent_decode, text_reply};
use crate::github::state::Token;
use axum::response::Response;
use base64::Engine;
use http::request::Parts;
use http::{HeaderName, HeaderValue, StatusCode, header};
use jiff::Timestamp;
use std::collections::HashMap;

const RATE_LIMIT_ANONYMOUS: u64 = 60;
const API_VERSIONS: [&str; 2] = ["2022-11-28", "2026-03-10"];

/// The token of a request: `Bearer`, `token`, or the password of `Basic`.
pub(in crate::github) fn credentials(parts: &Parts) -> Option<String> {
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

pub(super) fn api_version(parts: &Parts) -> &str {
    parts
        .headers
        .get("x-github-api-version")
        .and_then(|value| value.to_str().ok())
        .unwrap_or(API_VERSIONS[0])
}

pub(super) fn query(parts: &Parts) -> HashMap<String, String> {
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

/// Who asks, if that is known.
#[derive(Default)]
pub(super) struct Admitted {
    pub(super) caller: Option<Token>,
    /// An App that signed for itself, instead of with a token.
    pub(super) app: Option<u64>,
}

/// What every request must satisfy before it is looked at.
pub(super) fn admit(
    github: &GitHub,
    parts: &Parts,
    path: &str,
    token: Option<&str>,
) -> Result<Admitted, Refusal> {
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
    // A JWT has three parts; tokens have none.
    if let Some(jwt) = token.filter(|token| token.matches('.').count() == 2) {
        return match github.app_of_jwt(jwt) {
            Ok(id) => Ok(Admitted {
                caller: None,
                app: Some(id),
            }),
            Err(why) => Err(message(401, why)),
        };
    }
    let now = Timestamp::now();
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
            Ok(Admitted::default())
        }
        Some(token) => match state.tokens.get_mut(token) {
            Some(holder) if holder.expires_at.is_none_or(|end| now < end) => {
                if counts && holder.used >= limit {
                    return Err(rate_limit_exceeded());
                }
                holder.used += u64::from(counts);
                Ok(Admitted {
                    caller: Some(holder.clone()),
                    app: None,
                })
            }
            Some(_) | None => Err(bad_credentials()),
        },
    }
}

/// Limit, used, and the second at which the count begins anew.
pub(super) fn rate(github: &GitHub, token: Option<&str>) -> (u64, u64, u64) {
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

pub(in crate::github) fn set_rate_headers(
    response: &mut Response,
    limit: u64,
    remaining: u64,
    reset: u64,
) {
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
