//! Secrets reach the suite, and nobody else.

use anyhow::Result;
use std::path::Path;
use tests::git::Commit;
use tests::github::{PullRequestSpec, StatusState};
use tests::machine::{Platforms, SshServer};
use tests::repository::Suites;
use tests::world::{AGGREGATE, DEADLINE, REPOSITORY, World};
use tests::{find, sha256};

/// In a file, with the newline that an editor adds.
const FROM_FILE: &str = "s3cr3t/of+the=file";
/// In the master's own environment.
const FROM_ENV: &str = "s3cr3t-of-the-environment";

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_is_in_the_suites_environment_and_nowhere_else() -> Result<()> {
    let server = SshServer::start().await?;
    let platforms = Platforms::new()?;
    platforms.add_ssh("desk", &server)?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("token");
    std::fs::write(&path, format!("{FROM_FILE}\n"))?;
    let suites = Suites::test_on(&["desk"])
        .set("test", "secrets", vec!["FILE_TOKEN", "ENV_TOKEN"])
        .set("test", "reports", vec!["report.xml"])
        // The digests show that the values are right without showing them.
        .step("digest", "printf %s \"$FILE_TOKEN$ENV_TOKEN\" | sha256sum")
        .step("leak", "echo \"[$FILE_TOKEN]\"; env | sort; echo done leaking")
        // In two pieces, with time between them for the first to be stored.
        .step(
            "drip",
            "printf '<%.7s' \"$ENV_TOKEN\"; sleep 1; printf '%s>\\n' \"${ENV_TOKEN#???????}\"",
        )
        .step(
            "report",
            "echo \"<testsuite><testcase name='$FILE_TOKEN'><failure/></testcase></testsuite>\" > report.xml; exit 1",
        );
    let world = World::with_platforms(platforms, &suites, |master, entry| {
        master
            .repository(entry)
            .environment("FOR_VIVARIUM", FROM_ENV)
            .set("secrets.FILE_TOKEN", "file", path.display().to_string())
            .set("secrets.FILE_TOKEN", "repositories", vec!["acme/*"])
            .set("secrets.ENV_TOKEN", "env", "FOR_VIVARIUM")
            .set("secrets.ENV_TOKEN", "repositories", vec![REPOSITORY])
    })
    .await?;
    let (_, head) = world
        .propose("topic", |commit| commit.file("a", "1"))
        .await?;
    world.settled(&head, AGGREGATE).await?;
    let build = world
        .master
        .wait_for_finished_build(&head, DEADLINE)
        .await?;
    let log = world.master.log(build.jobs[0].number, 0).await?;
    let text = String::from_utf8_lossy(&log).into_owned();
    let digest = sha256(format!("{FROM_FILE}{FROM_ENV}").as_bytes());
    assert!(text.contains(&digest), "{text}");
    let stars = |secret: &str| "*".repeat(secret.len());
    assert!(
        text.contains(&format!("[{}]\n", stars(FROM_FILE))),
        "{text}"
    );
    assert!(text.contains(&format!("<{}>\n", stars(FROM_ENV))), "{text}");
    assert!(text.contains("done leaking\n"), "{text}");

    let job = world
        .master
        .get_text(&format!("/api/jobs/{}", build.jobs[0].number))
        .await?;
    assert!(
        job.contains(&stars(FROM_FILE)),
        "the failing test has a masked name: {job}"
    );
    let statuses = format!("{:?}", world.github.contexts_of(REPOSITORY, &head));
    let data = world.master.data_dir();
    let output = world.master.output();
    for secret in [FROM_FILE, FROM_ENV] {
        assert!(!text.contains(secret), "in the log");
        assert!(!job.contains(secret), "in the job's record");
        assert!(!statuses.contains(secret), "in a status");
        assert!(!output.contains(secret), "in the master's own log");
        assert_eq!(files_with(&data, secret.as_bytes())?, Vec::<String>::new());
    }
    world.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forks_job_has_no_secrets_and_is_told_so() -> Result<()> {
    let server = SshServer::start().await?;
    let platforms = Platforms::new()?;
    platforms.add_ssh("desk", &server)?;
    let suites = Suites::test_on(&["desk"])
        .set("test", "secrets", vec!["TOKEN"])
        .step("look", "echo \"TOKEN is ${TOKEN-not there}\"");
    let world = World::with_platforms(platforms, &suites, |master, entry| {
        master
            .repository(entry)
            .environment("FOR_VIVARIUM", FROM_ENV)
            .set("secrets.TOKEN", "env", "FOR_VIVARIUM")
            .set("secrets.TOKEN", "repositories", vec!["*/*"])
    })
    .await?;
    let fork = world.github.fork(REPOSITORY, "stranger").await?;
    let head = world
        .github
        .commit(&fork, Commit::on("topic").from("main").file("a", "1"))
        .await?;
    let request = PullRequestSpec::from("topic").of_fork(&fork);
    world.github.open_pull_request(REPOSITORY, request).await?;
    let status = world.settled(&head, AGGREGATE).await?;
    assert_eq!(status.state, StatusState::Success);
    let build = world
        .master
        .wait_for_finished_build(&head, DEADLINE)
        .await?;
    let log = world.master.log(build.jobs[0].number, 0).await?;
    assert!(find(&log, b"TOKEN is not there\n").is_some());
    assert!(find(&log, b"not given to this job: TOKEN").is_some());
    world.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_of_another_repository_is_refused_in_one_sentence() -> Result<()> {
    let platforms = Platforms::new()?;
    let server = SshServer::start().await?;
    platforms.add_ssh("desk", &server)?;
    let suites = Suites::test_on(&["desk"])
        .set("test", "secrets", vec!["TOKEN"])
        .step("never", "true");
    let world = World::with_platforms(platforms, &suites, |master, entry| {
        master
            .repository(entry)
            .set("secrets.TOKEN", "env", "FOR_VIVARIUM")
            .set("secrets.TOKEN", "repositories", vec!["acme/other"])
    })
    .await?;
    let (_, head) = world
        .propose("topic", |commit| commit.file("a", "1"))
        .await?;
    let status = world.settled(&head, AGGREGATE).await?;
    assert_eq!(status.state, StatusState::Failure);
    let said = status.description.unwrap_or_default();
    assert!(said.contains("secret `TOKEN`"), "{said}");
    world.end().await
}

/// The files below `folder` that have these bytes in them.
fn files_with(folder: &Path, bytes: &[u8]) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files_with(&path, bytes)?);
        } else if path.is_file() && find(&std::fs::read(&path)?, bytes).is_some() {
            found.push(path.display().to_string());
        }
    }
    Ok(found)
}
