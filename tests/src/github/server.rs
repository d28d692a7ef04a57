//! One request: faults first, then the API or Git, then the record of it.

use super::fault::FaultKind;
use super::listener::{ConnectionHandle, ResettableListener};
use super::state::Request as RequestRecord;
use super::{GitHub, Inner, api, cgi};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{ConnectInfo, Request, State as Shared};
use axum::response::{IntoResponse, Response};
use http::request::Parts;
use http::{HeaderValue, StatusCode, header};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::sync::Weak;
use tokio_util::sync::CancellationToken;

/// Bodies of API requests are small.
const API_BODY_LIMIT: usize = 1 << 20;

pub(super) struct Incoming {
    pub(super) parts: Parts,
    pub(super) body: Body,
}

pub(super) fn spawn(listener: ResettableListener, inner: Weak<Inner>, stop: CancellationToken) {
    let router = Router::new()
        .fallback(handle)
        .with_state(inner)
        .into_make_service_with_connect_info::<ConnectionHandle>();
    tokio::spawn(async move {
        tokio::select! {
            () = stop.cancelled() => {}
            result = axum::serve(listener, router) => {
                if let Err(error) = result {
                    tracing::error!("the fake GitHub ended: {error}");
                }
            }
        }
    });
}

async fn handle(
    Shared(inner): Shared<Weak<Inner>>,
    ConnectInfo(connection): ConnectInfo<ConnectionHandle>,
    request: Request,
) -> Response {
    let Some(inner) = inner.upgrade() else {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    };
    let github = GitHub { inner };
    let (parts, body) = request.into_parts();
    let method = parts.method.as_str().to_owned();
    let full_path = percent_decode(parts.uri.path());
    let is_git = git_path(&full_path).is_some();
    let api_path = full_path
        .strip_prefix(&github.inner.api_prefix)
        .filter(|rest| !is_git && (rest.is_empty() || rest.starts_with('/')))
        .map(str::to_owned);
    let path = api_path.clone().unwrap_or_else(|| full_path.clone());
    let logged_path = match parts.uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.clone(),
    };

    let mut after = None;
    let mut before = None;
    let mut delays = Vec::new();
    for fault in &mut github.state().faults {
        // A delay adds to another fault; of the others the first decides.
        let is_delay = matches!(fault.kind, FaultKind::Delay(_));
        if (!is_delay && (before.is_some() || after.is_some())) || !fault.take(&method, &path) {
            continue;
        }
        match &fault.kind {
            FaultKind::Delay(time) => delays.push(*time),
            FaultKind::AnswerAfter(_) | FaultKind::ResetAfter => after = Some(fault.kind.clone()),
            FaultKind::Answer(_)
            | FaultKind::SecondaryLimit { .. }
            | FaultKind::PrimaryLimit { .. }
            | FaultKind::Unauthorized
            | FaultKind::ResetBefore
            | FaultKind::CommitNotVisible => before = Some(fault.kind.clone()),
        }
    }
    for delay in delays {
        tokio::time::sleep(delay).await;
    }

    let mut reset = false;
    let mut request_body = None;
    let response = if let Some(fault) = before {
        if fault == FaultKind::ResetBefore {
            reset = true;
        }
        faulty_answer(&github, &fault, &path)
    } else {
        let answer = if let Some(path) = &api_path {
            match axum::body::to_bytes(body, API_BODY_LIMIT).await {
                Ok(bytes) => {
                    if !bytes.is_empty() {
                        request_body = Some(String::from_utf8_lossy(&bytes).into_owned());
                    }
                    api::answer(&github, &parts, path, &bytes).await
                }
                Err(error) => text_reply(StatusCode::BAD_REQUEST, &error.to_string()),
            }
        } else {
            git(&github, &full_path, Incoming { parts, body }).await
        };
        match after {
            None => answer,
            Some(FaultKind::AnswerAfter(status)) => front_end_error(status),
            Some(_) => {
                reset = true;
                answer
            }
        }
    };
    github.state().requests.push(RequestRecord {
        at: Timestamp::now(),
        method,
        path: logged_path,
        status: (!reset).then(|| response.status().as_u16()),
        body: request_body,
    });
    github.notify();
    if reset {
        connection.reset();
    }
    response
}

/// Owner, name and rest of a path of Git's, e.g. `/acme/widget.git/info/refs`; `.git` may be missing.
fn git_path(path: &str) -> Option<(String, String, String)> {
    let mut segments = path.strip_prefix('/')?.splitn(3, '/');
    let (owner, name, rest) = (segments.next()?, segments.next()?, segments.next()?);
    if !matches!(
        rest,
        "info/refs" | "git-upload-pack" | "git-receive-pack" | "HEAD"
    ) {
        return None;
    }
    let name = name.strip_suffix(".git").unwrap_or(name);
    Some((owner.to_owned(), name.to_owned(), rest.to_owned()))
}

async fn git(github: &GitHub, path: &str, incoming: Incoming) -> Response {
    let Some((owner, name, rest)) = git_path(path) else {
        return text_reply(StatusCode::NOT_FOUND, "Not Found");
    };
    let full_name = format!("{owner}/{name}");
    let token = api::credentials(&incoming.parts);
    let (known, allowed, on_disk) = {
        let state = github.state();
        let repository = state.repository(&full_name);
        let now = Timestamp::now();
        let holder = token
            .as_ref()
            .and_then(|token| state.tokens.get(token))
            .filter(|holder| holder.expires_at.is_none_or(|end| now < end));
        if token.is_some() && holder.is_none() {
            (false, false, String::new())
        } else {
            let sees = repository.is_some_and(|repository| {
                !repository.private
                    || holder
                        .is_some_and(|holder| holder.repositories.contains(&repository.full_name()))
            });
            (
                holder.is_some() || sees,
                sees,
                repository
                    .map(|found| found.full_name())
                    .unwrap_or_default(),
            )
        }
    };
    if !known {
        // Strangers learn nothing of private repositories, nor that there is none.
        let mut response = text_reply(
            StatusCode::UNAUTHORIZED,
            "remote: Invalid username or token. Password authentication is not supported for Git operations.",
        );
        response.headers_mut().insert(
            header::WWW_AUTHENTICATE,
            HeaderValue::from_static("Basic realm=\"GitHub\""),
        );
        return response;
    }
    if !allowed {
        return text_reply(StatusCode::NOT_FOUND, "Repository not found.");
    }
    let path = format!("/{on_disk}.git/{rest}");
    cgi::serve(github.repositories_folder(), &path, incoming).await
}

fn faulty_answer(github: &GitHub, fault: &FaultKind, path: &str) -> Response {
    match fault {
        FaultKind::Answer(status) => front_end_error(*status),
        FaultKind::SecondaryLimit {
            status,
            retry_after_secs,
        } => {
            let mut response = json_reply(
                *status,
                &json!({
                    "message": "You have exceeded a secondary rate limit. Please wait a few minutes before you try again.",
                    "documentation_url": "https://docs.github.com/rest/overview/rate-limits-for-the-rest-api#about-secondary-rate-limits",
                }),
            );
            if let Some(seconds) = retry_after_secs {
                response
                    .headers_mut()
                    .insert(header::RETRY_AFTER, HeaderValue::from(*seconds));
            }
            response
        }
        FaultKind::PrimaryLimit { reset_secs } => {
            let mut response = *api::rate_limit_exceeded();
            let reset = Timestamp::now().as_second().unsigned_abs() + reset_secs;
            api::set_rate_headers(&mut response, github.state().rate_limit, 0, reset);
            response
        }
        FaultKind::Unauthorized => *api::bad_credentials(),
        FaultKind::CommitNotVisible => {
            let sha = path.rsplit('/').next().unwrap_or_default();
            *api::no_commit(sha)
        }
        FaultKind::ResetBefore
        | FaultKind::Delay(_)
        | FaultKind::AnswerAfter(_)
        | FaultKind::ResetAfter => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// GitHub's front end answers in HTML, without any of the API's headers; other statuses as the API does.
fn front_end_error(status: u16) -> Response {
    if status < 500 {
        return json_reply(
            status,
            &json!({ "message": "Refused by the test's setting" }),
        );
    }
    let mut response = text_reply(
        StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY),
        "<!DOCTYPE html><html><head><title>Unicorn! &middot; GitHub</title></head><body><p><strong>Something went wrong</strong></p></body></html>",
    );
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/html; charset=utf-8"),
    );
    response
}

pub(super) fn text_reply(status: StatusCode, text: &str) -> Response {
    (status, text.to_owned()).into_response()
}

pub(super) fn json_reply(status: u16, value: &Value) -> Response {
    let mut response = Response::new(Body::from(Bytes::from(value.to_string())));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json; charset=utf-8"),
    );
    response
}

/// Decodes `%XX`; what is no such code stays.
pub(super) fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let code = tail.get(..2).and_then(|digits| {
            let digits = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(digits, 16).ok()
        });
        match (first, code) {
            (b'%', Some(code)) => {
                bytes.push(code);
                rest = tail.get(2..).unwrap_or_default();
            }
            (byte, _) => {
                bytes.push(byte);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
