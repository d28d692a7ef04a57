//! Suites that hang: ended at their time, each told for what it was, and nothing of them is left.

use crate::{TINY, needs_guests};
use anyhow::Result;
use tests::find;
use tests::git::Commit;
use tests::github::StatusState;
use tests::machine::{Platforms, SshServer, processes_with};
use tests::repository::Suites;
use tests::world::{AGGREGATE, REPOSITORY, World, context, context_of};

#[tokio::test(flavor = "multi_thread")]
async fn each_timeout_ends_its_suite_and_says_which_it_was() -> Result<()> {
    needs_guests!();
    let talk = "echo started; while sleep 1; do echo still here; done";
    let suites = Suites::test_on(&[TINY])
        .step("quick", "true")
        .suite("step", &[TINY])
        .step_of("step", "endless", talk)
        .set_step("step", "timeout_secs", 4)
        .suite("job", &[TINY])
        .set("job", "timeout_secs", 5)
        .step_of("job", "endless", talk)
        .suite("silence", &[TINY])
        .set("silence", "no_output_timeout_secs", 3)
        .step_of("silence", "quiet", "echo last words; sleep 3600");
    let world = World::with(&[TINY], &suites).await?;
    let head = world.propose_any().await?;
    for (suite, reason, sentence) in [
        (
            "step",
            "step_timeout",
            "Step `endless` ran longer than its 4 s",
        ),
        ("job", "job_timeout", "The job ran longer than its 5 s"),
        (
            "silence",
            "no_output_timeout",
            "Step `quiet` printed nothing for 3 s",
        ),
    ] {
        let description = world
            .settled_as(&head, &context_of(suite, TINY), StatusState::Failure)
            .await?;
        assert!(description.starts_with(sentence), "{description}");
        let job = world.ended_job(&head, suite, TINY).await?;
        assert_eq!(job.conclusion.as_deref(), Some("timed_out"));
        assert_eq!(job.reason.as_deref(), Some(reason));
        assert_eq!(job.attempts.len(), 1, "theirs is not tried again");
        let log = world.log(&job).await?;
        let line = format!("==> timed_out: {sentence}");
        assert!(find(&log, line.as_bytes()).is_some(), "{log:?}");
    }
    // The neighbour did not notice.
    world
        .settled_as(&head, &context(TINY), StatusState::Success)
        .await?;
    world
        .settled_as(&head, AGGREGATE, StatusState::Failure)
        .await?;
    world.end().await
}

/// On a machine that outlives the job, so that what is left of it can be seen.
#[tokio::test(flavor = "multi_thread")]
async fn a_timeout_ends_every_process_of_the_step() -> Result<()> {
    let server = SshServer::start().await?;
    let platforms = Platforms::new()?;
    platforms.add_ssh("desk", &server)?;
    // As a number of seconds it is unlike any other on this machine.
    let long = format!("3600.{}", std::process::id());
    let hang = format!(
        "[ ! -e fine ] || exit 0\n\
         setsid sleep {long} &\n\
         nohup sh -c 'trap \"\" TERM HUP; while :; do sleep {long}; done' >/dev/null 2>&1 &\n\
         echo started\n\
         sleep {long}"
    );
    let suites = Suites::test_on(&["desk"])
        .step("hang", &hang)
        .set_step("test", "timeout_secs", 3);
    let world = World::with_platforms(platforms, &suites, |master, entry| {
        master.repository(entry).set("limits", "stop_grace_secs", 1)
    })
    .await?;
    let head = world.propose_any().await?;
    world
        .settled_as(&head, &context("desk"), StatusState::Failure)
        .await?;
    let job = world.ended_job(&head, "test", "desk").await?;
    assert_eq!(job.reason.as_deref(), Some("step_timeout"));
    assert!(find(&world.log(&job).await?, b"started\n").is_some());
    let left = processes_with(&format!("sleep {long}"));
    assert!(left.is_empty(), "{left:?}");

    let next = Commit::on("topic").file("fine", "");
    let next = world.github.commit(REPOSITORY, next).await?;
    world
        .settled_as(&next, AGGREGATE, StatusState::Success)
        .await?;
    Ok(())
}
