//! Commit statuses, with the limits that GitHub documents and those that it does not.

use super::refusal::{message, no_commit, not_found};
use super::{Call, Refusal, Reply};
use crate::github::server::json_reply;
use crate::github::state::{Status, StatusState};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

/// Undocumented; 422 beyond it.
const DESCRIPTION_LIMIT: usize = 140;
const CONTEXT_LIMIT: usize = 255;
/// Statuses of one SHA and context.
pub(in crate::github) const STATUS_LIMIT: usize = 1000;

impl Call<'_> {
    pub(super) async fn post_status(&self, repository: &str, sha: &str) -> Reply {
        let caller = self
            .caller
            .as_ref()
            .ok_or_else(|| message(401, "Requires authentication"))?;
        if !self.has_access(repository) {
            return Err(not_found());
        }
        if !caller.writes {
            return Err(message(
                403,
                "Resource not accessible by personal access token",
            ));
        }
        let wanted = WantedStatus::parse(self.body)?;
        // Only a full SHA will do here, unlike for reading.
        let is_sha = sha.len() == 40 && sha.chars().all(|c| c.is_ascii_hexdigit());
        let known = if is_sha {
            self.git_of(repository)?.resolve(sha).await
        } else {
            None
        };
        let sha = known.ok_or_else(|| no_commit(sha))?;

        let value = {
            let mut state = self.github.state();
            let before = state
                .statuses
                .iter()
                .filter(|status| {
                    status.repository == repository
                        && status.sha == sha
                        && status.is_of(&wanted.context)
                })
                .count();
            if before >= state.status_limit {
                return Err(invalid_status(
                    None,
                    "This SHA and context has reached the maximum number of statuses.",
                ));
            }
            let status = Status {
                id: state.next_id(),
                repository: repository.to_owned(),
                sha,
                context: wanted.context,
                state: wanted.state,
                description: wanted.description,
                target_url: wanted.target_url,
                creator: caller.login.clone(),
                at: Timestamp::now(),
            };
            state.statuses.push(status.clone());
            self.github.shapes().status(&state, &status)
        };
        self.github.notify();
        Ok(json_reply(201, &value))
    }

    pub(super) async fn combined_status(&self, repository: &str, reference: &str) -> Reply {
        let sha = self.resolve(repository, reference).await?;
        let page = self.page();
        let state = self.github.state();
        let found = state.repository(repository).ok_or_else(not_found)?;
        let latest = state.latest_statuses(repository, &sha);
        let shown: Vec<Status> = latest
            .iter()
            .skip(page.skip())
            .take(page.size)
            .cloned()
            .collect();
        let value = self
            .github
            .shapes()
            .combined_status(&state, found, &sha, &latest, &shown);
        Ok(self.with_links(json_reply(200, &value), &page, latest.len()))
    }

    pub(super) async fn list_statuses(&self, repository: &str, reference: &str) -> Reply {
        let sha = self.resolve(repository, reference).await?;
        let page = self.page();
        let state = self.github.state();
        let shapes = self.github.shapes();
        let all: Vec<&Status> = state
            .statuses
            .iter()
            .rev()
            .filter(|status| status.repository == repository && status.sha == sha)
            .collect();
        let shown: Vec<Value> = all
            .iter()
            .skip(page.skip())
            .take(page.size)
            .map(|status| shapes.status(&state, status))
            .collect();
        Ok(self.with_links(json_reply(200, &shown.into()), &page, all.len()))
    }
}

/// The body of a status, checked.
struct WantedStatus {
    state: StatusState,
    context: String,
    description: Option<String>,
    target_url: Option<String>,
}

impl WantedStatus {
    fn parse(body: &[u8]) -> Result<WantedStatus, Refusal> {
        let fields: Map<String, Value> =
            serde_json::from_slice(body).map_err(|_| message(400, "Problems parsing JSON"))?;
        let text = |name: &str| match fields.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => Err(message(
                422,
                &format!("Invalid request.\n\nFor 'properties/{name}', the value is not a string."),
            )),
        };
        let state = text("state")?
            .ok_or_else(|| message(422, "Invalid request.\n\n\"state\" wasn't supplied."))?;
        let state = StatusState::from_name(&state)
            .ok_or_else(|| invalid_status(Some("state"), "state is not included in the list"))?;
        let context = text("context")?.unwrap_or_else(|| "default".to_owned());
        if context.chars().count() > CONTEXT_LIMIT {
            return Err(invalid_status(
                Some("context"),
                "context is too long (maximum is 255 characters)",
            ));
        }
        let description = text("description")?;
        for (name, text) in [
            ("context", Some(&context)),
            ("description", description.as_ref()),
        ] {
            if text.is_some_and(|text| text.chars().any(|c| c.len_utf8() == 4)) {
                return Err(invalid_status(
                    Some(name),
                    &format!("{name} doesn't accept 4-byte Unicode"),
                ));
            }
        }
        if description
            .as_ref()
            .is_some_and(|text| text.chars().count() > DESCRIPTION_LIMIT)
        {
            return Err(invalid_status(
                Some("description"),
                "description is too long (maximum is 140 characters)",
            ));
        }
        let target_url = text("target_url")?;
        let is_absolute = |url: &String| {
            url.parse::<http::Uri>().is_ok_and(|uri| {
                matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some()
            })
        };
        if target_url
            .as_ref()
            .is_some_and(|url| !url.is_empty() && !is_absolute(url))
        {
            return Err(invalid_status(
                Some("target_url"),
                "target_url must use http(s) scheme",
            ));
        }
        Ok(WantedStatus {
            state,
            context,
            description,
            target_url,
        })
    }
}

/// 422 about one field of a status.
fn invalid_status(field: Option<&str>, text: &str) -> Refusal {
    let mut error = json!({ "resource": "Status", "code": "custom", "message": text });
    if let (Some(field), Some(object)) = (field, error.as_object_mut()) {
        object.insert("field".to_owned(), field.into());
    }
    Box::new(json_reply(
        422,
        &json!({
            "message": "Validation Failed",
            "errors": [error],
            "documentation_url": "https://docs.github.com/rest/commits/statuses#create-a-commit-status",
            "status": "422",
        }),
    ))
}
