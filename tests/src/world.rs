//! All of it together: a GitHub with one repository and a master that hears of it.

use crate::git::Commit;
use crate::github::{GitHub, PullRequestSpec, Status, StatusState};
use crate::machine::Platforms;
use crate::master::{JobView, Master, MasterBuilder, RepositoryEntry};
use crate::repository::{FILE, Suites};
use anyhow::{Context, Result};
use std::time::Duration;

/// Generous: guests without hardware virtualisation boot in ten seconds alone, and slower in company.
pub const DEADLINE: Duration = Duration::from_secs(300);
/// The repository's name.
pub const REPOSITORY: &str = "acme/widget";
/// The secret of its webhook.
pub const SECRET: &str = "It's a Secret to Everybody";
/// The context that branch protection requires.
pub const AGGREGATE: &str = "vivarium";

/// The context of a job of the suite `test`.
pub fn context(platform: &str) -> String {
    context_of("test", platform)
}

pub fn context_of(suite: &str, platform: &str) -> String {
    format!("vivarium/{suite} ({platform})")
}

#[derive(Debug)]
pub struct World {
    // Dropped first, so that it does not ask a GitHub that is gone.
    pub master: Master,
    pub github: GitHub,
    pub platforms: Platforms,
    /// The first commit on `main`.
    pub main: String,
    pub token: String,
    pub hook: i64,
}

impl World {
    /// The named images as platforms, and a repository whose `main` has these suites.
    pub async fn with(images: &[&str], suites: &Suites) -> Result<World> {
        let platforms = Platforms::new()?;
        for image in images {
            platforms.add(image)?;
        }
        World::with_platforms(platforms, suites, |master, entry| master.repository(entry)).await
    }

    /// With platforms made before, and the master's settings changed; `settle` adds the repository's entry.
    pub async fn with_platforms(
        platforms: Platforms,
        suites: &Suites,
        settle: impl FnOnce(MasterBuilder, RepositoryEntry) -> MasterBuilder,
    ) -> Result<World> {
        let github = GitHub::start().await?;
        let main = github
            .create_repository(
                REPOSITORY,
                &[(FILE, &suites.to_toml()), ("README.md", "A widget\n")],
            )
            .await?;
        let token = github.issue_token("vivarium-bot", &[REPOSITORY]);
        let builder = Master::builder()
            .platforms(platforms.folder())
            .github(&github, &token)
            .webhook_secret(SECRET);
        let entry = RepositoryEntry::on_github(&github, REPOSITORY);
        let master = settle(builder, entry).start().await?;
        let hook = github
            .add_hook(REPOSITORY, &master.webhook_url(), SECRET)
            .await?;
        Ok(World {
            master,
            github,
            platforms,
            main,
            token,
            hook,
        })
    }

    /// Pushes a branch `name` off `main` with this change and opens a pull request; its number and head.
    pub async fn propose(
        &self,
        name: &str,
        change: impl FnOnce(Commit) -> Commit,
    ) -> Result<(i64, String)> {
        let commit = change(Commit::on(name).from("main"));
        let head = self.github.commit(REPOSITORY, commit).await?;
        let number = self
            .github
            .open_pull_request(REPOSITORY, PullRequestSpec::from(name))
            .await?;
        Ok((number, head))
    }

    /// Opens a pull request with some change; its head.
    pub async fn propose_any(&self) -> Result<String> {
        let (_, head) = self
            .propose("topic", |commit| commit.file("a", "1"))
            .await?;
        Ok(head)
    }

    /// Waits until the log of the commit's job on this platform has a line of this text; the job.
    pub async fn said(&self, head: &str, platform: &str, line: &str) -> Result<JobView> {
        let job = self.master.wait_for_job(head, platform, DEADLINE).await?;
        let line = format!("{line}\n");
        self.master
            .wait_for_output(job.number, line.as_bytes(), DEADLINE)
            .await?;
        Ok(job)
    }

    /// Waits for the end of the commit's build; the job of the suite on the platform, with its attempts.
    pub async fn ended_job(&self, head: &str, suite: &str, platform: &str) -> Result<JobView> {
        let build = self.master.wait_for_finished_build(head, DEADLINE).await?;
        let job = build
            .jobs
            .iter()
            .find(|job| job.suite == suite && job.platform == platform)
            .with_context(|| format!("no job {suite} ({platform}) in {build:?}"))?;
        self.master.job(job.number).await
    }

    /// All of a job's log.
    pub async fn log(&self, job: &JobView) -> Result<bytes::Bytes> {
        self.master.log(job.number, 0).await
    }

    /// Waits for the end of a context, and checks that it ended once and in this state; its description.
    pub async fn settled_as(&self, sha: &str, context: &str, state: StatusState) -> Result<String> {
        let status = self.settled(sha, context).await?;
        self.github
            .status_history(REPOSITORY, sha, context)
            .assert_settled_once(state);
        Ok(status.description.unwrap_or_default())
    }

    /// Waits for the end of a context of a commit.
    pub async fn settled(&self, sha: &str, context: &str) -> Result<Status> {
        self.github
            .wait_for_terminal_status(REPOSITORY, sha, context, DEADLINE)
            .await
    }

    /// Stops the master properly; nothing of its jobs may be left.
    pub async fn end(mut self) -> Result<()> {
        self.master.wait_until_nothing_is_left(DEADLINE).await?;
        let stopped = self.master.stop().await?;
        anyhow::ensure!(
            stopped == crate::master::Stopped::Orderly,
            "the master did not end orderly after SIGTERM"
        );
        Ok(())
    }
}
