//! `build`, `status`, `logs`, `cancel`, `rerun`: what a person or a script asks of a running master.

use super::Remote;
use super::client::Client;
use crate::model::{BuildId, JobId, visible_line};
use crate::report::wording;
use crate::web::{BuildView, JobView, LOG_LENGTH};
use anyhow::bail;
use jiff::Timestamp;
use owo_colors::{OwoColorize, Stream};
use serde_json::{Value, json};
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

/// How often a followed log or build is asked for.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(500);

pub(super) async fn build(
    remote: &Remote,
    repository: String,
    reference: String,
    platforms: Vec<String>,
    wait: bool,
) -> anyhow::Result<ExitCode> {
    let client = Client::new(remote)?;
    let body = json!({ "repository": repository, "ref": reference, "platforms": platforms });
    let mut build: BuildView = client.act("api/builds", &body).await?;
    if wait {
        while build.state != "finished" {
            tokio::time::sleep(FOLLOW_INTERVAL).await;
            build = client.build(&build.id).await?;
        }
    }
    match remote.json {
        true => print_json(&build)?,
        false => print_build(&build),
    }
    let passed = build.conclusion.as_deref() == Some("success");
    Ok(match !wait || passed {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

pub(super) async fn status(
    remote: &Remote,
    build: Option<String>,
    repository: Option<String>,
) -> anyhow::Result<()> {
    let client = Client::new(remote)?;
    if let Some(id) = build {
        let build = client.build(&id).await?;
        match remote.json {
            true => print_json(&build)?,
            false => print_build(&build),
        }
        return Ok(());
    }
    let builds = client.builds(repository.as_deref()).await?;
    if remote.json {
        return print_json(&builds);
    }
    if builds.is_empty() {
        println!("no build yet");
    }
    for build in &builds {
        let result = build.conclusion.as_deref().unwrap_or(&build.state);
        println!(
            "{:<10} {:<10} {:<20} {}",
            build.id,
            colour(result),
            build.repository,
            visible_line(&build.title)
        );
    }
    Ok(())
}

pub(super) async fn logs(remote: &Remote, id: &str, follow: bool, from: u64) -> anyhow::Result<()> {
    let client = Client::new(remote)?;
    let mut at = from;
    loop {
        let ended = !follow || client.job(id).await?.state == "finished";
        let mut response = client.log(id, at).await?;
        // Not counted from the bytes: a log over its cap leaves some out.
        let end = log_length(&response);
        while let Some(chunk) = response.chunk().await? {
            let mut out = std::io::stdout().lock();
            out.write_all(&chunk)?;
            out.flush()?;
        }
        at = at.max(end);
        if ended {
            return Ok(());
        }
        tokio::time::sleep(FOLLOW_INTERVAL).await;
    }
}

/// Where the bytes of an answer with a log end.
pub(super) fn log_length(response: &reqwest::Response) -> u64 {
    let length = response.headers().get(LOG_LENGTH);
    length
        .and_then(|length| length.to_str().ok()?.parse().ok())
        .unwrap_or_default()
}

/// Cancels or reruns a build or a job.
pub(super) async fn act(remote: &Remote, id: &str, act: &str) -> anyhow::Result<()> {
    let client = Client::new(remote)?;
    let path = match (
        id.starts_with("build"),
        id.parse::<BuildId>(),
        id.parse::<JobId>(),
    ) {
        (true, Ok(build), _) => format!("api/builds/{}/{act}", build.0),
        (false, _, Ok(job)) if id.starts_with("job") => format!("api/jobs/{}/{act}", job.0),
        _ => bail!("`{id}` is neither a build (`build-12`) nor a job (`job-204`)"),
    };
    let answer: Value = client.act(&path, &json!({})).await?;
    match (remote.json, act) {
        (true, _) => print_json(&answer)?,
        (false, "cancel") => println!("{id} is cancelled"),
        (false, _) => println!("{id} runs again"),
    }
    Ok(())
}

pub(super) fn print_json<T: serde::Serialize>(value: &T) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

pub(super) fn print_build(build: &BuildView) {
    let result = build.conclusion.as_deref().unwrap_or(&build.state);
    println!(
        "{} {} {}: {}",
        build.id,
        colour(result),
        build.repository,
        visible_line(&build.title)
    );
    if let Some(message) = &build.message {
        println!("  {}", visible_line(message));
    }
    for job in &build.jobs {
        println!("  {}", job_line(job));
    }
}

/// One line on a job: platform, result, time.
pub(super) fn job_line(job: &JobView) -> String {
    let result = job
        .conclusion
        .as_deref()
        .or(job.phase.as_deref())
        .unwrap_or(&job.state);
    let time = job
        .started_at
        .map(|started| wording::between(started, job.finished_at.unwrap_or_else(Timestamp::now)))
        .unwrap_or_default();
    let message = job
        .message
        .as_deref()
        .filter(|_| result != "success")
        .unwrap_or_default();
    let message = visible_line(message);
    format!(
        "{:<8} {:<24} {} {time} {message}",
        job.id,
        visible_line(&format!("{} ({})", job.suite, job.platform)),
        colour(result)
    )
}

/// The result's word, coloured on a terminal.
pub(super) fn colour(result: &str) -> String {
    let word = result.replace('_', " ");
    match result {
        "success" => word
            .if_supports_color(Stream::Stdout, |w| w.green())
            .to_string(),
        "failure" | "timed_out" => word
            .if_supports_color(Stream::Stdout, |w| w.red())
            .to_string(),
        "infrastructure_error" => word
            .if_supports_color(Stream::Stdout, |w| w.yellow())
            .to_string(),
        _ => word,
    }
}
