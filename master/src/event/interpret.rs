//! What a delivery asks for: a pure function from an event's text to intents.
//!
//! The structs here hold only what is used, and take unknown fields and actions as they come: GitHub adds both without
//! notice. `head.repo` and users can be null, once they are deleted.
//!
//! What goes on to Git or into an address (SHAs, branches) is checked here, once. An event is a hint: whether anything
//! is new in it is decided by the stage after, which knows the builds there are.

use crate::config::{Config, RepositoryConfig};
use crate::model::{Intent, PullRequest, Reason};
use jiff::Timestamp;
use serde::Deserialize;

/// Titles and names are cut to this many characters.
const LONGEST_TEXT: usize = 200;
/// Git's file systems take no longer names.
const LONGEST_BRANCH: usize = 250;

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

/// The event is not what GitHub documents; trying again does not help.
#[derive(Debug, thiserror::Error)]
pub enum InterpretError {
    #[error("the `{event}` event does not parse: {source}")]
    Form {
        event: String,
        source: serde_json::Error,
    },
    #[error("the event's {what} is not one: `{value}`")]
    Value { what: &'static str, value: String },
}

impl InterpretError {
    fn value(what: &'static str, value: &str) -> Self {
        InterpretError::Value {
            what,
            value: one_line(value),
        }
    }
}

#[derive(Debug, Deserialize)]
struct PullRequestEvent {
    action: String,
    /// Of `synchronize`: the head until then.
    #[serde(default)]
    before: Option<String>,
    pull_request: PullRequestBody,
    repository: Repository,
    #[serde(default)]
    changes: Option<Changes>,
}

#[derive(Debug, Deserialize)]
struct PullRequestBody {
    number: i64,
    #[serde(default)]
    state: Option<String>,
    #[serde(default)]
    title: Option<String>,
    #[serde(default)]
    user: Option<User>,
    head: Side,
    base: Side,
    #[serde(default)]
    merged: Option<bool>,
    #[serde(default)]
    updated_at: Option<String>,
    #[serde(default)]
    merge_commit_sha: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Side {
    #[serde(rename = "ref")]
    reference: String,
    sha: String,
    #[serde(default)]
    repo: Option<Repository>,
}

#[derive(Debug, Deserialize)]
struct Repository {
    #[serde(default)]
    id: Option<i64>,
    full_name: String,
}

#[derive(Debug, Deserialize)]
struct User {
    login: String,
}

#[derive(Debug, Deserialize)]
struct Changes {
    #[serde(default)]
    base: Option<serde::de::IgnoredAny>,
}

#[derive(Debug, Deserialize)]
struct PushEvent {
    #[serde(rename = "ref")]
    reference: String,
    before: String,
    after: String,
    #[serde(default)]
    deleted: bool,
    repository: Repository,
    #[serde(default)]
    head_commit: Option<Commit>,
}

#[derive(Debug, Deserialize)]
struct Commit {
    #[serde(default)]
    message: Option<String>,
    #[serde(default)]
    author: Option<Author>,
}

#[derive(Debug, Deserialize)]
struct Author {
    #[serde(default)]
    username: Option<String>,
    #[serde(default)]
    name: Option<String>,
}

/// Whether events of this name can ask for anything.
pub fn is_acted_upon(event: &str) -> bool {
    matches!(event, "pull_request" | "push")
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
        "opened" | "reopened" | "synchronize" | "ready_for_review" => {
            act(vec![Intent::BuildPullRequest(wanted(event)?)])
        }
        "edited" if base_changed => act(vec![Intent::BuildPullRequest(wanted(event)?)]),
        "edited" => Ok(Interpreted::nothing(format!(
            "not acted upon: pull request #{number} was edited, but keeps its base"
        ))),
        other => Ok(Interpreted::nothing(format!(
            "not acted upon: `{}` of pull request #{number}",
            one_line(other)
        ))),
    }
}

fn wanted(event: &PullRequestEvent) -> Result<PullRequest, InterpretError> {
    let request = &event.pull_request;
    Ok(PullRequest {
        number: request.number,
        title: one_line(request.title.as_deref().unwrap_or("")),
        author: request.user.as_ref().map(|user| one_line(&user.login)),
        head_sha: sha("head commit", &request.head.sha)?,
        base_ref: branch("base branch", &request.base.reference)?,
        updated_at: updated_at(request),
        before: event.before.clone(),
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
fn closed(
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
                before: None,
            });
        }
    }
    Ok(intents)
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
            before: if is_zero(&event.before) {
                None
            } else {
                Some(sha("commit before", &event.before)?)
            },
            branch,
        }],
    })
}

/// The forms that GitHub Actions knows, in the message of the commit that was pushed last.
fn asks_to_skip(message: &str) -> bool {
    const MARKS: [&str; 5] = [
        "[skip ci]",
        "[ci skip]",
        "[no ci]",
        "[skip actions]",
        "[actions skip]",
    ];
    let message = message.to_ascii_lowercase();
    MARKS.iter().any(|mark| message.contains(mark))
        || message.lines().any(|line| {
            line.trim()
                .split_once(':')
                .is_some_and(|(key, value)| key == "skip-checks" && value.trim() == "true")
        })
}

fn is_zero(sha: &str) -> bool {
    !sha.is_empty() && sha.bytes().all(|b| b == b'0')
}

/// A whole commit id of SHA-1 or SHA-256, in lower case.
fn sha(what: &'static str, text: &str) -> Result<String, InterpretError> {
    if matches!(text.len(), 40 | 64)
        && text.bytes().all(|b| b.is_ascii_hexdigit())
        && !is_zero(text)
    {
        Ok(text.to_ascii_lowercase())
    } else {
        Err(InterpretError::value(what, text))
    }
}

/// A name that Git itself would take for a branch (`git check-ref-format --branch`).
fn branch(what: &'static str, name: &str) -> Result<String, InterpretError> {
    let is_good = (1..=LONGEST_BRANCH).contains(&name.len())
        && !name.starts_with('-')
        && name != "@"
        && !name.ends_with('.')
        && !name.contains("..")
        && !name.contains("@{")
        && !name
            .chars()
            .any(|c| c.is_control() || " ~^:?*[\\".contains(c))
        && name
            .split('/')
            .all(|part| !part.is_empty() && !part.starts_with('.') && !part.ends_with(".lock"));
    if is_good {
        Ok(name.to_owned())
    } else {
        Err(InterpretError::value(what, name))
    }
}

/// Text of strangers: one line, of bounded length.
fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(LONGEST_TEXT)
        .collect::<String>()
        .trim()
        .to_owned()
}

#[cfg(test)]
mod tests;
