//! Events that GitHub could not deliver are fetched from its log: of a repository's hook, or of an App's.

use anyhow::Result;
use serde_json::Value;
use std::time::Duration;
use tests::git::Commit;
use tests::github::{App, GitHub, PullRequestSpec, StatusState};
use tests::machine::{Platforms, SshServer};
use tests::master::{Master, RepositoryEntry};
use tests::repository::{FILE, Suites};
use tests::world::{AGGREGATE, DEADLINE, REPOSITORY, SECRET, World};

const DESK: &str = "desk";

fn suite() -> Suites {
    Suites::test_on(&[DESK]).step("quick", "true")
}

/// Pushes so many commits, one at a time; their SHAs.
async fn push_one_by_one(github: &GitHub, branch: &str, count: usize) -> Result<Vec<String>> {
    let mut shas = Vec::new();
    for number in 0..count {
        let commit = Commit::on(branch).file("count", number.to_string());
        shas.push(github.commit(REPOSITORY, commit).await?);
        // GitHub tells the times of changes in seconds.
        tokio::time::sleep(Duration::from_millis(1100)).await;
    }
    Ok(shas)
}

async fn settled(github: &GitHub, sha: &str) -> Result<()> {
    github
        .wait_for_terminal_status(REPOSITORY, sha, AGGREGATE, DEADLINE)
        .await?;
    github
        .status_history(REPOSITORY, sha, AGGREGATE)
        .assert_settled_once(StatusState::Success);
    Ok(())
}

/// Each of the commits has one build, also after everything is delivered once more.
async fn assert_built_once(github: &GitHub, master: &Master, shas: &[String]) -> Result<()> {
    for delivery in github.deliveries() {
        github.redeliver(&delivery.guid).await?;
    }
    let builds = master.builds().await?;
    for sha in shas {
        let count = builds.iter().filter(|build| build.head_sha == *sha).count();
        assert_eq!(count, 1, "{sha}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_commit_that_was_missed_is_built_where_the_hooks_log_may_be_read() -> Result<()> {
    let server = SshServer::start().await?;
    let platforms = Platforms::new()?;
    platforms.add_ssh(DESK, &server)?;
    let mut world = World::with_platforms(platforms, &suite(), |master, entry| {
        master
            .set("github", "reconcile_secs", 1)
            .repository(entry.set("on_new_commit", "queue"))
    })
    .await?;
    let (_, first) = world
        .propose("topic", |commit| commit.file("count", "first"))
        .await?;
    settled(&world.github, &first).await?;
    world.master.stop().await?;
    // Comparing would find the last one alone.
    let missed = push_one_by_one(&world.github, "topic", 3).await?;
    world.master.start().await?;
    for sha in &missed {
        settled(&world.github, sha).await?;
    }
    let standing: Value = world.master.get("/api/github").await?;
    // A push and a change of the pull request for each.
    assert_eq!(standing["fetched_deliveries"], 6, "{standing}");
    assert_built_once(&world.github, &world.master, &missed).await?;
    world.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_may_not_see_hooks_is_enough_to_find_what_is_there_now() -> Result<()> {
    let suites = Suites::test_on(&["nowhere"]).step("never", "true");
    let mut world = World::with_platforms(Platforms::new()?, &suites, |master, entry| {
        master.set("github", "reconcile_secs", 1).repository(entry)
    })
    .await?;
    let modest = world
        .github
        .issue_modest_token("vivarium-bot", &[REPOSITORY]);
    world.master.replace_github_token(&modest)?;
    world.master.stop().await?;
    let (_, head) = world
        .propose("topic", |commit| commit.file("a", "1"))
        .await?;
    world.master.start().await?;
    world.settled(&head, AGGREGATE).await?;
    let output = world.master.output();
    assert!(output.contains("webhooks cannot be seen"), "{output}");
    world.end().await
}

/// A master that is an App, for a private repository that nobody else may fetch.
async fn app_world(platforms: &Platforms) -> Result<(GitHub, App, Master)> {
    let github = GitHub::start().await?;
    github
        .create_repository(REPOSITORY, &[(FILE, &suite().to_toml())])
        .await?;
    github.set_private(REPOSITORY, true);
    let app = github.create_app("vivarium", &[REPOSITORY])?;
    let entry = RepositoryEntry::on_github(&github, REPOSITORY).set("on_new_commit", "queue");
    let master = Master::builder()
        .platforms(platforms.folder())
        .github_app(&github, &app)
        .webhook_secret(SECRET)
        .set("github", "reconcile_secs", 1)
        .repository(entry)
        .start()
        .await?;
    github
        .add_app_hook(&app, &master.webhook_url(), SECRET)
        .await?;
    Ok((github, app, master))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_fetches_what_it_missed_and_reports_with_tokens_that_end() -> Result<()> {
    let server = SshServer::start().await?;
    let platforms = Platforms::new()?;
    platforms.add_ssh(DESK, &server)?;
    let (github, app, mut master) = app_world(&platforms).await?;
    let commit = Commit::on("topic").from("main").file("count", "first");
    let first = github.commit(REPOSITORY, commit).await?;
    github
        .open_pull_request(REPOSITORY, PullRequestSpec::from("topic"))
        .await?;
    settled(&github, &first).await?;
    let creators: Vec<String> = github
        .statuses_of(REPOSITORY, &first)
        .into_iter()
        .map(|status| status.creator)
        .collect();
    assert!(
        creators.iter().all(|login| login == "vivarium[bot]"),
        "{creators:?}"
    );

    // The token of the first hour ends under the running master.
    github.expire_installation_tokens();
    let second = push_one_by_one(&github, "topic", 1).await?;
    settled(&github, &second[0]).await?;

    master.kill()?;
    let missed = push_one_by_one(&github, "topic", 3).await?;
    master.start().await?;
    for sha in &missed {
        settled(&github, sha).await?;
    }
    let standing: Value = master.get("/api/github").await?;
    // A push and a change of the pull request for each.
    assert_eq!(standing["fetched_deliveries"], 6, "{standing}");
    assert_built_once(&github, &master, &missed).await?;
    let doctor = master.doctor().await?;
    assert!(doctor.contains("knows the App vivarium"), "{doctor}");
    let output = master.output();
    let key = app.private_key.lines().nth(1).unwrap_or_default();
    assert!(!output.contains("ghs_") && !output.contains(key));
    master.wait_until_nothing_is_left(DEADLINE).await?;
    master.stop().await?;
    Ok(())
}
