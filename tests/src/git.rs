//! Bare Git repositories, driven by git's own command line.
//!
//! In come commits as lists of file changes; out come SHAs. Nothing here needs a work tree: commits are written by
//! `git fast-import`, merges by `git merge-tree`.

use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::atomic::{AtomicI64, Ordering};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// What becomes of one path in a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Write(Vec<u8>),
    WriteExecutable(Vec<u8>),
    Delete,
}

/// A commit to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    pub branch: String,
    /// The revision that becomes the parent; without it the branch's own head. A branch that does not exist and
    /// has no such revision begins a history of its own.
    pub parent: Option<String>,
    pub message: String,
    pub author: String,
    pub changes: BTreeMap<String, Change>,
}

impl Commit {
    pub fn on(branch: &str) -> Commit {
        Commit {
            branch: branch.to_owned(),
            parent: None,
            message: format!("Change {branch}"),
            author: "Ada Author".to_owned(),
            changes: BTreeMap::new(),
        }
    }

    /// Sets the parent, for the first commit of a branch or for a forced push.
    pub fn from(mut self, revision: &str) -> Commit {
        self.parent = Some(revision.to_owned());
        self
    }

    pub fn message(mut self, message: &str) -> Commit {
        self.message = message.to_owned();
        self
    }

    pub fn author(mut self, name: &str) -> Commit {
        self.author = name.to_owned();
        self
    }

    pub fn file(mut self, path: &str, content: impl Into<Vec<u8>>) -> Commit {
        self.changes
            .insert(path.to_owned(), Change::Write(content.into()));
        self
    }

    pub fn executable(mut self, path: &str, content: impl Into<Vec<u8>>) -> Commit {
        self.changes
            .insert(path.to_owned(), Change::WriteExecutable(content.into()));
        self
    }

    pub fn delete(mut self, path: &str) -> Commit {
        self.changes.insert(path.to_owned(), Change::Delete);
        self
    }
}

/// What a merge of two commits gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Merge {
    /// The tree of the result.
    Clean(String),
    /// The paths in conflict.
    Conflict(Vec<String>),
}

/// A commit as the repository tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitInfo {
    pub sha: String,
    pub tree: String,
    pub parents: Vec<String>,
    pub author_name: String,
    pub author_email: String,
    /// ISO 8601 with offset.
    pub date: String,
    pub message: String,
    pub added: Vec<String>,
    pub removed: Vec<String>,
    pub modified: Vec<String>,
}

/// A bare repository in a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BareRepository {
    path: PathBuf,
}

/// Commits made within one second still get different times, and so different SHAs.
static CLOCK: AtomicI64 = AtomicI64::new(0);

fn next_time() -> i64 {
    let now = jiff::Timestamp::now().as_second();
    let last = CLOCK
        .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |last| {
            Some(now.max(last + 1))
        })
        .unwrap_or_default();
    now.max(last + 1)
}

/// A git command that no configuration of the machine reaches.
pub fn command() -> Command {
    let mut command = Command::new("git");
    command
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("GIT_AUTHOR_NAME", "Ada Author")
        .env("GIT_AUTHOR_EMAIL", "ada@example.com")
        .env("GIT_COMMITTER_NAME", "Ada Author")
        .env("GIT_COMMITTER_EMAIL", "ada@example.com")
        .env_remove("GIT_DIR")
        .env_remove("GIT_WORK_TREE")
        .env_remove("GIT_INDEX_FILE")
        .kill_on_drop(true)
        .stdin(Stdio::null());
    command
}

/// Runs git in a folder; its output as text, or an error with what it said.
pub async fn run(folder: &Path, arguments: &[&str]) -> Result<String> {
    let output = output(folder, arguments).await?;
    if !output.status.success() {
        bail!(
            "git {} failed in {}: {}",
            arguments.join(" "),
            folder.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout)
        .trim_end()
        .to_owned())
}

async fn output(folder: &Path, arguments: &[&str]) -> Result<Output> {
    command()
        .current_dir(folder)
        .args(arguments)
        .output()
        .await
        .with_context(|| format!("cannot run git {}", arguments.join(" ")))
}

impl BareRepository {
    /// Makes an empty repository whose default branch is `main`.
    pub async fn init(path: &Path) -> Result<BareRepository> {
        tokio::fs::create_dir_all(path)
            .await
            .with_context(|| format!("cannot create {}", path.display()))?;
        run(
            path,
            &["init", "--quiet", "--bare", "--initial-branch=main"],
        )
        .await?;
        let repository = BareRepository {
            path: path.to_owned(),
        };
        repository.allow_what_github_allows().await?;
        Ok(repository)
    }

    /// Copies a repository, with branches and tags.
    pub async fn clone_of(path: &Path, origin: &BareRepository) -> Result<BareRepository> {
        let parent = path.parent().unwrap_or(path);
        tokio::fs::create_dir_all(parent).await?;
        let (from, to) = (origin.path.to_string_lossy(), path.to_string_lossy());
        run(parent, &["clone", "--quiet", "--bare", &from, &to]).await?;
        let repository = BareRepository {
            path: path.to_owned(),
        };
        repository.allow_what_github_allows().await?;
        Ok(repository)
    }

    async fn allow_what_github_allows(&self) -> Result<()> {
        for setting in ["uploadpack.allowAnySHA1InWant", "uploadpack.allowFilter"] {
            self.git(&["config", setting, "true"]).await?;
        }
        self.git(&["config", "gc.auto", "0"]).await?;
        Ok(())
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs git in the repository.
    pub async fn git(&self, arguments: &[&str]) -> Result<String> {
        run(&self.path, arguments).await
    }

    /// Makes a commit and moves its branch to it; returns the SHA.
    pub async fn commit(&self, commit: &Commit) -> Result<String> {
        let reference = format!("refs/heads/{}", commit.branch);
        let parent = match &commit.parent {
            Some(revision) => Some(
                self.resolve(revision)
                    .await
                    .with_context(|| format!("no revision `{revision}` to commit on"))?,
            ),
            None => self.resolve(&reference).await,
        };
        let email = format!(
            "{}@example.com",
            commit.author.to_lowercase().replace(' ', ".")
        );
        let mut stream = Vec::new();
        let time = next_time();
        stream.extend_from_slice(
            format!(
                "commit {reference}\nauthor {0} <{email}> {time} +0000\ncommitter {0} <{email}> {time} +0000\ndata {1}\n{2}\n",
                commit.author,
                commit.message.len(),
                commit.message
            )
            .as_bytes(),
        );
        if let Some(parent) = parent {
            stream.extend_from_slice(format!("from {parent}\n").as_bytes());
        }
        for (path, change) in &commit.changes {
            let (mode, content) = match change {
                Change::Write(content) => ("100644", content),
                Change::WriteExecutable(content) => ("100755", content),
                Change::Delete => {
                    stream.extend_from_slice(format!("D {path}\n").as_bytes());
                    continue;
                }
            };
            stream.extend_from_slice(
                format!("M {mode} inline {path}\ndata {}\n", content.len()).as_bytes(),
            );
            stream.extend_from_slice(content);
            stream.push(b'\n');
        }
        stream.extend_from_slice(b"done\n");

        let mut child = command()
            .current_dir(&self.path)
            .args(["fast-import", "--quiet", "--force", "--done"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot run git fast-import")?;
        let mut stdin = child.stdin.take().context("git fast-import has no stdin")?;
        // A failure to write shows in the exit status, with git's own words.
        let written = stdin.write_all(&stream).await;
        drop(stdin);
        let output = child.wait_with_output().await?;
        if !output.status.success() || written.is_err() {
            bail!(
                "git fast-import failed: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        self.resolve(&reference)
            .await
            .context("git fast-import left no branch")
    }

    /// The commit that a revision names, if it is there.
    pub async fn resolve(&self, revision: &str) -> Option<String> {
        let commit = format!("{revision}^{{commit}}");
        self.git(&[
            "rev-parse",
            "--verify",
            "--quiet",
            "--end-of-options",
            &commit,
        ])
        .await
        .ok()
        .filter(|sha| !sha.is_empty())
    }

    /// The head of a branch.
    pub async fn head_of(&self, branch: &str) -> Option<String> {
        self.resolve(&format!("refs/heads/{branch}")).await
    }

    pub async fn update_ref(&self, reference: &str, sha: &str) -> Result<()> {
        self.git(&["update-ref", reference, sha]).await.map(drop)
    }

    pub async fn delete_ref(&self, reference: &str) -> Result<()> {
        self.git(&["update-ref", "-d", reference]).await.map(drop)
    }

    pub async fn is_ancestor(&self, older: &str, newer: &str) -> Result<bool> {
        let output = output(&self.path, &["merge-base", "--is-ancestor", older, newer]).await?;
        Ok(output.status.success())
    }

    /// Branches (short names) with their heads.
    pub async fn branches(&self) -> Result<Vec<(String, String)>> {
        let listing = self
            .git(&[
                "for-each-ref",
                "--format=%(refname:lstrip=2) %(objectname)",
                "refs/heads",
            ])
            .await?;
        Ok(listing
            .lines()
            .filter_map(|line| line.rsplit_once(' '))
            .map(|(name, sha)| (name.to_owned(), sha.to_owned()))
            .collect())
    }

    /// Merges two commits in memory.
    pub async fn merge(&self, base: &str, head: &str) -> Result<Merge> {
        let output = output(
            &self.path,
            &[
                "merge-tree",
                "--write-tree",
                "--name-only",
                "--no-messages",
                base,
                head,
            ],
        )
        .await?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut lines = text.lines();
        let tree = lines.next().unwrap_or_default().to_owned();
        match output.status.code() {
            Some(0) => Ok(Merge::Clean(tree)),
            Some(1) => Ok(Merge::Conflict(
                lines
                    .filter(|line| !line.is_empty())
                    .map(str::to_owned)
                    .collect(),
            )),
            _ => bail!(
                "git merge-tree failed: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            ),
        }
    }

    /// Makes a commit object of a tree; no reference moves.
    pub async fn commit_tree(&self, tree: &str, parents: &[&str], message: &str) -> Result<String> {
        let mut arguments = vec!["commit-tree", tree, "-m", message];
        for parent in parents {
            arguments.extend(["-p", parent]);
        }
        self.git(&arguments).await
    }

    /// What is known of a commit.
    pub async fn commit_info(&self, sha: &str) -> Result<CommitInfo> {
        let text = self
            .git(&[
                "show",
                "--no-patch",
                "--format=%H%n%T%n%P%n%an%n%ae%n%aI%n%B",
                sha,
            ])
            .await?;
        let mut lines = text.splitn(7, '\n');
        let mut next = || lines.next().unwrap_or_default().to_owned();
        let mut info = CommitInfo {
            sha: next(),
            tree: next(),
            parents: next().split_whitespace().map(str::to_owned).collect(),
            author_name: next(),
            author_email: next(),
            date: next(),
            message: next().trim_end().to_owned(),
            added: Vec::new(),
            removed: Vec::new(),
            modified: Vec::new(),
        };
        let changes = self
            .git(&[
                "diff-tree",
                "--root",
                "--no-commit-id",
                "--name-status",
                "-r",
                "-m",
                "--first-parent",
                sha,
            ])
            .await?;
        for line in changes.lines() {
            let Some((kind, path)) = line.split_once('\t') else {
                continue;
            };
            let list = match kind {
                "A" => &mut info.added,
                "D" => &mut info.removed,
                _ => &mut info.modified,
            };
            list.push(path.to_owned());
        }
        Ok(info)
    }

    /// The commits of a range, oldest first.
    pub async fn commits_between(&self, older: Option<&str>, newer: &str) -> Result<Vec<String>> {
        let range = older.map_or_else(|| newer.to_owned(), |older| format!("{older}..{newer}"));
        let list = self
            .git(&["rev-list", "--reverse", "--topo-order", &range])
            .await?;
        Ok(list.lines().map(str::to_owned).collect())
    }

    /// Brings a commit of another repository here, under a reference.
    pub async fn fetch(&self, from: &BareRepository, sha: &str, reference: &str) -> Result<()> {
        let origin = from.path.to_string_lossy();
        let refspec = format!("+{sha}:{reference}");
        self.git(&["fetch", "--quiet", "--no-tags", &origin, &refspec])
            .await
            .map(drop)
    }

    /// The content of a file at a revision.
    pub async fn file(&self, revision: &str, path: &str) -> Result<Vec<u8>> {
        let object = format!("{revision}:{path}");
        let output = output(&self.path, &["cat-file", "blob", &object]).await?;
        if !output.status.success() {
            bail!("no file {object}");
        }
        Ok(output.stdout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn commits_branch_and_merge_without_a_work_tree() {
        let folder = tempfile::tempdir().unwrap();
        let repository = BareRepository::init(&folder.path().join("r.git"))
            .await
            .unwrap();
        let first = repository
            .commit(&Commit::on("main").file("a", "1\n").file("gone", "x"))
            .await
            .unwrap();
        let topic = repository
            .commit(
                &Commit::on("topic")
                    .from("main")
                    .file("b", vec![0, 255, 10])
                    .delete("gone"),
            )
            .await
            .unwrap();
        let main = repository
            .commit(&Commit::on("main").file("c", "3\n"))
            .await
            .unwrap();
        assert!(repository.is_ancestor(&first, &topic).await.unwrap());
        assert!(!repository.is_ancestor(&topic, &main).await.unwrap());
        let info = repository.commit_info(&topic).await.unwrap();
        assert_eq!(info.parents, [first]);
        assert_eq!(
            (info.added, info.removed),
            (vec!["b".to_owned()], vec!["gone".to_owned()])
        );
        assert_eq!(repository.file(&topic, "b").await.unwrap(), [0, 255, 10]);
        assert!(matches!(
            repository.merge(&main, &topic).await.unwrap(),
            Merge::Clean(_)
        ));

        let left = repository
            .commit(&Commit::on("left").from("main").file("a", "left\n"))
            .await
            .unwrap();
        let right = repository
            .commit(&Commit::on("right").from("main").file("a", "right\n"))
            .await
            .unwrap();
        assert_eq!(
            repository.merge(&left, &right).await.unwrap(),
            Merge::Conflict(vec!["a".to_owned()])
        );
    }
}
