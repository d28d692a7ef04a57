//! A repository of no forge, looked at now and then.

use crate::{TINY, needs_guests};
use anyhow::Result;
use tests::find;
use tests::git::Commit;
use tests::machine::Platforms;
use tests::master::{Master, RepositoryEntry};
use tests::repository::{LocalRepository, Suites};
use tests::world::DEADLINE;

#[tokio::test(flavor = "multi_thread")]
async fn each_commit_of_a_polled_repository_is_tested() -> Result<()> {
    needs_guests!();
    let platforms = Platforms::new()?;
    platforms.add(TINY)?;
    let suites = Suites::test_on(&[TINY]).step("read", "cat number || echo none");
    let (repository, first) = LocalRepository::create(&suites).await?;
    let entry = RepositoryEntry::polled("local", repository.path()).set("publish", vec!["main"]);
    let mut master = Master::builder()
        .platforms(platforms.folder())
        .repository(entry)
        .start()
        .await?;
    let build = master.wait_for_finished_build(&first, DEADLINE).await?;
    assert_eq!(build.conclusion.as_deref(), Some("success"));

    for number in ["1\n", "2\n", "3\n"] {
        let commit = Commit::on("main").file("number", number);
        let sha = repository.commit(&commit).await?;
        let build = master.wait_for_finished_build(&sha, DEADLINE).await?;
        assert_eq!(build.conclusion.as_deref(), Some("success"));
        assert_eq!(build.event, "poll");
        let log = master.log(build.jobs[0].number, 0).await?;
        assert!(find(&log, number.as_bytes()).is_some());
    }
    master.wait_until_nothing_is_left(DEADLINE).await?;
    master.stop().await?;
    Ok(())
}
