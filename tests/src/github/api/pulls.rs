//! Pull requests.

use super::refusal::not_found;
use super::{Call, Reply};
use crate::github::server::json_reply;
use crate::github::shape;
use crate::github::state::{PullRequest, PullState};
use serde_json::Value;

impl Call<'_> {
    pub(super) fn list_pulls(&self, repository: &str) -> Reply {
        let state = self.github.state();
        let found = state.repository(repository).ok_or_else(not_found)?;
        let wanted = self.query.get("state").map_or("open", String::as_str);
        let newest_first = self
            .query
            .get("direction")
            .is_none_or(|direction| direction == "desc");
        let mut pulls: Vec<&PullRequest> = found
            .pulls
            .values()
            .filter(|pull| match wanted {
                "all" => true,
                "closed" => pull.state == PullState::Closed,
                _ => pull.state == PullState::Open,
            })
            .filter(|pull| {
                self.query
                    .get("base")
                    .is_none_or(|base| *base == pull.base_branch)
            })
            .filter(|pull| {
                self.query.get("head").is_none_or(|head| {
                    let owner = pull
                        .head_repository
                        .as_deref()
                        .and_then(|name| name.split('/').next())
                        .unwrap_or_default();
                    *head == format!("{owner}:{}", pull.head_branch)
                })
            })
            .collect();
        if self.query.get("sort").is_some_and(|sort| sort == "updated") {
            pulls.sort_by_key(|pull| pull.updated_at);
        }
        if newest_first {
            pulls.reverse();
        }
        let shapes = self.github.shapes();
        let values: Vec<Value> = pulls
            .into_iter()
            .map(|pull| {
                let mut value = shapes.pull_request(&state, found, pull);
                shape::without_details(&mut value);
                value
            })
            .collect();
        drop(state);
        let page = self.page();
        let count = values.len();
        let shown: Vec<Value> = values
            .into_iter()
            .skip(page.skip())
            .take(page.size)
            .collect();
        Ok(self.with_links(json_reply(200, &shown.into()), &page, count))
    }

    /// As on GitHub, the first look at a changed pull request says `mergeable: null` and starts the computation.
    pub(super) async fn get_pull(&self, repository: &str, number: &str) -> Reply {
        let number: i64 = number.parse().map_err(|_| not_found())?;
        let value = {
            let state = self.github.state();
            let found = state.repository(repository).ok_or_else(not_found)?;
            let pull = found.pulls.get(&number).ok_or_else(not_found)?;
            self.github.shapes().pull_request(&state, found, pull)
        };
        if let Err(error) = self.github.compute_mergeability(repository, number).await {
            tracing::error!("cannot compute mergeability: {error:#}");
        }
        Ok(json_reply(200, &value))
    }
}
