//! What the master shows and takes over HTTP: pages, JSON, live logs, webhooks, metrics.
//!
//! Reading needs nothing where the master is public, else a token or a login; each request that changes something needs
//! one (see [`access`]).

pub mod access;
mod acts;
mod api;
mod asker;
mod bounds;
mod drain;
mod error;
mod forms;
mod github;
mod headers;
mod listen;
mod logs;
mod metrics;
mod pages;
mod rates;
mod slots;
#[cfg(test)]
mod tests;
mod views;

pub use access::{Access, ApiToken, MadeToken, TokenView};
pub use bounds::Bounds;
pub(crate) use drain::DrainRequest;
pub use drain::DrainView;
pub use listen::{Server, Tls};
pub use logs::LOG_LENGTH;
pub use views::{ArtifactView, AttemptView, BootView, BuildView, JobView, StatusView, StepView};

use crate::certify::Register;
use crate::config::Platforms;
use crate::event::webhook::{self, Webhooks};
use crate::pipeline::intake::Intake;
use crate::pipeline::ledger::Ledger;
use crate::pipeline::pause::Pauses;
use crate::pulse::Pulses;
use crate::result::artifacts::Artifacts;
use crate::result::log::Logs;
use axum::Router;
use axum::extract::{DefaultBodyLimit, FromRef};
use axum::http::StatusCode;
use axum::middleware::{from_fn, from_fn_with_state, map_response};
use axum::routing::{delete, get, post};
use tower_http::timeout::TimeoutLayer;
use tower_http::trace::TraceLayer;

/// Bodies of requests other than webhooks: forms, and JSON with a few names.
const MOST_BODY_BYTES: usize = 64 << 10;

/// What the handlers work with; clones share it.
#[derive(Debug, Clone)]
pub struct App {
    pub ledger: Ledger,
    pub intake: Intake,
    pub logs: Logs,
    pub artifacts: Artifacts,
    pub platforms: Platforms,
    pub certificates: Register,
    pub access: Access,
    pub bounds: Bounds,
    pub pauses: Pauses,
    pub pulses: Pulses,
}

impl FromRef<App> for Access {
    fn from_ref(app: &App) -> Access {
        app.access.clone()
    }
}

/// All routes.
pub fn routes(app: App, webhooks: Webhooks) -> Router {
    let access = app.access.clone();
    let proxies = app.bounds.proxies.clone();
    let open = Router::new()
        .route("/healthz", get(api::health))
        .route("/login", get(access::login_page).post(access::log_in))
        .route("/logout", post(access::log_out));
    let reading = Router::new()
        .route("/", get(pages::builds))
        .route("/builds/{id}", get(pages::build))
        .route("/jobs/{id}", get(pages::job))
        .route("/platforms", get(pages::platforms))
        .route("/metrics", get(metrics::metrics))
        .route("/api/builds", get(api::builds))
        .route("/api/builds/{id}", get(api::build))
        .route("/api/jobs/{id}", get(api::job))
        .route("/api/jobs/{id}/log", get(logs::raw))
        .route("/api/jobs/{id}/log/stream", get(logs::stream))
        .route("/api/jobs/{id}/artifacts/{*path}", get(api::artifact))
        .route(
            "/api/jobs/{id}/attempts/{number}/screenshot.png",
            get(api::screenshot),
        )
        .route("/api/platforms", get(api::platforms))
        .route("/api/github", get(github::show))
        .route("/api/drain", get(drain::show))
        .route_layer(from_fn_with_state(access.clone(), access::may_read));
    // Each checks its form by itself.
    let forms = Router::new()
        .route("/builds/{id}/cancel", post(forms::cancel_build))
        .route("/builds/{id}/rerun", post(forms::rerun_build))
        .route("/jobs/{id}/cancel", post(forms::cancel_job))
        .route("/jobs/{id}/rerun", post(forms::rerun_job));
    let acts = Router::new()
        .route("/api/builds", post(acts::build))
        .route("/api/builds/{id}/cancel", post(acts::cancel_build))
        .route("/api/builds/{id}/rerun", post(acts::rerun_build))
        .route("/api/jobs/{id}/cancel", post(acts::cancel_job))
        .route("/api/jobs/{id}/rerun", post(acts::rerun_job))
        .route_layer(from_fn(access::may_act));
    let administration = Router::new()
        .route("/api/drain", post(drain::begin))
        .route("/api/resume", post(drain::resume))
        .route("/api/tokens", get(access::list).post(access::create))
        .route("/api/tokens/{name}", delete(access::revoke))
        .route_layer(from_fn(access::may_admin));
    let for_visitors = open
        .merge(reading)
        .merge(forms)
        .merge(administration)
        .layer(TimeoutLayer::with_status_code(
            StatusCode::GATEWAY_TIMEOUT,
            bounds::REQUEST_DEADLINE,
        ))
        // A build by hand fetches first, which has deadlines of its own.
        .merge(acts)
        .layer(from_fn_with_state(access, access::identify));
    Router::new()
        .route("/static/{name}", get(pages::asset))
        .merge(for_visitors)
        .layer(DefaultBodyLimit::max(MOST_BODY_BYTES))
        .with_state(app)
        .merge(webhook::routes(webhooks))
        .layer(from_fn_with_state(proxies, asker::find_asker))
        .layer(map_response(headers::with_safe_headers))
        .layer(TraceLayer::new_for_http())
}
