//! JSON under `/api`, and `/healthz`.

use super::App;
use super::access::Visitor;
use super::asker::Asker;
use super::error::ApiError;
use super::headers::GUEST_POLICY;
use super::views::{BuildView, JobView, encoded};
use crate::config::Standing;
use crate::model::{BuildId, JobId, PlatformKind};
use crate::pipeline::pause::Pause;
use crate::store::Evidence;
use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::header::{
    CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, CONTENT_TYPE,
};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

/// Builds in one answer, when the request does not say.
const DEFAULT_PAGE: i64 = 30;
const MAX_PAGE: i64 = 200;

/// Says whether the database answers and every loop goes on, and to those who may read also why no job is placed, if so.
pub(super) async fn health(State(app): State<App>, visitor: Visitor) -> Result<Response, ApiError> {
    app.ledger.store.count_jobs().await?;
    let may_read = app.access.lets_read(&visitor);
    let told = |status: &str, why: Vec<String>| match may_read {
        true => Json(json!({ "status": status, "version": env!("CARGO_PKG_VERSION"), "why": why })),
        false => Json(json!({ "status": status })),
    };
    let stuck = app.pulses.stuck();
    if !stuck.is_empty() {
        let stuck = stuck.iter().map(ToString::to_string).collect();
        return Ok((StatusCode::SERVICE_UNAVAILABLE, told("stuck", stuck)).into_response());
    }
    let pauses = app.pauses.now();
    let status = match pauses.first() {
        None => "ok",
        Some(Pause::Drain(_)) => "draining",
        Some(Pause::DiskFull { .. } | Pause::ResultsWait { .. }) => "paused",
    };
    let why: Vec<String> = pauses.iter().map(ToString::to_string).collect();
    Ok(told(status, why).into_response())
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BuildsQuery {
    repository: Option<String>,
    /// Only builds with a smaller number: the next page.
    before: Option<i64>,
    limit: Option<i64>,
}

pub(super) async fn builds(
    State(app): State<App>,
    Query(query): Query<BuildsQuery>,
) -> Result<Json<Vec<BuildView>>, ApiError> {
    let limit = query.limit.unwrap_or(DEFAULT_PAGE).clamp(1, MAX_PAGE);
    let before = query.before.map(BuildId);
    Ok(Json(
        app.recent_builds(query.repository.as_deref(), before, limit)
            .await?,
    ))
}

pub(super) async fn build(
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Json<BuildView>, ApiError> {
    let build = app.known_build(&id).await?;
    Ok(Json(app.whole_build_view(build).await?))
}

pub(super) async fn job(
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Json<JobView>, ApiError> {
    let job = app.known_job(&id).await?;
    Ok(Json(app.whole_job_view(job).await?))
}

/// Platforms that take work, and those that do not, or not yet, with the reason.
pub(super) async fn platforms(State(app): State<App>) -> Json<Value> {
    let (mut ready, mut held, mut out_of_service, mut refused) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for listed in app.platforms.list() {
        let (list, why) = match &listed.standing {
            Standing::Ready => (&mut ready, None),
            Standing::Held(why) => (&mut held, Some(why)),
            Standing::OutOfService(why) => (&mut out_of_service, Some(why)),
            Standing::Refused(why) => (&mut refused, Some(why)),
        };
        let mut shown = json!({ "name": listed.name, "why": why });
        if let (Some(platform), Some(shown)) = (&listed.platform, shown.as_object_mut()) {
            let about = json!({
                "tags": platform.tags,
                "os": platform.os,
                "os_version": platform.os_version,
                "arch": platform.arch,
                "where": match &platform.kind {
                    PlatformKind::Vm { .. } => listed.folder.display().to_string(),
                    PlatformKind::Ssh { host } => format!("{host}:{}", platform.ssh.port),
                },
                "memory_mib": platform.memory_mib(),
                "vcpus": platform.vcpus(),
                "limit": platform.limit,
                "owner": platform.owner,
                "known_issue": platform.known_issue,
                "expires": platform.expires,
            });
            let certificate = app.certificates.get(&listed.name).map(|registered| {
                json!({
                    "standing": registered.standing,
                    "said": registered.standing.to_string(),
                    "trouble": registered.trouble,
                })
            });
            shown.insert("certificate".to_owned(), json!(certificate));
            shown.extend(about.as_object().cloned().unwrap_or_default());
        }
        list.push(shown);
    }
    Json(json!({
        "ready": ready, "held": held, "out_of_service": out_of_service, "refused": refused
    }))
}

/// What the display of an attempt's machine showed when it was given up.
pub(super) async fn screenshot(
    State(app): State<App>,
    Path((id, number)): Path<(String, i64)>,
) -> Result<Response, ApiError> {
    let job = app.known_job(&id).await?;
    let store = &app.ledger.store;
    let attempts = store.attempts_of(job.id).await?;
    let attempt = attempts.iter().find(|attempt| attempt.number == number);
    let evidence = match attempt {
        Some(attempt) => store.evidence(attempt.id).await?,
        None => Evidence::default(),
    };
    let png = evidence.screenshot.ok_or_else(|| {
        ApiError::not_found(format!("screenshot of attempt {number} of {}", job.id))
    })?;
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static("image/png")),
        (CONTENT_SECURITY_POLICY, GUEST_POLICY),
    ];
    Ok((headers, png).into_response())
}

/// Streams a kept file out of the object store.
pub(super) async fn artifact(
    State(app): State<App>,
    asker: Asker,
    Path((id, path)): Path<(String, String)>,
) -> Result<Response, ApiError> {
    let id: JobId = id.parse().map_err(ApiError::bad_request)?;
    let artifacts = app.ledger.store.artifacts(id).await?;
    let artifact = artifacts
        .into_iter()
        .find(|artifact| artifact.path == path)
        .ok_or_else(|| ApiError::not_found(format!("artefact `{path}` of {id}")))?;
    let slot = app.stream_slot(asker)?;
    let fetched = app
        .artifacts
        .read(id, &artifact)
        .await
        .map_err(ApiError::internal)?;
    let headers = [
        // Never shown as a page: a guest wrote it.
        (
            CONTENT_TYPE,
            HeaderValue::from_static("application/octet-stream"),
        ),
        (CONTENT_DISPOSITION, attachment(&artifact.path)),
        (CONTENT_SECURITY_POLICY, GUEST_POLICY),
        (CONTENT_LENGTH, HeaderValue::from(fetched.size)),
    ];
    Ok((headers, Body::from_stream(slot.held_by(fetched.bytes))).into_response())
}

/// To be saved under the last part of its path; in the form of RFC 8187, so that no character can end the header.
fn attachment(path: &str) -> HeaderValue {
    let name = path.rsplit('/').next().unwrap_or_default();
    let value = format!("attachment; filename*=UTF-8''{}", encoded(name));
    HeaderValue::try_from(value).unwrap_or(HeaderValue::from_static("attachment"))
}
