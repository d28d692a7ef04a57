//! Machines whose agent is not ours: what they say hurts their own job alone.

use anyhow::{Context, Result};
use std::time::Duration;
use tests::find;
use tests::git::Commit;
use tests::github::StatusState;
use tests::machine::{Platforms, SshServer};
use tests::repository::Suites;
use tests::world::{REPOSITORY, World, context, context_of};

const PROGRAM: &str = env!("CARGO_BIN_EXE_hostile-agent");
/// A machine with our own agent, among the others.
const HONEST: &str = "honest";

/// Memory that a master may take for all of it beyond what it had, in KiB: docs/security.md has the reckoning.
const MOST_GROWTH_KIB: u64 = 192 << 10;

/// A world with an honest machine, and one for each conduct of the hostile agent, named for it.
struct Village {
    world: World,
    /// Held for as long as they are needed.
    servers: Vec<SshServer>,
}

impl Village {
    async fn of(conducts: &[&str], suites: Suites, log_mib: i64) -> Result<Village> {
        let platforms = Platforms::new()?;
        let mut servers = vec![SshServer::start().await?];
        platforms.add_ssh(HONEST, &servers[0])?;
        for conduct in conducts {
            let server = SshServer::that_runs(&format!("{PROGRAM} {conduct}")).await?;
            platforms.add_ssh(&conduct.replace(' ', "-"), &server)?;
            servers.push(server);
        }
        let world = World::with_platforms(platforms, &suites, |master, entry| {
            master
                .repository(entry)
                .set("limits", "infrastructure_retries", 1)
                .set("limits", "stop_grace_secs", 1)
                .set("limits", "log_mib", log_mib)
        })
        .await?;
        Ok(Village { world, servers })
    }

    async fn end(self) -> Result<()> {
        self.world.end().await?;
        drop(self.servers);
        Ok(())
    }
}

fn platforms(conducts: &[&str]) -> Vec<String> {
    let names = conducts.iter().map(|conduct| conduct.replace(' ', "-"));
    names.chain([HONEST.to_owned()]).collect()
}

/// One suite `test` on all of them, whose only step prints a line.
fn suites(conducts: &[&str]) -> Suites {
    let names = platforms(conducts);
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    Suites::test_on(&names).step("hello", "echo hello")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_lies_ends_its_own_job_and_no_other() -> Result<()> {
    const LIARS: [&str; 5] = ["long-frame", "noise", "gap", "early", "babble"];
    let conducts = [&LIARS[..], &["trickle", "obliging"]].concat();
    let suites = suites(&conducts)
        .set_step("test", "timeout_secs", 10)
        .suite("report", &["bomb"])
        .step_of("report", "hello", "echo hello")
        .set("report", "reports", vec!["report.xml"])
        .suite("mute", &["mute"])
        .step_of("mute", "never", "echo hello")
        .set("mute", "timeout_secs", 10);
    let conducts = [&conducts[..], &["bomb", "mute"]].concat();
    let village = Village::of(&conducts, suites, 200).await?;
    let world = &village.world;
    let before = world.master.resident_kib()?;
    let head = world.propose_any().await?;
    for liar in LIARS {
        let description = world
            .settled_as(&head, &context(liar), StatusState::Error)
            .await?;
        assert!(
            description.contains("does not speak the protocol"),
            "{liar}: {description}"
        );
        let job = world.ended_job(&head, "test", liar).await?;
        assert_eq!(job.reason.as_deref(), Some("agent_lost"), "{liar}");
        assert_eq!(
            job.attempts.len(),
            2,
            "{liar}: tried again once, as configured"
        );
    }
    // It lives, as far as its connection can tell; its time ends all the same.
    let description = world
        .settled_as(&head, &context("trickle"), StatusState::Failure)
        .await?;
    assert!(
        description.contains("longer than its 10 s"),
        "{description}"
    );
    // Nor does it help to be busy with the source for ever.
    let description = world
        .settled_as(&head, &context_of("mute", "mute"), StatusState::Error)
        .await?;
    assert!(
        description.contains("not taken the source in 10 s"),
        "{description}"
    );
    // A machine decides its own outcome.
    for platform in ["obliging", HONEST] {
        world
            .settled_as(&head, &context(platform), StatusState::Success)
            .await?;
    }
    let job = world.ended_job(&head, "test", HONEST).await?;
    assert!(find(&world.log(&job).await?, b"\nhello\n").is_some());
    let job = world.ended_job(&head, "report", "bomb").await?;
    assert_eq!(job.conclusion.as_deref(), Some("success"));
    let log = String::from_utf8_lossy(&world.log(&job).await?).into_owned();
    assert!(log.len() < 10_000, "{} bytes", log.len());
    let peak = world.master.peak_kib()?;
    assert!(
        peak < before + MOST_GROWTH_KIB,
        "{before} KiB before, {peak} KiB at most"
    );
    // Nor does its own log fill the disk.
    let said = world.master.output().len();
    assert!(said < 1 << 20, "the master wrote {said} bytes about it");
    village.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_a_liar_are_bounded_in_number_size_and_name() -> Result<()> {
    // A hundred gigabytes, a million files.
    let conducts = [
        "many 1000000",
        "large 100000000000",
        "large 100",
        "named 0",
        "named 1",
        "named 2",
        "named 3",
        "named 4",
        "named 5",
    ];
    // Of the honest machine: too much of all, and what must not be followed.
    let build = "mkdir dist && cd dist && truncate -s 100G sparse && ln -s /etc/passwd link && mkfifo pipe\n\
                 seq 1 1200 | xargs touch && echo x >'con.txt' && echo good >0-first";
    let suites = suites(&conducts).artifacts("build", build, &["dist/*"]);
    let village = Village::of(&conducts, suites, 200).await?;
    let world = &village.world;
    let before = world.master.resident_kib()?;
    let commit = Commit::on("main").file("a", "1");
    let head = world.github.commit(REPOSITORY, commit).await?;
    for liar in [
        "many-1000000",
        "large-100000000000",
        "named-0",
        "named-1",
        "named-2",
    ] {
        let description = world
            .settled_as(&head, &context(liar), StatusState::Error)
            .await?;
        assert!(
            description.contains("does not speak the protocol"),
            "{liar}: {description}"
        );
    }
    // One that sends another size than it says is lost, too; names that a system could not keep are left out.
    world
        .settled_as(&head, &context("large-100"), StatusState::Error)
        .await?;
    for number in 3..6 {
        let name = format!("named-{number}");
        world
            .settled_as(&head, &context(&name), StatusState::Success)
            .await?;
        let job = world.ended_job(&head, "test", &name).await?;
        let kept: Vec<&str> = job
            .artifacts
            .iter()
            .map(|artifact| artifact.path.as_str())
            .collect();
        assert_eq!(kept, ["dist/good"], "{name}");
    }
    world
        .settled_as(&head, &context(HONEST), StatusState::Success)
        .await?;
    let job = world.ended_job(&head, "test", HONEST).await?;
    assert_eq!(job.artifacts.len(), 1000, "as many as are allowed");
    assert!(
        job.artifacts
            .iter()
            .any(|artifact| artifact.path == "dist/0-first")
    );
    let log = String::from_utf8_lossy(&world.log(&job).await?).into_owned();
    for left_out in [
        "==> artefact dist/link was left out: it is a symbolic link",
        "==> artefact dist/pipe was left out: it is no regular file",
        "==> artefact dist/sparse was left out: over the limit of",
        "==> artefact dist/con.txt",
    ] {
        assert!(log.contains(left_out), "{left_out}: {log}");
    }
    assert!(!std::path::Path::new("/tmp/vivarium-escape").exists());
    let peak = world.master.peak_kib()?;
    assert!(
        peak < before + MOST_GROWTH_KIB,
        "{before} KiB before, {peak} KiB at most"
    );
    village.end().await
}

/// As much as a machine can print while CI waits, or `VIVARIUM_FLOOD_MIB` of it; none of it has a line feed.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_beyond_the_cap_costs_neither_memory_nor_disk() -> Result<()> {
    const CAP_MIB: u64 = 16;
    let mib = std::env::var("VIVARIUM_FLOOD_MIB").unwrap_or_default();
    let bytes: u64 = mib.parse().unwrap_or(256) << 20;
    let conduct = format!("flood {bytes}");
    let conducts = [conduct.as_str()];
    let suites = suites(&conducts).set_step("test", "timeout_secs", 3600);
    let village = Village::of(&conducts, suites, CAP_MIB as i64).await?;
    let world = &village.world;
    let before = world.master.resident_kib()?;
    let began = std::time::Instant::now();
    let head = world.propose_any().await?;
    world
        .settled_as(&head, &context(HONEST), StatusState::Success)
        .await?;
    let name = conduct.replace(' ', "-");
    let build = world
        .master
        .wait_for_finished_build(&head, Duration::from_secs(3600))
        .await?;
    let job = build
        .jobs
        .iter()
        .find(|job| job.platform == name)
        .context("no job")?;
    assert_eq!(
        job.conclusion.as_deref(),
        Some("success"),
        "{:?}",
        job.message
    );
    let rate = (bytes >> 20) as f64 / began.elapsed().as_secs_f64();
    let length = world.master.log_length(job.number).await?;
    assert!(length > bytes, "{length} bytes are counted");
    let kept = world.log(job).await?;
    assert!(
        kept.len() as u64 <= (CAP_MIB << 20) + 4096,
        "{} bytes are kept",
        kept.len()
    );
    assert!(find(&kept, b"\n[vivarium: ").is_some());
    let page = world
        .master
        .get_text(&format!("/jobs/{}", job.number))
        .await?;
    assert!(page.len() < 1 << 20, "the page has {} bytes", page.len());
    let peak = world.master.peak_kib()?;
    println!(
        "{} MiB at {rate:.0} MiB/s; resident: {before} KiB before, {peak} KiB at most",
        bytes >> 20
    );
    assert!(
        peak < before + MOST_GROWTH_KIB,
        "{before} KiB before, {peak} KiB at most"
    );
    village.end().await
}
