//! A backup that is made while jobs run, and a master that is started on it.

use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use tests::git::Commit;
use tests::machine::{Platforms, SshServer};
use tests::master::{JobView, Master, MasterBuilder, RepositoryEntry};
use tests::object_server::ObjectServer;
use tests::repository::{LocalRepository, Suites};
use tests::world::DEADLINE;
use tests::{find, sha256};

struct World {
    master: Master,
    repository: LocalRepository,
    done: JobView,
    running: JobView,
    gate: PathBuf,
    /// Where objects are in a folder.
    objects: Option<PathBuf>,
    work: tempfile::TempDir,
    _platforms: Platforms,
    _server: SshServer,
}

impl World {
    /// One commit is done with, log and artefact and all; the job of the next one runs.
    async fn start(settle: impl FnOnce(MasterBuilder) -> MasterBuilder) -> Result<World> {
        let server = SshServer::start().await?;
        let platforms = Platforms::new()?;
        platforms.add_ssh("desk", &server)?;
        let gate = platforms.folder().join("gate");
        let wait = format!(
            "echo begun\nnumber=0\ntest ! -e wait || until test -e '{}'; do\nnumber=$((number + 1))\n\
             echo $number\nsleep 0.05\ndone\necho ended",
            gate.display()
        );
        let suites = Suites::test_on(&["desk"]).step("wait", &wait).artifacts(
            "build",
            "mkdir dist; head -c 100000 /dev/urandom >dist/program",
            &["dist/*"],
        );
        let (repository, first) = LocalRepository::create(&suites).await?;
        let builder = Master::builder()
            .platforms(platforms.folder())
            .repository(RepositoryEntry::polled("local", repository.path()));
        let master = settle(builder).start().await?;
        let build = master.wait_for_finished_build(&first, DEADLINE).await?;
        ensure!(build.conclusion.as_deref() == Some("success"), "{build:?}");
        let done = build.jobs.into_iter().next().context("no job")?;
        let second = repository
            .commit(&Commit::on("main").file("wait", "yes"))
            .await?;
        let running = master.wait_for_job(&second, "desk", DEADLINE).await?;
        master
            .wait_for_output(running.number, b"\n10\n", DEADLINE)
            .await?;
        Ok(World {
            master,
            repository,
            done,
            running,
            gate,
            objects: None,
            work: tempfile::tempdir()?,
            _platforms: platforms,
            _server: server,
        })
    }

    /// The old data folder is gone, as after the loss of a disk; the backup takes its place.
    async fn lose_and_restore(&mut self, archive: &Path) -> Result<()> {
        if self.master.is_running() {
            self.master.kill()?;
        }
        std::fs::remove_dir_all(self.master.data_dir())?;
        if let Some(objects) = &self.objects {
            std::fs::remove_dir_all(objects)?;
        }
        let said = self
            .master
            .local_command(&["restore", &archive.display().to_string()])
            .await?;
        ensure!(said.contains("is restored as of"), "{said}");
        self.master.start().await
    }

    async fn assert_restore_refused(&self, archive: &Path, why: &str) -> Result<()> {
        let restored = self
            .master
            .local_command(&["restore", &archive.display().to_string()])
            .await;
        let refused = format!("{:#}", restored.err().context("it was restored")?);
        ensure!(refused.contains(why), "{refused}");
        Ok(())
    }

    async fn assert_as_before(&mut self) -> Result<()> {
        // What was done is there to the byte.
        let done = self.master.job(self.done.number).await?;
        ensure!(done.conclusion.as_deref() == Some("success"));
        let log = self.master.log(done.number, 0).await?;
        ensure!(find(&log, b"begun\nended\n").is_some());
        let artifact = done.artifacts.first().context("no artefact")?;
        let bytes = self.master.get_bytes(&artifact.url).await?;
        ensure!(sha256(&bytes) == artifact.sha256);
        // What ran goes on, or again.
        std::fs::write(&self.gate, "")?;
        let what = "the end of what ran";
        let ended = self
            .master
            .wait_for(what, DEADLINE, async |master| {
                let job = master.job(self.running.number).await?;
                Ok((job.state == "finished").then_some(job))
            })
            .await?;
        ensure!(ended.conclusion.as_deref() == Some("success"), "{ended:?}");
        let log = self.master.log(ended.number, 0).await?;
        assert_counted(&String::from_utf8_lossy(&log))?;
        // And the master works as ever: a commit that came meanwhile is found.
        let sha = self
            .repository
            .commit(&Commit::on("main").delete("wait"))
            .await?;
        let build = self.master.wait_for_finished_build(&sha, DEADLINE).await?;
        ensure!(build.conclusion.as_deref() == Some("success"), "{build:?}");
        self.master.stop().await?;
        Ok(())
    }
}

/// The last attempt printed all of its numbers.
fn assert_counted(log: &str) -> Result<()> {
    let (_, last) = log.rsplit_once("begun\n").context("it did not begin")?;
    let (numbers, _) = last.split_once("ended\n").context("it did not end")?;
    for (number, line) in (1..).zip(numbers.lines()) {
        ensure!(line == number.to_string(), "{line} at {number}:\n{log}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_goes_on_from_a_backup_that_was_made_while_it_ran() -> Result<()> {
    let mut world = World::start(|master| master).await?;
    // All is lost but the backup.
    world.objects = Some(world.master.objects_dir());
    let archive = world.work.path().join("backup.tar.zst");
    let said = world
        .master
        .local_command(&["backup", "--objects", &archive.display().to_string()])
        .await?;
    ensure!(said.contains("artefacts are in it."), "{said}");
    ensure!(world.master.get_text("/healthz").await?.contains("ok"));
    let again = world
        .master
        .local_command(&["backup", &archive.display().to_string()])
        .await;
    let refused = format!("{:#}", again.unwrap_err());
    ensure!(refused.contains("is there already"), "{refused}");
    // A master that is there is not written over, and half a backup is none.
    world.master.kill()?;
    let half = world.work.path().join("half.tar.zst");
    let whole = std::fs::read(&archive)?;
    std::fs::write(&half, &whole[..whole.len() / 2])?;
    world
        .assert_restore_refused(&archive, "is there already")
        .await?;
    std::fs::remove_dir_all(world.master.data_dir())?;
    world.assert_restore_refused(&half, "cannot unpack").await?;
    world.lose_and_restore(&archive).await?;
    world.assert_as_before().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_without_objects_needs_their_store_alone() -> Result<()> {
    let server = ObjectServer::start().await?;
    let mut world = World::start(|master| {
        master
            .set("storage", "url", server.url())
            .set("storage", "options", server.options())
            .set("storage", "secrets_file", server.secrets_file())
    })
    .await?;
    let archive = world.work.path().join("backup.tar");
    let said = world
        .master
        .local_command(&["backup", &archive.display().to_string()])
        .await?;
    let place = format!("They are in {}", server.url());
    ensure!(said.contains(&place), "{said}");
    // As the manual says: nothing but tar is needed.
    let output = std::process::Command::new("tar")
        .arg("-tf")
        .arg(&archive)
        .output()?;
    let listed = String::from_utf8_lossy(&output.stdout).into_owned();
    for name in ["vivarium.sqlite", "installation", "backup.json"] {
        ensure!(listed.lines().any(|line| line == name), "{listed}");
    }
    world.lose_and_restore(&archive).await?;
    world.assert_as_before().await
}
