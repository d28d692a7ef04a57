//! What is kept after a merge.

use crate::{TINY, needs_guests};
use anyhow::{Context, Result};
use tests::git::Commit;
use tests::github::{MergeMethod, StatusState};
use tests::machine::Platforms;
use tests::object_server::{ObjectServer, SECRET_KEY};
use tests::repository::Suites;
use tests::world::{AGGREGATE, DEADLINE, REPOSITORY, World};
use tests::{find, sha256};

#[tokio::test(flavor = "multi_thread")]
async fn a_merge_keeps_what_was_built_with_its_true_sha256() -> Result<()> {
    needs_guests!();
    let build_step = "mkdir -p dist/deep\nhead -c 3000000 /dev/urandom >dist/program\n\
                      echo notes >'dist/deep/read me.txt'\ncd dist && sha256sum program";
    let suites =
        Suites::test_on(&[TINY])
            .step("test", "true")
            .artifacts("build", build_step, &["dist/**"]);
    for method in [MergeMethod::MergeCommit, MergeMethod::Squash] {
        let world = World::with(&[TINY], &suites).await?;
        let (number, head) = world
            .propose("topic", |commit| commit.file("a", "1"))
            .await?;
        world.settled(&head, AGGREGATE).await?;
        let build = world
            .master
            .wait_for_finished_build(&head, DEADLINE)
            .await?;
        assert!(
            build.jobs.iter().all(|job| job.artifacts.is_empty()),
            "a pull request keeps nothing"
        );

        let merge = world
            .github
            .merge_pull_request(REPOSITORY, number, method)
            .await?;
        let status = world.settled(&merge, AGGREGATE).await?;
        assert_eq!(status.state, StatusState::Success);
        let build = world
            .master
            .wait_for_finished_build(&merge, DEADLINE)
            .await?;
        let job = build.jobs.first().context("the merge had no job")?;
        let mut paths: Vec<&str> = job.artifacts.iter().map(|a| a.path.as_str()).collect();
        paths.sort_unstable();
        assert_eq!(paths, ["dist/deep/read me.txt", "dist/program"]);
        for artifact in &job.artifacts {
            let content = world.master.get_bytes(&artifact.url).await?;
            assert_eq!(content.len() as u64, artifact.size);
            assert_eq!(sha256(&content), artifact.sha256);
        }
        let program = job
            .artifacts
            .iter()
            .find(|artifact| artifact.path == "dist/program")
            .context("no program")?;
        let log = world.master.log(job.number, 0).await?;
        let line = format!("{}  program", program.sha256);
        assert!(find(&log, line.as_bytes()).is_some(), "the guest's own sum");
        // One build of the merge, although GitHub told of it twice: by the pull request and by the push.
        let builds = world.master.builds().await?;
        assert_eq!(
            builds
                .iter()
                .filter(|build| build.head_sha == merge)
                .count(),
            1
        );
        world.end().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_and_artefacts_live_in_a_store_that_speaks_s3() -> Result<()> {
    needs_guests!();
    let server = ObjectServer::start().await?;
    let suites = Suites::test_on(&[TINY])
        .step("test", "echo tested")
        .artifacts(
            "build",
            // One of them is larger than what goes up in one piece.
            "mkdir dist\nhead -c 12000000 /dev/urandom >dist/large\necho small >dist/small\ncd dist && sha256sum *",
            &["dist/*"],
        );
    let platforms = Platforms::new()?;
    platforms.add(TINY)?;
    let world = World::with_platforms(platforms, &suites, |master, entry| {
        master
            .repository(entry)
            .set("storage", "url", server.url())
            .set("storage", "options", server.options())
            .set("storage", "secrets_file", server.secrets_file())
    })
    .await?;
    // A commit straight to the branch, which is published like a merge.
    let commit = Commit::on("main").file("a", "1");
    let head = world.github.commit(REPOSITORY, commit).await?;
    world
        .settled_as(&head, AGGREGATE, StatusState::Success)
        .await?;
    let job = world.ended_job(&head, "test", TINY).await?;
    let log_key = format!("logs/job-{}.log.zst", job.number);
    let stored = world
        .master
        .wait_for("the sealed log", DEADLINE, async |_| {
            let stored = server.stored();
            Ok(stored.contains(&log_key).then_some(stored))
        })
        .await?;

    let log = String::from_utf8(world.log(&job).await?.to_vec())?;
    assert!(log.contains("\ntested\n"), "{log}");
    let mut hashes = Vec::new();
    for artifact in &job.artifacts {
        let content = world.master.get_bytes(&artifact.url).await?;
        assert_eq!(content.len() as u64, artifact.size);
        assert_eq!(sha256(&content), artifact.sha256);
        let line = format!(
            "{}  {}\n",
            artifact.sha256,
            artifact.path.replace("dist/", "")
        );
        assert!(log.contains(&line), "the guest's own sum: {log}");
        hashes.push(artifact.sha256.clone());
    }
    assert_eq!(hashes.len(), 2);
    let artifacts: Vec<&String> = stored
        .iter()
        .filter(|key| key.starts_with("artifacts/"))
        .collect();
    assert_eq!(artifacts.len(), 3, "{artifacts:?}");
    let manifest = artifacts
        .last()
        .filter(|key| key.ends_with("/manifest.json"));
    let manifest = server.content(manifest.context("the manifest is not the last")?)?;
    for hash in hashes {
        assert!(find(&manifest, hash.as_bytes()).is_some());
    }
    assert!(!world.master.output().contains(SECRET_KEY));
    world.end().await
}
