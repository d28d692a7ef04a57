//! What a suite prints is kept, byte for byte.

use crate::{TINY, needs_guests};
use anyhow::{Context, Result};
use tests::github::StatusState;
use tests::repository::Suites;
use tests::world::{AGGREGATE, DEADLINE, World};
use tests::{find, sha256};

/// The output of the step at `index` begins here in the log of the only job of the pull request.
async fn step_output(world: &World, head: &str, index: usize) -> Result<bytes::Bytes> {
    let build = world.master.wait_for_finished_build(head, DEADLINE).await?;
    let job = build.jobs.first().context("no job")?;
    let job = world.master.job(job.number).await?;
    let attempt = job.attempts.last().context("no attempt")?;
    let step = attempt.steps.get(index).context("no such step")?;
    world.master.log(job.number, step.log_offset).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_100_megabytes_arrives_byte_for_byte() -> Result<()> {
    needs_guests!();
    // Every line differs within a copy, so that nothing lost or doubled goes unseen; and copies cost the guest little.
    const COPIES: usize = 15;
    let flood = format!(
        "seq 1 1000000 >numbers; for copy in $(seq 1 {COPIES}); do echo copy $copy; cat numbers; done"
    );
    let suites = Suites::test_on(&[TINY])
        .step("flood", &flood)
        .step("after", "echo the end");
    let world = World::with(&[TINY], &suites).await?;
    let (_, head) = world
        .propose("topic", |commit| commit.file("a", "1"))
        .await?;
    let status = world.settled(&head, AGGREGATE).await?;
    assert_eq!(status.state, StatusState::Success);

    let numbers: String = (1..=1_000_000)
        .map(|number| format!("{number}\n"))
        .collect();
    let expected: String = (1..=COPIES)
        .map(|copy| format!("copy {copy}\n{numbers}"))
        .collect();
    assert!(expected.len() > 100_000_000);
    let output = step_output(&world, &head, 0).await?;
    let flood = output
        .get(..expected.len())
        .context("the log is too short")?;
    assert_eq!(sha256(flood), sha256(expected.as_bytes()));
    let rest = &output[expected.len()..];
    assert!(rest.len() < 10_000, "nothing came twice");
    assert!(find(rest, b"the end\n").is_some());
    world.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn output_that_is_not_utf_8_is_kept_as_it_is() -> Result<()> {
    needs_guests!();
    let suites = Suites::test_on(&[TINY]).step(
        "bytes",
        "printf '\\377\\376\\200 \\303\\050 \\000 \\033[31mred\\r\\n'; printf 'err\\366r\\n' >&2",
    );
    let world = World::with(&[TINY], &suites).await?;
    let (_, head) = world
        .propose("topic", |commit| commit.file("a", "1"))
        .await?;
    let status = world.settled(&head, AGGREGATE).await?;
    assert_eq!(status.state, StatusState::Success);
    let output = step_output(&world, &head, 0).await?;
    let expected = b"\xff\xfe\x80 \xc3\x28 \x00 \x1b[31mred\r\nerr\xf6r\n";
    assert_eq!(output.get(..expected.len()), Some(&expected[..]));
    world.end().await
}
