//! The log of a hook's deliveries, and their repetition.

use super::refusal::{message, not_found};
use super::{Call, Refusal, Reply};
use crate::github::hook::HookOf;
use crate::github::server::json_reply;
use crate::github::state::State;
use crate::github::{Delivery, DeliveryAttempt, shape};
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderValue, header};
use serde_json::{Value, json};

/// What was delivered to one hook, and where that is asked for.
pub(super) struct DeliveryLog {
    hook: i64,
    path: String,
}

impl Call<'_> {
    pub(super) fn list_hooks(&self, repository: &str) -> Response {
        let state = self.github.state();
        let shapes = self.github.shapes();
        let page = self.page();
        let all: Vec<Value> = state
            .hooks
            .iter()
            .filter(|hook| hook.of == HookOf::Repository(repository.to_owned()))
            .map(|hook| shapes.hook(hook))
            .collect();
        drop(state);
        let count = all.len();
        let shown: Vec<Value> = all.into_iter().skip(page.skip()).take(page.size).collect();
        self.with_links(json_reply(200, &shown.into()), &page, count)
    }

    pub(super) fn repository_log(
        &self,
        repository: &str,
        hook: &str,
    ) -> Result<DeliveryLog, Refusal> {
        let of = HookOf::Repository(repository.to_owned());
        let id: i64 = hook.parse().map_err(|_| not_found())?;
        let state = self.github.state();
        let hook = state
            .hooks
            .iter()
            .find(|known| known.id == id && known.of == of)
            .ok_or_else(not_found)?;
        Ok(DeliveryLog {
            hook: hook.id,
            path: format!("/repos/{repository}/hooks/{id}/deliveries"),
        })
    }

    pub(super) fn app_log(&self, app: u64) -> Result<DeliveryLog, Refusal> {
        let state = self.github.state();
        let hook = state
            .hooks
            .iter()
            .find(|known| known.of == HookOf::App(app))
            .ok_or_else(not_found)?;
        Ok(DeliveryLog {
            hook: hook.id,
            path: "/app/hook/deliveries".to_owned(),
        })
    }

    /// Newest first: one row an attempt, under the GUID that they share. The cursor is GitHub's own affair.
    pub(super) fn list_deliveries(&self, log: &DeliveryLog) -> Reply {
        let before = match self.query.get("cursor") {
            None => i64::MAX,
            Some(cursor) => read_cursor(cursor)
                .ok_or_else(|| message(400, "The provided cursor is not valid"))?,
        };
        let state = self.github.state();
        let mut rows: Vec<(i64, Value)> = Vec::new();
        let of_hook = |delivery: &&Delivery| delivery.hook == log.hook;
        for delivery in state.deliveries.iter().filter(of_hook) {
            for attempt in &delivery.attempts {
                rows.push((attempt.id, delivery_row(&state, delivery, attempt)));
            }
        }
        rows.sort_by_key(|(id, _)| std::cmp::Reverse(*id));
        let page = self.page();
        let mut rest = rows.into_iter().filter(|(id, _)| *id <= before);
        let shown: Vec<Value> = rest.by_ref().take(page.size).map(|(_, row)| row).collect();
        let mut response = json_reply(200, &shown.into());
        if let Some((next, _)) = rest.next() {
            let link = format!(
                "<{}{}?per_page={}&cursor={}>; rel=\"next\"",
                self.github.api_url(),
                log.path,
                page.size,
                cursor(next)
            );
            if let Ok(link) = HeaderValue::from_str(&link) {
                response.headers_mut().insert(header::LINK, link);
            }
        }
        Ok(response)
    }

    pub(super) fn get_delivery(&self, log: &DeliveryLog, id: &str) -> Reply {
        let state = self.github.state();
        let (delivery, attempt) = find_attempt(&state, log, id)?;
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
    pub(super) fn redeliver(&self, log: &DeliveryLog, id: &str) -> Reply {
        let delivery = {
            let state = self.github.state();
            find_attempt(&state, log, id)?.0.id
        };
        let github = self.github.clone();
        tokio::spawn(async move { github.attempt_delivery(delivery, true).await });
        Ok(json_reply(202, &json!({})))
    }
}

fn cursor(id: i64) -> String {
    format!("v1_{}", URL_SAFE_NO_PAD.encode(id.to_be_bytes()))
}

fn read_cursor(cursor: &str) -> Option<i64> {
    let bytes = URL_SAFE_NO_PAD.decode(cursor.strip_prefix("v1_")?).ok()?;
    Some(i64::from_be_bytes(bytes.try_into().ok()?))
}

fn delivery_row(state: &State, delivery: &Delivery, attempt: &DeliveryAttempt) -> Value {
    let repository = state.repository(&delivery.repository).map(|known| known.id);
    let installation = state
        .hooks
        .iter()
        .find(|hook| hook.id == delivery.hook)
        .and_then(|hook| match hook.of {
            HookOf::Repository(_) => None,
            HookOf::App(id) => Some(state.app(id)?.installation),
        });
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
        "installation_id": installation,
        "repository_id": repository,
        "throttled_at": null,
    })
}

fn find_attempt<'a>(
    state: &'a State,
    log: &DeliveryLog,
    id: &str,
) -> Result<(&'a Delivery, &'a DeliveryAttempt), Refusal> {
    let id: i64 = id.parse().map_err(|_| not_found())?;
    state
        .deliveries
        .iter()
        .filter(|delivery| delivery.hook == log.hook)
        .find_map(|delivery| {
            let attempt = delivery.attempts.iter().find(|attempt| attempt.id == id)?;
            Some((delivery, attempt))
        })
        .ok_or_else(not_found)
}
