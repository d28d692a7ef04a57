//! The log of a hook's deliveries, and their repetition.

use super::refusal::not_found;
use super::{Call, Refusal, Reply};
use crate::github::server::json_reply;
use crate::github::state::State;
use crate::github::{Delivery, DeliveryAttempt, shape};
use axum::response::Response;
use http::{HeaderValue, header};
use serde_json::{Value, json};

impl Call<'_> {
    pub(super) fn list_hooks(&self, repository: &str) -> Response {
        let state = self.github.state();
        let shapes = self.github.shapes();
        let hooks: Vec<Value> = state
            .hooks
            .iter()
            .filter(|hook| hook.repository == repository)
            .map(|hook| shapes.ping(&state, hook)["hook"].clone())
            .collect();
        json_reply(200, &hooks.into())
    }

    /// The log of a hook, newest first: one row an attempt, under the GUID that they share.
    pub(super) fn list_deliveries(&self, repository: &str, hook: &str) -> Reply {
        let state = self.github.state();
        let hook: i64 = hook.parse().map_err(|_| not_found())?;
        if !state
            .hooks
            .iter()
            .any(|known| known.id == hook && known.repository == repository)
        {
            return Err(not_found());
        }
        let mut rows: Vec<(i64, Value)> = Vec::new();
        for delivery in state.deliveries.iter().filter(|known| known.hook == hook) {
            for attempt in &delivery.attempts {
                rows.push((attempt.id, delivery_row(&state, delivery, attempt)));
            }
        }
        rows.sort_by_key(|(id, _)| std::cmp::Reverse(*id));
        let page = self.page();
        let cursor: i64 = self
            .query
            .get("cursor")
            .and_then(|cursor| cursor.parse().ok())
            .unwrap_or(i64::MAX);
        let mut rest = rows.into_iter().filter(|(id, _)| *id <= cursor);
        let shown: Vec<Value> = rest.by_ref().take(page.size).map(|(_, row)| row).collect();
        let mut response = json_reply(200, &shown.into());
        if let Some((next, _)) = rest.next() {
            let link = format!(
                "<{}/repos/{repository}/hooks/{hook}/deliveries?per_page={}&cursor={next}>; rel=\"next\"",
                self.github.api_url(),
                page.size
            );
            if let Ok(link) = HeaderValue::from_str(&link) {
                response.headers_mut().insert(header::LINK, link);
            }
        }
        Ok(response)
    }

    pub(super) fn get_delivery(&self, repository: &str, hook: &str, id: &str) -> Reply {
        let state = self.github.state();
        let (delivery, attempt) = find_attempt(&state, repository, hook, id)?;
        let mut value = delivery_row(&state, delivery, attempt);
        if let Some(fields) = value.as_object_mut() {
            let payload: Value = serde_json::from_slice(&delivery.body).unwrap_or_default();
            fields.insert(
                "request".to_owned(),
                json!({
                    "headers": { "X-GitHub-Delivery": delivery.guid, "X-GitHub-Event": delivery.event },
                    "payload": payload,
                }),
            );
            fields.insert(
                "response".to_owned(),
                json!({ "headers": {}, "payload": attempt.answer }),
            );
        }
        Ok(json_reply(200, &value))
    }

    /// Accepted at once, sent soon after.
    pub(super) fn redeliver(&self, repository: &str, hook: &str, id: &str) -> Reply {
        let delivery = {
            let state = self.github.state();
            find_attempt(&state, repository, hook, id)?.0.id
        };
        let github = self.github.clone();
        tokio::spawn(async move { github.attempt_delivery(delivery, true).await });
        Ok(json_reply(202, &json!({})))
    }
}

fn delivery_row(state: &State, delivery: &Delivery, attempt: &DeliveryAttempt) -> Value {
    let repository = state.repository(&delivery.repository).map(|known| known.id);
    json!({
        "id": attempt.id,
        "guid": delivery.guid,
        "delivered_at": shape::time(attempt.at),
        "redelivery": attempt.redelivery,
        "duration": 0.1,
        "status": match attempt.status {
            Some(200..=299) => "OK".to_owned(),
            Some(status) => format!("Invalid HTTP Response: {status}"),
            None => "failed to connect to host".to_owned(),
        },
        "status_code": attempt.status.unwrap_or(0),
        "event": delivery.event,
        "action": delivery.action,
        "installation_id": null,
        "repository_id": repository,
        "throttled_at": null,
    })
}

fn find_attempt<'a>(
    state: &'a State,
    repository: &str,
    hook: &str,
    id: &str,
) -> Result<(&'a Delivery, &'a DeliveryAttempt), Refusal> {
    let (hook, id): (i64, i64) = match (hook.parse(), id.parse()) {
        (Ok(hook), Ok(id)) => (hook, id),
        _ => return Err(not_found()),
    };
    state
        .deliveries
        .iter()
        .filter(|delivery| delivery.hook == hook && delivery.repository == repository)
        .find_map(|delivery| {
            let attempt = delivery.attempts.iter().find(|attempt| attempt.id == id)?;
            Some((delivery, attempt))
        })
        .ok_or_else(not_found)
}
