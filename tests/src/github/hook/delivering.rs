//! Hooks are added and pointed elsewhere; events are delivered to them, held, dropped or delivered again.

use super::{
    Delivery, DeliveryAttempt, DeliveryMode, Hook, HookOf, ReleaseOrder, WebhookPost, guid,
};
use crate::github::GitHub;
use crate::github::state::AccountKind;
use anyhow::{Context, Result, bail};
use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Value, json};

impl GitHub {
    /// Adds a hook for pushes, pull requests and merge groups; GitHub pings it at once. Two hooks on one repository report every
    /// event twice, with different GUIDs.
    pub async fn add_hook(&self, repository: &str, url: &str, secret: &str) -> Result<i64> {
        self.add_hook_for(
            repository,
            url,
            secret,
            &["push", "pull_request", "merge_group"],
        )
        .await
    }

    pub async fn add_hook_for(
        &self,
        repository: &str,
        url: &str,
        secret: &str,
        events: &[&str],
    ) -> Result<i64> {
        let hook = {
            let mut state = self.state();
            let full_name = state
                .repository(repository)
                .with_context(|| format!("no repository {repository}"))?
                .full_name();
            let hook = Hook {
                id: state.next_id(),
                of: HookOf::Repository(full_name),
                url: url.to_owned(),
                secret: secret.to_owned(),
                events: events.iter().map(|&event| event.to_owned()).collect(),
                active: true,
                created_at: Timestamp::now(),
            };
            state.hooks.push(hook.clone());
            hook
        };
        self.ping(&hook, repository).await;
        Ok(hook.id)
    }

    /// What GitHub sends at once to a new hook.
    pub(in crate::github) async fn ping(&self, hook: &Hook, repository: &str) {
        let body = self.shapes().ping(&self.state(), hook, repository);
        let delivery = self.record_delivery(hook, "ping", repository, &body);
        self.deliver_as_set(&[delivery]).await;
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
    pub(in crate::github) async fn announce(&self, repository: &str, event: &str, body: &Value) {
        let hooks: Vec<Hook> = {
            let state = self.state();
            state
                .hooks
                .iter()
                .filter(|hook| {
                    hook.active
                        && state.hears_of(hook, repository)
                        && hook.events.iter().any(|name| name == "*" || name == event)
                })
                .cloned()
                .collect()
        };
        let deliveries: Vec<i64> = hooks
            .iter()
            .map(|hook| self.record_delivery(hook, event, repository, body))
            .collect();
        self.deliver_as_set(&deliveries).await;
    }

    fn record_delivery(&self, hook: &Hook, event: &str, repository: &str, body: &Value) -> i64 {
        let mut state = self.state();
        let mut body = body.clone();
        if let HookOf::App(app) = hook.of
            && let (Some(app), Some(fields)) = (state.app(app), body.as_object_mut())
        {
            let installation = json!({ "id": app.installation, "node_id": "" });
            fields.insert("installation".to_owned(), installation);
        }
        let id = state.next_id();
        state.deliveries.push(Delivery {
            id,
            guid: guid(),
            hook: hook.id,
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

    pub(in crate::github) async fn attempt_delivery(&self, id: i64, redelivery: bool) {
        let prepared = {
            let state = self.state();
            let delivery = state.deliveries.iter().find(|delivery| delivery.id == id);
            delivery.and_then(|delivery| {
                let hook = state.hooks.iter().find(|hook| hook.id == delivery.hook)?;
                let (target, kind) = match &hook.of {
                    HookOf::Repository(name) => {
                        (state.repository(name)?.id.to_string(), "repository")
                    }
                    HookOf::App(id) => (id.to_string(), "integration"),
                };
                let mut post =
                    WebhookPost::signed(&delivery.event, delivery.body.clone(), &hook.secret)
                        .guid(&delivery.guid);
                for (name, value) in [
                    ("X-GitHub-Hook-ID", hook.id.to_string()),
                    ("X-GitHub-Hook-Installation-Target-ID", target),
                    ("X-GitHub-Hook-Installation-Target-Type", kind.to_owned()),
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
