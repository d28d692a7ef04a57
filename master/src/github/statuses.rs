//! Commit statuses: sent, and read back.

use super::answer::{Verdict, judge};
use super::auth::Whom;
use super::transport::Call;
use super::{GitHub, GitHubError, is_repository};
use crate::model::{CommitStatus, StatusState};
use http::StatusCode;
use jiff::Timestamp;
use serde::Deserialize;

/// Contexts in one answer.
const PER_PAGE: usize = 100;
/// A commit with more contexts than this is read as far as this.
const MOST_PAGES: usize = 5;

#[derive(Debug, Deserialize)]
struct Combined {
    statuses: Vec<Shown>,
    total_count: usize,
}

#[derive(Debug, Deserialize)]
struct Shown {
    context: String,
    state: StatusState,
    #[serde(default)]
    description: Option<String>,
    #[serde(default)]
    target_url: Option<String>,
}

impl GitHub {
    /// Sends a status once.
    pub async fn post_status(&self, repository: &str, sha: &str, status: &CommitStatus) -> Verdict {
        if !is_repository(repository) || !sha.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Verdict::Refused {
                why: format!("`{repository}` at `{sha}` is no commit of a GitHub repository"),
            };
        }
        let path = format!("/repos/{repository}/statuses/{sha}");
        let body = serde_json::json!({
            "state": status.state.as_str(),
            "context": status.context,
            "description": status.description,
            "target_url": status.target_url,
        });
        match self
            .send(Whom::Repository(repository), &Call::post(&path, body))
            .await
        {
            Ok(reply) => judge(reply.status, &reply.headers, &reply.body, Timestamp::now()),
            Err(error) => error.into_verdict(),
        }
    }

    /// The latest status of each context of a commit; none for a commit that GitHub does not know.
    pub async fn shown_statuses(
        &self,
        repository: &str,
        sha: &str,
    ) -> Result<Vec<CommitStatus>, GitHubError> {
        let mut shown = Vec::new();
        for page in 1..=MOST_PAGES {
            let path =
                format!("/repos/{repository}/commits/{sha}/status?per_page={PER_PAGE}&page={page}");
            let reply = match self
                .ask(Whom::Repository(repository), &Call::get(&path))
                .await
            {
                Ok(reply) => reply,
                Err(GitHubError::Answer {
                    status: StatusCode::NOT_FOUND | StatusCode::UNPROCESSABLE_ENTITY,
                    ..
                }) => return Ok(Vec::new()),
                Err(error) => return Err(error),
            };
            let combined: Combined = reply.parsed(&path)?;
            let is_last = combined.statuses.len() < PER_PAGE;
            shown.extend(combined.statuses.into_iter().map(|status| CommitStatus {
                context: status.context,
                state: status.state,
                description: status.description.unwrap_or_default(),
                target_url: status.target_url.unwrap_or_default(),
            }));
            if is_last || shown.len() >= combined.total_count {
                break;
            }
        }
        Ok(shown)
    }
}
