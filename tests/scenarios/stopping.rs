//! The master is told to stop, to drain, to make room for another: what runs is not touched, what waits is not lost.

use crate::{TINY, needs_guests};
use anyhow::{Context, Result, ensure};
use std::time::{Duration, Instant};
use tests::find;
use tests::github::StatusState;
use tests::machine::{Platforms, SshServer, qemu_processes_of};
use tests::master::{JobView, Master, RepositoryEntry, Stopped};
use tests::repository::{LocalRepository, Suites};
use tests::world::{AGGREGATE, DEADLINE, World};

/// A step that runs until the file is there.
fn until(file: &std::path::Path) -> String {
    format!(
        "echo begun\nwhile ! test -e '{}'; do sleep 0.1; done",
        file.display()
    )
}

/// A master with two commits to test on one machine that takes one job at a time; the first runs.
struct OneRunsOneWaits {
    master: Master,
    running: JobView,
    waiting: JobView,
    /// Made by the test to let steps end.
    gate: std::path::PathBuf,
    _repository: LocalRepository,
    _platforms: Platforms,
    _server: SshServer,
}

impl OneRunsOneWaits {
    async fn start() -> Result<OneRunsOneWaits> {
        let server = SshServer::start().await?;
        let platforms = Platforms::new()?;
        platforms.add_ssh("desk", &server)?;
        let gate = platforms.folder().join("gate");
        let suites = Suites::test_on(&["desk"]).step("wait", &until(&gate));
        let (repository, first) = LocalRepository::create(&suites).await?;
        let master = Master::builder()
            .platforms(platforms.folder())
            .repository(RepositoryEntry::polled("local", repository.path()))
            .start()
            .await?;
        let running = master.wait_for_job(&first, "desk", DEADLINE).await?;
        master
            .wait_for_output(running.number, b"begun\n", DEADLINE)
            .await?;
        let second = repository
            .commit(&tests::git::Commit::on("main").file("a", "1"))
            .await?;
        let waiting = master.wait_for_job(&second, "desk", DEADLINE).await?;
        Ok(OneRunsOneWaits {
            master,
            running,
            waiting,
            gate,
            _repository: repository,
            _platforms: platforms,
            _server: server,
        })
    }

    async fn state(&self, job: &JobView) -> Result<String> {
        Ok(self.master.job(job.number).await?.state)
    }

    async fn finished(&self, job: &JobView) -> Result<JobView> {
        let what = format!("the end of job {}", job.number);
        self.master
            .wait_for(&what, DEADLINE, async |master| {
                let job = master.job(job.number).await?;
                Ok((job.state == "finished").then_some(job))
            })
            .await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_master_lets_jobs_end_and_keeps_the_queue_until_it_is_resumed() -> Result<()> {
    let mut world = OneRunsOneWaits::start().await?;
    let said = world.master.command(&["drain"]).await?;
    assert!(said.contains("1 job runs, 1 waits"), "{said}");
    let health = world.master.get_text("/healthz").await?;
    assert!(health.contains("draining"), "{health}");
    let page = world.master.get_text("/").await?;
    assert!(page.contains("The master is drained since"), "{page}");
    assert_eq!(world.master.metric("vivarium_placing_paused").await?, 1.0);

    let waiting = tokio::spawn(world.master.command_later(&["drain", "--wait"]));
    std::fs::write(&world.gate, "")?;
    assert_eq!(
        world.finished(&world.running).await?.conclusion.as_deref(),
        Some("success")
    );
    let said = tokio::time::timeout(DEADLINE, waiting).await???;
    assert!(said.contains("drained: the queue waits"), "{said}");
    assert_eq!(world.state(&world.waiting).await?, "queued");

    // A drain outlives the master.
    world.master.stop().await?;
    world.master.start().await?;
    let doctor = world.master.doctor().await?;
    assert!(doctor.contains("drain: The master is drained"), "{doctor}");
    let waiting = world.waiting.number;
    let says_why = async |master: &Master| {
        let job = master.job(waiting).await?;
        assert_eq!(job.state, "queued");
        let why = job.waiting.unwrap_or_default();
        Ok(why.contains("drained").then_some(()))
    };
    let what = "the job's reason for waiting";
    world.master.wait_for(what, DEADLINE, says_why).await?;

    world.master.command(&["resume"]).await?;
    assert_eq!(
        world.finished(&world.waiting).await?.conclusion.as_deref(),
        Some("success")
    );
    world.master.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_drained_to_stop_ends_after_its_jobs_and_takes_the_queue_up_when_it_is_started()
-> Result<()> {
    let mut world = OneRunsOneWaits::start().await?;
    let waiting = tokio::spawn(world.master.command_later(&["drain", "--wait", "--stop"]));
    world
        .master
        .wait_for("the drain", DEADLINE, async |master| {
            let health = master.get_text("/healthz").await?;
            Ok(health.contains("draining").then_some(()))
        })
        .await?;
    assert_eq!(world.state(&world.running).await?, "running");
    std::fs::write(&world.gate, "")?;
    let said = tokio::time::timeout(DEADLINE, waiting).await???;
    assert!(said.contains("the master has stopped"), "{said}");
    assert_eq!(world.master.wait_for_end().await?, Stopped::Orderly);

    world.master.start().await?;
    for job in [&world.running, &world.waiting] {
        let job = world.finished(job).await?;
        assert_eq!(job.conclusion.as_deref(), Some("success"));
        assert_eq!(job.attempts.len(), 1);
    }
    world.master.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_master_on_the_same_data_says_who_is_the_first_and_ends() -> Result<()> {
    let mut master = Master::builder().start().await?;
    let (status, said) = master.serve_again().await?;
    assert!(!status.success());
    let named = format!(
        "error: the master of process {} at {} works in {}",
        master.process_id()?,
        master.url("/"),
        master.data_dir().display()
    );
    assert!(said.contains(&named), "{said}");
    assert!(master.is_running());
    assert!(master.get_text("/healthz").await?.contains("ok"));
    master.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_hands_over_and_leaves_the_machines_as_they_are() -> Result<()> {
    needs_guests!();
    let count = "for number in $(seq 1 40); do echo number $number; sleep 0.5; done";
    let suites = Suites::test_on(&[TINY]).step("count", count);
    let mut world = World::with(&[TINY], &suites).await?;
    let (_, first) = world.propose("one", |commit| commit.file("a", "1")).await?;
    let (_, second) = world.propose("two", |commit| commit.file("a", "2")).await?;
    let mut jobs = Vec::new();
    for head in [&first, &second] {
        let job = world.master.wait_for_job(head, TINY, DEADLINE).await?;
        world
            .master
            .wait_for_output(job.number, b"number 2\n", DEADLINE)
            .await?;
        jobs.push(job);
    }
    let data_dir = world.master.data_dir();
    let uri = world.master.hypervisor().to_owned();
    let pids = || -> Vec<i32> {
        let processes = qemu_processes_of(&uri, &data_dir);
        processes.into_iter().map(|(pid, _)| pid).collect()
    };
    let before = pids();
    assert_eq!(before.len(), 2);
    let asked = Instant::now();
    assert_eq!(world.master.stop().await?, Stopped::Orderly);
    eprintln!(
        "stopped with 2 machines in {} ms",
        asked.elapsed().as_millis()
    );
    assert_eq!(pids(), before);
    world.master.start().await?;
    for (job, head) in jobs.iter().zip([&first, &second]) {
        let status = world.settled(head, AGGREGATE).await?;
        assert_eq!(status.state, StatusState::Success);
        let expected: String = (1..=40)
            .map(|number| format!("number {number}\n"))
            .collect();
        let log = world.master.log(job.number, 0).await?;
        assert!(find(&log, expected.as_bytes()).is_some());
    }
    world.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_of_a_host_that_was_restarted_run_again_and_nothing_of_it_is_left() -> Result<()> {
    needs_guests!();
    let suites = Suites::test_on(&[TINY]).step("wait", "echo begun; sleep 3");
    let mut world = World::with(&[TINY], &suites).await?;
    let (_, head) = world
        .propose("topic", |commit| commit.file("a", "1"))
        .await?;
    let job = world.master.wait_for_job(&head, TINY, DEADLINE).await?;
    world
        .master
        .wait_for_output(job.number, b"begun\n", DEADLINE)
        .await?;
    // The master and all machines go at once; files stay.
    world.master.kill()?;
    ensure!(world.master.kill_machines()? > 0, "no machine ran");
    world.master.start().await?;
    let status = world.settled(&head, AGGREGATE).await?;
    assert_eq!(status.state, StatusState::Success);
    let job = world.master.job(job.number).await?;
    let reasons: Vec<_> = job
        .attempts
        .iter()
        .map(|attempt| attempt.reason.as_deref())
        .collect();
    assert_eq!(reasons, [Some("guest_died"), Some("passed")]);
    world.end().await
}

/// systemd hears that the master is ready, that it lives, and that it stops.
#[tokio::test(flavor = "multi_thread")]
async fn the_watchdog_is_fed_while_the_loops_go_on() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("notify");
    let socket = tokio::net::UnixDatagram::bind(&path)?;
    let mut master = Master::builder()
        .environment("NOTIFY_SOCKET", &path.to_string_lossy())
        .environment("WATCHDOG_USEC", "900000")
        .start()
        .await?;
    let hear = async |wanted: &str| -> Result<()> {
        let mut buffer = [0; 4096];
        loop {
            let length = tokio::time::timeout(Duration::from_secs(60), socket.recv(&mut buffer))
                .await
                .with_context(|| format!("systemd never heard {wanted}"))??;
            let said = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if said.lines().any(|line| line == wanted) {
                return Ok(());
            }
        }
    };
    hear("READY=1").await?;
    for _ in 0..3 {
        hear("WATCHDOG=1").await?;
    }
    let stopping = tokio::spawn(async move { master.stop().await });
    hear("STOPPING=1").await?;
    assert_eq!(stopping.await??, Stopped::Orderly);
    Ok(())
}
