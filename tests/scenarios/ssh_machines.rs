//! A machine that is there already, reached by SSH: jobs without a guest.

use anyhow::{Context, Result, bail};
use tests::git::Commit;
use tests::github::StatusState;
use tests::machine::{Platforms, Proxy, SshServer};
use tests::repository::Suites;
use tests::world::{AGGREGATE, DEADLINE, REPOSITORY, World};
use tests::{find, sha256};

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

#[tokio::test(flavor = "multi_thread")]
async fn with_the_agent_in_sh_a_suite_streams_outlives_a_cut_connection_and_leaves_its_artefacts()
-> Result<()> {
    const COUNT: &str = "for number in $(seq 1 200); do echo number $number; sleep 0.05; done";
    let server = SshServer::start().await?;
    let proxy = Proxy::start(server.port).await?;
    let platforms = Platforms::new()?;
    platforms.add_ssh_changed("desk", &server, proxy.port, |platform| {
        platform.insert("agent".to_owned(), "sh".into());
    })?;
    let build_step =
        "mkdir -p dist; head -c 3000000 /dev/urandom >'dist/a program'; sha256sum dist/*";
    let suites =
        Suites::test_on(&["desk"])
            .step("count", COUNT)
            .artifacts("build", build_step, &["dist/*"]);
    let world =
        World::with_platforms(platforms, &suites, |master, entry| master.repository(entry)).await?;
    let commit = Commit::on("main").file("a", "1");
    let head = world.github.commit(REPOSITORY, commit).await?;
    let job = world.said(&head, "desk", "number 10").await?;
    proxy.cut();
    world.said(&head, "desk", "number 150").await?;
    world
        .settled_as(&head, AGGREGATE, StatusState::Success)
        .await?;
    let pushed: Vec<_> = std::fs::read_dir(server.path("state"))?
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<_>>()?;
    let agent = pushed.iter().find(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("agent-")
    });
    let agent = std::fs::read(agent.context("no agent was pushed")?)?;
    assert!(agent.starts_with(b"#!/bin/sh\n"));

    let job = world.ended_job(&head, &job.suite, "desk").await?;
    assert_eq!(job.attempts.len(), 1, "{:?}", job.attempts);
    let log = world.log(&job).await?;
    let numbers: String = (1..=200)
        .map(|number| format!("number {number}\n"))
        .collect();
    assert!(find(&log, numbers.as_bytes()).is_some(), "each byte once");
    let [artifact] = job.artifacts.as_slice() else {
        bail!("one artefact was built: {:?}", job.artifacts);
    };
    let content = world.master.get_bytes(&artifact.url).await?;
    assert_eq!(sha256(&content), artifact.sha256);
    let line = format!("{}  dist/a program", artifact.sha256);
    assert!(
        find(&log, line.as_bytes()).is_some(),
        "the machine's own sum"
    );
    world.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unix_that_no_agent_is_built_for_gets_the_one_in_sh_and_its_log_says_so() -> Result<()> {
    let server = SshServer::start().await?;
    let platforms = Platforms::new()?;
    platforms.add_ssh_changed("rare", &server, server.port, |platform| {
        platform.insert("os".to_owned(), "dragonfly".into());
        platform.insert("arch".to_owned(), "aarch64".into());
    })?;
    let suites = Suites::test_on(&["rare"]).step("hello", "echo hello");
    let world =
        World::with_platforms(platforms, &suites, |master, entry| master.repository(entry)).await?;
    let (_, head) = world
        .propose("topic", |commit| commit.file("a", "1"))
        .await?;
    world
        .settled_as(&head, AGGREGATE, StatusState::Success)
        .await?;
    let job = world.ended_job(&head, "test", "rare").await?;
    let log = String::from_utf8(world.log(&job).await?.to_vec())?;
    let line = "==> no agent is built for dragonfly/aarch64: the one in sh is used\n";
    assert_eq!(log.matches(line).count(), 1, "{log}");
    assert!(log.contains("\nhello\n"), "{log}");
    world.end().await
}
