//! The master dies at a chosen moment, as by `kill -9`, and is started again: the job goes on from there. It has one
//! attempt, its suite ran once, its log is that of an undisturbed run byte for byte, GitHub was told once.

use crate::{TINY, needs_guests};
use anyhow::{Context, Result, ensure};
use tests::git::Commit;
use tests::github::StatusState;
use tests::machine::{Platforms, SshServer};
use tests::master::JobView;
use tests::repository::{FILE, Suites};
use tests::sha256;
use tests::world::{AGGREGATE, DEADLINE, REPOSITORY, World, context};

/// The numbers that the suite prints.
const NUMBERS: usize = 2000;
/// More than the source's pieces: 256 KiB each.
const BALLAST: usize = 1_500_000;
/// Where the suite's artefacts come from.
const BUILD: &str = "mkdir dist; seq 1 30000 >dist/large; echo small >dist/small";

/// Between hearing of a commit and having told its outcome, in this order.
const MOMENTS: [(&str, u32); 30] = [
    ("delivery_stored", 1),
    ("build_opened", 1),
    ("delivery_acted_upon", 1),
    ("pending_posted", 1),
    ("build_prepared", 1),
    ("job_placed", 1),
    ("connecting", 1),
    ("agent_greeted", 1),
    ("sending_source", 1),
    ("source_piece_sent", 3),
    ("running", 1),
    ("step_begun", 1),
    ("step_followed", 1),
    ("output_stored", 2),
    ("step_exited", 1),
    ("step_begun", 2),
    ("step_exited", 2),
    ("collecting", 1),
    ("artifact_received", 1),
    ("artifacts_received", 1),
    ("ending_decided", 1),
    ("machine_left", 1),
    ("closing_written", 1),
    ("attempt_concluded", 1),
    ("artifact_stored", 1),
    ("manifest_written", 1),
    ("log_uploaded", 1),
    ("log_recorded", 1),
    ("machine_destroyed", 1),
    ("outcome_posted", 1),
];

/// A suite that notes each of its runs, prints a known sequence in several portions, and leaves files behind.
fn suites(platform: &str, runs: &str) -> Suites {
    let count = format!(
        "{runs}\nfor part in 0 1 2 3; do\nseq $((part * {portion} + 1)) $((part * {portion} + {portion}))\nsleep 0.3\ndone",
        portion = NUMBERS / 4
    );
    Suites::test_on(&[platform])
        .step("count", &count)
        .artifacts("build", BUILD, &["dist/*"])
}

fn sequence() -> String {
    (1..=NUMBERS).map(|number| format!("{number}\n")).collect()
}

/// Pushes to `main`; the new head.
async fn push(world: &World, suites: &Suites, moment: &str) -> Result<String> {
    let commit = Commit::on("main")
        .message(&format!("The master dies: {moment}"))
        .file(FILE, suites.to_toml())
        .file("ballast", "x".repeat(BALLAST))
        .file("moment", moment);
    world.github.commit(REPOSITORY, commit).await
}

/// Lets the master die at the moment, starts it again, and judges what became of the commit.
async fn survive(
    world: &mut World,
    platform: &str,
    suites: &Suites,
    (moment, times): (&str, u32),
) -> Result<JobView> {
    world.master.kill()?;
    world.master.dies_at(moment, times);
    world.master.start().await?;
    let head = push(world, suites, &format!("{moment} {times}")).await?;
    world.master.wait_for_death(DEADLINE).await?;
    world.master.start().await?;
    for name in [AGGREGATE.to_owned(), context(platform)] {
        world.settled(&head, &name).await?;
    }
    world
        .master
        .wait_for("the end of all work", DEADLINE, async |master| {
            let unsent = master.metric("vivarium_statuses_unsent").await?;
            let attempts = master.metric("vivarium_attempts").await?;
            Ok((unsent + attempts == 0.0).then_some(()))
        })
        .await?;
    for name in [AGGREGATE.to_owned(), context(platform)] {
        world
            .github
            .status_history(REPOSITORY, &head, &name)
            .assert_settled_once(StatusState::Success);
    }
    let builds = world.master.builds().await?;
    let of_commit = builds.iter().filter(|build| build.head_sha == head);
    ensure!(of_commit.count() == 1, "more than one build");

    let job = world.master.wait_for_job(&head, platform, DEADLINE).await?;
    let job = world.master.job(job.number).await?;
    ensure!(job.attempts.len() == 1, "another attempt: {job:?}");
    let expected = format!(
        "==> {} on {platform}, attempt 1: commit {}\n==> step 1 of 2: count\n{}==> step 2 of 2: build\n\
         ==> 2 artefacts stored\n==> success: Passed\n",
        job.attempts[0].vm,
        &head[..12],
        sequence(),
    );
    let log = world.master.log(job.number, 0).await?;
    ensure!(
        log == expected.as_bytes(),
        "the log differs from an undisturbed one:\n{}",
        String::from_utf8_lossy(&log)
    );
    let large: String = (1..=30000).map(|number| format!("{number}\n")).collect();
    ensure!(job.artifacts.len() == 2, "{:?}", job.artifacts);
    for (artifact, content) in job.artifacts.iter().zip([large.as_str(), "small\n"]) {
        ensure!(artifact.sha256 == sha256(content.as_bytes()));
        ensure!(world.master.get_bytes(&artifact.url).await? == content.as_bytes());
    }
    world.master.wait_until_nothing_is_left(DEADLINE).await?;
    Ok(job)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_dies_at_any_moment_goes_on_from_there() -> Result<()> {
    let server = SshServer::start().await?;
    let platforms = Platforms::new()?;
    platforms.add_ssh("desk", &server)?;
    let nothing = Suites::test_on(&["desk"]).step("nothing", "true");
    let mut world = World::with_platforms(platforms, &nothing, |master, entry| {
        master.repository(entry)
    })
    .await?;
    for moment in MOMENTS {
        let runs = server.path(&format!("runs-{}-{}", moment.0, moment.1));
        let note = format!("echo run >>'{}'", runs.display());
        survive(&mut world, "desk", &suites("desk", &note), moment)
            .await
            .with_context(|| format!("the master died when this had happened: {moment:?}"))?;
        let runs = std::fs::read_to_string(runs)?;
        ensure!(runs == "run\n", "{moment:?}: the suite ran again: {runs:?}");
        let work: Vec<_> = std::fs::read_dir(server.path("work"))?.flatten().collect();
        ensure!(work.is_empty(), "{moment:?}: left behind: {work:?}");
    }
    world.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_dies_over_a_machine_finds_it_again() -> Result<()> {
    needs_guests!();
    let nothing = Suites::test_on(&[TINY]).step("nothing", "true");
    let mut world = World::with(&[TINY], &nothing).await?;
    for moment in [
        ("overlay_made", 1),
        ("domain_started", 1),
        ("booting", 1),
        ("source_piece_sent", 3),
        ("output_stored", 2),
        ("machine_destroyed", 1),
    ] {
        survive(&mut world, TINY, &suites(TINY, "true"), moment)
            .await
            .with_context(|| format!("the master died when this had happened: {moment:?}"))?;
    }
    world.end().await
}

/// Killed by us, a step dies of a signal: that it took too long must be known before.
#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_was_being_stopped_is_known_to_have_taken_too_long() -> Result<()> {
    let server = SshServer::start().await?;
    let platforms = Platforms::new()?;
    platforms.add_ssh("desk", &server)?;
    let suites = Suites::test_on(&["desk"])
        .set("test", "timeout_secs", 3)
        .step("hang", "echo begun; sleep 1000");
    let mut world =
        World::with_platforms(platforms, &suites, |master, entry| master.repository(entry)).await?;
    for (number, moment) in ["step_stopped", "step_exited", "ending_decided"]
        .into_iter()
        .enumerate()
    {
        world.master.kill()?;
        world.master.dies_at(moment, 1);
        world.master.start().await?;
        let commit = Commit::on("main").file("number", number.to_string());
        let head = world.github.commit(REPOSITORY, commit).await?;
        world.master.wait_for_death(DEADLINE).await?;
        world.master.start().await?;
        world.settled(&head, AGGREGATE).await?;
        let job = world.master.wait_for_job(&head, "desk", DEADLINE).await?;
        let job = world.master.job(job.number).await?;
        ensure!(
            job.reason.as_deref() == Some("job_timeout") && job.attempts.len() == 1,
            "{moment}: {job:?}"
        );
        let log = world.master.log(job.number, 0).await?;
        let end = b"==> step 1 of 1: hang\nbegun\n==> timed_out: The job ran longer than its 3 s, at last in step `hang`\n";
        ensure!(
            log.ends_with(end),
            "{moment}: {}",
            String::from_utf8_lossy(&log)
        );
    }
    world.end().await
}
