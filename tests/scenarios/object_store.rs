//! The object store goes away and comes back: nothing of a job waits for it but its own results, and nothing half is
//! ever seen there.

use anyhow::{Context, Result, ensure};
use tests::git::Commit;
use tests::machine::{Platforms, SshServer};
use tests::master::{BuildView, JobView, Master, RepositoryEntry};
use tests::object_server::ObjectServer;
use tests::repository::{LocalRepository, Suites};
use tests::world::DEADLINE;
use tests::{find, sha256};

/// In several parts.
const LARGE: usize = 9 << 20;
const PENDING_MIB: i64 = 13;

struct World {
    master: Master,
    store: ObjectServer,
    repository: LocalRepository,
    first: String,
    _platforms: Platforms,
    _server: SshServer,
}

impl World {
    async fn start() -> Result<World> {
        let server = SshServer::start().await?;
        let platforms = Platforms::new()?;
        platforms.add_ssh("desk", &server)?;
        let build = format!(
            "mkdir -p dist\nhead -c {LARGE} /dev/urandom >dist/large\necho notes >dist/notes\nsha256sum dist/large"
        );
        let suites = Suites::test_on(&["desk"])
            .step("test", "echo tested")
            .artifacts("build", &build, &["dist/*"]);
        let (repository, first) = LocalRepository::create(&suites).await?;
        let store = ObjectServer::start().await?;
        let master = Master::builder()
            .platforms(platforms.folder())
            .set("storage", "url", store.url())
            .set("storage", "options", store.options())
            .set("storage", "secrets_file", store.secrets_file())
            .set("storage", "pending_mib", PENDING_MIB)
            .repository(RepositoryEntry::polled("local", repository.path()))
            .start()
            .await?;
        Ok(World {
            master,
            store,
            repository,
            first,
            _platforms: platforms,
            _server: server,
        })
    }

    async fn commit(&self, name: &str) -> Result<String> {
        let commit = Commit::on("main").file(name, name);
        self.repository.commit(&commit).await
    }

    async fn finished(&self, sha: &str) -> Result<BuildView> {
        let build = self.master.wait_for_finished_build(sha, DEADLINE).await?;
        ensure!(build.conclusion.as_deref() == Some("success"), "{build:?}");
        Ok(build)
    }

    /// Log and artefacts of the build's one job can be read, and are what the job said.
    async fn assert_readable(&self, build: &BuildView) -> Result<()> {
        let job = build.jobs.first().context("no job")?;
        let log = self.master.log(job.number, 0).await?;
        ensure!(find(&log, b"tested\n").is_some());
        ensure!(job.artifacts.len() == 2, "{job:?}");
        for artifact in &job.artifacts {
            let bytes = self.master.get_bytes(&artifact.url).await?;
            ensure!(sha256(&bytes) == artifact.sha256, "{artifact:?}");
        }
        let large = job.artifacts.iter().find(|a| a.path == "dist/large");
        let line = format!("{}  dist/large", large.context("no large one")?.sha256);
        ensure!(find(&log, line.as_bytes()).is_some());
        Ok(())
    }

    async fn wait_until_nothing_waits(&self) -> Result<()> {
        self.master
            .wait_for("an empty backlog", DEADLINE, async |master| {
                let waits = master.metric("vivarium_results_waiting_jobs").await?;
                Ok((waits == 0.0).then_some(()))
            })
            .await
    }

    /// Each set in the store has its manifest, and all that the manifest names, whole.
    fn assert_sets_are_whole(&self) -> Result<usize> {
        let keys = self.store.keys()?;
        let manifests: Vec<_> = keys
            .iter()
            .filter(|key| key.ends_with("manifest.json"))
            .collect();
        for key in &manifests {
            let manifest: serde_json::Value = serde_json::from_slice(&self.store.content(key)?)?;
            let entries = manifest["artifacts"].as_array().context("no list")?;
            for entry in entries {
                let object = entry["object"].as_str().context("no key")?;
                let bytes = self.store.content(object)?;
                ensure!(entry["sha256"] == sha256(&bytes), "{object} differs");
            }
        }
        Ok(manifests.len())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn results_wait_here_while_the_object_store_is_away_and_go_there_once_it_is_back()
-> Result<()> {
    let mut world = World::start().await?;
    let sha = world.first.clone();
    world.finished(&sha).await?;
    world.wait_until_nothing_waits().await?;
    assert_eq!(world.assert_sets_are_whole()?, 1);

    world.store.switch_off().await;
    let sha = world.commit("away").await?;
    let build = world.finished(&sha).await?;
    world.assert_readable(&build).await?;
    world
        .master
        .wait_for("a notice", DEADLINE, async |master| {
            let page = master.get_text("/").await?;
            Ok(page
                .contains("wait here for the object store")
                .then_some(()))
        })
        .await?;
    // They outlive the master.
    world.master.kill()?;
    world.master.start().await?;
    world.assert_readable(&build).await?;

    // A second fits, and then there are too many.
    let sha = world.commit("more").await?;
    let second = world.finished(&sha).await?;
    let sha = world.commit("too-many").await?;
    let job: JobView = world.master.wait_for_job(&sha, "desk", DEADLINE).await?;
    let why = world
        .master
        .wait_for("the reason", DEADLINE, async |master| {
            Ok(master.job(job.number).await?.waiting)
        })
        .await?;
    let too_many = "13 MiB of logs and artefacts wait for the object store: there are 18";
    ensure!(why.contains(too_many), "{why}");
    let paused = "vivarium_placing_paused{reason=\"results_wait\"}";
    ensure!(world.master.metric(paused).await? == 1.0);
    let bytes = world
        .master
        .metric("vivarium_results_waiting_bytes")
        .await?;
    ensure!(bytes > 2.0 * LARGE as f64, "{bytes}");
    let found = world.master.doctor().await?;
    ensure!(found.contains(too_many), "{found}");

    world.store.switch_on().await?;
    let third = world.finished(&sha).await?;
    world.wait_until_nothing_waits().await?;
    for build in [&build, &second, &third] {
        world.assert_readable(build).await?;
    }
    assert_eq!(world.assert_sets_are_whole()?, 4);
    let left: Vec<_> = ["artifacts", "logs"]
        .into_iter()
        .flat_map(|name| std::fs::read_dir(world.master.data_dir().join(name)))
        .flatten()
        .collect();
    ensure!(left.is_empty(), "{left:?}");
    world.master.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_goes_away_in_the_middle_shows_nothing_half() -> Result<()> {
    let mut world = World::start().await?;
    let mut shas = vec![world.first.clone()];
    for round in 0..3 {
        // In the middle of whatever is on its way; by then it may be all there.
        let sha = shas.last().context("none")?.clone();
        world.finished(&sha).await?;
        world.store.switch_off().await;
        world.assert_sets_are_whole()?;
        world.store.switch_on().await?;
        shas.push(world.commit(&format!("round-{round}")).await?);
    }
    for sha in &shas {
        let build = world.finished(sha).await?;
        world.assert_readable(&build).await?;
    }
    world.wait_until_nothing_waits().await?;
    assert_eq!(world.assert_sets_are_whole()?, shas.len());
    world.master.stop().await?;
    Ok(())
}
