//! How fast a step's output gets into the stored log, beside `ssh` from the same server.

use super::samples::Samples;
use super::table::{Figure, Table, Target};
use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tests::machine::{Platforms, SshServer};
use tests::repository::Suites;
use tests::world::{DEADLINE, World};

const BYTES: usize = 300_000_000;
const ROUNDS: usize = 5;
const DESK: &str = "desk";

pub(crate) async fn measure(table: &mut Table) -> Result<()> {
    let server = SshServer::start().await?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("output");
    std::fs::write(&file, noise())?;
    let platforms = Platforms::new()?;
    platforms.add_ssh(DESK, &server)?;
    let cat = format!("cat {}", file.display());
    let suites = Suites::test_on(&[DESK]).step("cat", &cat);
    let world = World::with_platforms(platforms, &suites, |master, entry| {
        master
            .environment("RUST_LOG", "info")
            .set("limits", "log_mib", 1000)
            .repository(entry)
    })
    .await?;
    let rate = |time: Duration| BYTES as f64 / 1e6 / time.as_secs_f64();
    let (mut ours, mut theirs, mut ratio) =
        (Samples::default(), Samples::default(), Samples::default());
    for round in 0..ROUNDS {
        let begun = Instant::now();
        let status = server.command(&cat)?.stdout(Stdio::null()).status().await?;
        ensure!(status.success(), "ssh … {cat}: {status}");
        let by_hand = rate(begun.elapsed());
        let by_us = rate(step_time(&world, &format!("topic-{round}")).await?);
        println!(
            "  round {}: ours {by_us:.0}, ssh {by_hand:.0} MB/s",
            round + 1
        );
        ours.add(by_us);
        theirs.add(by_hand);
        ratio.add(by_us / by_hand);
    }
    table.compare(
        "a step's output into the stored log",
        Figure::median(&ours, "MB/s"),
        "ssh host cat FILE >/dev/null",
        Figure::median(&theirs, "MB/s"),
        Target::RatioAtLeast(0.8),
    );
    let (low, high) = ratio.range();
    println!("  ratios of single rounds: {low:.2} to {high:.2}");
    Ok(())
}

/// From the step's row to its end, with all of its output stored and on disk.
async fn step_time(world: &World, branch: &str) -> Result<Duration> {
    let (_, head) = world
        .propose(branch, |commit| commit.file(branch, branch))
        .await?;
    let build = world
        .master
        .wait_for_finished_build(&head, DEADLINE)
        .await?;
    let number = build.jobs.first().context("the build has no job")?.number;
    // The log is compressed before the attempt ends: not during the next round.
    let attempt = world
        .master
        .wait_for("the attempt's end", DEADLINE, async |master| {
            let job = master.job(number).await?;
            Ok(job
                .attempts
                .into_iter()
                .find(|attempt| attempt.phase == "ended"))
        })
        .await?;
    let log = world.master.log(number, 0).await?;
    ensure!(log.len() > BYTES, "the log has {} bytes only", log.len());
    let step = attempt.steps.first().context("the attempt has no step")?;
    let finished: Timestamp = step.finished_at.context("the step did not finish")?;
    Ok(Duration::try_from(
        finished.duration_since(step.started_at),
    )?)
}

/// Bytes that nothing on the way can compress.
fn noise() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(BYTES + 8);
    while bytes.len() < BYTES {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(BYTES);
    bytes
}
