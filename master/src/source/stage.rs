//! The stage as the pipeline sees it; what each method does is told where [`Sources`] has it.

use super::{Archive, CommitInfo, Merge, SourceError, Sources};
use crate::config::RepositoryConfig;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::io::AsyncRead;

/// Bytes on their way to a guest while they are still being made.
pub trait SourceStream: AsyncRead + Unpin + Send {
    /// To be called after the last byte: only then are they known to be whole.
    fn finish(self: Box<Self>) -> BoxFuture<'static, Result<(), SourceError>>;
}

type Answer<'a, T> = BoxFuture<'a, Result<T, SourceError>>;

/// Commits, files and streams of repositories. Every method ends within a bounded time.
pub trait Source: std::fmt::Debug + Send + Sync {
    fn fetch<'a>(
        &'a self,
        repository: &'a RepositoryConfig,
        wanted: &'a [&'a str],
    ) -> Answer<'a, ()>;

    fn fetch_pull_request<'a>(
        &'a self,
        repository: &'a RepositoryConfig,
        base_ref: &'a str,
        reference: &'a str,
        head: &'a str,
    ) -> Answer<'a, ()>;

    fn refresh<'a>(&'a self, repository: &'a RepositoryConfig) -> Answer<'a, ()>;

    fn resolve<'a>(
        &'a self,
        repository: &'a RepositoryConfig,
        reference: &'a str,
    ) -> Answer<'a, String>;

    fn parent<'a>(
        &'a self,
        repository: &'a RepositoryConfig,
        sha: &'a str,
    ) -> Answer<'a, Option<String>>;

    fn commit_info<'a>(
        &'a self,
        repository: &'a RepositoryConfig,
        sha: &'a str,
    ) -> Answer<'a, CommitInfo>;

    fn branches<'a>(
        &'a self,
        repository: &'a RepositoryConfig,
    ) -> Answer<'a, Vec<(String, String)>>;

    fn new_commits<'a>(
        &'a self,
        repository: &'a RepositoryConfig,
        branch_tip: &'a str,
        since: Option<&'a str>,
    ) -> Answer<'a, Vec<CommitInfo>>;

    fn merge<'a>(
        &'a self,
        repository: &'a RepositoryConfig,
        base: &'a str,
        head: &'a str,
    ) -> Answer<'a, Merge>;

    fn changed_files<'a>(
        &'a self,
        repository: &'a RepositoryConfig,
        from: &'a str,
        to: &'a str,
    ) -> Answer<'a, Vec<u8>>;

    fn file_at<'a>(
        &'a self,
        repository: &'a RepositoryConfig,
        sha: &'a str,
        path: &'a str,
    ) -> Answer<'a, Option<Vec<u8>>>;

    fn archive<'a>(
        &'a self,
        repository: &'a RepositoryConfig,
        sha: &'a str,
    ) -> Answer<'a, Box<dyn SourceStream>>;

    fn bundle<'a>(
        &'a self,
        repository: &'a RepositoryConfig,
        sha: &'a str,
        reference_name: &'a str,
    ) -> Answer<'a, Box<dyn SourceStream>>;
}

impl Source for Sources {
    fn fetch<'a>(
        &'a self,
        repository: &'a RepositoryConfig,
        wanted: &'a [&'a str],
    ) -> Answer<'a, ()> {
        Sources::fetch(self, repository, wanted).boxed()
    }

    fn fetch_pull_request<'a>(
        &'a self,
        repository: &'a RepositoryConfig,
        base_ref: &'a str,
        reference: &'a str,
        head: &'a str,
    ) -> Answer<'a, ()> {
        Sources::fetch_pull_request(self, repository, base_ref, reference, head).boxed()
    }

    fn refresh<'a>(&'a self, repository: &'a RepositoryConfig) -> Answer<'a, ()> {
        Sources::refresh(self, repository).boxed()
    }

    fn resolve<'a>(
        &'a self,
        repository: &'a RepositoryConfig,
        reference: &'a str,
    ) -> Answer<'a, String> {
        Sources::resolve(self, repository, reference).boxed()
    }

    fn parent<'a>(
        &'a self,
        repository: &'a RepositoryConfig,
        sha: &'a str,
    ) -> Answer<'a, Option<String>> {
        Sources::parent(self, repository, sha).boxed()
    }

    fn commit_info<'a>(
        &'a self,
        repository: &'a RepositoryConfig,
        sha: &'a str,
    ) -> Answer<'a, CommitInfo> {
        Sources::commit_info(self, repository, sha).boxed()
    }

    fn branches<'a>(
        &'a self,
        repository: &'a RepositoryConfig,
    ) -> Answer<'a, Vec<(String, String)>> {
        Sources::branches(self, repository).boxed()
    }

    fn new_commits<'a>(
        &'a self,
        repository: &'a RepositoryConfig,
        branch_tip: &'a str,
        since: Option<&'a str>,
    ) -> Answer<'a, Vec<CommitInfo>> {
        Sources::new_commits(self, repository, branch_tip, since).boxed()
    }

    fn merge<'a>(
        &'a self,
        repository: &'a RepositoryConfig,
        base: &'a str,
        head: &'a str,
    ) -> Answer<'a, Merge> {
        Sources::merge(self, repository, base, head).boxed()
    }

    fn changed_files<'a>(
        &'a self,
        repository: &'a RepositoryConfig,
        from: &'a str,
        to: &'a str,
    ) -> Answer<'a, Vec<u8>> {
        Sources::changed_files(self, repository, from, to).boxed()
    }

    fn file_at<'a>(
        &'a self,
        repository: &'a RepositoryConfig,
        sha: &'a str,
        path: &'a str,
    ) -> Answer<'a, Option<Vec<u8>>> {
        Sources::file_at(self, repository, sha, path).boxed()
    }

    fn archive<'a>(
        &'a self,
        repository: &'a RepositoryConfig,
        sha: &'a str,
    ) -> Answer<'a, Box<dyn SourceStream>> {
        async move { Ok(Sources::archive(self, repository, sha).await?.boxed()) }.boxed()
    }

    fn bundle<'a>(
        &'a self,
        repository: &'a RepositoryConfig,
        sha: &'a str,
        reference_name: &'a str,
    ) -> Answer<'a, Box<dyn SourceStream>> {
        async move {
            let bundle = Sources::bundle(self, repository, sha, reference_name).await?;
            Ok(bundle.boxed())
        }
        .boxed()
    }
}

impl SourceStream for Archive {
    fn finish(self: Box<Self>) -> BoxFuture<'static, Result<(), SourceError>> {
        Archive::finish(*self).boxed()
    }
}

impl Archive {
    fn boxed(self) -> Box<dyn SourceStream> {
        Box::new(self)
    }
}
