//! What GitHub's events did not say is found by looking, and what is found is built once.

use anyhow::Result;
use std::collections::BTreeMap;
use tests::git::Commit;
use tests::github::{
    DeliveryMode, Fault, FaultKind, MergeMethod, PullRequestSpec, ReleaseOrder, StatusState,
};
use tests::machine::{Platforms, SshServer};
use tests::master::{MasterBuilder, RepositoryEntry};
use tests::repository::Suites;
use tests::world::{AGGREGATE, DEADLINE, REPOSITORY, World, context};

const DESK: &str = "desk";

/// Runs on, when the tree has a file `wait`, until it is ended.
fn suite() -> Suites {
    Suites::test_on(&[DESK]).step(
        "maybe wait",
        "echo started; if [ -e wait ]; then sleep 3600; fi",
    )
}

/// A master that looks at GitHub every second and has a machine that needs no boot.
async fn world_with(
    settle: impl FnOnce(MasterBuilder, RepositoryEntry) -> MasterBuilder,
) -> Result<(World, SshServer)> {
    let server = SshServer::start().await?;
    let platforms = Platforms::new()?;
    platforms.add_ssh(DESK, &server)?;
    let world = World::with_platforms(platforms, &suite(), |master, entry| {
        settle(master.set("github", "reconcile_secs", 1), entry)
    })
    .await?;
    Ok((world, server))
}

async fn world() -> Result<(World, SshServer)> {
    world_with(|master, entry| master.repository(entry)).await
}

/// How many builds there are of each commit.
async fn builds_by_commit(world: &World) -> Result<BTreeMap<String, usize>> {
    let mut count = BTreeMap::new();
    for build in world.master.builds().await? {
        *count.entry(build.head_sha).or_default() += 1;
    }
    Ok(count)
}

/// The end of the next look that begins after this call.
pub(crate) async fn next_look(world: &World) -> Result<()> {
    let looks = |requests: Vec<tests::github::Request>| {
        requests
            .iter()
            .filter(|request| request.path.contains("gh-readonly-queue"))
            .count()
    };
    // One may be under way; the one after it begins later.
    let before = looks(world.github.requests());
    world
        .github
        .wait_until("two looks", DEADLINE, |github| {
            (looks(github.requests()) >= before + 3).then_some(())
        })
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happened_while_the_master_was_away_is_built_once_it_is_back() -> Result<()> {
    let (mut world, _server) = world().await?;
    world.settled(&world.main, AGGREGATE).await?;
    world.master.stop().await?;
    let (_, head) = world
        .propose("topic", |commit| commit.file("a", "1"))
        .await?;
    let pushed = world
        .github
        .commit(REPOSITORY, Commit::on("main").file("b", "2"))
        .await?;
    world.master.start().await?;
    for sha in [&head, &pushed] {
        for name in [AGGREGATE.to_owned(), context(DESK)] {
            world.settled(sha, &name).await?;
        }
    }
    // A delivery that comes after all means the same build.
    for delivery in world.github.deliveries() {
        world.github.redeliver(&delivery.guid).await?;
    }
    let (_, last) = world
        .propose("last", |commit| commit.file("c", "3"))
        .await?;
    world.settled(&last, AGGREGATE).await?;
    next_look(&world).await?;
    for (sha, count) in builds_by_commit(&world).await? {
        assert_eq!(count, 1, "{sha}");
    }
    for sha in [&world.main, &head, &pushed, &last] {
        world
            .github
            .status_history(REPOSITORY, sha, AGGREGATE)
            .assert_settled_once(StatusState::Success);
    }
    world.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_request_that_was_closed_or_went_on_unheard_ends_its_build() -> Result<()> {
    let (world, _server) = world().await?;
    world.settled(&world.main, AGGREGATE).await?;
    let (number, old) = world
        .propose("topic", |commit| commit.file("wait", ""))
        .await?;
    let job = world.master.wait_for_job(&old, DESK, DEADLINE).await?;
    world
        .master
        .wait_for_output(job.number, b"started\n", DEADLINE)
        .await?;
    world.github.set_delivery_mode(DeliveryMode::Drop);
    let new = world
        .github
        .commit(REPOSITORY, Commit::on("topic").file("more", "1"))
        .await?;
    let status = world.settled(&old, AGGREGATE).await?;
    assert_eq!(status.state, StatusState::Error);
    let said = status.description.unwrap_or_default();
    assert!(said.contains("Superseded"), "{said}");
    let job = world.master.wait_for_job(&new, DESK, DEADLINE).await?;
    world
        .master
        .wait_for_output(job.number, b"started\n", DEADLINE)
        .await?;
    world.github.close_pull_request(REPOSITORY, number).await?;
    let status = world.settled(&new, AGGREGATE).await?;
    assert_eq!(
        (status.state, status.description.as_deref()),
        (StatusState::Error, Some("The pull request was closed"))
    );
    // Opened again, and pushed back to the first commit, unheard as well.
    world.github.reopen_pull_request(REPOSITORY, number).await?;
    world
        .github
        .wait_for_status(
            REPOSITORY,
            &new,
            AGGREGATE,
            |status| status.state == StatusState::Pending,
            DEADLINE,
        )
        .await?;
    world.github.force_push(REPOSITORY, "topic", &old).await?;
    world
        .github
        .wait_for_status(
            REPOSITORY,
            &old,
            AGGREGATE,
            |status| status.state == StatusState::Pending,
            DEADLINE,
        )
        .await?;
    let superseded = world.settled(&new, AGGREGATE).await?;
    assert_eq!(superseded.state, StatusState::Error);
    let merge = world
        .github
        .merge_pull_request(REPOSITORY, number, MergeMethod::MergeCommit)
        .await?;
    let status = world.settled(&old, AGGREGATE).await?;
    assert_eq!(
        status.description.as_deref(),
        Some("The pull request was merged")
    );
    let build = world.master.wait_for_job(&merge, DESK, DEADLINE).await?;
    let (code, _) = world
        .master
        .post(
            &format!("/api/jobs/{}/cancel", build.number),
            &serde_json::json!({}),
        )
        .await?;
    assert_eq!(code / 100, 2);
    for (sha, count) in builds_by_commit(&world).await? {
        assert_eq!(count, 1, "{sha}");
    }
    world.end().await
}

/// The same by events: a head that was pushed back stayed "superseded" until somebody noticed.
#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_is_pushed_back_is_tested_again() -> Result<()> {
    let (world, _server) =
        world_with(|master, entry| master.set("github", "reconcile_secs", 0).repository(entry))
            .await?;
    let (_, first) = world
        .propose("topic", |commit| commit.file("wait", ""))
        .await?;
    world.master.wait_for_job(&first, DESK, DEADLINE).await?;
    // GitHub tells the times of changes in seconds.
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    let second = world
        .github
        .commit(REPOSITORY, Commit::on("topic").delete("wait"))
        .await?;
    world.settled(&first, AGGREGATE).await?;
    world.settled(&second, AGGREGATE).await?;
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    world.github.force_push(REPOSITORY, "topic", &first).await?;
    world
        .github
        .wait_for_status(
            REPOSITORY,
            &first,
            AGGREGATE,
            |status| status.state == StatusState::Pending,
            DEADLINE,
        )
        .await?;
    // Told late and once more, it changes nothing.
    for delivery in world.github.deliveries() {
        world.github.redeliver(&delivery.guid).await?;
    }
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    world
        .github
        .force_push(REPOSITORY, "topic", &second)
        .await?;
    let status = world.settled(&first, AGGREGATE).await?;
    assert_eq!(status.state, StatusState::Error);
    world.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_context_that_stays_pending_is_closed_and_a_strangers_is_not() -> Result<()> {
    let (world, _server) = world().await?;
    let (_, head) = world
        .propose("topic", |commit| commit.file("a", "1"))
        .await?;
    let done = world.settled(&head, AGGREGATE).await?;
    let page = world.master.url("/jobs/1");
    let pending = |context: &str, page: &str| {
        world
            .github
            .set_status(REPOSITORY, &head, context, StatusState::Pending, page);
    };
    // A request that seemed lost arrived after all; a platform is gone; another master is at work.
    pending(AGGREGATE, &page);
    pending("vivarium/test (gone)", &page);
    pending("vivarium/elsewhere", "https://ci.example.org/jobs/1");
    let again = world
        .github
        .wait_for_status(
            REPOSITORY,
            &head,
            AGGREGATE,
            |status| status.state.is_terminal() && status.id > done.id,
            DEADLINE,
        )
        .await?;
    assert_eq!(
        (again.state, again.description),
        (done.state, done.description)
    );
    let closed = world.settled(&head, "vivarium/test (gone)").await?;
    assert_eq!(closed.state, StatusState::Error);
    let said = closed.description.unwrap_or_default();
    assert!(said.contains("rerun"), "{said}");
    next_look(&world).await?;
    let other = world
        .github
        .status_history(REPOSITORY, &head, "vivarium/elsewhere");
    assert_eq!(other.states(), [StatusState::Pending]);
    // Each was told once.
    let history = world
        .github
        .status_history(REPOSITORY, &head, "vivarium/test (gone)");
    assert_eq!(history.states(), [StatusState::Pending, StatusState::Error]);
    world.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_merge_queue_gets_its_answer_heard_or_unheard() -> Result<()> {
    let (world, _server) = world().await?;
    let (heard, _) = world
        .propose("heard", |commit| commit.file("a", "1"))
        .await?;
    let group = world.github.enqueue(REPOSITORY, heard).await?;
    let status = world.settled(&group, AGGREGATE).await?;
    assert_eq!(status.state, StatusState::Success);
    world.github.merge_from_queue(REPOSITORY, heard).await?;
    // On its branch the same commit is built once more, to publish.
    world
        .master
        .wait_for("the build of the merge", DEADLINE, async |master| {
            let builds = master.builds().await?;
            let events: Vec<String> = builds
                .into_iter()
                .filter(|build| build.head_sha == group && build.state == "finished")
                .map(|build| build.event)
                .collect();
            Ok((events.len() == 2).then_some(()))
        })
        .await?;

    world.github.set_delivery_mode(DeliveryMode::Drop);
    let (unheard, _) = world
        .propose("unheard", |commit| commit.file("wait", ""))
        .await?;
    let group = world.github.enqueue(REPOSITORY, unheard).await?;
    world.master.wait_for_job(&group, DESK, DEADLINE).await?;
    world.github.dequeue(REPOSITORY, unheard).await?;
    let status = world.settled(&group, AGGREGATE).await?;
    assert_eq!(status.state, StatusState::Error);
    let said = status.description.unwrap_or_default();
    assert!(said.contains("merge queue"), "{said}");
    world.github.close_pull_request(REPOSITORY, unheard).await?;
    world.end().await
}

/// With no platform at all: what ends is the build itself.
#[tokio::test(flavor = "multi_thread")]
async fn long_lists_are_read_to_their_end_and_only_when_they_have_changed() -> Result<()> {
    const OPEN: i64 = 55;
    let suites = Suites::test_on(&["nowhere"]).step("never", "true");
    let mut world = World::with_platforms(Platforms::new()?, &suites, |master, entry| {
        master.set("github", "reconcile_secs", 1).repository(entry)
    })
    .await?;
    world.master.stop().await?;
    // Without a hook there is no log of what it missed either.
    world.github.remove_hook(world.hook);
    let (old, _) = world.propose("old", |commit| commit.file("o", "1")).await?;
    world.github.age_pull_request(REPOSITORY, old, 30);
    world.master.start().await?;
    let (_, head) = world
        .propose("topic", |commit| commit.file("a", "1"))
        .await?;
    for _ in 1..OPEN {
        world
            .github
            .open_pull_request(REPOSITORY, PullRequestSpec::from("topic"))
            .await?;
    }
    world
        .master
        .wait_for("a build of each", DEADLINE, async |master| {
            let builds = master.builds().await?;
            let finished = builds
                .iter()
                .filter(|build| build.head_sha == head && build.state == "finished");
            Ok((finished.count() == OPEN as usize).then_some(()))
        })
        .await?;
    // Nobody has touched it for a month: it was not missed.
    let builds = world.master.builds().await?;
    assert!(builds.iter().all(|build| build.pull_request != Some(old)));
    next_look(&world).await?;
    let requests = world.github.requests();
    let pages: Vec<_> = requests
        .iter()
        .filter(|request| request.path.contains("/pulls?"))
        .collect();
    assert!(pages.iter().any(|request| request.path.contains("page=2")));
    let [.., last] = pages.as_slice() else {
        panic!("no list was asked for");
    };
    assert_eq!(last.status, Some(304), "{last:?}");
    world.end().await
}

/// A master whose database is lost does not test all that is open once more.
#[tokio::test(flavor = "multi_thread")]
async fn what_github_shows_as_tested_is_not_tested_again_by_a_master_that_forgot() -> Result<()> {
    let (mut world, _server) = world().await?;
    let (_, head) = world
        .propose("topic", |commit| commit.file("a", "1"))
        .await?;
    world.settled(&head, AGGREGATE).await?;
    world.settled(&world.main, AGGREGATE).await?;
    world.master.stop().await?;
    for file in [
        "vivarium.sqlite",
        "vivarium.sqlite-wal",
        "vivarium.sqlite-shm",
    ] {
        std::fs::remove_file(world.master.data_dir().join(file)).ok();
    }
    let (_, missed) = world
        .propose("missed", |commit| commit.file("b", "1"))
        .await?;
    world.master.start().await?;
    world.settled(&missed, AGGREGATE).await?;
    next_look(&world).await?;
    let builds = builds_by_commit(&world).await?;
    assert_eq!(builds.keys().collect::<Vec<_>>(), [&missed]);
    world.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn looking_leaves_requests_for_the_statuses_and_outlives_a_github_that_is_away() -> Result<()>
{
    let (world, _server) = world().await?;
    world.settled(&world.main, AGGREGATE).await?;
    world.github.stop_listening().await;
    world
        .master
        .wait_for("a look that failed", DEADLINE, async |master| {
            Ok(master
                .output()
                .contains("GitHub could not be looked at")
                .then_some(()))
        })
        .await?;
    world.github.listen_again().await?;
    world
        .master
        .wait_for("a look that did not", DEADLINE, async |master| {
            Ok(master
                .output()
                .contains("GitHub can be looked at again")
                .then_some(()))
        })
        .await?;
    world.github.leave_requests(200);
    world
        .master
        .wait_for("restraint", DEADLINE, async |master| {
            Ok(master
                .output()
                .contains("is left to the statuses")
                .then_some(()))
        })
        .await?;
    let (_, head) = world
        .propose("topic", |commit| commit.file("a", "1"))
        .await?;
    let status = world.settled(&head, AGGREGATE).await?;
    assert_eq!(status.state, StatusState::Success);
    world.end().await
}

/// Faults of every kind while it looks, and deliveries late and in the wrong order: each commit is still built once.
#[tokio::test(flavor = "multi_thread")]
async fn looks_that_fail_and_events_that_are_late_make_one_build_all_the_same() -> Result<()> {
    let (world, _server) = world().await?;
    world.settled(&world.main, AGGREGATE).await?;
    world.github.set_delivery_mode(DeliveryMode::Hold);
    let kinds = [
        FaultKind::Answer(502),
        FaultKind::ResetBefore,
        FaultKind::ResetAfter,
        FaultKind::AnswerAfter(500),
        FaultKind::SecondaryLimit {
            status: 403,
            retry_after_secs: Some(1),
        },
        FaultKind::Unauthorized,
    ];
    for (kind, pattern) in kinds.into_iter().zip(
        [
            "/repos/*/*/pulls",
            "/repos/*/*/git/**",
            "/repos/*/*/commits/**",
        ]
        .into_iter()
        .cycle(),
    ) {
        world
            .github
            .inject(Fault::on("GET", pattern, kind).times(1));
    }
    let (_, head) = world
        .propose("topic", |commit| commit.file("a", "1"))
        .await?;
    let pushed = world
        .github
        .commit(REPOSITORY, Commit::on("main").file("b", "2"))
        .await?;
    world.settled(&head, AGGREGATE).await?;
    world.settled(&pushed, AGGREGATE).await?;
    world
        .github
        .release_deliveries(ReleaseOrder::Reversed)
        .await;
    next_look(&world).await?;
    for (sha, count) in builds_by_commit(&world).await? {
        assert_eq!(count, 1, "{sha}");
        world
            .github
            .status_history(REPOSITORY, &sha, AGGREGATE)
            .assert_settled_once(StatusState::Success);
    }
    world.end().await
}
