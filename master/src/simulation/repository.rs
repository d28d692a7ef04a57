//! Git and the network to it: commits that follow from the plan, and fetches that fail.

use super::plan::{LOCAL, MAIN};
use super::trouble::Outage;
use super::world::World;
use crate::config::RepositoryConfig;
use crate::source::{CommitInfo, Merge, Source, SourceError, SourceStream};
use futures::FutureExt;
use futures::future::BoxFuture;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, ReadBuf};

#[derive(Debug)]
pub(super) struct Repository(pub(super) Arc<World>);

type Answer<'a, T> = BoxFuture<'a, Result<T, SourceError>>;

/// What a merge made here is called.
const MERGE: char = 'e';

/// The bytes of a commit's tree.
pub(super) fn tree(sha: &str) -> Vec<u8> {
    format!("tree of {sha}\n").repeat(20).into_bytes()
}

fn info(sha: &str) -> CommitInfo {
    CommitInfo {
        sha: sha.to_owned(),
        title: "A change".to_owned(),
        author: "Ada".to_owned(),
        time: super::world::EPOCH,
    }
}

fn merge_of(head: &str) -> String {
    format!("{MERGE}{}", &head[1..])
}

impl Repository {
    async fn asked(&self, repository: &RepositoryConfig, most_ms: u64) -> Result<(), SourceError> {
        self.0.takes("source", 0, most_ms).await;
        let percent = self.0.plan.faults.source_fails;
        if self.0.is_out(Outage::Source) || self.0.breaks(percent, "source", 0) {
            return Err(SourceError::Unreachable {
                repository: repository.name.clone(),
                why: "no route to host".to_owned(),
                hint: "wait",
            });
        }
        Ok(())
    }

    /// The main branch, as far as it has come.
    fn main(&self, repository: &RepositoryConfig) -> Vec<String> {
        let now = self.0.now();
        let mut commits = vec![self.0.plan.root()];
        if repository.name == LOCAL {
            let local = self.0.plan.local.iter();
            let pushed = local.take_while(|(at, _)| *at <= now);
            commits.extend(pushed.map(|(_, sha)| sha.clone()));
        }
        commits
    }

    fn tip(&self, repository: &RepositoryConfig) -> String {
        self.main(repository).pop().unwrap_or_default()
    }

    fn stream(&self, repository: &RepositoryConfig, sha: &str) -> Box<dyn SourceStream> {
        let breaks = self.0.breaks(self.0.plan.faults.archive_fails, "source", 1);
        let mut bytes = tree(sha);
        if breaks {
            bytes.truncate(bytes.len() / 2);
        }
        Box::new(Tree {
            rest: io::Cursor::new(bytes),
            fails: breaks.then(|| SourceError::Git {
                repository: repository.name.clone(),
                what: "archive the files of",
                why: "git was killed".to_owned(),
            }),
        })
    }
}

impl Source for Repository {
    fn fetch<'a>(&'a self, of: &'a RepositoryConfig, _wanted: &'a [&'a str]) -> Answer<'a, ()> {
        self.asked(of, 500).boxed()
    }

    fn fetch_pull_request<'a>(
        &'a self,
        of: &'a RepositoryConfig,
        _base_ref: &'a str,
        _reference: &'a str,
        _head: &'a str,
    ) -> Answer<'a, ()> {
        self.asked(of, 500).boxed()
    }

    fn refresh<'a>(&'a self, of: &'a RepositoryConfig) -> Answer<'a, ()> {
        self.asked(of, 500).boxed()
    }

    fn resolve<'a>(&'a self, of: &'a RepositoryConfig, reference: &'a str) -> Answer<'a, String> {
        async move {
            self.asked(of, 20).await?;
            Ok(match reference.ends_with(MAIN) {
                true => self.tip(of),
                false => reference.to_owned(),
            })
        }
        .boxed()
    }

    fn parent<'a>(&'a self, of: &'a RepositoryConfig, sha: &'a str) -> Answer<'a, Option<String>> {
        async move {
            self.asked(of, 20).await?;
            let commit = self.0.plan.commits.get(sha);
            Ok(commit.and_then(|commit| commit.parent.clone()))
        }
        .boxed()
    }

    fn commit_info<'a>(&'a self, of: &'a RepositoryConfig, sha: &'a str) -> Answer<'a, CommitInfo> {
        async move {
            self.asked(of, 20).await?;
            Ok(info(sha))
        }
        .boxed()
    }

    fn branches<'a>(&'a self, of: &'a RepositoryConfig) -> Answer<'a, Vec<(String, String)>> {
        async move {
            self.asked(of, 20).await?;
            Ok(vec![(MAIN.to_owned(), self.tip(of))])
        }
        .boxed()
    }

    fn new_commits<'a>(
        &'a self,
        of: &'a RepositoryConfig,
        branch_tip: &'a str,
        since: Option<&'a str>,
    ) -> Answer<'a, Vec<CommitInfo>> {
        async move {
            self.asked(of, 20).await?;
            let main = self.main(of);
            let place = |sha: &str| main.iter().position(|known| known == sha);
            let to = place(branch_tip).unwrap_or(0);
            let from = since.and_then(place).map_or(to, |since| since + 1);
            Ok(main[from..=to].iter().map(|sha| info(sha)).collect())
        }
        .boxed()
    }

    fn merge<'a>(
        &'a self,
        of: &'a RepositoryConfig,
        _base: &'a str,
        head: &'a str,
    ) -> Answer<'a, Merge> {
        async move {
            self.asked(of, 60).await?;
            if self
                .0
                .plan
                .commits
                .get(head)
                .is_some_and(|commit| commit.conflicts)
            {
                let files = vec!["engine.c".to_owned()];
                return Ok(Merge::Conflict { files });
            }
            let sha = merge_of(head);
            let tree = sha.clone();
            Ok(Merge::Clean { sha, tree })
        }
        .boxed()
    }

    fn changed_files<'a>(
        &'a self,
        of: &'a RepositoryConfig,
        _from: &'a str,
        _to: &'a str,
    ) -> Answer<'a, Vec<u8>> {
        async move {
            self.asked(of, 30).await?;
            Ok(b"engine.c\n".to_vec())
        }
        .boxed()
    }

    fn file_at<'a>(
        &'a self,
        of: &'a RepositoryConfig,
        sha: &'a str,
        _path: &'a str,
    ) -> Answer<'a, Option<Vec<u8>>> {
        async move {
            self.asked(of, 20).await?;
            let commits = &self.0.plan.commits;
            let found = commits
                .iter()
                .find(|(known, _)| known.as_str() == sha || merge_of(known) == sha);
            Ok(found.map(|(_, commit)| commit.file.clone().into_bytes()))
        }
        .boxed()
    }

    fn archive<'a>(
        &'a self,
        of: &'a RepositoryConfig,
        sha: &'a str,
    ) -> Answer<'a, Box<dyn SourceStream>> {
        async move {
            self.asked(of, 30).await?;
            Ok(self.stream(of, sha))
        }
        .boxed()
    }

    fn bundle<'a>(
        &'a self,
        of: &'a RepositoryConfig,
        sha: &'a str,
        _reference_name: &'a str,
    ) -> Answer<'a, Box<dyn SourceStream>> {
        self.archive(of, sha)
    }
}

struct Tree {
    rest: io::Cursor<Vec<u8>>,
    fails: Option<SourceError>,
}

impl AsyncRead for Tree {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.rest).poll_read(context, buffer)
    }
}

impl SourceStream for Tree {
    fn finish(self: Box<Self>) -> BoxFuture<'static, Result<(), SourceError>> {
        std::future::ready(self.fails.map_or(Ok(()), Err)).boxed()
    }
}
