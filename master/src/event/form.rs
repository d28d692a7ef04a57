//! What is read of GitHub's JSON: in events, and in answers of its API, which have the same shapes.
//!
//! The structs hold only what is used, and take unknown fields and actions as they come: GitHub adds both without
//! notice. `head.repo` and users can be null, once they are deleted.

use jiff::Timestamp;
use serde::Deserialize;

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct PullRequestEvent {
    pub(crate) action: String,
    /// Of `synchronize`: the head until then.
    #[serde(default)]
    pub(crate) before: Option<String>,
    pub(crate) pull_request: PullRequestBody,
    pub(crate) repository: Repository,
    #[serde(default)]
    pub(crate) changes: Option<Changes>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct PullRequestBody {
    pub(crate) number: i64,
    #[serde(default)]
    pub(crate) state: Option<String>,
    #[serde(default)]
    pub(crate) title: Option<String>,
    #[serde(default)]
    pub(crate) user: Option<User>,
    pub(crate) head: Side,
    pub(crate) base: Side,
    #[serde(default)]
    pub(crate) merged: Option<bool>,
    #[serde(default)]
    pub(crate) updated_at: Option<String>,
    #[serde(default)]
    pub(crate) merge_commit_sha: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Side {
    #[serde(rename = "ref")]
    pub(crate) reference: String,
    pub(crate) sha: String,
    #[serde(default)]
    pub(crate) repo: Option<Repository>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Repository {
    #[serde(default)]
    pub(crate) id: Option<i64>,
    pub(crate) full_name: String,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct User {
    pub(crate) login: String,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Changes {
    #[serde(default)]
    pub(crate) base: Option<serde::de::IgnoredAny>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct PushEvent {
    #[serde(rename = "ref")]
    pub(crate) reference: String,
    pub(crate) before: String,
    pub(crate) after: String,
    #[serde(default)]
    pub(crate) deleted: bool,
    pub(crate) repository: Repository,
    #[serde(default)]
    pub(crate) head_commit: Option<Commit>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Commit {
    #[serde(default)]
    pub(crate) message: Option<String>,
    #[serde(default)]
    pub(crate) author: Option<Author>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Author {
    #[serde(default)]
    pub(crate) username: Option<String>,
    #[serde(default)]
    pub(crate) name: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct MergeGroupEvent {
    pub(crate) action: String,
    pub(crate) merge_group: MergeGroup,
    pub(crate) repository: Repository,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct MergeGroup {
    pub(crate) head_sha: String,
    /// In full: `refs/heads/gh-readonly-queue/main/pr-7-…`.
    pub(crate) head_ref: String,
    /// In full: `refs/heads/main`.
    pub(crate) base_ref: String,
    #[serde(default)]
    pub(crate) head_commit: Option<Commit>,
}

/// A reference, as a list of the API has it.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Reference {
    /// In full: `refs/heads/main`.
    #[serde(rename = "ref")]
    pub(crate) name: String,
    pub(crate) object: Object,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Object {
    pub(crate) sha: String,
}

/// A commit, as the API answers for it.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct CommitAnswer {
    pub(crate) commit: CommitDetail,
    /// Its account, where GitHub knows it.
    #[serde(default)]
    pub(crate) author: Option<User>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct CommitDetail {
    pub(crate) message: String,
    #[serde(default)]
    pub(crate) author: Option<Author>,
    #[serde(default)]
    pub(crate) committer: Option<Committer>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Committer {
    #[serde(default)]
    pub(crate) date: Option<Timestamp>,
}
