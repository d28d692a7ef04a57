//! Between the master and a machine anything may break: the suite goes on, and its log is that of an undisturbed run.

use crate::{TINY, needs_guests};
use anyhow::{Context, Result, ensure};
use std::time::Duration;
use tests::find;
use tests::github::StatusState;
use tests::machine::{Libvirt, Platforms, Proxy, SshServer, domains_of, qemu_processes_of, virsh};
use tests::master::JobView;
use tests::repository::Suites;
use tests::world::{AGGREGATE, DEADLINE, REPOSITORY, World, context};

/// With this heartbeat a dead connection is noticed within six seconds.
const HEARTBEAT_SECS: i64 = 2;

/// Prints a known sequence, slowly enough that things happen in the middle of it.
fn counting(platform: &str, last: u32) -> Suites {
    let count = format!(
        "for number in $(seq 1 {last}); do echo number $number of a known sequence; sleep 0.05; done"
    );
    Suites::test_on(&[platform]).step("count", &count)
}

fn sequence(last: u32) -> String {
    (1..=last)
        .map(|number| format!("number {number} of a known sequence\n"))
        .collect()
}

/// A world whose only machine is at the other end of a wire.
async fn wired(server: &SshServer, suites: &Suites) -> Result<(World, Proxy)> {
    let proxy = Proxy::start(server.port).await?;
    let platforms = Platforms::new()?;
    platforms.add_ssh_at("desk", server, proxy.port)?;
    let world = World::with_platforms(platforms, suites, |master, entry| {
        master
            .repository(entry)
            .set("limits", "heartbeat_secs", HEARTBEAT_SECS)
    })
    .await?;
    Ok((world, proxy))
}

/// A guest of this world, with its job running.
async fn begin(world: &World, platform: &str) -> Result<(String, JobView)> {
    let (_, head) = world
        .propose("topic", |commit| commit.file("a", "1"))
        .await?;
    let job = world.master.wait_for_job(&head, platform, DEADLINE).await?;
    wait_for_number(world, &job, 1).await?;
    Ok((head, job))
}

async fn wait_for_number(world: &World, job: &JobView, number: u32) -> Result<()> {
    let line = format!("number {number} of a known sequence\n");
    let wait = world
        .master
        .wait_for_output(job.number, line.as_bytes(), DEADLINE);
    wait.await
}

/// The last number that has arrived.
async fn last_number(world: &World, job: &JobView) -> Result<u32> {
    let log = world.master.log(job.number, 0).await?;
    let text = String::from_utf8_lossy(&log);
    let last = text.lines().rev().find_map(|line| {
        let rest = line.strip_prefix("number ")?;
        rest.split(' ').next()?.parse().ok()
    });
    Ok(last.unwrap_or_default())
}

/// The job has passed, in so many attempts, and nothing of its output was lost or doubled.
async fn has_passed(
    world: &World,
    head: &str,
    job: &JobView,
    attempts: usize,
    last: u32,
) -> Result<JobView> {
    for name in [AGGREGATE.to_owned(), context(&job.platform)] {
        world.settled(head, &name).await?;
        world
            .github
            .status_history(REPOSITORY, head, &name)
            .assert_settled_once(StatusState::Success);
    }
    let job = world.master.job(job.number).await?;
    ensure!(job.attempts.len() == attempts, "{:?}", job.attempts);
    let log = world.master.log(job.number, 0).await?;
    let expected = format!(
        "==> step 1 of 1: count\n{}==> success: Passed\n",
        sequence(last)
    );
    ensure!(
        find(&log, expected.as_bytes()).is_some(),
        "{}",
        String::from_utf8_lossy(&log)
    );
    Ok(job)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wire_that_breaks_in_every_way_costs_no_byte_and_no_attempt() -> Result<()> {
    const LAST: u32 = 1000;
    let server = SshServer::start().await?;
    let (world, proxy) = wired(&server, &counting("desk", LAST)).await?;
    let (head, job) = begin(&world, "desk").await?;
    for what in ["cut", "reset", "half open", "frozen", "slow"] {
        let (number, before) = (last_number(&world, &job).await?, proxy.connections());
        match what {
            "cut" => proxy.cut(),
            "reset" => proxy.reset(),
            "half open" => proxy.half_open(),
            "frozen" => proxy.freeze(),
            _ => proxy.slow(Duration::from_millis(300)),
        }
        if what == "frozen" {
            // Given up by the heartbeat; the next connection hears nothing either, until the wire is well again.
            let again = async |_: &_| Ok((proxy.connections() > before).then_some(()));
            world
                .master
                .wait_for("a new connection", DEADLINE, again)
                .await?;
            proxy.thaw();
        }
        wait_for_number(&world, &job, number + 20)
            .await
            .with_context(|| format!("after the wire was {what}"))?;
        proxy.thaw();
    }
    has_passed(&world, &head, &job, 1, LAST).await?;
    world.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wire_that_breaks_while_files_travel_costs_no_attempt() -> Result<()> {
    let server = SshServer::start().await?;
    let suites = Suites::test_on(&["desk"])
        .step("test", "cksum <ballast")
        .artifacts("build", "cp ballast kept", &["kept"]);
    let (world, proxy) = wired(&server, &suites).await?;
    let ballast: Vec<u8> = (0..6_000_000_u32).map(|n| (n % 251) as u8).collect();
    let commit = tests::git::Commit::on("main").file("ballast", ballast.clone());
    // The pieces pass slowly, so that the cuts meet them on their way: into the guest, and out of it.
    proxy.slow(Duration::from_millis(40));
    let head = world.github.commit(REPOSITORY, commit).await?;
    let job = world.master.wait_for_job(&head, "desk", DEADLINE).await?;
    for phase in ["sending_source", "collecting"] {
        let reached = async |master: &tests::master::Master| {
            let job = master.job(job.number).await?;
            Ok((job.phase.as_deref() == Some(phase)).then_some(()))
        };
        world.master.wait_for(phase, DEADLINE, reached).await?;
        tokio::time::sleep(Duration::from_millis(500)).await;
        proxy.reset();
    }
    proxy.thaw();
    let status = world.settled(&head, AGGREGATE).await?;
    ensure!(status.state == StatusState::Success, "{status:?}");
    let job = world.master.job(job.number).await?;
    ensure!(job.attempts.len() == 1, "{:?}", job.attempts);
    ensure!(job.artifacts[0].sha256 == tests::sha256(&ballast));
    ensure!(proxy.connections() > 1, "nothing was cut");
    let log = world.master.log(job.number, 0).await?;
    let end = b"==> 1 artefact stored\n==> success: Passed\n";
    ensure!(log.ends_with(end), "{}", String::from_utf8_lossy(&log));
    world.end().await
}

/// Found by chaos: a wire broke just before the machine was to be left, and the job's work directory stayed there for good.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_out_of_reach_when_its_job_is_cancelled_is_left_clean_all_the_same() -> Result<()>
{
    let server = SshServer::start().await?;
    let (world, proxy) = wired(&server, &counting("desk", 5000)).await?;
    let (head, job) = begin(&world, "desk").await?;
    let before = proxy.connections();
    proxy.freeze();
    cancel(&world, &job).await?;
    // Given up by the heartbeat, and tried again although the job is to end.
    wait_for_connection(&world, &proxy, before).await?;
    proxy.thaw();
    world.settled(&head, &context("desk")).await?;
    wait_until_left(&world, &server).await?;
    world.end().await
}

/// Nobody follows the step when the wish comes: it has to be found and ended all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_step_whose_connection_was_lost_before_its_job_is_cancelled_does_not_live_on()
-> Result<()> {
    let server = SshServer::start().await?;
    let (world, proxy) = wired(&server, &counting("desk", 5000)).await?;
    let (head, job) = begin(&world, "desk").await?;
    let before = proxy.connections();
    proxy.freeze();
    wait_for_connection(&world, &proxy, before).await?;
    cancel(&world, &job).await?;
    proxy.thaw();
    let status = world.settled(&head, &context("desk")).await?;
    ensure!(status.state == StatusState::Error, "{status:?}");
    wait_until_left(&world, &server).await?;
    world.end().await
}

async fn cancel(world: &World, job: &JobView) -> Result<()> {
    let path = format!("/api/jobs/{}/cancel", job.number);
    let (status, answer) = world.master.post(&path, &serde_json::json!({})).await?;
    ensure!(status / 100 == 2, "{status}: {answer}");
    Ok(())
}

async fn wait_for_connection(world: &World, proxy: &Proxy, before: u32) -> Result<()> {
    let again = async |_: &_| Ok((proxy.connections() > before).then_some(()));
    let wait = world.master.wait_for("a new connection", DEADLINE, again);
    wait.await
}

/// Neither files nor processes of a job are on the machine.
async fn wait_until_left(world: &World, server: &SshServer) -> Result<()> {
    let work = server.path("work");
    let is_left = async |_: &_| {
        let is_empty = std::fs::read_dir(&work)?.next().is_none();
        // The folder that a process runs in keeps its name when it is removed.
        let runs = std::fs::read_dir("/proc")?.flatten().any(|process| {
            let dir = std::fs::read_link(process.path().join("cwd"));
            dir.is_ok_and(|dir| dir.starts_with(&work))
        });
        Ok((is_empty && !runs).then_some(()))
    };
    world
        .master
        .wait_for("a machine without a trace of the job", DEADLINE, is_left)
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wire_that_stays_dead_ends_the_attempt_by_its_deadline() -> Result<()> {
    let server = SshServer::start().await?;
    let suites = counting("desk", 2000).set("test", "timeout_secs", 20);
    let proxy = Proxy::start(server.port).await?;
    let platforms = Platforms::new()?;
    platforms.add_ssh_at("desk", &server, proxy.port)?;
    let world = World::with_platforms(platforms, &suites, |master, entry| {
        master
            .repository(entry)
            .set("limits", "heartbeat_secs", HEARTBEAT_SECS)
            .set("limits", "infrastructure_retries", 0)
    })
    .await?;
    let (head, job) = begin(&world, "desk").await?;
    proxy.freeze();
    let status = world.settled(&head, AGGREGATE).await?;
    ensure!(
        status.state == StatusState::Error,
        "ours, not theirs: {status:?}"
    );
    let job = world.master.job(job.number).await?;
    ensure!(job.reason.as_deref() == Some("agent_lost"), "{job:?}");
    proxy.thaw();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_is_paused_or_cut_off_goes_on_where_it_was() -> Result<()> {
    needs_guests!();
    const LAST: u32 = 800;
    let platforms = Platforms::new()?;
    platforms.add(TINY)?;
    let world = World::with_platforms(platforms, &counting(TINY, LAST), |master, entry| {
        master
            .repository(entry)
            .set("limits", "heartbeat_secs", HEARTBEAT_SECS)
    })
    .await?;
    let (head, job) = begin(&world, TINY).await?;
    let (uri, data) = (world.master.hypervisor(), world.master.data_dir());
    let domain = domains_of(uri, &data)?.pop().context("no domain")?;
    let lost = async |master: &tests::master::Master| {
        let count = master.output().matches("connection lost").count();
        Ok((count > 0).then_some(()))
    };

    // Paused by a person for longer than the heartbeat bears.
    virsh(uri, &["suspend", &domain])?;
    world
        .master
        .wait_for("a lost connection", DEADLINE, lost)
        .await?;
    virsh(uri, &["resume", &domain])?;
    let number = last_number(&world, &job).await?;
    wait_for_number(&world, &job, number + 20).await?;

    // Its QEMU stopped, as by an overloaded host.
    let (pid, _) = qemu_processes_of(uri, &data).pop().context("no QEMU")?;
    let qemu = nix::unistd::Pid::from_raw(pid);
    let before = world.master.output().matches("connection lost").count();
    nix::sys::signal::kill(qemu, nix::sys::signal::Signal::SIGSTOP)?;
    let again = async |master: &tests::master::Master| {
        let count = master.output().matches("connection lost").count();
        Ok((count > before).then_some(()))
    };
    let waited = world
        .master
        .wait_for("a lost connection", DEADLINE, again)
        .await;
    nix::sys::signal::kill(qemu, nix::sys::signal::Signal::SIGCONT)?;
    waited?;
    has_passed(&world, &head, &job, 1, LAST).await?;
    world.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_whose_clock_jumps_is_told_the_time_and_loses_nothing() -> Result<()> {
    needs_guests!();
    let suites = Suites::test_on(&[TINY]).step(
        "count",
        "for number in $(seq 1 300); do echo number $number of a known sequence; sleep 0.05\n\
         if [ $number = 100 ]; then sudo -n date -s 2001-01-01 >/dev/null; fi\n\
         if [ $number = 200 ]; then sudo -n date -s 2037-01-01 >/dev/null; fi; done",
    );
    let world = World::with(&[TINY], &suites).await?;
    let (head, job) = begin(&world, TINY).await?;
    has_passed(&world, &head, &job, 1, 300).await?;
    world.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_whose_kernel_panics_is_replaced_and_shows_its_last_words() -> Result<()> {
    needs_guests!();
    // The first machine panics, wherever a second one finds that out: the source is the same, so the clue is the time.
    let suites = Suites::test_on(&[TINY])
        .step("first", "echo about to panic")
        .step(
            "panic",
            "echo c | sudo -n tee /proc/sysrq-trigger; sleep 1000",
        );
    let platforms = Platforms::new()?;
    platforms.add(TINY)?;
    let world = World::with_platforms(platforms, &suites, |master, entry| {
        master
            .repository(entry)
            .set("limits", "heartbeat_secs", HEARTBEAT_SECS)
            .set("limits", "infrastructure_retries", 1)
            .set("hypervisor", "tcg_deadline_scale", 1)
    })
    .await?;
    let (_, head) = world
        .propose("topic", |commit| commit.file("a", "1"))
        .await?;
    let status = world.settled(&head, AGGREGATE).await?;
    ensure!(
        status.state == StatusState::Error,
        "ours, not theirs: {status:?}"
    );
    let job = world.master.wait_for_job(&head, TINY, DEADLINE).await?;
    let job = world.master.job(job.number).await?;
    ensure!(job.attempts.len() == 2, "{:?}", job.attempts);
    for attempt in &job.attempts {
        let console = attempt.console_tail.as_deref().unwrap_or_default();
        ensure!(console.contains("sysrq triggered crash"), "{console}");
    }
    world.end().await
}

/// libvirtd is killed over running machines, and again while machines are made and removed.
#[tokio::test(flavor = "multi_thread")]
async fn a_libvirtd_that_is_killed_and_comes_back_is_waited_for() -> Result<()> {
    needs_guests!();
    const LAST: u32 = 200;
    let mut libvirt = Libvirt::start().await?;
    let platforms = Platforms::new()?;
    platforms.add(TINY)?;
    let uri = libvirt.uri();
    let world = World::with_platforms(platforms, &counting(TINY, LAST), |master, entry| {
        master.repository(entry).hypervisor(&uri)
    })
    .await?;
    let (head, job) = begin(&world, TINY).await?;
    libvirt.kill()?;
    let number = last_number(&world, &job).await?;
    wait_for_number(&world, &job, number + 20).await?;
    libvirt.start_again().await?;
    has_passed(&world, &head, &job, 1, LAST).await?;

    // Away when a machine is to be made.
    libvirt.kill()?;
    let (_, head) = world
        .propose("second", |commit| commit.file("a", "2"))
        .await?;
    let job = world.master.wait_for_job(&head, TINY, DEADLINE).await?;
    let waits = async |master: &tests::master::Master| {
        Ok(master
            .output()
            .contains("libvirt is waited for")
            .then_some(()))
    };
    world.master.wait_for("patience", DEADLINE, waits).await?;
    libvirt.start_again().await?;
    wait_for_number(&world, &job, LAST - 1).await?;
    // And away when it is to be removed.
    libvirt.kill()?;
    for name in [AGGREGATE.to_owned(), context(TINY)] {
        world.settled(&head, &name).await?;
    }
    libvirt.start_again().await?;
    has_passed(&world, &head, &job, 1, LAST).await?;
    world.end().await
}
