//! Answers to requests that cannot be met: a status and one sentence, as JSON or as a page.

use super::App;
use super::pages::{Page, render};
use super::rates::TooOften;
use crate::model::{Build, BuildId, Job, JobId};
use axum::Json;
use axum::extract::{FromRequest, Request};
use axum::http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use minijinja::context;
use serde::de::DeserializeOwned;
use serde_json::json;
use std::time::Duration;

/// Somebody closes a page within it, mostly.
const NO_ROOM_PAUSE: Duration = Duration::from_secs(10);

/// What went wrong, as JSON `{"error": "…"}`.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    message: String,
    /// When to ask again.
    retry_after: Option<Duration>,
}

/// The same as a page.
#[derive(Debug)]
pub(super) struct PageError(ApiError);

impl ApiError {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        ApiError {
            status,
            message: message.into(),
            retry_after: None,
        }
    }

    pub(super) fn too_often(TooOften(wait): TooOften) -> Self {
        ApiError {
            retry_after: Some(wait),
            ..ApiError::new(
                StatusCode::TOO_MANY_REQUESTS,
                "too many requests from this address: ask again later, or with a token",
            )
        }
    }

    /// So many streams are open that there is no room for another.
    pub(super) fn no_room() -> Self {
        ApiError {
            retry_after: Some(NO_ROOM_PAUSE),
            ..ApiError::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "too many logs and downloads are open: ask again in a moment",
            )
        }
    }

    pub(super) fn not_found(what: impl std::fmt::Display) -> Self {
        ApiError::new(StatusCode::NOT_FOUND, format!("{what} is not there"))
    }

    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        ApiError::new(StatusCode::BAD_REQUEST, message)
    }

    pub(super) fn unauthorized(message: impl Into<String>) -> Self {
        ApiError::new(StatusCode::UNAUTHORIZED, message)
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

impl ApiError {
    /// Gives an answer the status and the headers that belong to it.
    fn mark(&self, response: &mut Response) {
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(wait) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(wait.as_secs() + 1));
        }
    }
}

impl PageError {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        PageError(ApiError::new(status, message))
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

/// A JSON body; what is wrong with it is told as JSON too.
#[derive(Debug)]
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        match Json::<T>::from_request(request, state).await {
            Ok(Json(value)) => Ok(Body(value)),
            Err(rejection) => Err(ApiError::new(rejection.status(), rejection.body_text())),
        }
    }
}

impl From<crate::store::StoreError> for ApiError {
    fn from(error: crate::store::StoreError) -> Self {
        ApiError::internal(error)
    }
}

impl From<crate::store::StoreError> for PageError {
    fn from(error: crate::store::StoreError) -> Self {
        PageError(ApiError::internal(error))
    }
}

impl From<ApiError> for PageError {
    fn from(error: ApiError) -> Self {
        PageError(error)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = Json(json!({ "error": self.message })).into_response();
        self.mark(&mut response);
        response
    }
}

impl IntoResponse for PageError {
    fn into_response(self) -> Response {
        let what = self.0.status.canonical_reason().unwrap_or("Error");
        let message = &self.0.message;
        match render(
            "error.html",
            context! { page => Page::default(), what, message },
        ) {
            Ok(html) => {
                let mut response = html.into_response();
                self.0.mark(&mut response);
                response
            }
            // The template itself is broken.
            Err(_) => self.0.into_response(),
        }
    }
}
