//! The master goes away in the middle and comes back: nothing is lost, nothing is told twice.

use crate::{BOTH, TINY, needs_guests};
use anyhow::Result;
use tests::find;
use tests::github::{DeliveryMode, StatusState};
use tests::repository::Suites;
use tests::world::{AGGREGATE, DEADLINE, REPOSITORY, World, context};

#[tokio::test(flavor = "multi_thread")]
async fn a_master_killed_under_a_running_job_ends_it_after_the_restart() -> Result<()> {
    needs_guests!();
    let suites = Suites::test_on(&[TINY]).step(
        "count",
        "for number in $(seq 1 20); do echo number $number; sleep 1; done",
    );
    let mut world = World::with(&[TINY], &suites).await?;
    let (_, head) = world
        .propose("topic", |commit| commit.file("a", "1"))
        .await?;
    let job = world.master.wait_for_job(&head, TINY, DEADLINE).await?;
    world
        .master
        .wait_for_output(job.number, b"number 2\n", DEADLINE)
        .await?;
    world.master.kill()?;
    world.master.start().await?;
    for name in [AGGREGATE.to_owned(), context(TINY)] {
        world.settled(&head, &name).await?;
        world
            .github
            .status_history(REPOSITORY, &head, &name)
            .assert_settled_once(StatusState::Success);
    }
    let job = world.master.job(job.number).await?;
    assert_eq!(
        job.attempts.len(),
        1,
        "the machine went on, and was found again"
    );
    let expected: String = (1..=20)
        .map(|number| format!("number {number}\n"))
        .collect();
    let log = world.master.log(job.number, 0).await?;
    assert!(
        find(&log, expected.as_bytes()).is_some(),
        "{}",
        String::from_utf8_lossy(&log)
    );
    world.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_missed_while_the_master_was_away_is_made_good_by_redelivery() -> Result<()> {
    needs_guests!();
    let suites = Suites::test_on(&[TINY]).step("quick", "true");
    let mut world = World::with(&[TINY], &suites).await?;
    world.master.stop().await?;
    let (_, head) = world
        .propose("topic", |commit| commit.file("a", "1"))
        .await?;
    let missed = world.github.last_delivery("pull_request");
    assert!(
        missed
            .as_ref()
            .is_some_and(|delivery| !delivery.is_delivered())
    );
    world.master.start().await?;
    world.github.set_delivery_mode(DeliveryMode::Deliver);
    if let Some(delivery) = missed {
        world.github.redeliver(&delivery.guid).await?;
    }
    let status = world.settled(&head, AGGREGATE).await?;
    assert_eq!(status.state, StatusState::Success);
    world.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_lives_in_the_past_is_brought_to_the_present_by_whoever_attaches() -> Result<()>
{
    needs_guests!();
    let past = "sudo date -u -s @1000000000 >/dev/null; echo in the past\n\
                for again in $(seq 900); do\n\
                [ $(date +%s) -lt 1700000000 ] || exec echo in the present\n\
                sleep 0.2\n\
                done; exit 1";
    let images = BOTH;
    let suites = Suites::test_on(&images).step("travel", past);
    let mut world = World::with(&images, &suites).await?;
    let head = world.propose_any().await?;
    for image in images {
        world.said(&head, image, "in the past").await?;
    }
    world.master.kill()?;
    world.master.start().await?;
    for image in images {
        world
            .settled_as(&head, &context(image), StatusState::Success)
            .await?;
        let job = world.ended_job(&head, "test", image).await?;
        let log = world.log(&job).await?;
        assert!(find(&log, b"in the past\nin the present\n").is_some());
    }
    world.end().await
}
