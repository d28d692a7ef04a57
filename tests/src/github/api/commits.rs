//! Commits, branches and references, read from the repository itself.

use super::refusal::{message, no_commit, not_found};
use super::{Call, Refusal, Reply};
use crate::github::server::{json_reply, text_reply};
use http::{StatusCode, header};
use serde_json::{Value, json};

impl Call<'_> {
    /// The commit that a SHA, a branch, a tag or `heads/…` names.
    pub(super) async fn resolve(
        &self,
        repository: &str,
        reference: &str,
    ) -> Result<String, Refusal> {
        let git = self.git_of(repository)?;
        for revision in [
            format!("refs/heads/{reference}"),
            format!("refs/tags/{reference}"),
            format!("refs/{reference}"),
        ] {
            if let Some(sha) = git.resolve(&revision).await {
                return Ok(sha);
            }
        }
        let is_hex = reference.len() >= 7 && reference.chars().all(|c| c.is_ascii_hexdigit());
        match git.resolve(reference).await {
            Some(sha) if is_hex => Ok(sha),
            _ => Err(no_commit(reference)),
        }
    }

    pub(super) async fn get_commit(&self, repository: &str, reference: &str) -> Reply {
        let sha = self.resolve(repository, reference).await?;
        let accept = self
            .parts
            .headers
            .get(header::ACCEPT)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        if accept.contains("sha") {
            return Ok(text_reply(StatusCode::OK, &sha));
        }
        let git = self.git_of(repository)?;
        let commit = git
            .commit_info(&sha)
            .await
            .map_err(|error| message(500, &format!("{error:#}")))?;
        let state = self.github.state();
        let found = state.repository(repository).ok_or_else(not_found)?;
        Ok(json_reply(
            200,
            &self.github.shapes().commit(found, &commit),
        ))
    }

    pub(super) async fn list_branches(&self, repository: &str) -> Reply {
        let git = self.git_of(repository)?;
        let branches = git
            .branches()
            .await
            .map_err(|error| message(500, &format!("{error:#}")))?;
        let page = self.page();
        let values: Vec<Value> = branches
            .iter()
            .skip(page.skip())
            .take(page.size)
            .map(|(name, sha)| self.branch(repository, name, sha))
            .collect();
        Ok(self.with_links(json_reply(200, &values.into()), &page, branches.len()))
    }

    pub(super) fn branch(&self, repository: &str, name: &str, sha: &str) -> Value {
        let url = format!("{}/repos/{repository}/commits/{sha}", self.github.api_url());
        json!({ "name": name, "commit": { "sha": sha, "url": url }, "protected": false })
    }

    pub(super) async fn get_branch(&self, repository: &str, name: &str) -> Reply {
        let sha = self.git_of(repository)?.head_of(name).await;
        let sha = sha.ok_or_else(|| message(404, "Branch not found"))?;
        Ok(json_reply(200, &self.branch(repository, name, &sha)))
    }

    pub(super) async fn get_reference(&self, repository: &str, name: &str) -> Reply {
        let sha = self
            .git_of(repository)?
            .resolve(&format!("refs/{name}"))
            .await
            .ok_or_else(not_found)?;
        Ok(json_reply(200, &self.reference(repository, name, &sha)))
    }

    /// Branches whose names begin so; nothing is no error, but an empty repository is.
    pub(super) async fn matching_references(&self, repository: &str, beginning: &str) -> Reply {
        let Some(beginning) = beginning.strip_prefix("heads/") else {
            return Err(not_found());
        };
        let branches = self
            .git_of(repository)?
            .branches()
            .await
            .map_err(|error| message(500, &format!("{error:#}")))?;
        if branches.is_empty() {
            return Err(message(409, "Git Repository is empty."));
        }
        let found: Vec<Value> = branches
            .iter()
            .filter(|(name, _)| name.starts_with(beginning))
            .map(|(name, sha)| self.reference(repository, &format!("heads/{name}"), sha))
            .collect();
        let page = self.page();
        let count = found.len();
        let shown: Vec<Value> = found
            .into_iter()
            .skip(page.skip())
            .take(page.size)
            .collect();
        Ok(self.with_links(json_reply(200, &shown.into()), &page, count))
    }

    fn reference(&self, repository: &str, name: &str, sha: &str) -> Value {
        let base = format!("{}/repos/{repository}/git", self.github.api_url());
        json!({
            "ref": format!("refs/{name}"),
            "node_id": "",
            "url": format!("{base}/refs/{name}"),
            "object": { "type": "commit", "sha": sha, "url": format!("{base}/commits/{sha}") },
        })
    }
}
