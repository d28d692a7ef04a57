//! Commits: what a name means, what is new on a branch, and who wrote it.

use super::call::Judge;
use super::names::{Name, is_sha};
use super::{SourceError, Sources};
use crate::config::RepositoryConfig;
use jiff::Timestamp;

/// Most commits that one look at a branch finds new; of more, the newest.
const MAX_NEW_COMMITS: usize = 1000;
/// A title or name that is longer is cut.
const MAX_TEXT: usize = 300;

/// What people want to know of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitInfo {
    pub sha: String,
    /// The first line of its message.
    pub title: String,
    /// The author's name.
    pub author: String,
    /// When it was committed.
    pub time: Timestamp,
}

impl Sources {
    /// The full sha of a branch, a tag, a ref, or a full or abbreviated sha; for a short name in this order.
    pub async fn resolve(
        &self,
        repository: &RepositoryConfig,
        reference: &str,
    ) -> Result<String, SourceError> {
        let name = Name::parse(repository, reference)?;
        let call = self.ask(repository, "look up a commit of").await?;
        let judge = call.judge();
        // Names go to its input, where nothing is an option.
        let questions: String = name
            .candidates()
            .iter()
            .map(|candidate| format!("{candidate}^{{commit}}\n"))
            .collect();
        let output = call
            .args(["cat-file", "--batch-check=%(objectname) %(objecttype)"])
            .input(questions)
            .succeed()
            .await?;
        output
            .text()
            .lines()
            .find_map(|line| line.strip_suffix(" commit").filter(|sha| is_sha(sha)))
            .map(str::to_owned)
            .ok_or_else(|| {
                judge
                    .damage(&output.stderr)
                    .unwrap_or_else(|| not_found(repository, reference))
            })
    }

    /// Why a command failed that was given these commits: most often one of them is not there, which git says in too many
    /// ways to tell it from damage.
    pub(super) async fn explain(
        &self,
        repository: &RepositoryConfig,
        given: &[&str],
        judge: &Judge,
        stderr: &str,
    ) -> SourceError {
        for sha in given {
            if let Err(error) = self.resolve(repository, sha).await {
                return error;
            }
        }
        judge.error(stderr)
    }

    /// The full sha, without asking git where it is one already.
    pub(super) async fn commit(
        &self,
        repository: &RepositoryConfig,
        reference: &str,
    ) -> Result<String, SourceError> {
        match is_sha(reference) {
            true => Ok(reference.to_ascii_lowercase()),
            false => self.resolve(repository, reference).await,
        }
    }

    /// Each branch with its tip, as of the last fetch. Names that are not UTF-8 are left out.
    pub async fn branches(
        &self,
        repository: &RepositoryConfig,
    ) -> Result<Vec<(String, String)>, SourceError> {
        let output = self
            .ask(repository, "list the branches of")
            .await?
            .args([
                "for-each-ref",
                "--format=%(objectname) %(refname:lstrip=2)",
                "refs/heads",
            ])
            .succeed()
            .await?;
        Ok(output
            .stdout
            .split(|byte| *byte == b'\n')
            .filter_map(|line| std::str::from_utf8(line).ok()?.split_once(' '))
            .map(|(tip, name)| (name.to_owned(), tip.to_owned()))
            .collect())
    }

    /// The commits that came to a branch since the last one tested, oldest first.
    ///
    /// After a force push they are those since the common ancestor. The tip alone is given where there is none, where
    /// `since` is not known, and where it vanished. At most the newest 1000.
    pub async fn new_commits(
        &self,
        repository: &RepositoryConfig,
        branch_tip: &str,
        since: Option<&str>,
    ) -> Result<Vec<CommitInfo>, SourceError> {
        let tip = self.commit(repository, branch_tip).await?;
        let since = match since {
            Some(since) => self.since(repository, &tip, since).await?,
            None => None,
        };
        let range = match &since {
            Some(since) if *since == tip => return Ok(Vec::new()),
            Some(since) => vec![
                format!("--max-count={MAX_NEW_COMMITS}"),
                format!("^{since}"),
            ],
            None => vec!["--max-count=1".to_owned()],
        };
        self.log(repository, &tip, range).await
    }

    /// The commit itself if it shares history with the tip.
    async fn since(
        &self,
        repository: &RepositoryConfig,
        tip: &str,
        since: &str,
    ) -> Result<Option<String>, SourceError> {
        let since = match self.commit(repository, since).await {
            Ok(since) => since,
            Err(SourceError::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        if since == tip {
            return Ok(Some(since));
        }
        // 1: nothing in common; 128: one of them is not there, and for the tip the next command says so.
        let output = self
            .ask(repository, "compare commits of")
            .await?
            .args(["merge-base", tip, &since])
            .run()
            .await?;
        Ok(output.is_success().then_some(since))
    }

    /// The commit's first parent; none for a first commit.
    pub async fn parent(
        &self,
        repository: &RepositoryConfig,
        sha: &str,
    ) -> Result<Option<String>, SourceError> {
        let sha = self.commit(repository, sha).await?;
        let call = self.ask(repository, "read a commit of").await?;
        let judge = call.judge();
        let output = call
            .args(["log", "--max-count=1", "--format=%P", &sha, "--"])
            .run()
            .await?;
        if !output.is_success() {
            return Err(self
                .explain(repository, &[&sha], &judge, &output.stderr)
                .await);
        }
        Ok(output.text().split_whitespace().next().map(str::to_owned))
    }

    pub async fn commit_info(
        &self,
        repository: &RepositoryConfig,
        sha: &str,
    ) -> Result<CommitInfo, SourceError> {
        let sha = self.commit(repository, sha).await?;
        let commits = self
            .log(repository, &sha, vec!["--max-count=1".to_owned()])
            .await?;
        commits
            .into_iter()
            .next()
            .ok_or_else(|| not_found(repository, &sha))
    }

    async fn log(
        &self,
        repository: &RepositoryConfig,
        tip: &str,
        range: Vec<String>,
    ) -> Result<Vec<CommitInfo>, SourceError> {
        let call = self.ask(repository, "read the commits of").await?;
        let judge = call.judge();
        let output = call
            .args([
                "log",
                "-z",
                "--reverse",
                "--topo-order",
                "--format=tformat:%H%x00%ct%x00%an%x00%s",
                tip,
            ])
            .args(range)
            .args(["--"])
            .run()
            .await?;
        if !output.is_success() {
            return Err(self
                .explain(repository, &[tip], &judge, &output.stderr)
                .await);
        }
        let text = output.text();
        let fields: Vec<&str> = text.split('\0').collect();
        Ok(fields
            .chunks_exact(4)
            .map(|commit| CommitInfo {
                sha: commit[0].to_owned(),
                title: shorten(commit[3]),
                author: shorten(commit[2]),
                time: commit[1]
                    .parse()
                    .ok()
                    .and_then(|seconds| Timestamp::from_second(seconds).ok())
                    .unwrap_or(Timestamp::UNIX_EPOCH),
            })
            .collect())
    }
}

fn shorten(text: &str) -> String {
    text.chars()
        .filter(|c| !c.is_control())
        .take(MAX_TEXT)
        .collect()
}

pub(super) fn not_found(repository: &RepositoryConfig, what: &str) -> SourceError {
    SourceError::NotFound {
        repository: repository.name.clone(),
        what: what.to_owned(),
    }
}
