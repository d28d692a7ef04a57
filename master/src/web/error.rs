//! Answers to requests that cannot be met: a status and one sentence.

use super::App;
use crate::model::{Build, BuildId, Job, JobId};
use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// What went wrong, as JSON `{"error": "…"}`.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    message: String,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        ApiError {
            status,
            message: message.into(),
        }
    }

    pub(super) fn not_found(what: impl std::fmt::Display) -> Self {
        ApiError::new(StatusCode::NOT_FOUND, format!("{what} is not there"))
    }

    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        ApiError::new(StatusCode::BAD_REQUEST, message)
    }

    /// A fault of ours: its cause goes into the master's own log, not to a stranger.
    pub(super) fn internal(error: impl std::fmt::Display) -> Self {
        tracing::error!(%error, "request failed");
        ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the master could not answer; its log says why",
        )
    }
}

impl App {
    /// The build that a path names, or the answer that it is none.
    pub(super) async fn known_build(&self, id: &str) -> Result<Build, ApiError> {
        let id: BuildId = id.parse().map_err(ApiError::bad_request)?;
        let build = self.ledger.store.build(id).await?;
        build.ok_or_else(|| ApiError::not_found(id))
    }

    /// The job that a path names, or the answer that it is none.
    pub(super) async fn known_job(&self, id: &str) -> Result<Job, ApiError> {
        let id: JobId = id.parse().map_err(ApiError::bad_request)?;
        let job = self.ledger.store.job(id).await?;
        job.ok_or_else(|| ApiError::not_found(id))
    }
}

impl From<crate::store::StoreError> for ApiError {
    fn from(error: crate::store::StoreError) -> Self {
        ApiError::internal(error)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, Json(json!({ "error": self.message }))).into_response()
    }
}
