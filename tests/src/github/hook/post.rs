//! One POST to a webhook's address, signed.

use anyhow::Result;
use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use sha2::{Digest, Sha256};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// GitHub waits for ten seconds; here a machine that is busy with other tests has time.
const ANSWER_DEADLINE: Duration = Duration::from_secs(60);

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
