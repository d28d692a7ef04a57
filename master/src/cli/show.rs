//! `build`, `status`, `logs`, `cancel`, `rerun`: what a person or a script asks of a running master.

use super::Remote;
use super::client::Client;
use super::terminal::{colour, print, print_json, write};
use crate::model::{BuildId, JobId, visible_line};
use crate::report::wording;
use crate::web::{BuildView, JobView, LOG_LENGTH};
use anyhow::{anyhow, bail};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::process::ExitCode;
use std::time::Duration;

/// How often a followed log or build is asked for.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(500);
/// The column of results; the longest word in it is rarer than a narrow terminal.
const RESULT_WIDTH: usize = 9;

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
        let id = BuildId(build.number);
        while build.state != "finished" {
            tokio::time::sleep(FOLLOW_INTERVAL).await;
            build = client
                .patiently(async |client| client.build(id).await)
                .await?;
        }
    }
    match remote.json {
        true => print_json(&build)?,
        false => print_build(&build)?,
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
        let id: BuildId = id.parse().map_err(|why: String| anyhow!(why))?;
        let build = client.build(id).await?;
        match remote.json {
            true => print_json(&build)?,
            false => print_build(&build)?,
        }
        return Ok(());
    }
    let builds = client.builds(repository.as_deref()).await?;
    if remote.json {
        return print_json(&builds);
    }
    if builds.is_empty() {
        print("no build yet\n")?;
    }
    for build in &builds {
        let result = build.conclusion.as_deref().unwrap_or(&build.state);
        print(&format!(
            "{:<10} {} {:<20} {}\n",
            build.id,
            colour(result, RESULT_WIDTH),
            build.repository,
            visible_line(&build.title)
        ))?;
    }
    Ok(())
}

pub(super) async fn logs(remote: &Remote, id: &str, follow: bool, from: u64) -> anyhow::Result<()> {
    let id: JobId = id.parse().map_err(|why: String| anyhow!(why))?;
    let client = Client::new(remote)?;
    let mut at = from;
    // Not patient at first: that tells whether there is such a master and such a job.
    let mut ended = !follow || client.job(id).await?.state == "finished";
    print_log(&client, id, &mut at).await?;
    while !ended {
        tokio::time::sleep(FOLLOW_INTERVAL).await;
        client
            .patiently(async |client| {
                ended = client.job(id).await?.state == "finished";
                print_log(client, id, &mut at).await
            })
            .await?;
    }
    Ok(())
}

/// Prints what there is of a log from a byte on, and moves on to its end.
async fn print_log(client: &Client, id: JobId, at: &mut u64) -> anyhow::Result<()> {
    let mut response = client.log(id, *at).await?;
    let end = log_length(&response);
    while let Some(chunk) = client.next_chunk(&mut response).await? {
        write(&chunk)?;
        *at += chunk.len() as u64;
    }
    // Not counted from the bytes: a log over its cap leaves some out.
    *at = end.max(*at);
    Ok(())
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
        (true, _) => print_json(&answer),
        (false, "cancel") => print(&format!("{id} is cancelled\n")),
        (false, _) => print(&format!("{id} runs again\n")),
    }
}

pub(super) fn print_build(build: &BuildView) -> anyhow::Result<()> {
    let result = build.conclusion.as_deref().unwrap_or(&build.state);
    print(&format!(
        "{} {} {}: {}\n",
        build.id,
        colour(result, 0),
        build.repository,
        visible_line(&build.title)
    ))?;
    if let Some(message) = &build.message {
        print(&format!("  {}\n", visible_line(message)))?;
    }
    for job in &build.jobs {
        print(&format!("  {}\n", job_line(job)))?;
    }
    Ok(())
}

/// One line on a job: what, result, time, and the tests or what went wrong.
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
    let mut remarks: Vec<String> = job
        .tests
        .as_ref()
        .map(wording::counts)
        .into_iter()
        .collect();
    remarks.extend(job.message.clone().filter(|_| result != "success"));
    let line = format!(
        "{:<8} {:<24} {} {time:<10} {}",
        job.id,
        visible_line(&format!("{} ({})", job.suite, job.platform)),
        colour(result, RESULT_WIDTH),
        visible_line(&remarks.join("; "))
    );
    line.trim_end().to_owned()
}
