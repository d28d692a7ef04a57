//! A machine that is there already, reached by SSH: jobs without a guest.

use anyhow::Result;
use tests::find;
use tests::github::StatusState;
use tests::machine::{Platforms, SshServer};
use tests::repository::Suites;
use tests::world::{AGGREGATE, DEADLINE, World};

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_reached_by_ssh_runs_suites_like_a_guest() -> Result<()> {
    let server = SshServer::start().await?;
    let platforms = Platforms::new()?;
    platforms.add_ssh("desk", &server)?;
    let suites = Suites::test_on(&["desk"]).step("hello", "echo hello from $VIVARIUM_PLATFORM");
    let world =
        World::with_platforms(platforms, &suites, |master, entry| master.repository(entry)).await?;
    let (_, head) = world
        .propose("topic", |commit| commit.file("a", "1"))
        .await?;
    let status = world.settled(&head, AGGREGATE).await?;
    assert_eq!(status.state, StatusState::Success, "{}", server.output());
    let build = world
        .master
        .wait_for_finished_build(&head, DEADLINE)
        .await?;
    let log = world.master.log(build.jobs[0].number, 0).await?;
    assert!(find(&log, b"hello from desk\n").is_some());
    Ok(())
}
