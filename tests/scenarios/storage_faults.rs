//! The disk is full, the database held or not to be written: what was accepted is kept, what cannot be kept is refused,
//! and the master goes on by itself once it can.

use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tests::git::Commit;
use tests::github::WebhookPost;
use tests::machine::{Platforms, SmallDisk, SshServer};
use tests::master::{JobView, Master, MasterBuilder, RepositoryEntry};
use tests::repository::{LocalRepository, Suites};
use tests::world::DEADLINE;
use vivarium::store::Store;

const SECRET: &str = "secret";
/// Of a body as GitHub sends it, roughly.
const BODY_BYTES: usize = 20_000;

/// A master whose one job counts until the test lets it end.
struct Counting {
    master: Master,
    job: JobView,
    repository: LocalRepository,
    gate: PathBuf,
    _platforms: Platforms,
    _server: SshServer,
}

impl Counting {
    async fn start(settle: impl FnOnce(MasterBuilder) -> MasterBuilder) -> Result<Counting> {
        let server = SshServer::start().await?;
        let platforms = Platforms::new()?;
        platforms.add_ssh("desk", &server)?;
        let gate = platforms.folder().join("gate");
        let count = format!(
            "number=0\nuntil test -e '{}'; do number=$((number + 1)); echo number $number; sleep 0.05; done\necho last",
            gate.display()
        );
        let suites = Suites::test_on(&["desk"]).step("count", &count);
        let (repository, first) = LocalRepository::create(&suites).await?;
        let builder = Master::builder()
            .platforms(platforms.folder())
            .webhook_secret(SECRET)
            .repository(RepositoryEntry::polled("local", repository.path()));
        let master = settle(builder).start().await?;
        let job = master.wait_for_job(&first, "desk", DEADLINE).await?;
        master
            .wait_for_output(job.number, b"number 3\n", DEADLINE)
            .await?;
        Ok(Counting {
            master,
            job,
            repository,
            gate,
            _platforms: platforms,
            _server: server,
        })
    }

    /// Posts deliveries until one is refused; those that were accepted.
    async fn post_until_refused(&self) -> Result<Vec<String>> {
        let mut accepted = Vec::new();
        loop {
            let (guid, status) = self.post().await?;
            match status {
                202 => accepted.push(guid),
                503 => return Ok(accepted),
                other => anyhow::bail!("a delivery was answered {other}"),
            }
        }
    }

    /// Posts deliveries until one is accepted.
    async fn post_until_accepted(&self) -> Result<String> {
        let what = "an accepted delivery";
        self.master
            .wait_for(what, DEADLINE, async |_| {
                let (guid, status) = self.post().await?;
                ensure!(matches!(status, 202 | 503), "answered {status}");
                Ok((status == 202).then_some(guid))
            })
            .await
    }

    async fn post(&self) -> Result<(String, u16)> {
        let body = format!("{{\"zen\":\"{}\"}}", "x".repeat(BODY_BYTES));
        let post = WebhookPost::signed("ping", body, SECRET);
        let answer = post.send(&self.master.webhook_url()).await?;
        Ok((post.guid, answer.status))
    }

    fn database(&self) -> PathBuf {
        self.master.data_dir().join("vivarium.sqlite")
    }

    async fn assert_stored(&self, accepted: &[String]) -> Result<()> {
        let store = Store::open_to_read(&self.database()).await?;
        let stored = store.recent_deliveries(10_000).await?;
        for guid in accepted {
            ensure!(
                stored.iter().any(|delivery| &delivery.guid == guid),
                "{guid} was accepted but is not stored"
            );
        }
        store.close().await;
        Ok(())
    }

    /// Lets the job end: it passed, at the first try, and not a line of its output is missing.
    async fn end(mut self) -> Result<()> {
        std::fs::write(&self.gate, "")?;
        let what = format!("the end of job {}", self.job.number);
        let job = self
            .master
            .wait_for(&what, DEADLINE, async |master| {
                let job = master.job(self.job.number).await?;
                Ok((job.state == "finished").then_some(job))
            })
            .await?;
        ensure!(job.conclusion.as_deref() == Some("success"), "{job:?}");
        ensure!(job.attempts.len() == 1, "{job:?}");
        let log = self.master.log(self.job.number, 0).await?;
        let log = String::from_utf8_lossy(&log).into_owned();
        let lines: Vec<&str> = log
            .lines()
            .filter(|line| !line.starts_with("==> "))
            .collect();
        let (last, numbers) = lines.split_last().context("the log is empty")?;
        ensure!(*last == "last", "{last}");
        for (number, line) in (1..).zip(numbers) {
            ensure!(*line == format!("number {number}"), "{line} at {number}");
        }
        self.master.stop().await?;
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_wait_for_room_on_the_disk_and_say_where_it_is_missing() -> Result<()> {
    let Some(disk) = SmallDisk::mount(256)? else {
        return Ok(());
    };
    let world = Counting::start(|master| {
        master
            .data_dir(disk.path())
            .set("hypervisor", "min_free_disk_mib", 64)
    })
    .await?;
    disk.fill(32 << 20)?;
    std::fs::write(&world.gate, "")?;
    let sha = world
        .repository
        .commit(&Commit::on("main").file("a", "1"))
        .await?;
    let job = world.master.wait_for_job(&sha, "desk", DEADLINE).await?;
    let why = world
        .master
        .wait_for("the reason", DEADLINE, async |master| {
            Ok(master.job(job.number).await?.waiting)
        })
        .await?;
    let named = format!(
        "No job starts while the file system {}",
        disk.path().display()
    );
    ensure!(why.starts_with(&named), "{why}");
    ensure!(why.contains("less than 64 MiB free: it has 3"), "{why}");
    ensure!(world.master.job(job.number).await?.state == "queued");
    let page = world
        .master
        .get_text(&format!("/jobs/{}", job.number))
        .await?;
    ensure!(page.contains("less than 64 MiB free"), "{page}");
    ensure!(world.master.get_text("/healthz").await?.contains("paused"));
    ensure!(world.master.metric("vivarium_placing_paused").await? == 1.0);
    let doctor = world.master.doctor().await?;
    let said = format!("fault disk: {} has 3", disk.path().display());
    ensure!(doctor.contains(&said), "{doctor}");
    // Whatever comes in meanwhile is taken.
    let (guid, status) = world.post().await?;
    ensure!(status == 202);
    world.assert_stored(&[guid]).await?;

    disk.clear()?;
    let build = world.master.wait_for_finished_build(&sha, DEADLINE).await?;
    ensure!(build.conclusion.as_deref() == Some("success"), "{build:?}");
    world.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_deliveries_loses_nothing_and_is_forgotten_once_there_is_room()
-> Result<()> {
    let Some(disk) = SmallDisk::mount(128)? else {
        return Ok(());
    };
    let world = Counting::start(|master| {
        master
            .data_dir(disk.path())
            .set("hypervisor", "min_free_disk_mib", 1)
    })
    .await?;
    let mut accepted = vec![world.post_until_accepted().await?];
    for _ in 0..3 {
        // A little is left at first, which deliveries and the log use up.
        disk.fill(200_000)?;
        accepted.extend(world.post_until_refused().await?);
        disk.fill(0)?;
        accepted.extend(world.post_until_refused().await?);
        tokio::time::sleep(Duration::from_secs(1)).await;
        disk.clear()?;
        accepted.push(world.post_until_accepted().await?);
    }
    world.assert_stored(&accepted).await?;
    world.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn another_process_that_holds_the_database_delays_and_breaks_nothing() -> Result<()> {
    let world = Counting::start(|master| master).await?;
    let mut accepted = vec![world.post_until_accepted().await?];
    let other = Store::open(&world.database()).await?;
    let held = other.write().await?;
    // GitHub hears of it before it hangs up.
    accepted.extend(world.post_until_refused().await?);
    std::fs::write(&world.gate, "")?;
    held.rollback().await?;
    accepted.push(world.post_until_accepted().await?);
    other.close().await;
    world.assert_stored(&accepted).await?;
    world.end().await
}

/// Files that nobody may write, as after a fault of the disk, until it is dropped.
struct Immutable(Vec<PathBuf>);

impl Immutable {
    fn set(files: Vec<PathBuf>) -> Option<Immutable> {
        let made = chattr("+i", &files);
        let immutable = Immutable(files);
        if !made {
            eprintln!("skipped: files cannot be made immutable here");
        }
        made.then_some(immutable)
    }
}

impl Drop for Immutable {
    fn drop(&mut self) {
        chattr("-i", &self.0);
    }
}

fn chattr(change: &str, files: &[PathBuf]) -> bool {
    let output = Command::new("chattr").arg(change).args(files).output();
    output.is_ok_and(|output| output.status.success())
}

fn files_of(database: &Path) -> Vec<PathBuf> {
    ["", "-wal"]
        .map(|end| PathBuf::from(format!("{}{end}", database.display())))
        .to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_cannot_be_written_is_written_again_once_it_can() -> Result<()> {
    let world = Counting::start(|master| master).await?;
    let mut accepted = vec![world.post_until_accepted().await?];
    if let Some(immutable) = Immutable::set(files_of(&world.database())) {
        accepted.extend(world.post_until_refused().await?);
        tokio::time::sleep(Duration::from_secs(2)).await;
        accepted.extend(world.post_until_refused().await?);
        drop(immutable);
        accepted.push(world.post_until_accepted().await?);
    }
    world.assert_stored(&accepted).await?;
    world.end().await
}
