//! Plain pages: builds, a build, a job with its live log. All that is written into a template is escaped (see `show`).

use super::App;
use super::access::{Visitor, login_link};
use super::error::{ApiError, PageError};
use super::views::{BuildView, JobView};
use crate::certify::Registered;
use crate::config::{Listed, Platforms, Standing};
use crate::model::{Right, visible};
use axum::extract::{self, FromRequestParts, Path};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::request::Parts;
use axum::response::{Html, IntoResponse, Response};
use jiff::Timestamp;
use minijinja::{Environment, Output, State, Value, context, escape_formatter};
use serde::Serialize;
use std::convert::Infallible;
use std::sync::LazyLock;

/// Builds on the front page.
const RECENT: i64 = 50;

static TEMPLATES: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut environment = Environment::new();
    let templates = [
        ("again.html", include_str!("templates/again.html")),
        ("base.html", include_str!("templates/base.html")),
        ("build.html", include_str!("templates/build.html")),
        ("builds.html", include_str!("templates/builds.html")),
        ("buttons.html", include_str!("templates/buttons.html")),
        ("error.html", include_str!("templates/error.html")),
        ("job.html", include_str!("templates/job.html")),
        ("jobs_table.html", include_str!("templates/jobs_table.html")),
        ("login.html", include_str!("templates/login.html")),
        ("platforms.html", include_str!("templates/platforms.html")),
    ];
    for (name, text) in templates {
        if let Err(error) = environment.add_template(name, text) {
            tracing::error!(name, %error, "a template of this build is broken");
        }
    }
    environment.set_formatter(show);
    environment.add_filter("duration", duration);
    environment.add_filter("elapsed", elapsed);
    environment.add_filter("bytes", bytes);
    environment
});

/// Writes a value into a page: what could deceive in it written out, then escaped.
fn show(
    out: &mut Output<'_>,
    state: &State<'_, '_>,
    value: &Value,
) -> Result<(), minijinja::Error> {
    match value.as_str() {
        Some(text) if !value.is_safe() => escape_formatter(out, state, &Value::from(visible(text))),
        Some(_) | None => escape_formatter(out, state, value),
    }
}

pub(super) fn render(name: &str, values: Value) -> Result<Html<String>, ApiError> {
    TEMPLATES
        .get_template(name)
        .and_then(|template| template.render(values))
        .map(Html)
        .map_err(|error| ApiError::internal(format!("{error:#}")))
}

/// What each page shows of the visitor.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Page {
    /// The token that the visitor logged in by.
    login: Option<String>,
    /// For the forms; there is one for each login.
    secret: Option<String>,
    may_act: bool,
    /// The login page, from which the way leads back here.
    login_link: Option<String>,
    /// Why jobs wait that otherwise would start, and what GitHub does not know yet.
    notices: Vec<String>,
}

impl FromRequestParts<App> for Page {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Infallible> {
        let Ok(visitor) = Visitor::from_request_parts(parts, app).await;
        let notices = match app.access.lets_read(&visitor) {
            true => {
                let mut notices = app.pauses.notices();
                notices.extend(out_of_service(&app.platforms));
                notices.extend(app.github_notice().await);
                notices
            }
            false => Vec::new(),
        };
        Ok(match visitor {
            Visitor::Login(grant, secret) => Page {
                may_act: grant.may >= Right::Act,
                login: Some(grant.token),
                secret: Some(secret.as_str().to_owned()),
                login_link: None,
                notices,
            },
            Visitor::Stranger | Visitor::Token(_) => Page {
                login_link: Some(login_link(parts.uri.path())),
                notices,
                ..Page::default()
            },
        })
    }
}

pub(super) async fn builds(
    extract::State(app): extract::State<App>,
    page: Page,
) -> Result<Html<String>, PageError> {
    let builds: Vec<BuildView> = app.recent_builds(None, None, RECENT).await?;
    Ok(render("builds.html", context! { page, builds })?)
}

pub(super) async fn build(
    extract::State(app): extract::State<App>,
    page: Page,
    Path(id): Path<String>,
) -> Result<Html<String>, PageError> {
    let build = app.known_build(&id).await?;
    let build: BuildView = app.whole_build_view(build).await?;
    Ok(render("build.html", context! { page, build })?)
}

pub(super) async fn platforms(
    extract::State(app): extract::State<App>,
    page: Page,
) -> Result<Html<String>, PageError> {
    let row = |listed: &Listed| platform_row(listed, app.certificates.get(&listed.name));
    let platforms: Vec<Value> = app.platforms.list().iter().map(row).collect();
    Ok(render("platforms.html", context! { page, platforms })?)
}

fn platform_row(listed: &Listed, certificate: Option<Registered>) -> Value {
    let (standing, why) = match &listed.standing {
        Standing::Ready => ("ready", None),
        Standing::Held(why) => ("waits", Some(why)),
        Standing::OutOfService(why) => ("out_of_service", Some(why)),
        Standing::Refused(why) => ("refused", Some(why)),
    };
    let platform = listed.platform.as_deref();
    let system = platform.map(|platform| {
        let version = platform.os_version.as_deref().unwrap_or_default();
        format!(
            "{} {version} {}",
            platform.os.as_str(),
            platform.arch.as_str()
        )
    });
    let tested = certificate.as_ref().map(|of| of.standing.to_string());
    let trouble = certificate.and_then(|of| of.trouble);
    context! {
        name => listed.name,
        tested,
        trouble,
        standing,
        why,
        system,
        known_issue => platform.and_then(|platform| platform.known_issue.as_deref()),
    }
}

/// What every page says of platforms whose guests do not come up.
fn out_of_service(platforms: &Platforms) -> Vec<String> {
    let listed = platforms.list().into_iter();
    listed
        .filter_map(|listed| match listed.standing {
            Standing::OutOfService(why) => Some(format!("The platform {} is {why}", listed.name)),
            Standing::Ready | Standing::Held(_) | Standing::Refused(_) => None,
        })
        .collect()
}

pub(super) async fn job(
    extract::State(app): extract::State<App>,
    page: Page,
    Path(id): Path<String>,
) -> Result<Html<String>, PageError> {
    let job = app.known_job(&id).await?;
    let build = app.ledger.store.build(job.build).await?;
    let title = build.map(|build| build.new.title).unwrap_or_default();
    let job: JobView = app.whole_job_view(job).await?;
    Ok(render("job.html", context! { page, job, title })?)
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

/// The time between two timestamps as `+2.13 s`, for what takes less than a second too.
#[expect(
    clippy::needless_pass_by_value,
    reason = "the form that templates call"
)]
fn elapsed(from: String, to: String) -> String {
    match (from.parse::<Timestamp>(), to.parse::<Timestamp>()) {
        (Ok(from), Ok(to)) => format!("+{:.2} s", to.duration_since(from).as_secs_f64()),
        (Ok(_) | Err(_), _) => String::new(),
    }
}

fn bytes(count: u64) -> String {
    indicatif::BinaryBytes(count).to_string()
}
