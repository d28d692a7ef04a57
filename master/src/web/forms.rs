//! The buttons of the pages: cancel and rerun, by the form of a login.

use super::App;
use super::access::ActByForm;
use super::acts::{by_a_person, taken_up};
use super::error::PageError;
use axum::extract::{Path, State};
use axum::response::Redirect;

pub(super) async fn cancel_build(
    State(app): State<App>,
    Path(id): Path<String>,
    ActByForm(grant): ActByForm,
) -> Result<Redirect, PageError> {
    let id = app.known_build(&id).await?.id;
    tracing::info!(token = grant.token, build = %id, "cancelled by a form");
    app.ledger.cancel_build(id, &by_a_person()).await?;
    Ok(Redirect::to(&format!("/builds/{}", id.0)))
}

pub(super) async fn rerun_build(
    State(app): State<App>,
    Path(id): Path<String>,
    ActByForm(grant): ActByForm,
) -> Result<Redirect, PageError> {
    let id = app.known_build(&id).await?.id;
    tracing::info!(token = grant.token, build = %id, "rerun by a form");
    taken_up(app.ledger.rerun(id, None).await?)?;
    Ok(Redirect::to(&format!("/builds/{}", id.0)))
}

pub(super) async fn cancel_job(
    State(app): State<App>,
    Path(id): Path<String>,
    ActByForm(grant): ActByForm,
) -> Result<Redirect, PageError> {
    let id = app.known_job(&id).await?.id;
    tracing::info!(token = grant.token, job = %id, "cancelled by a form");
    app.ledger.cancel_job(id, &by_a_person()).await?;
    Ok(Redirect::to(&format!("/jobs/{}", id.0)))
}

pub(super) async fn rerun_job(
    State(app): State<App>,
    Path(id): Path<String>,
    ActByForm(grant): ActByForm,
) -> Result<Redirect, PageError> {
    let job = app.known_job(&id).await?;
    tracing::info!(token = grant.token, job = %job.id, "rerun by a form");
    taken_up(app.ledger.rerun(job.build, Some(job.id)).await?)?;
    Ok(Redirect::to(&format!("/jobs/{}", job.id.0)))
}
