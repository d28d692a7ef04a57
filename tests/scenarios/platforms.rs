//! Platforms that cannot serve: refused alone, with what a person needs to mend them.

use crate::{TINY, needs_guests};
use anyhow::{Context, Result};
use serde_json::json;
use tests::find;
use tests::github::StatusState;
use tests::machine::{Platforms, SshServer};
use tests::master::Master;
use tests::repository::Suites;
use tests::world::{AGGREGATE, DEADLINE, World, context};
use toml::Value;

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_platform_is_refused_alone_and_serves_once_it_is_mended() -> Result<()> {
    needs_guests!();
    let platforms = Platforms::new()?;
    platforms.add(TINY)?;
    platforms.add_changed(TINY, "misspelt", |platform| {
        platform.insert("boot_deadline_sec".to_owned(), 120.into());
    })?;
    platforms.add_changed(TINY, "imageless", |platform| {
        let kernel = platform.get_mut("kernel").and_then(Value::as_table_mut);
        if let Some(kernel) = kernel {
            kernel.insert("path".to_owned(), "gone".into());
        }
    })?;
    let file = platforms.folder().join("misspelt/platform.toml");
    let text = std::fs::read_to_string(&file)?;
    let line = 1 + text
        .lines()
        .position(|line| line.starts_with("boot_deadline_sec "))
        .context("the key is not there")?;
    let misspelt = format!(
        "platform.toml:{line}:1: unknown key `boot_deadline_sec`: did you mean `boot_deadline_secs`?"
    );
    let missing = platforms
        .folder()
        .join("imageless/gone")
        .display()
        .to_string();

    let suites = Suites::test_on(&[TINY, "misspelt", "imageless"])
        .step("hello", "echo hello from $VIVARIUM_PLATFORM");
    let world =
        World::with_platforms(platforms, &suites, |master, entry| master.repository(entry)).await?;
    let shown = world.master.platforms().await?;
    let ready: Vec<&str> = shown
        .ready
        .iter()
        .map(|ready| ready.name.as_str())
        .collect();
    assert_eq!(ready, [TINY]);
    let head = world.propose_any().await?;
    for (name, sentence) in [("misspelt", &misspelt), ("imageless", &missing)] {
        let refused = shown.refused.iter().find(|refused| refused.name == name);
        let refused = refused.with_context(|| format!("{name} is in service"))?;
        assert!(refused.why.contains(sentence), "{}", refused.why);
        let description = world
            .settled_as(&head, &context(name), StatusState::Error)
            .await?;
        assert!(description.contains(sentence), "{description}");
        let job = world.ended_job(&head, "test", name).await?;
        assert_eq!(job.reason.as_deref(), Some("platform_unavailable"));
        assert!(job.attempts.is_empty(), "no machine was tried");
    }
    world
        .settled_as(&head, &context(TINY), StatusState::Success)
        .await?;

    std::fs::write(
        &file,
        text.replace("boot_deadline_sec ", "boot_deadline_secs "),
    )?;
    world
        .master
        .wait_for("the mended platform", DEADLINE, async |master| {
            let ready = master.platforms().await?.ready;
            Ok(ready.into_iter().find(|ready| ready.name == "misspelt"))
        })
        .await?;
    let job = world.ended_job(&head, "test", "misspelt").await?;
    let (status, answer) = world
        .master
        .post(&format!("/api/jobs/{}/rerun", job.number), &json!({}))
        .await?;
    assert_eq!(status, 200, "{answer}");
    world
        .master
        .wait_for("the rerun's success", DEADLINE, async |master| {
            let job = master.job(job.number).await?;
            Ok(job.conclusion.filter(|conclusion| conclusion == "success"))
        })
        .await?;
    let log = world.log(&job).await?;
    assert!(
        find(&log, b"hello from misspelt\n").is_some(),
        "its steps ran"
    );
    world.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_platform_dropped_in_while_jobs_run_takes_its_first_job_and_a_removed_one_drains()
-> Result<()> {
    needs_guests!();
    let (desk, other) = (SshServer::start().await?, SshServer::start().await?);
    let go = desk.path("go");
    let platforms = Platforms::new()?;
    platforms.add_ssh("desk", &desk)?;
    let wait = format!(
        "echo begun; case $VIVARIUM_PLATFORM in desk*) while ! test -e '{}'; do sleep 0.1; done;; esac",
        go.display()
    );
    let suites = Suites::test_on(&["*"]).step("wait", &wait);
    let world =
        World::with_platforms(platforms, &suites, |master, entry| master.repository(entry)).await?;
    let first = world.propose_any().await?;
    let running = world.said(&first, "desk", "begun").await?;

    world.platforms.add_changed(TINY, "tiny-two", |_| {})?;
    world.platforms.add_ssh("desk-two", &other)?;
    let both = async |master: &Master| {
        let ready = master.platforms().await?.ready;
        Ok((ready.len() == 3).then_some(()))
    };
    world
        .master
        .wait_for("the new platforms", DEADLINE, both)
        .await?;
    let (_, second) = world
        .propose("second", |commit| commit.file("b", "1"))
        .await?;
    world
        .settled_as(&second, &context("tiny-two"), StatusState::Success)
        .await?;
    let taken = world.said(&second, "desk-two", "begun").await?;
    let (_, third) = world
        .propose("third", |commit| commit.file("c", "1"))
        .await?;
    let queued = world
        .master
        .wait_for_job(&third, "desk-two", DEADLINE)
        .await?;
    assert_eq!(queued.state, "queued", "one at a time");

    std::fs::remove_dir_all(world.platforms.folder().join("desk-two"))?;
    let description = world
        .settled_as(&third, &context("desk-two"), StatusState::Error)
        .await?;
    assert!(
        description.contains("platform `desk-two` is not there"),
        "{description}"
    );
    for job in [&running, &taken] {
        let now = world.master.job(job.number).await?;
        assert_eq!(now.state, "running", "{} was disturbed", now.platform);
        assert_eq!(now.attempts.len(), 1);
    }
    std::fs::write(go, "")?;
    for (head, name) in [
        (&first, "desk"),
        (&second, "desk-two"),
        (&second, "desk"),
        (&third, "desk"),
        (&third, "tiny-two"),
    ] {
        world
            .settled_as(head, &context(name), StatusState::Success)
            .await?;
    }
    world.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_known_issue_is_reported_and_does_not_fail_the_commit() -> Result<()> {
    needs_guests!();
    let platforms = Platforms::new()?;
    platforms.add(TINY)?;
    platforms.add_changed(TINY, "flawed", |platform| {
        platform.insert("known_issue".to_owned(), "its clock is wrong".into());
    })?;
    let suites =
        Suites::test_on(&[TINY, "flawed"]).step("check", "test $VIVARIUM_PLATFORM != flawed");
    let world =
        World::with_platforms(platforms, &suites, |master, entry| master.repository(entry)).await?;
    let head = world.propose_any().await?;
    let description = world
        .settled_as(&head, &context("flawed"), StatusState::Failure)
        .await?;
    assert!(
        description.starts_with("Known issue, blocks nobody. Step `check` exited with 1"),
        "{description}"
    );
    let description = world
        .settled_as(&head, AGGREGATE, StatusState::Success)
        .await?;
    assert!(
        description.ends_with("not passed, for known issues: flawed"),
        "{description}"
    );
    let build = world
        .master
        .wait_for_finished_build(&head, DEADLINE)
        .await?;
    assert_eq!(build.conclusion.as_deref(), Some("success"));
    world.end().await
}
