//! Webhooks: who is told of what, by real HTTP, with a log of every answer.

use super::GitHub;
use super::state::AccountKind;
use anyhow::{Context, Result, bail};
use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How long GitHub waits for an answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

#[derive(Debug, Clone)]
pub struct Hook {
    pub id: i64,
    pub repository: String,
    pub url: String,
    pub secret: String,
    /// Names of events; `*` for all.
    pub events: Vec<String>,
    pub active: bool,
    pub created_at: Timestamp,
}

/// What is done with deliveries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeliveryMode {
    Deliver,
    /// Kept until `release_deliveries`.
    Hold,
    /// Recorded as failed, never sent: GitHub lost them, or the master's address was wrong.
    Drop,
}

/// The order in which held deliveries go out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReleaseOrder {
    AsHappened,
    Reversed,
}

/// One event for one hook. A redelivery adds an attempt and keeps the GUID.
#[derive(Debug, Clone)]
pub struct Delivery {
    pub id: i64,
    pub guid: String,
    pub hook: i64,
    pub event: String,
    pub action: Option<String>,
    pub repository: String,
    pub body: Bytes,
    pub attempts: Vec<DeliveryAttempt>,
}

impl Delivery {
    /// The status of the last answer; `None` when there was none.
    pub fn status(&self) -> Option<u16> {
        self.attempts.last().and_then(|attempt| attempt.status)
    }

    pub fn is_delivered(&self) -> bool {
        self.status()
            .is_some_and(|status| (200..300).contains(&status))
    }
}

#[derive(Debug, Clone)]
pub struct DeliveryAttempt {
    pub id: i64,
    pub at: Timestamp,
    pub redelivery: bool,
    pub status: Option<u16>,
    /// The body of the answer, or why there was none.
    pub answer: String,
}

/// The value of `X-Hub-Signature-256`.
pub fn signature(secret: &str, body: &[u8]) -> String {
    // HMAC takes keys of any length.
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes())
        .unwrap_or_else(|error| unreachable!("HMAC refused a key: {error}"));
    mac.update(body);
    format!("sha256={}", hex::encode(mac.finalize().into_bytes()))
}

/// A GUID in the form GitHub uses; never the same twice.
pub fn guid() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::SeqCst);
    let seed = format!(
        "{} {} {count}",
        Timestamp::now().as_nanosecond(),
        std::process::id()
    );
    let text = hex::encode(Sha256::digest(seed.as_bytes()));
    format!(
        "{}-{}-4{}-8{}-{}",
        &text[..8],
        &text[8..12],
        &text[13..16],
        &text[17..20],
        &text[20..32]
    )
}

/// One POST to a webhook address, made as well or as badly as a test wants it.
#[derive(Debug, Clone)]
pub struct WebhookPost {
    pub event: String,
    pub guid: String,
    pub body: Bytes,
    /// The value of `X-Hub-Signature-256`; `None` leaves the header out.
    pub signature: Option<String>,
    pub content_type: String,
    /// Further headers, e.g. those that name the hook.
    pub headers: Vec<(String, String)>,
}

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebhookAnswer {
    pub status: u16,
    pub body: String,
}

impl WebhookPost {
    /// A post that is signed properly.
    pub fn signed(event: &str, body: impl Into<Bytes>, secret: &str) -> WebhookPost {
        let body = body.into();
        WebhookPost {
            event: event.to_owned(),
            guid: guid(),
            signature: Some(signature(secret, &body)),
            body,
            content_type: "application/json".to_owned(),
            headers: Vec::new(),
        }
    }

    pub fn signature(mut self, signature: Option<&str>) -> WebhookPost {
        self.signature = signature.map(str::to_owned);
        self
    }

    pub fn guid(mut self, guid: &str) -> WebhookPost {
        self.guid = guid.to_owned();
        self
    }

    pub fn content_type(mut self, content_type: &str) -> WebhookPost {
        self.content_type = content_type.to_owned();
        self
    }

    pub async fn send(&self, url: &str) -> Result<WebhookAnswer> {
        self.send_with(&crate::http_client(), url).await
    }

    pub async fn send_with(&self, client: &reqwest::Client, url: &str) -> Result<WebhookAnswer> {
        let mut request = client
            .post(url)
            .timeout(ANSWER_DEADLINE)
            .header("User-Agent", "GitHub-Hookshot/7f3c2a1")
            .header("Accept", "*/*")
            .header("Content-Type", &self.content_type)
            .header("X-GitHub-Event", &self.event)
            .header("X-GitHub-Delivery", &self.guid)
            .body(self.body.clone());
        if let Some(signature) = &self.signature {
            request = request.header("X-Hub-Signature-256", signature);
        }
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let response = request.send().await?;
        let status = response.status().as_u16();
        let body = response.text().await.unwrap_or_default();
        Ok(WebhookAnswer { status, body })
    }
}

impl GitHub {
    /// Adds a hook for pushes and pull requests; GitHub pings it at once. Two hooks on one repository report every
    /// event twice, with different GUIDs.
    pub async fn add_hook(&self, repository: &str, url: &str, secret: &str) -> Result<i64> {
        self.add_hook_for(repository, url, secret, &["push", "pull_request"])
            .await
    }

    pub async fn add_hook_for(
        &self,
        repository: &str,
        url: &str,
        secret: &str,
        events: &[&str],
    ) -> Result<i64> {
        let (id, body) = {
            let mut state = self.state();
            let full_name = state
                .repository(repository)
                .with_context(|| format!("no repository {repository}"))?
                .full_name();
            let hook = Hook {
                id: state.next_id(),
                repository: full_name,
                url: url.to_owned(),
                secret: secret.to_owned(),
                events: events.iter().map(|&event| event.to_owned()).collect(),
                active: true,
                created_at: Timestamp::now(),
            };
            let body = self.shapes().ping(&state, &hook);
            let id = hook.id;
            state.hooks.push(hook);
            (id, body)
        };
        let delivery = self.record_delivery(id, "ping", repository, &body);
        self.deliver_as_set(&[delivery]).await;
        Ok(id)
    }

    pub fn remove_hook(&self, id: i64) {
        self.state().hooks.retain(|hook| hook.id != id);
    }

    /// Points a hook elsewhere, e.g. when the master came up on another port.
    pub fn set_hook_url(&self, id: i64, url: &str) {
        for hook in &mut self.state().hooks {
            if hook.id == id {
                url.clone_into(&mut hook.url);
            }
        }
    }

    pub fn set_delivery_mode(&self, mode: DeliveryMode) {
        self.state().delivery_mode = mode;
    }

    /// Every delivery so far, oldest first.
    pub fn deliveries(&self) -> Vec<Delivery> {
        self.state().deliveries.clone()
    }

    /// The newest delivery of an event.
    pub fn last_delivery(&self, event: &str) -> Option<Delivery> {
        let state = self.state();
        state
            .deliveries
            .iter()
            .rfind(|delivery| delivery.event == event)
            .cloned()
    }

    /// Sends what was held; later events follow the mode that is set then.
    pub async fn release_deliveries(&self, order: ReleaseOrder) {
        let mut held = std::mem::take(&mut self.state().held);
        match order {
            ReleaseOrder::AsHappened => {}
            ReleaseOrder::Reversed => held.reverse(),
        }
        for delivery in held {
            self.attempt_delivery(delivery, false).await;
        }
    }

    /// Sends a delivery again with the same GUID, as the button on GitHub's page does.
    pub async fn redeliver(&self, guid: &str) -> Result<Option<u16>> {
        let id = self
            .state()
            .deliveries
            .iter()
            .find(|delivery| delivery.guid == guid)
            .map(|delivery| delivery.id);
        let Some(id) = id else {
            bail!("no delivery {guid}");
        };
        self.attempt_delivery(id, true).await;
        let state = self.state();
        let delivery = state.deliveries.iter().find(|delivery| delivery.id == id);
        Ok(delivery.and_then(Delivery::status))
    }

    /// Tells every hook of the repository that wants the event, as the mode says.
    pub(super) async fn announce(&self, repository: &str, event: &str, body: &Value) {
        let hooks: Vec<i64> = self
            .state()
            .hooks
            .iter()
            .filter(|hook| {
                hook.active
                    && hook.repository == repository
                    && hook.events.iter().any(|name| name == "*" || name == event)
            })
            .map(|hook| hook.id)
            .collect();
        let deliveries: Vec<i64> = hooks
            .into_iter()
            .map(|hook| self.record_delivery(hook, event, repository, body))
            .collect();
        self.deliver_as_set(&deliveries).await;
    }

    fn record_delivery(&self, hook: i64, event: &str, repository: &str, body: &Value) -> i64 {
        let mut state = self.state();
        let id = state.next_id();
        state.deliveries.push(Delivery {
            id,
            guid: guid(),
            hook,
            event: event.to_owned(),
            action: body
                .get("action")
                .and_then(Value::as_str)
                .map(str::to_owned),
            repository: repository.to_owned(),
            body: Bytes::from(body.to_string()),
            attempts: Vec::new(),
        });
        id
    }

    async fn deliver_as_set(&self, deliveries: &[i64]) {
        let mode = self.state().delivery_mode;
        for &delivery in deliveries {
            match mode {
                DeliveryMode::Deliver => self.attempt_delivery(delivery, false).await,
                DeliveryMode::Hold => self.state().held.push(delivery),
                DeliveryMode::Drop => {
                    self.record_attempt(delivery, false, None, "dropped by the test's setting");
                }
            }
        }
    }

    pub(super) async fn attempt_delivery(&self, id: i64, redelivery: bool) {
        let prepared = {
            let state = self.state();
            let delivery = state.deliveries.iter().find(|delivery| delivery.id == id);
            delivery.and_then(|delivery| {
                let hook = state.hooks.iter().find(|hook| hook.id == delivery.hook)?;
                let repository = state.repository(&hook.repository)?;
                let mut post =
                    WebhookPost::signed(&delivery.event, delivery.body.clone(), &hook.secret)
                        .guid(&delivery.guid);
                for (name, value) in [
                    ("X-GitHub-Hook-ID", hook.id.to_string()),
                    (
                        "X-GitHub-Hook-Installation-Target-ID",
                        repository.id.to_string(),
                    ),
                    (
                        "X-GitHub-Hook-Installation-Target-Type",
                        "repository".to_owned(),
                    ),
                ] {
                    post.headers.push((name.to_owned(), value));
                }
                Some((post, hook.url.clone()))
            })
        };
        let Some((post, url)) = prepared else {
            return;
        };
        match post.send(&url).await {
            Ok(answer) => self.record_attempt(id, redelivery, Some(answer.status), &answer.body),
            Err(error) => self.record_attempt(id, redelivery, None, &format!("{error:#}")),
        }
    }

    fn record_attempt(&self, id: i64, redelivery: bool, status: Option<u16>, answer: &str) {
        let mut state = self.state();
        let attempt = DeliveryAttempt {
            id: state.next_id(),
            at: Timestamp::now(),
            redelivery,
            status,
            answer: answer.to_owned(),
        };
        if let Some(delivery) = state.deliveries.iter_mut().find(|known| known.id == id) {
            delivery.attempts.push(attempt);
        }
        drop(state);
        self.notify();
    }

    /// Makes an account known, e.g. as a bot.
    pub fn add_account(&self, login: &str, kind: AccountKind) {
        self.state().account(login, kind);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_that_of_githubs_example() {
        assert_eq!(
            signature("It's a Secret to Everybody", b"Hello, World!"),
            "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
        );
    }

    #[test]
    fn guids_look_like_uuids_and_differ() {
        let (one, other) = (guid(), guid());
        assert_ne!(one, other);
        let lengths: Vec<usize> = one.split('-').map(str::len).collect();
        assert_eq!(lengths, [8, 4, 4, 4, 12]);
    }
}
