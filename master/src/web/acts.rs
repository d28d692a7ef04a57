//! Requests that change something: build, cancel, rerun.

use super::App;
use super::error::{ApiError, Body};
use super::views::BuildView;
use crate::model::{BuildId, BuildState, Ending, JobId, JobState, Reason};
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// The body of `POST /api/builds`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BuildRequest {
    pub(crate) repository: String,
    /// A branch, tag or commit.
    #[serde(rename = "ref")]
    pub(crate) reference: String,
    /// Names, tags or globs; empty means all that the suites name.
    #[serde(default)]
    pub(crate) platforms: Vec<String>,
}

pub(super) async fn build(
    State(app): State<App>,
    Body(request): Body<BuildRequest>,
) -> Result<(StatusCode, Json<BuildView>), ApiError> {
    let config = app.intake.config.clone();
    let repository = config.repository(&request.repository).ok_or_else(|| {
        ApiError::new(
            StatusCode::NOT_FOUND,
            format!("repository `{}` is not configured", request.repository),
        )
    })?;
    let id = app
        .intake
        .build_ref(repository, &request.reference, request.platforms)
        .await
        .map_err(|error| ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, format!("{error:#}")))?;
    let build = app.ledger.store.build(id).await?;
    let build = build.ok_or_else(|| ApiError::not_found(id))?;
    Ok((StatusCode::CREATED, Json(app.build_view(build).await?)))
}

pub(super) async fn cancel_build(
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let build = app.known_build(&id).await?;
    let id = build.id;
    if build.state == BuildState::Finished {
        return Err(has_ended(id));
    }
    app.ledger.cancel_build(id, &by_a_person()).await?;
    Ok(Json(json!({ "cancelled": id.to_string() })))
}

pub(super) async fn cancel_job(
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let job = app.known_job(&id).await?;
    let id = job.id;
    if job.state == JobState::Finished {
        return Err(has_ended(id));
    }
    app.ledger.cancel_job(id, &by_a_person()).await?;
    Ok(Json(json!({ "cancelled": id.to_string() })))
}

pub(super) async fn rerun_build(
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let id = app.known_build(&id).await?.id;
    rerun(&app, id, None).await
}

pub(super) async fn rerun_job(
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let job = app.known_job(&id).await?;
    rerun(&app, job.build, Some(job.id)).await
}

async fn rerun(app: &App, build: BuildId, only: Option<JobId>) -> Result<Json<Value>, ApiError> {
    let jobs = taken_up(app.ledger.rerun(build, only).await?)?;
    Ok(Json(json!({ "build": build.to_string(), "jobs": jobs })))
}

/// Whether a rerun took up any job, and how many.
pub(super) fn taken_up(jobs: usize) -> Result<usize, ApiError> {
    match jobs {
        0 => Err(ApiError::new(
            StatusCode::CONFLICT,
            "nothing was taken up again: the jobs have not ended yet",
        )),
        jobs => Ok(jobs),
    }
}

fn has_ended(id: impl std::fmt::Display) -> ApiError {
    let message = format!("nothing was cancelled: {id} has ended already");
    ApiError::new(StatusCode::CONFLICT, message)
}

pub(super) fn by_a_person() -> Ending {
    Ending::new(Reason::CancelledByPerson, "Cancelled by a person")
}
