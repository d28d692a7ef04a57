//! The power is cut at random moments while deliveries come and jobs run, and a master goes on with what the disk has.
//!
//! ```text
//!  pushes ─► master ─╳ before a commit is synced ─► its files ─► torn in many ways, each judged
//!              ▲                                                  │
//!              └───────────── goes on with the last of them ◄─────┘
//! ```
//!
//! A killed process leaves its files as they are at one moment, as a power cut does; files that are copied one after the
//! other while it runs would be of different moments. What a cut takes away besides is what was written but not
//! synced: here that is the last transaction, for the process is killed where it is about to sync the database's log
//! (`cut.c`, loaded into it), and [`disk`] says what may become of it. Other files are left as they are, which is one of
//! the things that a cut may do to them.

mod disk;

use anyhow::{Context, Result, ensure};
use disk::Disk;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sqlx::Connection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tests::git::Commit;
use tests::github::{Delivery, GitHub, StatusState};
use tests::machine::{Platforms, SshServer};
use tests::master::Stopped;
use tests::repository::Suites;
use tests::world::{AGGREGATE, DEADLINE, REPOSITORY, World};
use tokio_util::sync::CancellationToken;

const CUTS: u64 = 6;
/// Ways in which the database may be torn, for each cut.
const TEARS: usize = 20;
/// Commits that are under way at the same time.
const AT_ONCE: usize = 5;

fn suites() -> Suites {
    Suites::test_on(&["desk"])
        .step("count", "seq 1 300; sleep 0.3; seq 301 600")
        .artifacts("build", "mkdir dist; seq 1 500 >dist/numbers", &["dist/*"])
}

/// Pushes to `main` until it is told to stop.
async fn push(github: GitHub, stop: CancellationToken) -> Result<()> {
    for number in 0.. {
        while unsettled(&github)? >= AT_ONCE && !stop.is_cancelled() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        if stop.is_cancelled() {
            break;
        }
        let commit = Commit::on("main").file("number", number.to_string());
        github.commit(REPOSITORY, commit).await?;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Heads of pushes that the master has accepted.
fn accepted_heads(github: &GitHub) -> Result<Vec<String>> {
    let mut heads = Vec::new();
    for delivery in github.deliveries() {
        if delivery.event == "push" && delivery.is_delivered() {
            let body: serde_json::Value = serde_json::from_slice(&delivery.body)?;
            heads.push(body["after"].as_str().context("no head")?.to_owned());
        }
    }
    Ok(heads)
}

/// How many of them were not told their outcome yet.
fn unsettled(github: &GitHub) -> Result<usize> {
    let is_settled = |head: &String| {
        let history = github.status_history(REPOSITORY, head, AGGREGATE);
        history.last().is_some_and(|last| last.state.is_terminal())
    };
    let heads = accepted_heads(github)?;
    Ok(heads.iter().filter(|head| !is_settled(head)).count())
}

/// Lets masters that it is loaded into die before a commit is synced.
struct Cutter {
    folder: tempfile::TempDir,
}

impl Cutter {
    fn build() -> Result<Cutter> {
        let folder = tempfile::tempdir()?;
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios/power_cuts/cut.c");
        let cutter = Cutter { folder };
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-o"])
            .args([&cutter.library(), &source])
            .args(["-ldl", "-lpthread"])
            .status()
            .context("cannot run cc, which links Rust programs too")?;
        ensure!(built.success(), "cannot compile {}", source.display());
        Ok(cutter)
    }

    fn library(&self) -> PathBuf {
        self.folder.path().join("cut.so")
    }

    fn moment(&self) -> PathBuf {
        self.folder.path().join("moment")
    }

    fn arm(&self, commits: u32) -> Result<()> {
        let new = self.folder.path().join("new");
        std::fs::write(&new, commits.to_string())?;
        Ok(std::fs::rename(new, self.moment())?)
    }
}

/// Waits for the cut; the deliveries that were accepted before it.
async fn wait_for_cut(world: &mut World, cutter: &Cutter) -> Result<BTreeSet<String>> {
    world.master.wait_for_death(DEADLINE).await?;
    std::fs::remove_file(cutter.moment())?;
    let sent = world.github.deliveries().len();
    // An answer may still be on its way.
    let what = "an answer, or none, for each delivery";
    world
        .master
        .wait_for(what, DEADLINE, async |_| {
            let mut deliveries = world.github.deliveries();
            deliveries.truncate(sent);
            if deliveries
                .iter()
                .any(|delivery| delivery.attempts.is_empty())
            {
                return Ok(None);
            }
            deliveries.retain(Delivery::is_delivered);
            Ok(Some(deliveries.into_iter().map(|d| d.guid).collect()))
        })
        .await
}

/// Tears the database as a power cut may, in many ways; leaves the last of them where the master's was.
async fn tear(database: &Path, accepted: &BTreeSet<String>, random: &mut StdRng) -> Result<()> {
    let found = Disk::read(database)?;
    let folder = tempfile::tempdir()?;
    let copy = folder.path().join("vivarium.sqlite");
    let synced = found.synced();
    for number in 0..TEARS {
        let torn = found.torn(synced, random);
        torn.write(&copy)?;
        let stored = judge(&copy)
            .await
            .with_context(|| format!("tear {number}"))?;
        let lost: Vec<_> = accepted.difference(&stored).collect();
        ensure!(
            lost.is_empty(),
            "tear {number}: accepted and lost: {lost:?}"
        );
        torn.write(database)?;
    }
    Ok(())
}

/// The database is sound, and no row is in two states; the deliveries in it.
async fn judge(database: &Path) -> Result<BTreeSet<String>> {
    const RUNS: &str = "(SELECT COUNT(*) FROM attempts WHERE job = jobs.id AND phase NOT IN ('cleaning_up', 'ended'))";
    let options = SqliteConnectOptions::new().filename(database);
    let mut connection = SqliteConnection::connect_with(&options).await?;
    let sound: String = sqlx::query_scalar("PRAGMA integrity_check")
        .fetch_one(&mut connection)
        .await?;
    ensure!(sound == "ok", "the database: {sound}");
    for (what, condition) in [
        (
            "jobs that run without an attempt, or with several",
            format!("jobs WHERE state = 'running' AND {RUNS} <> 1"),
        ),
        (
            "jobs that do not run, but an attempt of them does",
            format!("jobs WHERE state <> 'running' AND {RUNS} <> 0"),
        ),
        (
            "jobs that are half finished",
            "jobs WHERE (state = 'finished') <> (reason IS NOT NULL) OR (state = 'finished') <> (finished_at IS NOT NULL)"
                .to_owned(),
        ),
        (
            "finished builds with a job that is not",
            "builds WHERE state = 'finished' AND id IN (SELECT build FROM jobs WHERE state <> 'finished')"
                .to_owned(),
        ),
        (
            "unfinished builds of finished jobs",
            "builds WHERE state = 'running' AND id NOT IN (SELECT build FROM jobs WHERE state <> 'finished')"
                .to_owned(),
        ),
    ] {
        let query = format!("SELECT COUNT(*) FROM {condition}");
        let count: i64 = sqlx::query_scalar(&query).fetch_one(&mut connection).await?;
        ensure!(count == 0, "{count} {what}");
    }
    let stored: Vec<String> = sqlx::query_scalar("SELECT guid FROM deliveries")
        .fetch_all(&mut connection)
        .await?;
    connection.close().await?;
    Ok(stored.into_iter().collect())
}

/// The commit has one build, whose one job passed at its first try, with every line of its log.
async fn assert_tested_once(world: &World, head: &str) -> Result<()> {
    world
        .settled_as(head, AGGREGATE, StatusState::Success)
        .await?;
    let builds = world.master.builds().await?;
    let of_commit: Vec<_> = builds
        .iter()
        .filter(|build| build.head_sha == head)
        .collect();
    let [build] = of_commit.as_slice() else {
        anyhow::bail!("it has {} builds", of_commit.len());
    };
    ensure!(
        build.state == "finished" && build.jobs.len() == 1,
        "{build:?}"
    );
    let job = world.master.job(build.jobs[0].number).await?;
    ensure!(
        job.attempts.len() == 1 && job.artifacts.len() == 1,
        "{job:?}"
    );
    let log = world.log(&job).await?;
    let counted: String = (1..=600).map(|number| format!("{number}\n")).collect();
    let expected = format!(
        "==> {} on desk, attempt 1: commit {}\n==> step 1 of 2: count\n{counted}==> step 2 of 2: build\n\
         ==> 1 artefact stored\n==> success: Passed\n",
        job.attempts[0].vm,
        &head[..12],
    );
    ensure!(
        log == expected.as_bytes(),
        "the log differs from an undisturbed one:\n{}",
        String::from_utf8_lossy(&log)
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_loses_no_accepted_delivery_and_leaves_no_job_in_two_states() -> Result<()> {
    let server = SshServer::start().await?;
    let platforms = Platforms::new()?;
    platforms.add_ssh("desk", &server)?;
    let cutter = Cutter::build()?;
    let mut world = World::with_platforms(platforms, &suites(), |master, entry| {
        master
            .environment("LD_PRELOAD", &cutter.library().to_string_lossy())
            .environment("POWER_CUT", &cutter.moment().to_string_lossy())
            .repository(entry)
    })
    .await?;
    let database = world.master.data_dir().join("vivarium.sqlite");
    let stop = CancellationToken::new();
    let pushes = tokio::spawn(push(world.github.clone(), stop.clone()));
    for seed in 0..CUTS {
        let mut random = StdRng::seed_from_u64(seed);
        if random.random_bool(0.3) {
            // While it starts.
            world.master.kill()?;
            cutter.arm(random.random_range(1..15))?;
            world.master.spawn()?;
        } else {
            cutter.arm(random.random_range(1..200))?;
        }
        let accepted = wait_for_cut(&mut world, &cutter).await?;
        tear(&database, &accepted, &mut random)
            .await
            .with_context(|| format!("power cut {seed}"))?;
        world.master.start().await?;
    }
    stop.cancel();
    pushes.await??;
    let heads = accepted_heads(&world.github)?;
    ensure!(!heads.is_empty(), "nothing was accepted");
    for head in &heads {
        assert_tested_once(&world, head)
            .await
            .with_context(|| format!("commit {head}"))?;
    }
    world.master.wait_until_nothing_is_left(DEADLINE).await?;
    ensure!(world.master.stop().await? == Stopped::Orderly);
    judge(&database).await?;
    Ok(())
}
