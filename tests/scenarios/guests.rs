//! Guests that do not do what they should: our failure, tried again, visibly and not for ever.

use crate::{TINY, needs_guests};
use anyhow::{Context, Result};
use tests::github::StatusState;
use tests::machine::{Platforms, kill_qemu_of};
use tests::repository::Suites;
use tests::world::{AGGREGATE, DEADLINE, REPOSITORY, World, context};

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_never_boots_is_our_error_and_shows_its_console() -> Result<()> {
    needs_guests!();
    let platforms = Platforms::new()?;
    platforms.add_never_booting(TINY, "dead")?;
    let suites = Suites::test_on(&["dead"]).step("never", "true");
    let world = World::with_platforms(platforms, &suites, |master, entry| {
        master
            .repository(entry)
            .set("limits", "infrastructure_retries", 1)
            .set("hypervisor", "tcg_deadline_scale", 1)
    })
    .await?;
    let (_, head) = world
        .propose("topic", |commit| commit.file("a", "1"))
        .await?;
    let status = world.settled(&head, &context("dead")).await?;
    assert_eq!(status.state, StatusState::Error, "ours, not theirs");
    world.settled(&head, AGGREGATE).await?;
    world
        .github
        .status_history(REPOSITORY, &head, AGGREGATE)
        .assert_settled_once(StatusState::Error);

    let build = world
        .master
        .wait_for_finished_build(&head, DEADLINE)
        .await?;
    let job = world.master.job(build.jobs[0].number).await?;
    assert_eq!(job.reason.as_deref(), Some("boot_deadline"));
    assert_eq!(job.attempts.len(), 2, "tried again once, as configured");
    for attempt in &job.attempts {
        let console = attempt.console_tail.as_deref().context("no console")?;
        assert!(console.contains("Kernel panic"), "{console}");
    }
    world.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_machine_dies_is_tried_again_and_may_still_pass() -> Result<()> {
    needs_guests!();
    // Long enough that the machine is killed in the middle, whatever the machine that runs the test.
    let suites = Suites::test_on(&[TINY])
        .step("start", "echo started")
        .step("long", "sleep 20; echo survived");
    let world = World::with(&[TINY], &suites).await?;
    let (_, head) = world
        .propose("topic", |commit| commit.file("a", "1"))
        .await?;
    let job = world.master.wait_for_job(&head, TINY, DEADLINE).await?;
    world
        .master
        .wait_for_output(job.number, b"started\n", DEADLINE)
        .await?;
    assert_eq!(kill_qemu_of(&world.master.data_dir())?, 1);

    for name in [AGGREGATE.to_owned(), context(TINY)] {
        world.settled(&head, &name).await?;
        world
            .github
            .status_history(REPOSITORY, &head, &name)
            .assert_settled_once(StatusState::Success);
    }
    let job = world.master.job(job.number).await?;
    assert_eq!(job.attempts.len(), 2);
    assert_eq!(job.attempts[0].reason.as_deref(), Some("guest_died"));
    assert_eq!(job.attempts[1].conclusion.as_deref(), Some("success"));
    world.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_exist_is_asked_for_in_vain_and_said_so() -> Result<()> {
    needs_guests!();
    let suites = Suites::test_on(&["plan-9"]).step("never", "true");
    let world = World::with(&[TINY], &suites).await?;
    let (_, head) = world
        .propose("topic", |commit| commit.file("a", "1"))
        .await?;
    let status = world.settled(&head, AGGREGATE).await?;
    assert_ne!(status.state, StatusState::Success);
    let description = status.description.unwrap_or_default();
    assert!(description.contains("plan-9"), "{description}");
    world.end().await
}
