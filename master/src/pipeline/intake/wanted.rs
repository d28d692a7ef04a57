//! From what is wanted to a build with a key. Two wishes that mean the same have the same key, whichever way they came.

use crate::config::RepositoryConfig;
use crate::model::{Learnt, MergeGroup, NewBuild, PullRequest, Trigger};

/// Whether artefacts are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::pipeline) enum Publish {
    Yes,
    No,
}

/// A pull request may be given another base, with the same head.
pub(in crate::pipeline) fn pull_request_key(pull_request: &PullRequest) -> String {
    let PullRequest {
        number,
        base_ref,
        head_sha,
        ..
    } = pull_request;
    format!("pull:{number}:{base_ref}:{head_sha}")
}

/// A merge and the push that it makes mean the same build.
pub(in crate::pipeline) fn commit_key(sha: &str, publish: Publish) -> String {
    let kind = match publish {
        Publish::Yes => "publish",
        Publish::No => "test",
    };
    format!("commit:{sha}:{kind}")
}

pub(in crate::pipeline) fn publish(repository: &RepositoryConfig, branch: &str) -> Publish {
    match repository.publishes_branch(branch) {
        true => Publish::Yes,
        false => Publish::No,
    }
}

pub(super) fn pull_request(repository: &RepositoryConfig, pull_request: PullRequest) -> NewBuild {
    NewBuild {
        repository: repository.name.clone(),
        trigger: Trigger::PullRequest,
        key: pull_request_key(&pull_request),
        reference: format!("refs/pull/{}/head", pull_request.number),
        pull_request: Some(pull_request.number),
        base_ref: Some(pull_request.base_ref),
        head_sha: pull_request.head_sha,
        from_fork: pull_request.from_fork,
        publish: false,
        title: pull_request.title,
        author: pull_request.author,
        event_at: pull_request.updated_at,
        before_sha: match pull_request.learnt {
            Learnt::FromEvent { before } => before,
            Learnt::ByLooking { .. } => None,
        },
        only_platforms: Vec::new(),
    }
}

pub(super) fn commit(
    repository: &RepositoryConfig,
    branch: &str,
    sha: String,
    title: String,
    author: Option<String>,
    trigger: Trigger,
) -> NewBuild {
    let publish = publish(repository, branch);
    NewBuild {
        repository: repository.name.clone(),
        trigger,
        key: commit_key(&sha, publish),
        reference: format!("refs/heads/{branch}"),
        pull_request: None,
        base_ref: Some(branch.to_owned()),
        head_sha: sha,
        from_fork: false,
        publish: publish == Publish::Yes,
        title,
        author,
        event_at: None,
        before_sha: None,
        only_platforms: Vec::new(),
    }
}

/// Nothing is published before it is merged.
pub(super) fn merge_group(repository: &RepositoryConfig, group: MergeGroup) -> NewBuild {
    NewBuild {
        repository: repository.name.clone(),
        trigger: Trigger::MergeGroup,
        key: commit_key(&group.head_sha, Publish::No),
        reference: group.reference,
        pull_request: None,
        base_ref: Some(group.base_ref),
        head_sha: group.head_sha,
        from_fork: false,
        publish: false,
        title: group.title,
        author: group.author,
        event_at: None,
        before_sha: None,
        only_platforms: Vec::new(),
    }
}
