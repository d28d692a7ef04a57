//! The merge of a head into its base, built here: GitHub's own is made later, and at times of older commits.

use super::history::not_found;
use super::{SourceError, Sources};
use crate::config::RepositoryConfig;

/// Most files that a conflict names.
const MAX_CONFLICTS: usize = 100;
const IDENTITY: (&str, &str) = ("Vivarium", "vivarium@localhost");

/// How a merge came out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Merge {
    /// A commit with its tree: the head itself where the base has nothing of its own, the base where it has the head
    /// already, else a new commit that only the mirror knows. The same pair gives the same sha at any time.
    Clean { sha: String, tree: String },
    /// Both sides changed these files.
    Conflict { files: Vec<String> },
}

impl Sources {
    /// Merges `head` into `base`.
    pub async fn merge(
        &self,
        repository: &RepositoryConfig,
        base: &str,
        head: &str,
    ) -> Result<Merge, SourceError> {
        const WHAT: &str = "merge commits of";
        let base = &self.commit(repository, base).await?;
        let head = &self.commit(repository, head).await?;
        let call = self.ask(repository, WHAT).await?;
        let judge = call.judge();
        let common = call.args(["merge-base", base, head]);
        let described = self.ask(repository, WHAT).await?.args([
            "log",
            "--no-walk=unsorted",
            "--format=%H %T %ct",
            base,
            head,
            "--",
        ]);
        let merged = self.ask(repository, WHAT).await?.args([
            "merge-tree",
            "--write-tree",
            "-z",
            "--name-only",
            "--no-messages",
            base,
            head,
        ]);
        // Side by side: this is on the way of every pull request, and the latter is seldom in vain.
        let (common, described, merged) =
            tokio::try_join!(common.run(), described.run(), merged.run())?;

        if !described.is_success() {
            return Err(self
                .explain(repository, &[base, head], &judge, &described.stderr)
                .await);
        }
        let description = described.text();
        let tree_and_time = |sha: &str| {
            description
                .lines()
                .find_map(|line| line.strip_prefix(sha)?.trim().split_once(' '))
                .ok_or_else(|| not_found(repository, sha))
        };
        match common.code {
            Some(0) => {}
            Some(1) => {
                return Err(SourceError::Unrelated {
                    repository: repository.name.clone(),
                    base: base.clone(),
                    head: head.clone(),
                });
            }
            _ => return Err(judge.error(&common.stderr)),
        }
        let common = common.text();
        for (ancestor, result) in [(base, head), (head, base)] {
            if common.trim() == ancestor {
                return Ok(Merge::Clean {
                    sha: result.clone(),
                    tree: tree_and_time(result)?.0.to_owned(),
                });
            }
        }
        let stdout = merged.text();
        let mut fields = stdout.split('\0').filter(|field| !field.is_empty());
        let tree = match merged.code {
            Some(0) => fields.next().ok_or_else(|| judge.error(&merged.stderr))?,
            Some(1) => {
                return Ok(Merge::Conflict {
                    files: fields
                        .skip(1)
                        .take(MAX_CONFLICTS)
                        .map(str::to_owned)
                        .collect(),
                });
            }
            _ => return Err(judge.error(&merged.stderr)),
        };
        let (_, time) = tree_and_time(head)?;
        let commit = self.commit_tree(repository, tree, base, head, time).await?;
        Ok(Merge::Clean {
            sha: commit,
            tree: tree.to_owned(),
        })
    }

    async fn commit_tree(
        &self,
        repository: &RepositoryConfig,
        tree: &str,
        base: &str,
        head: &str,
        seconds: &str,
    ) -> Result<String, SourceError> {
        let date = format!("@{seconds} +0000");
        let (name, email) = IDENTITY;
        let output = self
            .ask(repository, "write the merge of")
            .await?
            .args(["commit-tree", tree, "-p", base, "-p", head])
            .env("GIT_AUTHOR_NAME", name)
            .env("GIT_AUTHOR_EMAIL", email)
            .env("GIT_AUTHOR_DATE", &date)
            .env("GIT_COMMITTER_NAME", name)
            .env("GIT_COMMITTER_EMAIL", email)
            .env("GIT_COMMITTER_DATE", &date)
            .input(format!("Merge {head} into {base}\n"))
            .succeed()
            .await?;
        Ok(output.text().trim().to_owned())
    }
}
