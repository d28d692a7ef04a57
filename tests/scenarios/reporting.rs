//! GitHub in a bad mood: what it is told at the end is right all the same, and told once.

use crate::{TINY, needs_guests};
use anyhow::Result;
use std::time::Duration;
use tests::github::{DeliveryMode, Fault, FaultKind, MergeMethod, ReleaseOrder, StatusState};
use tests::repository::Suites;
use tests::world::{AGGREGATE, DEADLINE, REPOSITORY, SECRET, World, context};

fn quick_suite() -> Suites {
    Suites::test_on(&[TINY]).step("quick", "true")
}

/// More than enough for nine faults, at three statuses and more a commit.
const MOST_COMMITS: usize = 6;

#[tokio::test(flavor = "multi_thread")]
async fn every_passing_fault_of_the_api_is_outlived() -> Result<()> {
    needs_guests!();
    let world = World::with(&[TINY], &quick_suite()).await?;
    let kinds = [
        FaultKind::CommitNotVisible,
        FaultKind::Answer(502),
        FaultKind::Unauthorized,
        FaultKind::ResetBefore,
        FaultKind::ResetAfter,
        FaultKind::AnswerAfter(500),
        FaultKind::SecondaryLimit {
            status: 429,
            retry_after_secs: Some(1),
        },
        FaultKind::PrimaryLimit { reset_secs: 1 },
        FaultKind::Delay(Duration::from_millis(200)),
    ];
    let faults: Vec<i64> = kinds
        .into_iter()
        .map(|kind| world.github.inject(Fault::on_status_post(kind).times(1)))
        .collect();
    // Statuses that a fault held up are sent as one, so how many a commit takes is not known beforehand.
    for number in 0..MOST_COMMITS {
        let (_, head) = world
            .propose(&format!("topic-{number}"), |commit| commit.file("a", "1"))
            .await?;
        for name in [AGGREGATE.to_owned(), context(TINY)] {
            let status = world
                .github
                .wait_for_status(
                    REPOSITORY,
                    &head,
                    &name,
                    |status| status.state == StatusState::Success,
                    DEADLINE,
                )
                .await?;
            assert_eq!(status.state, StatusState::Success);
        }
        if faults
            .iter()
            .all(|fault| world.github.fault_hits(*fault) == 1)
        {
            break;
        }
    }
    for fault in faults {
        assert_eq!(world.github.fault_hits(fault), 1);
    }
    world.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_github_that_is_away_is_told_when_it_is_back() -> Result<()> {
    needs_guests!();
    let suites = Suites::test_on(&[TINY]).step("wait", "echo started; sleep 5");
    let world = World::with(&[TINY], &suites).await?;
    let (_, head) = world
        .propose("topic", |commit| commit.file("a", "1"))
        .await?;
    let job = world.master.wait_for_job(&head, TINY, DEADLINE).await?;
    world
        .master
        .wait_for_output(job.number, b"started\n", DEADLINE)
        .await?;
    world.github.stop_listening().await;
    let build = world
        .master
        .wait_for_finished_build(&head, DEADLINE)
        .await?;
    assert_eq!(build.conclusion.as_deref(), Some("success"));
    world.github.listen_again().await?;
    let status = world.settled(&head, AGGREGATE).await?;
    assert_eq!(status.state, StatusState::Success);
    world.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn events_told_twice_or_out_of_order_make_one_build() -> Result<()> {
    needs_guests!();
    let world = World::with(&[TINY], &quick_suite()).await?;
    world
        .github
        .add_hook(REPOSITORY, &world.master.webhook_url(), SECRET)
        .await?;
    world.github.set_delivery_mode(DeliveryMode::Hold);
    let (number, first) = world
        .propose("topic", |commit| commit.file("a", "1"))
        .await?;
    let second = world
        .github
        .commit(REPOSITORY, tests::git::Commit::on("topic").file("a", "2"))
        .await?;
    world
        .github
        .release_deliveries(ReleaseOrder::Reversed)
        .await;
    world.github.set_delivery_mode(DeliveryMode::Deliver);
    let status = world.settled(&second, AGGREGATE).await?;
    assert_eq!(status.state, StatusState::Success);
    for delivery in world.github.deliveries() {
        world.github.redeliver(&delivery.guid).await?;
    }
    let merge = world
        .github
        .merge_pull_request(REPOSITORY, number, MergeMethod::MergeCommit)
        .await?;
    // The merge was heard after all of the above, so that what those made is there by now.
    world.settled(&merge, AGGREGATE).await?;
    let builds = world.master.builds().await?;
    let count = |sha: &str| builds.iter().filter(|build| build.head_sha == sha).count();
    assert_eq!((count(&second), count(&merge)), (1, 1));
    assert!(count(&first) <= 1);
    world
        .github
        .status_history(REPOSITORY, &second, AGGREGATE)
        .assert_settled_once(StatusState::Success);
    world.end().await
}
