//! What events are about, and what GitHub's lists show: pull requests, tips of branches, merge groups. The same subject
//! becomes the same intent, whichever way it was learnt of, so that it is built once.

use super::form::{CommitAnswer, MergeGroup as MergeGroupForm, PullRequestBody, Reference};
use super::names::{InterpretError, asks_to_skip, branch, one_line, sha};
use crate::config::RepositoryConfig;
use crate::model::{Intent, Learnt, MergeGroup, PullRequest, Reason};
use jiff::Timestamp;

/// Where GitHub's merge queues keep the commits that they want tested.
pub(crate) const MERGE_QUEUE: &str = "gh-readonly-queue/";
const BRANCHES: &str = "refs/heads/";

pub(crate) fn is_of_merge_queue(branch: &str) -> bool {
    branch.starts_with(MERGE_QUEUE)
}

/// A pull request that is to be built.
pub(crate) fn wanted(
    request: &PullRequestBody,
    learnt: Learnt,
) -> Result<PullRequest, InterpretError> {
    Ok(PullRequest {
        number: request.number,
        title: one_line(request.title.as_deref().unwrap_or("")),
        author: request.user.as_ref().map(|user| one_line(&user.login)),
        head_sha: sha("head commit", &request.head.sha)?,
        base_ref: branch("base branch", &request.base.reference)?,
        updated_at: updated_at(request),
        learnt,
        from_fork: is_from_fork(request),
    })
}

fn updated_at(request: &PullRequestBody) -> Option<Timestamp> {
    request.updated_at.as_deref().and_then(|at| at.parse().ok())
}

/// Where it is not certain that the head is in the same repository, its author is a stranger.
fn is_from_fork(request: &PullRequestBody) -> bool {
    match (&request.head.repo, &request.base.repo) {
        (Some(head), Some(base)) => match (head.id, base.id) {
            (Some(head), Some(base)) => head != base,
            (None, _) | (_, None) => !head.full_name.eq_ignore_ascii_case(&base.full_name),
        },
        (None, _) | (_, None) => true,
    }
}

/// The pull request's own builds end either way; after a merge, what is on the base branch now is built.
pub(crate) fn closed(
    request: &PullRequestBody,
    repository: &RepositoryConfig,
) -> Result<Vec<Intent>, InterpretError> {
    let mut intents = vec![Intent::CancelPullRequest {
        number: request.number,
        reason: Reason::Closed,
        closed_at: updated_at(request),
    }];
    if request.merged == Some(true)
        && let Some(merge_commit) = &request.merge_commit_sha
    {
        let base = branch("base branch", &request.base.reference)?;
        if repository.tests_branch(&base) {
            intents.push(Intent::BuildCommit {
                branch: base,
                sha: sha("merge commit", merge_commit)?,
                title: one_line(request.title.as_deref().unwrap_or("")),
                author: request.user.as_ref().map(|user| one_line(&user.login)),
                merged_pull_request: Some(request.number),
                learnt: Learnt::FromEvent { before: None },
            });
        }
    }
    Ok(intents)
}

/// What a merge queue wants tested.
pub(crate) fn merge_group(group: &MergeGroupForm) -> Result<Intent, InterpretError> {
    let commit = group.head_commit.as_ref();
    let message = commit.and_then(|commit| commit.message.as_deref());
    let author = commit.and_then(|commit| commit.author.as_ref());
    Ok(Intent::BuildMergeGroup(MergeGroup {
        reference: format!(
            "{BRANCHES}{}",
            branch("merge group", short(&group.head_ref))?
        ),
        base_ref: branch("base branch", short(&group.base_ref))?,
        head_sha: sha("head commit", &group.head_sha)?,
        title: first_line(message.unwrap_or("")),
        author: author
            .and_then(|author| author.username.as_deref().or(author.name.as_deref()))
            .map(one_line),
        learnt: Learnt::FromEvent { before: None },
    }))
}

/// The merge queue has done with the commit, or dropped it.
pub(crate) fn dropped(head_sha: &str) -> Result<Intent, InterpretError> {
    Ok(Intent::CancelMergeGroup {
        head_sha: sha("head commit", head_sha)?,
        reason: Reason::Closed,
    })
}

/// A commit that is the tip of a branch, or of a merge queue's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tip {
    pub(crate) branch: String,
    pub(crate) sha: String,
}

impl Tip {
    /// `None` for a reference that is no branch.
    pub(crate) fn of(reference: &Reference) -> Option<Result<Tip, InterpretError>> {
        let name = reference.name.strip_prefix(BRANCHES)?;
        let tip = || {
            Ok(Tip {
                branch: branch("branch", name)?,
                sha: sha("commit", &reference.object.sha)?,
            })
        };
        Some(tip())
    }

    /// The branch that a merge queue's branch is for: `main` of `gh-readonly-queue/main/pr-7-…`.
    fn base_of_group(&self) -> Option<&str> {
        let (base, _) = self.branch.strip_prefix(MERGE_QUEUE)?.rsplit_once('/')?;
        Some(base)
    }

    /// What the tip asks for; `None` where its author asks to skip it, which a merge queue does not heed.
    pub(crate) fn intent(&self, commit: &CommitAnswer, seen_at: Timestamp) -> Option<Intent> {
        let learnt = Learnt::ByLooking { at: seen_at };
        let message = commit.commit.message.as_str();
        let account = commit.author.as_ref().map(|user| user.login.as_str());
        let name = commit.commit.author.as_ref();
        let author = account
            .or_else(|| name.and_then(|author| author.name.as_deref()))
            .map(one_line);
        let title = first_line(message);
        if let Some(base) = self.base_of_group() {
            return Some(Intent::BuildMergeGroup(MergeGroup {
                reference: format!("{BRANCHES}{}", self.branch),
                base_ref: base.to_owned(),
                head_sha: self.sha.clone(),
                title,
                author,
                learnt,
            }));
        }
        (!asks_to_skip(message)).then(|| Intent::BuildCommit {
            branch: self.branch.clone(),
            sha: self.sha.clone(),
            title,
            author,
            merged_pull_request: None,
            learnt,
        })
    }
}

/// When the commit was made, by its committer's clock.
pub(crate) fn committed_at(commit: &CommitAnswer) -> Option<Timestamp> {
    commit.commit.committer.as_ref()?.date
}

fn short(reference: &str) -> &str {
    reference.strip_prefix(BRANCHES).unwrap_or(reference)
}

fn first_line(message: &str) -> String {
    one_line(message.lines().next().unwrap_or(""))
}
