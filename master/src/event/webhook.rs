//! The door for GitHub's webhook deliveries: checked, stored, answered; acted upon later.
//!
//! In come the raw bytes of a request, out goes a row of `deliveries` and an answer. Nothing of the body is read before
//! its signature is checked, nothing is answered with 2xx before it is durable, and nothing else happens here: GitHub
//! waits ten seconds at most, and never delivers again by itself.

use super::check::{claimed_signature, examine, one_header};
use crate::store::{DeliveryState, DeliveryWriter, Inserted, NewDelivery, Store};
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::{Router, routing::post};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use http::{HeaderMap, StatusCode, header};
use jiff::Timestamp;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, Semaphore, SemaphorePermit};

pub use super::secrets::{SecretError, Secrets};

/// GitHub's own cap; it never sends more.
pub const MOST_BODY_BYTES: usize = 25 << 20;
/// Bodies of this size and more are hashed and parsed away from the threads that serve requests.
const LARGE_BODY_BYTES: usize = 256 << 10;
/// GitHub has hung up by then.
const BODY_DEADLINE: Duration = Duration::from_secs(10);
/// For the database; what is not stored by then is answered while GitHub, which waits for ten seconds, still listens.
const STORE_DEADLINE: Duration = Duration::from_secs(8);
/// Bodies that are held in memory at the same time, in units of [`BUDGET_UNIT`]: 256 MiB.
const BUDGET: u32 = 4096;
const BUDGET_UNIT: usize = 64 << 10;
/// GitHub sends 36 and less than 40.
const LONGEST_GUID: usize = 100;
const LONGEST_EVENT: usize = 64;

/// What the sender is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebhookAnswer {
    pub status: StatusCode,
    pub message: String,
}

impl WebhookAnswer {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        WebhookAnswer {
            status,
            message: message.into(),
        }
    }

    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        WebhookAnswer::new(StatusCode::BAD_REQUEST, message)
    }
}

impl IntoResponse for WebhookAnswer {
    fn into_response(self) -> Response {
        (self.status, format!("{}\n", self.message)).into_response()
    }
}

/// Receives deliveries. Clones share everything.
#[derive(Debug, Clone)]
pub struct Webhooks {
    writer: DeliveryWriter,
    secrets: Secrets,
    /// Told of each delivery that waits to be acted upon.
    arrived: Arc<Notify>,
    budget: Arc<Semaphore>,
}

impl Webhooks {
    /// Starts the task that writes deliveries. All `secrets` are accepted, so that one can be rotated.
    pub fn new(store: Store, secrets: Secrets, arrived: Arc<Notify>) -> Webhooks {
        Webhooks {
            writer: DeliveryWriter::start(store),
            secrets,
            arrived,
            budget: Arc::new(Semaphore::new(BUDGET as usize)),
        }
    }

    /// Checks, stores and answers one delivery.
    pub async fn receive(&self, headers: &HeaderMap, body: Bytes) -> WebhookAnswer {
        match self.store(headers, body).await {
            Ok(answer) | Err(answer) => answer,
        }
    }

    async fn store(
        &self,
        headers: &HeaderMap,
        body: Bytes,
    ) -> Result<WebhookAnswer, WebhookAnswer> {
        let secrets = self.secrets.current();
        let signature = claimed_signature(&secrets, headers)?;
        let (body, sha256) = if body.len() < LARGE_BODY_BYTES {
            examine(&secrets, &signature, headers, &body).map(|sha256| (body, sha256))?
        } else {
            let headers = headers.clone();
            tokio::task::spawn_blocking(move || {
                examine(&secrets, &signature, &headers, &body).map(|sha256| (body, sha256))
            })
            .await
            .map_err(|_| {
                WebhookAnswer::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "Stopping: deliver it again.",
                )
            })??
        };
        let guid = one_header(headers, "x-github-delivery", LONGEST_GUID)?.to_owned();
        let event = one_header(headers, "x-github-event", LONGEST_EVENT)?.to_owned();
        let outcome = outcome_at_once(&event);
        let acted_upon_later = outcome.is_none();
        let delivery = NewDelivery {
            guid: guid.clone(),
            event,
            body,
            sha256,
            received_at: Timestamp::now(),
            outcome,
        };
        let not_stored = |why: &dyn std::fmt::Display| {
            tracing::error!(%guid, %why, "a delivery is not stored: GitHub was answered 503 and can deliver it again");
            WebhookAnswer::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "The delivery could not be stored; deliver it again.",
            )
        };
        let inserted =
            match tokio::time::timeout(STORE_DEADLINE, self.writer.insert(delivery)).await {
                Ok(inserted) => inserted.map_err(|error| not_stored(&error))?,
                // It may still be stored; delivered again it is known by its id then.
                Err(_) => return Err(not_stored(&"the database took too long")),
            };
        crate::crash::point("delivery_stored");
        Ok(match inserted {
            Inserted::New(_) if acted_upon_later => {
                self.arrived.notify_one();
                WebhookAnswer::new(StatusCode::ACCEPTED, "Stored.")
            }
            Inserted::New(_) => WebhookAnswer::new(StatusCode::ACCEPTED, "Not acted upon."),
            Inserted::TriedAgain(_) => {
                self.arrived.notify_one();
                WebhookAnswer::new(
                    StatusCode::OK,
                    "Already known: it had failed, and is tried again.",
                )
            }
            Inserted::Known(DeliveryState::Stored) => {
                WebhookAnswer::new(StatusCode::OK, "Already known: it waits to be acted upon.")
            }
            Inserted::Known(DeliveryState::Done | DeliveryState::Failed) => {
                WebhookAnswer::new(StatusCode::OK, "Already known: nothing is done again.")
            }
            Inserted::Conflict => {
                tracing::warn!(%guid, "a delivery came with the id of another one and was refused: it may be forged");
                WebhookAnswer::new(
                    StatusCode::CONFLICT,
                    "Another delivery bears this X-GitHub-Delivery.",
                )
            }
        })
    }
}

/// What is recorded for an event that asks for nothing.
fn outcome_at_once(event: &str) -> Option<String> {
    if event == "ping" {
        Some("ping: the webhook works".to_owned())
    } else if super::interpret::is_acted_upon(event) {
        None
    } else {
        Some(format!("not acted upon: `{event}` events ask for nothing"))
    }
}

/// `POST /webhook/github`.
pub fn routes(webhooks: Webhooks) -> Router {
    Router::new()
        .route("/webhook/github", post(handle))
        .with_state(webhooks)
}

async fn handle(State(webhooks): State<Webhooks>, request: Request) -> WebhookAnswer {
    if let Err(answer) = claimed_signature(&webhooks.secrets.current(), request.headers()) {
        return answer;
    }
    let too_large = || {
        WebhookAnswer::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "A delivery has 25 MiB at most.",
        )
    };
    let declared: usize = request
        .headers()
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse().ok())
        .unwrap_or_default();
    if declared > MOST_BODY_BYTES {
        return too_large();
    }
    let (parts, body) = request.into_parts();
    match tokio::time::timeout(BODY_DEADLINE, read_body(&webhooks.budget, body)).await {
        Ok(Ok((body, _held))) => webhooks.receive(&parts.headers, body).await,
        Ok(Err(NotRead::TooLarge)) => too_large(),
        Ok(Err(NotRead::BrokenOff)) => {
            WebhookAnswer::bad_request("The body could not be read to its end.")
        }
        Err(_) => WebhookAnswer::new(
            StatusCode::REQUEST_TIMEOUT,
            "The body did not come within 10 seconds.",
        ),
    }
}

enum NotRead {
    TooLarge,
    BrokenOff,
}

/// Takes of the budget what has come, not what was promised: a sender that sends nothing holds next to nothing.
async fn read_body(
    budget: &Semaphore,
    body: Body,
) -> Result<(Bytes, Option<SemaphorePermit<'_>>), NotRead> {
    let mut stream = body.into_data_stream();
    let mut body = BytesMut::new();
    let mut held: Option<SemaphorePermit<'_>> = None;
    while let Some(part) = stream.next().await {
        let part = part.map_err(|_| NotRead::BrokenOff)?;
        let length = body.len() + part.len();
        if length > MOST_BODY_BYTES {
            return Err(NotRead::TooLarge);
        }
        let wanted = u32::try_from(length.div_ceil(BUDGET_UNIT)).unwrap_or(BUDGET);
        let missing = wanted - held.as_ref().map_or(0, |held| held.num_permits() as u32);
        // Fails only once the semaphore is closed, which nobody does.
        if let Ok(more) = budget.acquire_many(missing).await {
            match &mut held {
                Some(held) => held.merge(more),
                None => held = Some(more),
            }
        }
        body.extend_from_slice(&part);
    }
    Ok((body.freeze(), held))
}
