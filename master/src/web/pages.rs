//! Plain pages: builds, a build, a job with its live log. Templates escape everything; see `templates/`.

use super::App;
use super::error::ApiError;
use super::views::{BuildView, JobView};
use axum::extract::{Path, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{Html, IntoResponse, Response};
use jiff::Timestamp;
use minijinja::{Environment, context};
use std::sync::LazyLock;

/// Builds on the front page.
const RECENT: i64 = 50;

static TEMPLATES: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut environment = Environment::new();
    let templates = [
        ("base.html", include_str!("templates/base.html")),
        ("builds.html", include_str!("templates/builds.html")),
        ("build.html", include_str!("templates/build.html")),
        ("job.html", include_str!("templates/job.html")),
        ("jobs_table.html", include_str!("templates/jobs_table.html")),
    ];
    for (name, text) in templates {
        if let Err(error) = environment.add_template(name, text) {
            tracing::error!(name, %error, "a template of this build is broken");
        }
    }
    environment.add_filter("duration", duration);
    environment.add_filter("bytes", bytes);
    environment
});

fn render(app: &App, name: &str, values: minijinja::Value) -> Result<Html<String>, ApiError> {
    let notices: Vec<String> = app.pauses.now().iter().map(ToString::to_string).collect();
    TEMPLATES
        .get_template(name)
        .and_then(|template| template.render(context! { notices, ..values }))
        .map(Html)
        .map_err(|error| ApiError::internal(format!("{error:#}")))
}

pub(super) async fn builds(State(app): State<App>) -> Result<Html<String>, ApiError> {
    let builds: Vec<BuildView> = app.recent_builds(None, None, RECENT).await?;
    render(
        &app,
        "builds.html",
        context! { builds, now => Timestamp::now() },
    )
}

pub(super) async fn build(
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Html<String>, ApiError> {
    let build = app.known_build(&id).await?;
    let build: BuildView = app.build_view(build).await?;
    render(
        &app,
        "build.html",
        context! { build, now => Timestamp::now() },
    )
}

pub(super) async fn job(
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Html<String>, ApiError> {
    let job = app.known_job(&id).await?;
    let build = app.ledger.store.build(job.build).await?;
    let title = build.map(|build| build.new.title).unwrap_or_default();
    let job: JobView = app.whole_job_view(job).await?;
    render(
        &app,
        "job.html",
        context! { job, title, now => Timestamp::now() },
    )
}

/// The style sheet and the script, carried in the binary.
pub(super) async fn asset(Path(name): Path<String>) -> Result<Response, ApiError> {
    let (form, text) = match name.as_str() {
        "style.css" => ("text/css; charset=utf-8", include_str!("static/style.css")),
        "live.js" => (
            "text/javascript; charset=utf-8",
            include_str!("static/live.js"),
        ),
        _ => return Err(ApiError::not_found(format!("file `{name}`"))),
    };
    Ok(([(CONTENT_TYPE, form), (CACHE_CONTROL, "max-age=300")], text).into_response())
}

/// The time between two timestamps as `2 min 13 s`; the second may be missing while something runs.
#[expect(
    clippy::needless_pass_by_value,
    reason = "the form that templates call"
)]
fn duration(from: String, to: Option<String>) -> String {
    let parse = |text: &str| text.parse::<Timestamp>().ok();
    let Some(from) = parse(&from) else {
        return String::new();
    };
    let to = to.as_deref().and_then(parse).unwrap_or_else(Timestamp::now);
    crate::report::wording::between(from, to)
}

fn bytes(count: u64) -> String {
    indicatif::BinaryBytes(count).to_string()
}
