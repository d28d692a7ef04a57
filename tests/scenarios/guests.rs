//! Guests that do not do what they should: our failure, tried again, visibly and not for ever.

use crate::{TINY, needs_guests};
use anyhow::{Context, Result};
use tests::find;
use tests::github::StatusState;
use tests::machine::{Marker, Platforms};
use tests::repository::Suites;
use tests::world::{AGGREGATE, DEADLINE, REPOSITORY, World, context, context_of};

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_never_boots_is_our_error_and_shows_its_console() -> Result<()> {
    needs_guests!();
    let platforms = Platforms::new()?;
    platforms.add_never_booting(TINY, "dead")?;
    let suites = Suites::test_on(&["dead"]).step("never", "true");
    let world = World::with_platforms(platforms, &suites, |master, entry| {
        master
            .repository(entry)
            .set("limits", "infrastructure_retries", 1)
            .set("hypervisor", "tcg_deadline_scale", 1)
    })
    .await?;
    let (_, head) = world
        .propose("topic", |commit| commit.file("a", "1"))
        .await?;
    let status = world.settled(&head, &context("dead")).await?;
    assert_eq!(status.state, StatusState::Error, "ours, not theirs");
    world.settled(&head, AGGREGATE).await?;
    world
        .github
        .status_history(REPOSITORY, &head, AGGREGATE)
        .assert_settled_once(StatusState::Error);

    let build = world
        .master
        .wait_for_finished_build(&head, DEADLINE)
        .await?;
    let job = world.master.job(build.jobs[0].number).await?;
    assert_eq!(job.reason.as_deref(), Some("boot_deadline"));
    assert_eq!(job.attempts.len(), 2, "tried again once, as configured");
    for attempt in &job.attempts {
        let console = attempt.console_tail.as_deref().context("no console")?;
        assert!(console.contains("Kernel panic"), "{console}");
    }
    world.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_machine_dies_is_tried_again_and_may_still_pass() -> Result<()> {
    needs_guests!();
    // Long enough that the machine is killed in the middle, whatever the machine that runs the test.
    let suites = Suites::test_on(&[TINY])
        .step("start", "echo started")
        .step("long", "sleep 20; echo survived");
    let world = World::with(&[TINY], &suites).await?;
    let (_, head) = world
        .propose("topic", |commit| commit.file("a", "1"))
        .await?;
    let job = world.master.wait_for_job(&head, TINY, DEADLINE).await?;
    world
        .master
        .wait_for_output(job.number, b"started\n", DEADLINE)
        .await?;
    assert_eq!(world.master.kill_machines()?, 1);

    for name in [AGGREGATE.to_owned(), context(TINY)] {
        world.settled(&head, &name).await?;
        world
            .github
            .status_history(REPOSITORY, &head, &name)
            .assert_settled_once(StatusState::Success);
    }
    let job = world.master.job(job.number).await?;
    assert_eq!(job.attempts.len(), 2);
    assert_eq!(job.attempts[0].reason.as_deref(), Some("guest_died"));
    assert_eq!(job.attempts[1].conclusion.as_deref(), Some("success"));
    world.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_exist_is_asked_for_in_vain_and_said_so() -> Result<()> {
    needs_guests!();
    let suites = Suites::test_on(&["plan-9"]).step("never", "true");
    let world = World::with(&[TINY], &suites).await?;
    let (_, head) = world
        .propose("topic", |commit| commit.file("a", "1"))
        .await?;
    let status = world.settled(&head, AGGREGATE).await?;
    assert_ne!(status.state, StatusState::Success);
    let description = status.description.unwrap_or_default();
    assert!(description.contains("plan-9"), "{description}");
    world.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_whose_ssh_server_is_missing_or_mute_is_our_error_and_makes_room() -> Result<()> {
    needs_guests!();
    let platforms = Platforms::new()?;
    platforms.add(TINY)?;
    let mute = "#!/bin/sh\necho 'Not backgrounding, and saying nothing' >/dev/console\n\
                exec nc -ll -p 22 -e sleep 3600\n";
    platforms.add_without_sshd(TINY, "mute", mute, Marker::Kept, 5)?;
    let missing = "#!/bin/sh\necho 'no SSH server here' >/dev/console\nexec sleep 3600\n";
    platforms.add_without_sshd(TINY, "missing", missing, Marker::Removed, 15)?;
    let suites = Suites::test_on(&["missing", "mute", TINY]).step("quick", "true");
    let world = World::with_platforms(platforms, &suites, |master, entry| {
        master
            .repository(entry)
            .set("limits", "infrastructure_retries", 0)
            .set("hypervisor", "tcg_deadline_scale", 1)
            // For two of the three guests: the good one waits until one of the others is gone.
            .set("hypervisor", "memory_mib", 2 * 384)
    })
    .await?;
    let head = world.propose_any().await?;
    for (name, reason) in [("mute", "connect_deadline"), ("missing", "boot_deadline")] {
        let description = world
            .settled_as(&head, &context(name), StatusState::Error)
            .await?;
        let sentence = format!("No result: {name} did not answer by SSH in ");
        assert!(description.starts_with(&sentence), "{description}");
        let job = world.ended_job(&head, "test", name).await?;
        assert_eq!(job.reason.as_deref(), Some(reason));
    }
    let mute = world.ended_job(&head, "test", "mute").await?;
    let console = mute.attempts[0].console_tail.as_deref();
    assert!(console.is_some_and(|tail| tail.contains("saying nothing")));
    let log = world.log(&mute).await?;
    assert!(find(&log, b"==> the last lines of the console:\n").is_some());
    world
        .settled_as(&head, &context(TINY), StatusState::Success)
        .await?;
    world.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kernel_that_panics_under_a_step_is_our_error_with_the_panic_in_the_record() -> Result<()>
{
    needs_guests!();
    let suites = Suites::test_on(&[TINY])
        .step("quick", "true")
        .suite("crash", &[TINY])
        .step_of(
            "crash",
            "panic",
            "sudo sh -c 'echo c >/proc/sysrq-trigger'; sleep 3600",
        );
    let world = World::with_platforms(tiny()?, &suites, |master, entry| {
        master
            .repository(entry)
            .set("limits", "infrastructure_retries", 1)
    })
    .await?;
    let head = world.propose_any().await?;
    let description = world
        .settled_as(&head, &context_of("crash", TINY), StatusState::Error)
        .await?;
    assert!(
        description.starts_with("No result: The VM "),
        "{description}"
    );
    assert!(description.contains("died"), "{description}");
    assert!(description.ends_with("(2 tries)"), "{description}");
    let job = world.ended_job(&head, "crash", TINY).await?;
    assert_eq!(job.attempts.len(), 2, "tried again once, as configured");
    for attempt in &job.attempts {
        assert_eq!(attempt.reason.as_deref(), Some("guest_died"));
        let console = attempt.console_tail.as_deref().context("no console")?;
        assert!(console.contains("Kernel panic"), "{console}");
    }
    world
        .settled_as(&head, &context(TINY), StatusState::Success)
        .await?;
    world.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_suite_does_to_its_guest_is_its_own_failure_and_said_so() -> Result<()> {
    needs_guests!();
    // In tiny-linux all is one file system: what the step fills is also what the agent keeps output in.
    let fill = "cat /dev/zero >fill";
    let suites = Suites::test_on(&[TINY])
        .step("quick", "true")
        .suite("fills", &[TINY])
        .step_of("fills", "fill", &format!("{fill} || seq 1 30000; exit 4"))
        // What the guest has not got is the suite's fault as well.
        .suite("shell", &[TINY])
        .set("shell", "shell", vec!["/no/such/shell", "-c"])
        .step_of("shell", "never", "true");
    let world = World::with(&[TINY], &suites).await?;
    let head = world.propose_any().await?;
    let description = world
        .settled_as(&head, &context_of("fills", TINY), StatusState::Failure)
        .await?;
    assert!(
        description.starts_with("Step `fill` exited with 4"),
        "{description}"
    );
    let job = world.ended_job(&head, "fills", TINY).await?;
    let log = world.log(&job).await?;
    assert!(find(&log, b"No space left on device").is_some());
    // More than any room that was left or kept aside: what has arrived makes room for what comes.
    let numbers: String = (1..=30_000).map(|number| format!("{number}\n")).collect();
    assert!(
        find(&log, numbers.as_bytes()).is_some(),
        "all of its output"
    );

    let description = world
        .settled_as(&head, &context_of("shell", TINY), StatusState::Failure)
        .await?;
    assert!(
        description.starts_with("Step `never` cannot be started: "),
        "{description}"
    );
    assert!(description.contains("/no/such/shell"), "{description}");
    let job = world.ended_job(&head, "shell", TINY).await?;
    assert_eq!(job.attempts.len(), 1, "no other machine has it either");
    world
        .settled_as(&head, &context(TINY), StatusState::Success)
        .await?;
    world.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_bomb_and_a_memory_hog_hurt_their_own_guest_alone() -> Result<()> {
    needs_guests!();
    let bomb =
        "ulimit -p 400 || ulimit -u 400\nbomb() { bomb | bomb & }\nbomb\necho lit\nsleep 3600";
    let suites = Suites::test_on(&[TINY])
        .step("quick", "true")
        .suite("bomb", &[TINY])
        .step_of("bomb", "fork", bomb)
        .set_step("bomb", "timeout_secs", 15)
        // All of the guest's memory, and more: tail keeps what has no line feed.
        .suite("hog", &[TINY])
        .step_of("hog", "hog", "tail /dev/zero || { echo ended; exit 4; }");
    let world = World::with_platforms(tiny()?, &suites, |master, entry| {
        master
            .repository(entry)
            .set("limits", "infrastructure_retries", 0)
            // For two of the three guests: one comes after the bomb or the hog.
            .set("hypervisor", "memory_mib", 2 * 384)
    })
    .await?;
    let head = world.propose_any().await?;
    let description = world
        .settled_as(&head, &context_of("hog", TINY), StatusState::Failure)
        .await?;
    assert!(
        description.starts_with("Step `hog` exited with 4"),
        "{description}"
    );
    let description = world
        .settled_as(&head, &context_of("bomb", TINY), StatusState::Failure)
        .await?;
    assert!(
        description.contains("longer than its 15 s"),
        "{description}"
    );
    world
        .settled_as(&head, &context(TINY), StatusState::Success)
        .await?;
    world.end().await
}

fn tiny() -> Result<Platforms> {
    let platforms = Platforms::new()?;
    platforms.add(TINY)?;
    Ok(platforms)
}
