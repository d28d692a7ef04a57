//! Events that come out of order: of two, the one that GitHub dates later counts.

use anyhow::Result;
use std::time::Duration;
use tests::github::{DeliveryMode, ReleaseOrder, StatusState};
use tests::machine::{Platforms, SshServer};
use tests::repository::Suites;
use tests::world::{AGGREGATE, DEADLINE, REPOSITORY, World};

const DESK: &str = "desk";
/// GitHub dates changes in seconds.
const NEXT_SECOND: Duration = Duration::from_millis(1100);

/// A machine that needs no boot; the suite runs on until the file `go` is there, when the tree has a file `wait`.
async fn world(go: &std::path::Path) -> Result<(World, SshServer)> {
    let server = SshServer::start().await?;
    let platforms = Platforms::new()?;
    platforms.add_ssh(DESK, &server)?;
    let wait = format!(
        "echo started; while [ -e wait ] && [ ! -e '{}' ]; do sleep 0.1; done",
        go.display()
    );
    let suites = Suites::test_on(&[DESK]).step("maybe wait", &wait);
    let world =
        World::with_platforms(platforms, &suites, |master, entry| master.repository(entry)).await?;
    Ok((world, server))
}

/// A late `closed` cancelled the build of a pull request that was open again, and nothing took it up.
#[tokio::test(flavor = "multi_thread")]
async fn a_closing_that_is_heard_after_the_reopening_does_not_count() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let go = folder.path().join("go");
    let (world, _server) = world(&go).await?;
    let (number, head) = world
        .propose("topic", |commit| commit.file("wait", ""))
        .await?;
    world.said(&head, DESK, "started").await?;
    world.github.set_delivery_mode(DeliveryMode::Hold);
    tokio::time::sleep(NEXT_SECOND).await;
    world.github.close_pull_request(REPOSITORY, number).await?;
    tokio::time::sleep(NEXT_SECOND).await;
    world.github.reopen_pull_request(REPOSITORY, number).await?;
    world.github.set_delivery_mode(DeliveryMode::Deliver);
    world
        .github
        .release_deliveries(ReleaseOrder::Reversed)
        .await;
    world
        .master
        .wait_until_deliveries_are_acted_upon(DEADLINE)
        .await?;
    std::fs::write(&go, "")?;
    world.settled(&head, AGGREGATE).await?;
    world
        .github
        .status_history(REPOSITORY, &head, AGGREGATE)
        .assert_settled_once(StatusState::Success);
    world.end().await
}

/// A late `opened` or `synchronize` was built although nobody wanted it any more.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_heard_after_the_closing_and_was_before_it_is_not_built() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let go = folder.path().join("go");
    let (world, _server) = world(&go).await?;
    world.github.set_delivery_mode(DeliveryMode::Hold);
    let (number, head) = world
        .propose("topic", |commit| commit.file("wait", ""))
        .await?;
    tokio::time::sleep(NEXT_SECOND).await;
    world.github.close_pull_request(REPOSITORY, number).await?;
    world.github.set_delivery_mode(DeliveryMode::Deliver);
    world
        .github
        .release_deliveries(ReleaseOrder::Reversed)
        .await;
    world
        .master
        .wait_until_deliveries_are_acted_upon(DEADLINE)
        .await?;
    let builds = world.master.builds().await?;
    assert!(
        builds.iter().all(|build| build.head_sha != head),
        "{builds:?}"
    );
    // Opened again, it is.
    std::fs::write(&go, "")?;
    tokio::time::sleep(NEXT_SECOND).await;
    world.github.reopen_pull_request(REPOSITORY, number).await?;
    let status = world.settled(&head, AGGREGATE).await?;
    assert_eq!(status.state, StatusState::Success);
    world.end().await
}

/// Closed and opened at once, as people do to have it tested once more: the machine is still being stopped when it is
/// wanted again, and the build ended as cancelled.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_opened_again_while_it_is_being_cancelled_is_tested() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let go = folder.path().join("go");
    let (world, _server) = world(&go).await?;
    let (number, head) = world
        .propose("topic", |commit| commit.file("wait", ""))
        .await?;
    world.said(&head, DESK, "started").await?;
    world.github.close_pull_request(REPOSITORY, number).await?;
    world.github.reopen_pull_request(REPOSITORY, number).await?;
    world
        .master
        .wait_until_deliveries_are_acted_upon(DEADLINE)
        .await?;
    std::fs::write(&go, "")?;
    let is_good = |status: &tests::github::Status| status.state == StatusState::Success;
    world
        .github
        .wait_for_status(REPOSITORY, &head, AGGREGATE, is_good, DEADLINE)
        .await?;
    world.end().await
}
