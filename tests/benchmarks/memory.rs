//! Memory of `vivarium serve`: idle, and after a thousand jobs that went the whole way.

use super::deliveries::world;
use super::table::{Figure, Table, Target};
use anyhow::{Context, Result, ensure};
use std::time::{Duration, Instant};
use tests::git::Commit;
use tests::machine::{Platforms, SshServer};
use tests::master::Master;
use tests::repository::Suites;
use tests::world::{REPOSITORY, World};

/// Machines that work side by side.
const DESKS: [&str; 4] = ["desk-1", "desk-2", "desk-3", "desk-4"];
const JOBS: usize = 1000;
/// What is still to be done after a start or a job has been done by then.
const IDLE: Duration = Duration::from_secs(10);
const DEADLINE: Duration = Duration::from_secs(3600);

/// In MiB.
struct Resident {
    all: f64,
    own: f64,
    peak: f64,
    threads: f64,
}

pub(crate) async fn measure(table: &mut Table) -> Result<()> {
    let jobs = match std::env::var("VIVARIUM_BENCH_JOBS") {
        Ok(text) => text.parse().context("VIVARIUM_BENCH_JOBS is no number")?,
        Err(_) => JOBS,
    };
    let mut servers = Vec::new();
    let platforms = Platforms::new()?;
    for desk in DESKS {
        let server = SshServer::start().await?;
        platforms.add_ssh(desk, &server)?;
        servers.push(server);
    }
    let suites = Suites::test_on(&DESKS).step("hello", "echo hello from $VIVARIUM_PLATFORM");
    let world = world(platforms, &suites).await?;
    tokio::time::sleep(IDLE).await;
    let idle = resident(&world.master)?;
    say("idle", &idle);
    table.add(
        "resident memory of `vivarium serve`, idle",
        Figure::one(idle.all, "MiB"),
        Target::Below(40.0),
    );

    let begun = Instant::now();
    let builds = jobs.div_ceil(DESKS.len());
    for number in 0..builds {
        let commit = Commit::on("main").file("number", number.to_string());
        world.github.commit(REPOSITORY, commit).await?;
    }
    let wanted = (builds * DESKS.len()) as f64;
    let finished = world.master.wait_for("all jobs", DEADLINE, async |master| {
        let finished = master.metric("vivarium_jobs_finished").await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        Ok((finished >= wanted).then_some(finished))
    });
    let finished = finished.await?;
    let took = begun.elapsed();
    ensure!(finished == wanted, "{finished} jobs finished, not {wanted}");
    ensure_all_passed(&world, finished).await?;
    println!(
        "  {finished} jobs in {:.0} s, four at a time",
        took.as_secs_f64()
    );
    table.add(
        &format!("jobs a second, {finished} of them, push to final status"),
        Figure::one(finished / took.as_secs_f64(), "/s"),
        Target::None,
    );
    tokio::time::sleep(IDLE).await;
    let after = resident(&world.master)?;
    say("after the jobs", &after);
    table.compare(
        &format!("resident memory after {finished} jobs"),
        Figure::one(after.all, "MiB"),
        "idle",
        Figure::one(idle.all, "MiB"),
        Target::None,
    );
    Ok(())
}

async fn ensure_all_passed(world: &World, finished: f64) -> Result<()> {
    let metrics = world.master.get_text("/metrics").await?;
    ensure!(
        metrics.contains(&format!(
            "vivarium_jobs_finished{{reason=\"passed\"}} {finished}\n"
        )),
        "not every job passed:\n{metrics}"
    );
    Ok(())
}

fn say(when: &str, memory: &Resident) {
    println!(
        "  {when}: {:.1} MiB resident, of them {:.1} its own (the rest is its program's file), {:.1} at most; {} threads",
        memory.all, memory.own, memory.peak, memory.threads
    );
}

fn resident(master: &Master) -> Result<Resident> {
    let id = master.process_id()?;
    let text = std::fs::read_to_string(format!("/proc/{id}/status"))?;
    let number = |name: &str| -> Result<f64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let line = line.with_context(|| format!("no {name} in the status of the process"))?;
        let number = line.trim_start_matches([':', '\t', ' ']).split(' ').next();
        Ok(number.unwrap_or_default().parse()?)
    };
    Ok(Resident {
        all: number("VmRSS")? / 1024.0,
        own: number("RssAnon")? / 1024.0,
        peak: number("VmHWM")? / 1024.0,
        threads: number("Threads")?,
    })
}
