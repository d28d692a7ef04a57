//! Webhooks: who is told of what, by real HTTP, with a log of every answer.

mod delivering;
mod post;

pub use post::{WebhookAnswer, WebhookPost, guid, signature};

use bytes::Bytes;
use jiff::Timestamp;

/// Whose a hook is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HookOf {
    Repository(String),
    /// It hears of all repositories that the App is installed on.
    App(u64),
}

#[derive(Debug, Clone)]
pub struct Hook {
    pub id: i64,
    pub of: HookOf,
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
