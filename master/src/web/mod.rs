//! What the master shows and takes over HTTP: pages, JSON, live logs, webhooks, metrics.
//!
//! Reading needs nothing; each request that changes something bears the token (see `auth`).

mod acts;
mod api;
mod auth;
mod drain;
mod error;
mod logs;
mod metrics;
mod pages;
mod views;

pub use auth::ApiToken;
pub(crate) use drain::DrainRequest;
pub use drain::DrainView;
pub use logs::LOG_LENGTH;
pub use views::{ArtifactView, AttemptView, BuildView, JobView, StepView};

use crate::config::Platforms;
use crate::event::webhook::{self, Webhooks};
use crate::pipeline::intake::Intake;
use crate::pipeline::ledger::Ledger;
use crate::pipeline::pause::Pauses;
use crate::pulse::Pulses;
use crate::result::log::Logs;
use crate::result::objects::Objects;
use axum::Router;
use axum::http::HeaderValue;
use axum::http::header::{CONTENT_SECURITY_POLICY, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS};
use axum::middleware::map_response;
use axum::response::Response;
use axum::routing::{get, post};
use std::sync::Arc;
use tower_http::trace::TraceLayer;

/// What the handlers work with; clones share it.
#[derive(Debug, Clone)]
pub struct App {
    pub ledger: Ledger,
    pub intake: Intake,
    pub logs: Logs,
    pub objects: Objects,
    pub platforms: Platforms,
    pub token: Arc<ApiToken>,
    pub pauses: Pauses,
    pub pulses: Pulses,
}

/// All routes.
pub fn routes(app: App, webhooks: Webhooks) -> Router {
    let acts = Router::new()
        .route("/api/builds", post(acts::build))
        .route("/api/builds/{id}/cancel", post(acts::cancel_build))
        .route("/api/builds/{id}/rerun", post(acts::rerun_build))
        .route("/api/jobs/{id}/cancel", post(acts::cancel_job))
        .route("/api/jobs/{id}/rerun", post(acts::rerun_job))
        .route("/api/drain", post(drain::begin))
        .route("/api/resume", post(drain::resume))
        .route_layer(axum::middleware::from_fn_with_state(
            app.clone(),
            auth::require_token,
        ));
    Router::new()
        .route("/", get(pages::builds))
        .route("/builds/{id}", get(pages::build))
        .route("/jobs/{id}", get(pages::job))
        .route("/static/{name}", get(pages::asset))
        .route("/healthz", get(api::health))
        .route("/metrics", get(metrics::metrics))
        .route("/api/builds", get(api::builds))
        .route("/api/builds/{id}", get(api::build))
        .route("/api/jobs/{id}", get(api::job))
        .route("/api/jobs/{id}/log", get(logs::raw))
        .route("/api/jobs/{id}/log/stream", get(logs::stream))
        .route("/api/jobs/{id}/artifacts/{*path}", get(api::artifact))
        .route("/api/platforms", get(api::platforms))
        .route("/api/drain", get(drain::show))
        .merge(acts)
        .with_state(app)
        .merge(webhook::routes(webhooks))
        .layer(map_response(with_safe_headers))
        .layer(TraceLayer::new_for_http())
}

/// Pages run our own script alone, and nothing is guessed from content that a guest wrote.
async fn with_safe_headers(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(
            "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
             base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        ),
    );
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}
