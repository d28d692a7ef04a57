//! What a delivery asks for: a pure function from an event's text to intents.
//!
//! What goes on to Git or into an address (SHAs, branches) is checked here, once. An event is a hint: whether anything
//! is new in it is decided by the stage after, which knows the builds there are.

use super::form::{MergeGroupEvent, PullRequestEvent, PushEvent, Repository};
use super::names::{asks_to_skip, branch, is_zero, one_line, sha};
use super::subjects::{closed, dropped, is_of_merge_queue, merge_group, wanted};
use crate::config::{Config, RepositoryConfig};
use crate::model::{Intent, Learnt};

pub use super::names::InterpretError;

/// What a delivery led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Interpreted {
    Act {
        /// The name as it is configured.
        repository: String,
        /// To be carried out in this order.
        intents: Vec<Intent>,
    },
    Nothing {
        why: String,
    },
}

impl Interpreted {
    fn nothing(why: impl Into<String>) -> Self {
        Interpreted::Nothing { why: why.into() }
    }
}

/// Whether events of this name can ask for anything.
pub fn is_acted_upon(event: &str) -> bool {
    matches!(event, "pull_request" | "push" | "merge_group")
}

/// Reads an event. Never panics, whatever the bytes are.
pub fn interpret(event: &str, body: &[u8], config: &Config) -> Result<Interpreted, InterpretError> {
    let form = |source| InterpretError::Form {
        event: event.to_owned(),
        source,
    };
    match event {
        "pull_request" => {
            let event: PullRequestEvent = serde_json::from_slice(body).map_err(form)?;
            let Some(repository) = configured(config, &event.repository) else {
                return Ok(not_configured(&event.repository));
            };
            pull_request(&event, repository)
        }
        "push" => {
            let event: PushEvent = serde_json::from_slice(body).map_err(form)?;
            let Some(repository) = configured(config, &event.repository) else {
                return Ok(not_configured(&event.repository));
            };
            push(&event, repository)
        }
        "merge_group" => {
            let event: MergeGroupEvent = serde_json::from_slice(body).map_err(form)?;
            let Some(repository) = configured(config, &event.repository) else {
                return Ok(not_configured(&event.repository));
            };
            let intent = match event.action.as_str() {
                "checks_requested" => merge_group(&event.merge_group)?,
                "destroyed" => dropped(&event.merge_group.head_sha)?,
                other => {
                    return Ok(Interpreted::nothing(format!(
                        "not acted upon: `{}` of a merge group",
                        one_line(other)
                    )));
                }
            };
            Ok(Interpreted::Act {
                repository: repository.name.clone(),
                intents: vec![intent],
            })
        }
        other => Ok(Interpreted::nothing(format!(
            "not acted upon: `{}` events ask for nothing",
            one_line(other)
        ))),
    }
}

fn configured<'a>(config: &'a Config, event: &Repository) -> Option<&'a RepositoryConfig> {
    config
        .repository(&event.full_name)
        .filter(|repository| repository.is_github())
}

fn not_configured(event: &Repository) -> Interpreted {
    Interpreted::nothing(format!(
        "not acted upon: the repository `{}` is not configured",
        one_line(&event.full_name)
    ))
}

fn pull_request(
    event: &PullRequestEvent,
    repository: &RepositoryConfig,
) -> Result<Interpreted, InterpretError> {
    let request = &event.pull_request;
    let number = request.number;
    if number <= 0 {
        return Err(InterpretError::value(
            "pull request number",
            &number.to_string(),
        ));
    }
    let act = |intents| {
        Ok(Interpreted::Act {
            repository: repository.name.clone(),
            intents,
        })
    };
    let build = |event: &PullRequestEvent| {
        let learnt = Learnt::FromEvent {
            before: event.before.clone(),
        };
        wanted(request, learnt).map(Intent::BuildPullRequest)
    };
    let is_closed = request.state.as_deref() == Some("closed");
    let base_changed = event
        .changes
        .as_ref()
        .is_some_and(|changes| changes.base.is_some());
    match event.action.as_str() {
        "closed" => act(closed(request, repository)?),
        action @ ("opened" | "reopened" | "synchronize" | "ready_for_review" | "edited")
            if is_closed =>
        {
            Ok(Interpreted::nothing(format!(
                "not acted upon: `{action}` of pull request #{number}, which is closed"
            )))
        }
        // Drafts are tested too: their authors want to know before they ask for a review.
        "opened" | "reopened" | "synchronize" | "ready_for_review" => act(vec![build(event)?]),
        "edited" if base_changed => act(vec![build(event)?]),
        "edited" => Ok(Interpreted::nothing(format!(
            "not acted upon: pull request #{number} was edited, but keeps its base"
        ))),
        other => Ok(Interpreted::nothing(format!(
            "not acted upon: `{}` of pull request #{number}",
            one_line(other)
        ))),
    }
}

fn push(event: &PushEvent, repository: &RepositoryConfig) -> Result<Interpreted, InterpretError> {
    let Some(name) = event.reference.strip_prefix("refs/heads/") else {
        return Ok(Interpreted::nothing(format!(
            "not acted upon: `{}` is not a branch",
            one_line(&event.reference)
        )));
    };
    let branch = branch("branch", name)?;
    if event.deleted || is_zero(&event.after) {
        return Ok(Interpreted::nothing(format!(
            "not acted upon: branch `{branch}` was deleted"
        )));
    }
    if is_of_merge_queue(&branch) {
        return Ok(Interpreted::nothing(
            "not acted upon: the branch is a merge queue's, which asks by an event of its own",
        ));
    }
    if !repository.tests_branch(&branch) {
        return Ok(Interpreted::nothing(format!(
            "not acted upon: branch `{branch}` is not among those that are tested"
        )));
    }
    let message = event
        .head_commit
        .as_ref()
        .and_then(|commit| commit.message.as_deref())
        .unwrap_or("");
    if asks_to_skip(message) {
        return Ok(Interpreted::nothing(format!(
            "not acted upon: the commit message on `{branch}` asks to skip"
        )));
    }
    let author = event
        .head_commit
        .as_ref()
        .and_then(|commit| commit.author.as_ref())
        .and_then(|author| author.username.as_deref().or(author.name.as_deref()));
    Ok(Interpreted::Act {
        repository: repository.name.clone(),
        intents: vec![Intent::BuildCommit {
            sha: sha("commit", &event.after)?,
            title: one_line(message.lines().next().unwrap_or("")),
            author: author.map(one_line),
            merged_pull_request: None,
            learnt: Learnt::FromEvent {
                before: match is_zero(&event.before) {
                    true => None,
                    false => Some(sha("commit before", &event.before)?),
                },
            },
            branch,
        }],
    })
}

#[cfg(test)]
mod tests;
