//! What follows from what GitHub shows and what the database knows, as pure functions.

use crate::event::subjects::{MERGE_QUEUE, is_of_merge_queue};
use crate::github::LoggedDelivery;
use crate::model::{Build, BuildState, CommitStatus, Reason};
use jiff::Timestamp;
use std::collections::HashSet;

/// What a head asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    /// Nothing: its build is here, or it is too old to have been missed.
    Nothing,
    /// A build that is here is wanted again, or instead of others.
    TakeUp,
    /// It has no build. Perhaps it had one that has been forgotten.
    Build,
}

/// When a look is, and what was before it.
#[derive(Debug, Clone, Copy)]
pub(super) struct When {
    pub(super) began: Timestamp,
    /// What changed before is too old to have been missed.
    pub(super) oldest: Timestamp,
    /// GitHub could not be looked at the last time.
    pub(super) after_outage: bool,
}

/// Whether a pull request or tip lacks its build. `known` is the build of its key, `touched_at` its last change.
pub(super) fn missing(known: Option<&Build>, touched_at: Option<Timestamp>, when: When) -> Missing {
    match known {
        Some(build) if is_over_too_early(build, when.after_outage) => {
            // What GitHub has shown is older than what was written down since.
            match build.finished_at < Some(when.began) {
                true => Missing::TakeUp,
                false => Missing::Nothing,
            }
        }
        Some(_) => Missing::Nothing,
        None if touched_at.is_some_and(|at| at < when.oldest) => Missing::Nothing,
        None => Missing::Build,
    }
}

/// Cancelled because it was not the head of something open any more, or never fetched since GitHub was away.
fn is_over_too_early(build: &Build, after_outage: bool) -> bool {
    let reason = build.ending.as_ref().map(|ending| ending.reason);
    build.state == BuildState::Finished
        && match reason {
            Some(Reason::Closed | Reason::Superseded) => true,
            Some(Reason::SourceError) => after_outage && build.tested_sha.is_none(),
            Some(_) | None => false,
        }
}

/// Whether what GitHub shows of a commit says that it was tested before.
pub(super) fn was_tested(shown: &[CommitStatus], is_own_page: impl Fn(&str) -> bool) -> bool {
    shown.iter().any(|status| {
        status.is_of(CommitStatus::AGGREGATE)
            && status.state.is_terminal()
            && is_own_page(&status.target_url)
    })
}

/// Of the attempts in a log, newest first, those of events that no attempt delivered: one for each, oldest first.
pub(super) fn missed(log: &[LoggedDelivery]) -> Vec<&LoggedDelivery> {
    let delivered: HashSet<&str> = log
        .iter()
        .filter(|attempt| (200..300).contains(&attempt.status_code))
        .map(|attempt| attempt.guid.as_str())
        .collect();
    let mut seen = HashSet::new();
    log.iter()
        .rev()
        .filter(|attempt| !delivered.contains(attempt.guid.as_str()))
        .filter(|attempt| seen.insert(attempt.guid.as_str()))
        .collect()
}

/// A context of this master's, by its name and by the page that it links to.
pub(super) fn is_ours(status: &CommitStatus, is_own_page: impl Fn(&str) -> bool) -> bool {
    let context = status.context.to_lowercase();
    let is_named_so = context
        .strip_prefix(CommitStatus::AGGREGATE)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    is_named_so && is_own_page(&status.target_url)
}

/// What the names of branches begin with that any of the globs can match; none begins with another one.
pub(super) fn beginnings(globs: &[String]) -> Vec<String> {
    let mut all: Vec<String> = globs
        .iter()
        .map(|glob| {
            let end = glob.find(['*', '?', '[', '{', '\\']).unwrap_or(glob.len());
            glob.get(..end).unwrap_or_default().to_owned()
        })
        .chain([MERGE_QUEUE.to_owned()])
        .collect();
    all.sort();
    all.dedup_by(|longer, shorter| longer.starts_with(shorter.as_str()));
    all
}

/// Whether a branch is one to look at.
pub(super) fn is_watched(branch: &str, tests_branch: impl Fn(&str) -> bool) -> bool {
    is_of_merge_queue(branch) || tests_branch(branch)
}

#[cfg(test)]
mod tests;
