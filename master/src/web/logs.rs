//! A job's log: raw bytes from an offset, or a live stream of events.
//!
//! Readers read the stored log at their own pace; none of them is known to the job.

use super::App;
use super::asker::Asker;
use super::error::ApiError;
use super::headers::GUEST_POLICY;
use super::views::removed_sentence;
use crate::model::JobId;
use crate::result::log::Logs;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::Stream;
use serde::Deserialize;
use std::convert::Infallible;
use std::time::Duration;

/// Header with the offset at which the log ends so far, and so the one to go on from.
pub const LOG_LENGTH: &str = "vivarium-log-length";
/// Read from the log at once.
const CHUNK: usize = 256 * 1024;
/// Content of one event, before base64.
const EVENT: usize = 48 * 1024;
/// How often is looked whether a job has ended whose log does not grow.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// Proxies close connections that are silent for a minute.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct From {
    /// Byte offset in the whole output.
    #[serde(default)]
    from: u64,
}

/// What there is of the log from `from` (or from a `Range: bytes=N-M` header), as it was written.
/// `Vivarium-Log-Length` is the length so far; `Vivarium-Log-Complete` says whether more can come.
pub(super) async fn raw(
    State(app): State<App>,
    asker: Asker,
    Path(id): Path<String>,
    Query(query): Query<From>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let id = app.job_with_log(&id).await?;
    let slot = app.stream_slot(asker)?;
    let range = headers
        .get("range")
        .map(|value| parse_range(value.as_bytes()));
    let (from, until, status) = match range {
        Some(Some((from, until))) => (from, until, StatusCode::PARTIAL_CONTENT),
        Some(None) => {
            return Err(ApiError::new(
                StatusCode::RANGE_NOT_SATISFIABLE,
                "a range has the form `bytes=FROM-` or `bytes=FROM-LAST`",
            ));
        }
        None => (query.from, u64::MAX, StatusCode::OK),
    };
    let length = app.logs.length(id).await.map_err(ApiError::internal)?;
    let first = app
        .logs
        .chunk(id, from, 1)
        .await
        .map_err(ApiError::internal)?;
    let until = until.min(length);
    let mut answer_headers = vec![
        (
            CONTENT_TYPE.as_str(),
            "text/plain; charset=utf-8".to_owned(),
        ),
        (CACHE_CONTROL.as_str(), "no-store".to_owned()),
        (LOG_LENGTH, length.to_string()),
        (
            "vivarium-log-complete",
            (first.complete || is_complete(&app, id).await?).to_string(),
        ),
    ];
    if status == StatusCode::PARTIAL_CONTENT {
        let last = until.saturating_sub(1);
        answer_headers.push(("content-range", format!("bytes {from}-{last}/*")));
    }
    let mut response =
        Body::from_stream(slot.held_by(chunks(app.logs.clone(), id, from, until))).into_response();
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_SECURITY_POLICY, GUEST_POLICY);
    for (name, value) in answer_headers {
        if let Ok(value) = value.parse() {
            response.headers_mut().insert(name, value);
        }
    }
    Ok(response)
}

impl App {
    /// The job whose log a path asks for, unless that was removed.
    async fn job_with_log(&self, id: &str) -> Result<JobId, ApiError> {
        let job = self.known_job(id).await?;
        let removed = self.ledger.store.removed(job.id).await?;
        match removed.log {
            Some(at) => Err(ApiError::new(
                StatusCode::GONE,
                removed_sentence("the log was", job.finished_at, at),
            )),
            None => Ok(job.id),
        }
    }
}

async fn is_complete(app: &App, id: JobId) -> Result<bool, ApiError> {
    let job = app.ledger.store.job(id).await?;
    Ok(job.is_some_and(|job| job.ending.is_some()))
}

fn chunks(
    logs: Logs,
    id: JobId,
    from: u64,
    until: u64,
) -> impl Stream<Item = Result<Bytes, std::io::Error>> {
    futures::stream::try_unfold(from, move |at| {
        let logs = logs.clone();
        async move {
            if at >= until {
                return Ok(None);
            }
            let wanted = usize::try_from(until - at).map_or(CHUNK, |left| left.min(CHUNK));
            let chunk = logs
                .chunk(id, at, wanted)
                .await
                .map_err(std::io::Error::other)?;
            match chunk.bytes.is_empty() {
                true => Ok(None),
                false => Ok(Some((chunk.bytes, chunk.next))),
            }
        }
    })
}

/// `bytes=5-` and `bytes=5-9`; the end that is returned is exclusive.
fn parse_range(value: &[u8]) -> Option<(u64, u64)> {
    let text = std::str::from_utf8(value).ok()?.strip_prefix("bytes=")?;
    let (from, last) = text.split_once('-')?;
    let from: u64 = from.parse().ok()?;
    match last {
        "" => Some((from, u64::MAX)),
        last => {
            let last: u64 = last.parse().ok()?;
            (last >= from).then_some((from, last.saturating_add(1)))
        }
    }
}

/// The log as server-sent events: each `output` event has base64 data and, as its id, the offset to go on from.
/// A browser that reconnects sends that id as `Last-Event-ID`. An `end` event is the last.
pub(super) async fn stream(
    State(app): State<App>,
    asker: Asker,
    Path(id): Path<String>,
    Query(query): Query<From>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let id = app.job_with_log(&id).await?;
    let slot = app.stream_slot(asker)?;
    let last_event: Option<u64> = headers
        .get("last-event-id")
        .and_then(|value| value.to_str().ok()?.parse().ok());
    let from = last_event.unwrap_or(query.from);
    let events = Sse::new(slot.held_by(follow(app, id, from)))
        .keep_alive(KeepAlive::new().interval(KEEP_ALIVE));
    Ok(events.into_response())
}

enum At {
    Offset(u64),
    End,
}

fn follow(app: App, id: JobId, from: u64) -> impl Stream<Item = Result<Event, Infallible>> {
    futures::stream::unfold(At::Offset(from), move |at| {
        let app = app.clone();
        async move {
            let logs = &app.logs;
            // Known before the last look at the log, so that nothing came after it.
            let mut has_ended = false;
            let At::Offset(mut at) = at else {
                return None;
            };
            loop {
                let chunk = match logs.chunk(id, at, EVENT).await {
                    Ok(chunk) => chunk,
                    Err(error) => {
                        tracing::warn!(job = %id, %error, "log cannot be followed");
                        return None;
                    }
                };
                if !chunk.bytes.is_empty() {
                    let event = Event::default()
                        .event("output")
                        .id(chunk.next.to_string())
                        .data(STANDARD.encode(&chunk.bytes));
                    return Some((Ok(event), At::Offset(chunk.next)));
                }
                if chunk.complete || has_ended {
                    let end = Event::default().event("end").id(at.to_string()).data("end");
                    return Some((Ok(end), At::End));
                }
                at = at.max(chunk.next);
                // The log of a job that has ended may wait for its sealing, and nobody may be there to tell.
                has_ended = is_complete(&app, id).await.unwrap_or(false);
                if has_ended {
                    continue;
                }
                match tokio::time::timeout(LOOK_INTERVAL, logs.wait_beyond(id, at)).await {
                    Ok(Ok(_)) | Err(_) => {}
                    Ok(Err(error)) => {
                        tracing::warn!(job = %id, %error, "log cannot be followed");
                        return None;
                    }
                }
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::parse_range;

    #[test]
    fn ranges_are_read_as_http_means_them() {
        assert_eq!(parse_range(b"bytes=5-"), Some((5, u64::MAX)));
        assert_eq!(parse_range(b"bytes=5-9"), Some((5, 10)));
        for wrong in ["bytes=-5", "bytes=9-5", "items=1-2", "bytes=x-", ""] {
            assert_eq!(parse_range(wrong.as_bytes()), None, "{wrong}");
        }
    }
}
