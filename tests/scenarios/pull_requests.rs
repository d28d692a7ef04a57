//! From a pull request to the statuses on its head.

use crate::{DEBIAN, TINY, needs_guests};
use anyhow::Result;
use tests::find;
use tests::git::Commit;
use tests::github::{PullRequestSpec, StatusState, Verdict};
use tests::machine::Platforms;
use tests::repository::{FILE, Suites};
use tests::world::{AGGREGATE, DEADLINE, REPOSITORY, World, context};

#[tokio::test(flavor = "multi_thread")]
async fn a_good_pull_request_becomes_green_on_both_platforms() -> Result<()> {
    needs_guests!();
    let suites = Suites::test_on(&[TINY, DEBIAN])
        .step("hello", "echo hello from $VIVARIUM_PLATFORM")
        .step("merged", "cat README.md feature.txt");
    let world = World::with(&[TINY, DEBIAN], &suites).await?;
    let (number, head) = world
        .propose("feature", |commit| commit.file("feature.txt", "new\n"))
        .await?;
    let verdict = world
        .github
        .is_mergeable(REPOSITORY, number, &[AGGREGATE])
        .await?;
    assert_ne!(verdict, Verdict::Mergeable, "nothing has run yet");

    for name in [AGGREGATE.to_owned(), context(TINY), context(DEBIAN)] {
        world.settled(&head, &name).await?;
        let history = world.github.status_history(REPOSITORY, &head, &name);
        history.assert_settled_once(StatusState::Success);
        let url = history.last().and_then(|status| status.target_url.clone());
        assert!(url.is_some_and(|url| url.starts_with(&world.master.url("/"))));
    }
    assert_eq!(world.github.contexts_of(REPOSITORY, &head).len(), 3);
    let verdict = world
        .github
        .is_mergeable(REPOSITORY, number, &[AGGREGATE])
        .await?;
    assert_eq!(verdict, Verdict::Mergeable);

    let build = world
        .master
        .wait_for_finished_build(&head, DEADLINE)
        .await?;
    assert_eq!(build.pull_request, Some(number));
    assert_eq!(build.base_sha.as_deref(), Some(world.main.as_str()));
    for job in &build.jobs {
        let log = world.master.log(job.number, 0).await?;
        let greeting = format!("hello from {}\n", job.platform);
        assert!(find(&log, greeting.as_bytes()).is_some());
        // The merge of head into base is tested: both files are there.
        assert!(find(&log, b"A widget\nnew\n").is_some());
    }
    world.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_suite_is_red_and_says_which_step() -> Result<()> {
    needs_guests!();
    let suites = Suites::test_on(&[TINY])
        .step("fine", "true")
        .step("broken", "echo about to fail; exit 3")
        .step("never", "echo must not run");
    let world = World::with(&[TINY], &suites).await?;
    let (number, head) = world.propose("bad", |commit| commit.file("a", "1")).await?;
    for name in [AGGREGATE.to_owned(), context(TINY)] {
        world.settled(&head, &name).await?;
        let history = world.github.status_history(REPOSITORY, &head, &name);
        history.assert_settled_once(StatusState::Failure);
    }
    let status = world.settled(&head, &context(TINY)).await?;
    let description = status.description.unwrap_or_default();
    assert!(description.contains("broken"), "{description}");
    assert!(description.contains('3'), "{description}");

    let build = world
        .master
        .wait_for_finished_build(&head, DEADLINE)
        .await?;
    let job = world.master.job(build.jobs[0].number).await?;
    assert_eq!(job.attempts.len(), 1, "their failure is not tried again");
    let log = world.master.log(job.number, 0).await?;
    assert!(find(&log, b"about to fail\n").is_some());
    assert!(find(&log, b"must not run\n").is_none());
    let verdict = world
        .github
        .is_mergeable(REPOSITORY, number, &[AGGREGATE])
        .await?;
    let blocked = vec![(AGGREGATE.to_owned(), Some(StatusState::Failure))];
    assert_eq!(verdict, Verdict::Blocked(blocked));
    world.end().await
}

/// Stays in its step until it is ended, when the tree has a file `wait`.
fn patient_suite() -> Suites {
    Suites::test_on(&[TINY]).step(
        "maybe wait",
        "echo started; if [ -e wait ]; then sleep 3600; fi",
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_commit_cancels_the_build_of_the_older_one() -> Result<()> {
    needs_guests!();
    let world = World::with(&[TINY], &patient_suite()).await?;
    let (_, old) = world
        .propose("topic", |commit| commit.file("wait", ""))
        .await?;
    let job = world.master.wait_for_job(&old, TINY, DEADLINE).await?;
    world
        .master
        .wait_for_output(job.number, b"started\n", DEADLINE)
        .await?;

    let new = world
        .github
        .commit(REPOSITORY, Commit::on("topic").delete("wait"))
        .await?;
    world.settled(&new, AGGREGATE).await?;
    world
        .github
        .status_history(REPOSITORY, &new, AGGREGATE)
        .assert_settled_once(StatusState::Success);
    for name in [AGGREGATE.to_owned(), context(TINY)] {
        let status = world.settled(&old, &name).await?;
        let description = status.description.unwrap_or_default();
        assert!(description.contains(&new[..7]), "{description}");
        world
            .github
            .status_history(REPOSITORY, &old, &name)
            .assert_settled_once(StatusState::Error);
    }
    let build = world.master.wait_for_finished_build(&old, DEADLINE).await?;
    assert_eq!(build.conclusion.as_deref(), Some("cancelled"));
    world.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn where_commits_queue_each_one_is_tested() -> Result<()> {
    needs_guests!();
    let platforms = Platforms::new()?;
    platforms.add_changed(TINY, TINY, |platform| {
        platform.insert("limit".to_owned(), 1.into());
    })?;
    let suites = Suites::test_on(&[TINY]).step("read", "cat number");
    let world = World::with_platforms(platforms, &suites, |master, entry| {
        master.repository(entry.set("on_new_commit", "queue"))
    })
    .await?;
    let (_, first) = world
        .propose("topic", |commit| commit.file("number", "1\n"))
        .await?;
    let mut heads = vec![first];
    for number in ["2\n", "3\n"] {
        let commit = Commit::on("topic").file("number", number);
        heads.push(world.github.commit(REPOSITORY, commit).await?);
    }
    for (head, number) in heads.iter().zip(["1\n", "2\n", "3\n"]) {
        world.settled(head, AGGREGATE).await?;
        world
            .github
            .status_history(REPOSITORY, head, AGGREGATE)
            .assert_settled_once(StatusState::Success);
        let build = world.master.wait_for_finished_build(head, DEADLINE).await?;
        let log = world.master.log(build.jobs[0].number, 0).await?;
        assert!(find(&log, number.as_bytes()).is_some());
    }
    world.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_pull_request_ends_its_machines() -> Result<()> {
    needs_guests!();
    let world = World::with(&[TINY], &patient_suite()).await?;
    let (number, head) = world
        .propose("topic", |commit| commit.file("wait", ""))
        .await?;
    let job = world.master.wait_for_job(&head, TINY, DEADLINE).await?;
    world
        .master
        .wait_for_output(job.number, b"started\n", DEADLINE)
        .await?;
    world.github.close_pull_request(REPOSITORY, number).await?;
    world.settled(&head, AGGREGATE).await?;
    world
        .github
        .status_history(REPOSITORY, &head, AGGREGATE)
        .assert_settled_once(StatusState::Error);
    world.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_is_tested_like_any_other() -> Result<()> {
    needs_guests!();
    let suites = Suites::test_on(&[TINY]).step("read", "cat theirs");
    let world = World::with(&[TINY], &suites).await?;
    let fork = world.github.fork(REPOSITORY, "stranger").await?;
    let commit = Commit::on("topic").from("main").file("theirs", "theirs\n");
    let head = world.github.commit(&fork, commit).await?;
    let spec = PullRequestSpec::from("topic")
        .of_fork(&fork)
        .author("stranger");
    world.github.open_pull_request(REPOSITORY, spec).await?;
    let status = world.settled(&head, AGGREGATE).await?;
    assert_eq!(status.state, StatusState::Success);
    world.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_merge_conflict_is_their_failure_and_names_the_files() -> Result<()> {
    needs_guests!();
    let suites = Suites::test_on(&[TINY]).step("never", "true");
    let world = World::with(&[TINY], &suites).await?;
    // The base moves after the branch was made, so the branch begins at the first commit.
    let ours = Commit::on("main").file("README.md", "A better widget\n");
    world.github.commit(REPOSITORY, ours).await?;
    let main = world.main.clone();
    let (_, head) = world
        .propose("topic", |commit| {
            commit.from(&main).file("README.md", "A worse widget\n")
        })
        .await?;
    let status = world.settled(&head, AGGREGATE).await?;
    assert_eq!(status.state, StatusState::Failure);
    let description = status.description.unwrap_or_default();
    assert!(description.contains("README.md"), "{description}");
    let build = world
        .master
        .wait_for_finished_build(&head, DEADLINE)
        .await?;
    assert_eq!(build.reason.as_deref(), Some("merge_conflict"));
    assert!(build.jobs.is_empty());
    world.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_repository_file_is_red_with_its_line() -> Result<()> {
    needs_guests!();
    let suites = Suites::test_on(&[TINY]).step("never", "true");
    let world = World::with(&[TINY], &suites).await?;
    let broken = "[suite.test]\nplatforms = ['tiny-linux']\ntimeuot_secs = 5\n\
                  [[suite.test.step]]\nrun = 'true'\n";
    let (_, head) = world
        .propose("topic", |commit| commit.file(FILE, broken))
        .await?;
    let status = world.settled(&head, AGGREGATE).await?;
    assert_eq!(status.state, StatusState::Failure);
    let description = status.description.unwrap_or_default();
    assert!(description.contains(":3"), "{description}");
    assert!(description.contains("timeuot_secs"), "{description}");
    world.end().await
}
