//! Commit statuses.

use super::{Shapes, node_id, set, time};
use crate::github::state::{Repository, State, Status};
use serde_json::{Value, json};

impl Shapes {
    pub(in crate::github) fn status(&self, state: &State, status: &Status) -> Value {
        let mut value = self.status_without_creator(status);
        set(
            &mut value,
            json!({ "creator": self.account(&state.known_account(&status.creator)) }),
        );
        value
    }

    fn status_without_creator(&self, status: &Status) -> Value {
        json!({
            "url": format!("{}/repos/{}/statuses/{}", self.api, status.repository, status.sha),
            "avatar_url": format!("{}/avatars/u/{}?v=4", self.html, status.id),
            "id": status.id,
            "node_id": node_id("StatusContext", status.id),
            "state": status.state.as_str(),
            "description": status.description,
            "target_url": status.target_url,
            "context": status.context,
            "created_at": time(status.at),
            "updated_at": time(status.at),
        })
    }

    /// The combined status; `page` of `latest` is shown, the sum is of all.
    pub(in crate::github) fn combined_status(
        &self,
        state: &State,
        repository: &Repository,
        sha: &str,
        latest: &[Status],
        page: &[Status],
    ) -> Value {
        use crate::github::state::StatusState::{Error, Failure, Pending};
        let any = |wanted: &[_]| latest.iter().any(|status| wanted.contains(&status.state));
        let sum = if any(&[Failure, Error]) {
            "failure"
        } else if latest.is_empty() || any(&[Pending]) {
            "pending"
        } else {
            "success"
        };
        let url = format!(
            "{}/repos/{}/commits/{sha}",
            self.api,
            repository.full_name()
        );
        json!({
            "state": sum,
            "statuses": page.iter().map(|status| self.status_without_creator(status)).collect::<Vec<_>>(),
            "sha": sha,
            "total_count": latest.len(),
            "repository": self.repository(state, repository),
            "commit_url": url,
            "url": format!("{url}/status"),
        })
    }
}
