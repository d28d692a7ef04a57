//! What must be true in the end, whatever happened.

use crate::changes::{Change, Changes, Kind, PLATFORMS, artifacts_of, output_of};
use crate::city::City;
use anyhow::{Context, Result, bail, ensure};
use sqlx::Connection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use std::path::Path;
use std::time::Duration;
use tests::github::StatusState;
use tests::machine::processes_with;
use tests::master::{BuildView, JobView, Master, Stopped};
use tests::sha256;
use tests::world::{AGGREGATE, REPOSITORY, World, context};

/// Without any further fault everything comes to its end in minutes; retries were put off by a minute at most.
const SETTLE: Duration = Duration::from_secs(900);

/// What was looked at.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    pub(crate) commits: usize,
    pub(crate) jobs: usize,
    pub(crate) attempts: usize,
    pub(crate) log_bytes: usize,
    pub(crate) artifacts: usize,
}

/// Waits until everything has come to its end, and looks at all of it.
pub(crate) async fn judge(city: &mut City, changes: &Changes) -> Result<Findings> {
    let changes = changes.all();
    settle(&city.world, &changes).await?;
    let mut findings = Findings::default();
    let builds = city.world.master.builds().await?;
    for change in &changes {
        look_at(&city.world, &builds, change, &mut findings)
            .await
            .with_context(|| format!("{change:?}"))?;
    }
    nothing_is_left(city).await?;
    let stopped = city.world.master.stop().await?;
    ensure!(
        stopped == Stopped::Orderly,
        "the master did not stop orderly"
    );
    rows_are_sound(&city.world.master.data_dir()).await?;
    Ok(findings)
}

/// Every accepted delivery is acted upon, every job has ended, GitHub was told everything.
async fn settle(world: &World, changes: &[Change]) -> Result<()> {
    let is_over = async |master: &Master| {
        let metrics = ["vivarium_statuses_unsent", "vivarium_attempts"];
        for name in metrics {
            if master.metric(name).await? != 0.0 {
                return Ok(None);
            }
        }
        let delivered = world.github.deliveries().iter().all(|d| d.is_delivered());
        let ended = changes.iter().all(|change| {
            let history = world
                .github
                .status_history(REPOSITORY, &change.head, AGGREGATE);
            history
                .last()
                .is_some_and(|status| status.state.is_terminal())
        });
        Ok((delivered && ended).then_some(()))
    };
    let settled = world
        .master
        .wait_for("the end of all work", SETTLE, is_over);
    let Err(error) = settled.await else {
        return Ok(());
    };
    for change in changes {
        let history = world
            .github
            .status_history(REPOSITORY, &change.head, AGGREGATE);
        if !history
            .last()
            .is_some_and(|status| status.state.is_terminal())
        {
            eprintln!("{change:?}: {history}");
        }
    }
    for build in world.master.builds().await? {
        if build.state != "finished" {
            eprintln!("{build:?}");
        }
    }
    Err(error)
}

async fn look_at(
    world: &World,
    builds: &[BuildView],
    change: &Change,
    findings: &mut Findings,
) -> Result<()> {
    let of_commit: Vec<_> = builds
        .iter()
        .filter(|build| build.head_sha == change.head)
        .collect();
    let [build] = of_commit.as_slice() else {
        bail!("it has {} builds", of_commit.len());
    };
    ensure!(build.state == "finished", "{build:?}");
    findings.commits += 1;
    let outcome = outcome_of(world, &change.head, AGGREGATE)?;
    match change.kind {
        Kind::Push | Kind::PullRequest(_) => {
            ensure!(outcome == StatusState::Success, "{build:?}");
            ensure!(build.jobs.len() == PLATFORMS.len(), "{build:?}");
        }
        // Cancelled, unless it was quicker.
        Kind::Superseded(_) => {}
    }
    for job in &build.jobs {
        let outcome = outcome_of(world, &change.head, &context(&job.platform))?;
        let has_passed = outcome == StatusState::Success;
        ensure!(
            has_passed || matches!(change.kind, Kind::Superseded(_)),
            "{job:?}"
        );
        let job = world.master.job(job.number).await?;
        ensure!(job.state == "finished", "{job:?}");
        findings.jobs += 1;
        findings.attempts += job.attempts.len();
        let log = world.master.log(job.number, 0).await?;
        findings.log_bytes += log.len();
        let text = std::str::from_utf8(&log).context("the log is not UTF-8")?;
        read_log(text, &job, build, change.kind).with_context(|| format!("{job:?}\n{text}"))?;
        if change.kind == Kind::Push {
            look_at_artifacts(world, &job, &change.head).await?;
            findings.artifacts += job.artifacts.len();
        }
    }
    Ok(())
}

/// The one outcome that GitHub was told, once. That it is pending GitHub need not have been told: it may have been away until
/// that was over.
fn outcome_of(world: &World, head: &str, context: &str) -> Result<StatusState> {
    let history = world.github.status_history(REPOSITORY, head, context);
    let mut outcomes = history
        .statuses
        .iter()
        .skip_while(|status| !status.state.is_terminal());
    let first = outcomes
        .next()
        .with_context(|| format!("no outcome: {history}"))?;
    ensure!(outcomes.next().is_none(), "told more than once: {history}");
    Ok(first.state)
}

/// Reads a log as the sequence of its attempts: each is that of an undisturbed run, byte for byte, up to where it broke
/// off by our fault; the last one is whole.
fn read_log(log: &str, job: &JobView, build: &BuildView, kind: Kind) -> Result<()> {
    let opening = |number: usize| {
        let vm = &job.attempts[number].vm;
        let commit = &build.head_sha[..12];
        let merged = match (build.pull_request, build.base_sha.as_deref()) {
            (Some(number), Some(base)) => {
                format!(" of pull request {number}, merged into {}", &base[..12])
            }
            _ => String::new(),
        };
        let attempt = number + 1;
        format!(
            "==> {vm} on {}, attempt {attempt}: commit {commit}{merged}\n",
            job.platform
        )
    };
    let mut whole = match kind {
        Kind::Push => "==> step 1 of 2: count\n".to_owned(),
        Kind::PullRequest(_) | Kind::Superseded(_) => "==> step 1 of 1: count\n".to_owned(),
    };
    whole.push_str(&output_of(&build.head_sha));
    if kind == Kind::Push {
        whole.push_str("==> step 2 of 2: build\n==> 2 artefacts stored\n");
    }
    let mut rest = log;
    for number in 0..job.attempts.len() {
        rest = rest
            .strip_prefix(opening(number).as_str())
            .with_context(|| format!("attempt {} does not begin as it should", number + 1))?;
        let (attempt, next) = match job.attempts.get(number + 1) {
            Some(_) => rest
                .find(&opening(number + 1))
                .map(|at| rest.split_at(at))
                .with_context(|| format!("attempt {} is not there", number + 2))?,
            None => (rest, ""),
        };
        let is_last = next.is_empty();
        if is_last && job.conclusion.as_deref() == Some("success") {
            ensure!(
                attempt == format!("{whole}==> success: Passed\n"),
                "attempt {} differs from an undisturbed one",
                number + 1
            );
        } else {
            let verdict = match is_last {
                false => "==> infrastructure_error: ",
                true => "==> cancelled: ",
            };
            ensure!(
                breaks_off(attempt, &whole, verdict),
                "attempt {} differs from an undisturbed one before it broke off",
                number + 1
            );
        }
        rest = next;
    }
    Ok(())
}

/// Whether the text is a beginning of the whole, followed by the verdict.
fn breaks_off(text: &str, whole: &str, verdict: &str) -> bool {
    text.match_indices(verdict)
        .any(|(at, _)| whole.starts_with(&text[..at]))
}

async fn look_at_artifacts(world: &World, job: &JobView, head: &str) -> Result<()> {
    let expected = artifacts_of(head);
    ensure!(job.artifacts.len() == expected.len(), "{job:?}");
    for (path, content) in &expected {
        let artifact = job.artifacts.iter().find(|artifact| artifact.path == *path);
        let artifact = artifact.with_context(|| format!("no {path}: {job:?}"))?;
        ensure!(
            artifact.sha256 == sha256(content.as_bytes()),
            "{artifact:?}"
        );
        let stored = world.master.get_bytes(&artifact.url).await?;
        ensure!(stored == content.as_bytes(), "{artifact:?}");
    }
    Ok(())
}

async fn nothing_is_left(city: &City) -> Result<()> {
    const PATIENCE: Duration = Duration::from_secs(180);
    let master = &city.world.master;
    master.wait_until_nothing_is_left(PATIENCE).await?;
    let state = city.server.path("state").display().to_string();
    let (logs, work) = (master.data_dir().join("logs"), city.server.path("work"));
    let artifacts = master.data_dir().join("artifacts");
    let leftovers = || -> Result<Vec<String>> {
        let mut left = Vec::new();
        for folder in [&logs, &artifacts, &work, &master.temporary_dir()] {
            left.extend(entries_of(folder)?);
        }
        // Agents, and what they run.
        let processes = processes_with(&state).into_iter();
        left.extend(processes.map(|(pid, command)| format!("the process {pid}: {command}")));
        Ok(left)
    };
    let waited = master
        .wait_for("nothing left", PATIENCE, async |_| {
            Ok(leftovers()?.is_empty().then_some(()))
        })
        .await;
    if waited.is_err() {
        bail!("left behind:\n{}", leftovers()?.join("\n"));
    }
    Ok(())
}

fn entries_of(folder: &Path) -> Result<Vec<String>> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        names.push(entry?.path().display().to_string());
    }
    Ok(names)
}

/// The database's own word on its file, and no row in between two states.
async fn rows_are_sound(data_dir: &Path) -> Result<()> {
    let options = SqliteConnectOptions::new().filename(data_dir.join("vivarium.sqlite"));
    let mut database = SqliteConnection::connect_with(&options).await?;
    let sound: String = sqlx::query_scalar("PRAGMA integrity_check")
        .fetch_one(&mut database)
        .await?;
    ensure!(sound == "ok", "the database: {sound}");
    for (what, count) in [
        (
            "deliveries not acted upon",
            "SELECT COUNT(*) FROM deliveries WHERE state <> 'done'",
        ),
        (
            "builds not finished",
            "SELECT COUNT(*) FROM builds WHERE state <> 'finished'",
        ),
        (
            "jobs not finished",
            "SELECT COUNT(*) FROM jobs WHERE state <> 'finished'",
        ),
        (
            "attempts not ended",
            "SELECT COUNT(*) FROM attempts WHERE phase <> 'ended'",
        ),
        (
            "logs without a record",
            "SELECT COUNT(*) FROM jobs WHERE attempts > 0 AND id NOT IN (SELECT job FROM logs)",
        ),
    ] {
        let count: i64 = sqlx::query_scalar(count).fetch_one(&mut database).await?;
        ensure!(count == 0, "{count} {what}");
    }
    Ok(())
}
