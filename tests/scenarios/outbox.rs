//! GitHub is slow, away, full or unwilling: what it is told in the end is right, in order, and told once. No platform is
//! needed: a build that asks for one that is not there ends at once, and that is what GitHub must hear of.

use anyhow::Result;
use serde_json::Value;
use tests::github::{Fault, FaultKind, Status, StatusState};
use tests::machine::Platforms;
use tests::master::{MasterBuilder, RepositoryEntry};
use tests::repository::Suites;
use tests::world::{AGGREGATE, DEADLINE, REPOSITORY, World};

/// Every build ends at once, as a failure of the repository's file.
async fn world_with(
    settle: impl FnOnce(MasterBuilder, RepositoryEntry) -> MasterBuilder,
) -> Result<World> {
    let suites = Suites::test_on(&["nowhere"]).step("never", "true");
    World::with_platforms(Platforms::new()?, &suites, settle).await
}

async fn world() -> Result<World> {
    world_with(|master, entry| {
        master
            .set("github", "limit_pause_secs", 1)
            .repository(entry)
    })
    .await
}

/// How often a status of the commit was sent, whatever the answer.
fn posts(world: &World, sha: &str) -> usize {
    let path = format!("/repos/{REPOSITORY}/statuses/{sha}");
    let requests = world.github.requests();
    requests
        .iter()
        .filter(|request| request.method == "POST" && request.path == path)
        .count()
}

async fn ended(world: &World, sha: &str) -> Result<Status> {
    let status = world.settled(sha, AGGREGATE).await?;
    assert_eq!(status.state, StatusState::Failure);
    Ok(status)
}

async fn nothing_unsent(world: &World) -> Result<()> {
    world
        .master
        .wait_for("an empty outbox", DEADLINE, async |master| {
            let unsent = master.metric("vivarium_statuses_unsent").await?;
            Ok((unsent == 0.0).then_some(()))
        })
        .await
}

/// What `/api/github` says.
async fn standing(world: &World) -> Result<Value> {
    world.master.get("/api/github").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_was_carried_out_without_an_answer_is_not_repeated() -> Result<()> {
    let world = world().await?;
    for (number, kind) in [
        FaultKind::ResetAfter,
        FaultKind::AnswerAfter(500),
        FaultKind::AnswerAfter(504),
    ]
    .into_iter()
    .enumerate()
    {
        let fault = world.github.inject(Fault::on_status_post(kind));
        let name = format!("topic-{number}");
        let (_, head) = world
            .propose(&name, |commit| commit.file("a", name.as_str()))
            .await?;
        ended(&world, &head).await?;
        // GitHub shows it; the master finds that out by asking.
        nothing_unsent(&world).await?;
        assert!(world.github.fault_hits(fault) > 0);
        world.github.clear_faults();
        world
            .github
            .status_history(REPOSITORY, &head, AGGREGATE)
            .assert_settled_once(StatusState::Failure);
    }
    world.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_outages_and_late_commits_are_waited_out_in_order() -> Result<()> {
    let world = world().await?;
    let kinds = [
        FaultKind::CommitNotVisible,
        FaultKind::SecondaryLimit {
            status: 403,
            retry_after_secs: None,
        },
        FaultKind::SecondaryLimit {
            status: 429,
            retry_after_secs: Some(1),
        },
        FaultKind::PrimaryLimit { reset_secs: 1 },
        FaultKind::Answer(502),
        FaultKind::ResetBefore,
    ];
    let faults: Vec<i64> = kinds
        .into_iter()
        .map(|kind| world.github.inject(Fault::on_status_post(kind).times(2)))
        .collect();
    let (_, head) = world
        .propose("topic", |commit| commit.file("a", "1"))
        .await?;
    ended(&world, &head).await?;
    for fault in faults {
        assert_eq!(world.github.fault_hits(fault), 2);
    }
    // Whatever was pending meanwhile was overtaken, and is not told after the end.
    let history = world.github.status_history(REPOSITORY, &head, AGGREGATE);
    history.assert_ends(StatusState::Failure);
    let ends = history
        .states()
        .iter()
        .filter(|state| state.is_terminal())
        .count();
    assert_eq!(ends, 1, "{history}");
    world.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_is_shown_with_its_age_while_github_is_away() -> Result<()> {
    let mut world = world().await?;
    let outage = Fault::on("*", "/repos/*/*/statuses/*", FaultKind::Answer(503));
    world.github.inject(outage);
    let (_, head) = world
        .propose("topic", |commit| commit.file("a", "1"))
        .await?;
    world
        .master
        .wait_for_finished_build(&head, DEADLINE)
        .await?;
    let trouble = world
        .master
        .wait_for("the trouble", DEADLINE, async |_| {
            Ok(standing(&world).await?["trouble"]
                .as_str()
                .map(str::to_owned))
        })
        .await?;
    assert!(trouble.contains("503"), "{trouble}");
    assert_eq!(world.master.metric("vivarium_statuses_unsent").await?, 1.0);
    assert!(standing(&world).await?["oldest_unsent_at"].is_string());
    let doctor = world.master.doctor().await?;
    assert!(
        doctor.contains("GitHub was not told of 1 status yet"),
        "{doctor}"
    );
    // Over a restart, too.
    world.master.kill()?;
    world.master.start().await?;
    world.github.clear_faults();
    ended(&world, &head).await?;
    nothing_unsent(&world).await?;
    let doctor = world.master.doctor().await?;
    assert!(
        doctor.contains("nothing waits to be told to GitHub"),
        "{doctor}"
    );
    world.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_ended_is_told_of_and_its_successor_is_taken_up_at_once() -> Result<()> {
    let world = world().await?;
    world.github.revoke_token(&world.token);
    let (_, head) = world
        .propose("topic", |commit| commit.file("a", "1"))
        .await?;
    world
        .master
        .wait_for("the complaint", DEADLINE, async |master| {
            Ok(master
                .output()
                .contains("GitHub does not accept the token")
                .then_some(()))
        })
        .await?;
    let new = world.github.issue_token("vivarium-bot", &[REPOSITORY]);
    world.master.replace_github_token(&new)?;
    ended(&world, &head).await?;
    let output = world.master.output();
    assert!(output.contains("GitHub's credentials were replaced"));
    world.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_github_refuses_for_good_is_recorded_and_shown_and_not_sent_for_ever() -> Result<()> {
    let world =
        world_with(|master, entry| master.set("github", "reconcile_secs", 1).repository(entry))
            .await?;
    ended(&world, &world.main).await?;
    // GitHub's thousand, in small: the pending fits, what follows does not.
    world.github.set_status_limit(1);
    let (_, head) = world
        .propose("topic", |commit| commit.file("a", "1"))
        .await?;
    let refused = world
        .master
        .wait_for("the refusal", DEADLINE, async |_| {
            let refused = standing(&world).await?["refused_statuses"][0].clone();
            Ok(refused.is_object().then_some(refused))
        })
        .await?;
    let said = "maximum number of statuses";
    assert_eq!(refused["sha"], head);
    assert!(
        refused["refused"]
            .as_str()
            .unwrap_or_default()
            .contains(said),
        "{refused}"
    );
    assert_eq!(world.master.metric("vivarium_statuses_refused").await?, 1.0);
    let build = world
        .master
        .wait_for_finished_build(&head, DEADLINE)
        .await?;
    let page = world
        .master
        .get_text(&format!("/builds/{}", build.number))
        .await?;
    assert!(
        page.contains("GitHub does not show") && page.contains(said),
        "{page}"
    );
    let answer: Value = world
        .master
        .get(&format!("/api/builds/{}", build.number))
        .await?;
    assert_eq!(answer["statuses"][0]["sent"], false, "{answer}");
    let doctor = world.master.doctor().await?;
    assert!(doctor.contains(said), "{doctor}");
    // Looks go on, and do not send it again: it would be refused for ever.
    let before = posts(&world, &head);
    crate::reconciliation::next_look(&world).await?;
    assert_eq!(posts(&world, &head), before);
    world.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_refused_for_want_of_rights_is_sent_once_they_are_given() -> Result<()> {
    let world =
        world_with(|master, entry| master.set("github", "reconcile_secs", 1).repository(entry))
            .await?;
    ended(&world, &world.main).await?;
    world.github.let_write(&world.token, false);
    let (_, head) = world
        .propose("topic", |commit| commit.file("a", "1"))
        .await?;
    world
        .master
        .wait_for("the refusal", DEADLINE, async |master| {
            let refused = master.metric("vivarium_statuses_refused").await?;
            Ok((refused > 0.0).then_some(()))
        })
        .await?;
    world
        .master
        .wait_for_finished_build(&head, DEADLINE)
        .await?;
    world.github.let_write(&world.token, true);
    ended(&world, &head).await?;
    let history = world.github.status_history(REPOSITORY, &head, AGGREGATE);
    assert_eq!(history.states(), [StatusState::Failure]);
    world.end().await
}
