//! The checks of a webhook delivery, without I/O: signature first, then form.

use super::webhook::WebhookAnswer;
use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderMap, StatusCode, header};
use secrecy::{ExposeSecret, SecretString};
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use sha2::{Digest, Sha256};

/// The signature that the request claims: the one thing that is looked at before the body is read.
pub(super) fn claimed_signature(
    secrets: &[SecretString],
    headers: &HeaderMap,
) -> Result<[u8; 32], WebhookAnswer> {
    if secrets.is_empty() {
        return Err(WebhookAnswer::new(
            StatusCode::FORBIDDEN,
            "No webhook secret is configured here, so deliveries cannot be checked and are refused: \
             set webhook_secret_files under [github].",
        ));
    }
    let unauthorized = |message: &str| WebhookAnswer::new(StatusCode::UNAUTHORIZED, message);
    let header = headers.get("x-hub-signature-256").ok_or_else(|| {
        unauthorized(
            "The delivery is not signed (no X-Hub-Signature-256): give the webhook a secret.",
        )
    })?;
    let mut signature = [0; 32];
    header
        .as_bytes()
        .strip_prefix(b"sha256=")
        .and_then(|digits| hex::decode_to_slice(digits, &mut signature).ok())
        .ok_or_else(|| {
            unauthorized("X-Hub-Signature-256 must be `sha256=` and 64 hexadecimal digits.")
        })?;
    Ok(signature)
}

/// Checks the body against the signature, then that it is a JSON object; gives its SHA-256.
pub(super) fn examine(
    secrets: &[SecretString],
    signature: &[u8; 32],
    headers: &HeaderMap,
    body: &[u8],
) -> Result<String, WebhookAnswer> {
    // Every secret is tried, so that the time taken does not tell which one fits.
    let signed = secrets.iter().fold(false, |signed, secret| {
        signed | is_signed(secret, signature, body)
    });
    if !signed {
        return Err(WebhookAnswer::new(
            StatusCode::UNAUTHORIZED,
            "The signature does not fit: is the webhook's secret the same on both sides?",
        ));
    }
    check_content_type(headers)?;
    let mut json = serde_json::Deserializer::from_slice(body);
    let object = Json::deserialize(&mut json).and_then(|json_value| {
        json.end()?;
        Ok(json_value)
    });
    match object {
        Ok(Json::Object) => Ok(hex::encode(Sha256::digest(body))),
        Ok(Json::Other) => Err(WebhookAnswer::bad_request(
            "The body is JSON, but not an object.",
        )),
        Err(error) => Err(WebhookAnswer::bad_request(format!(
            "The body is not JSON: {error}."
        ))),
    }
}

fn is_signed(secret: &SecretString, signature: &[u8; 32], body: &[u8]) -> bool {
    // HMAC takes a key of any length, so this never fails.
    Hmac::<Sha256>::new_from_slice(secret.expose_secret().as_bytes()).is_ok_and(|mut mac| {
        mac.update(body);
        // In constant time.
        mac.verify_slice(signature).is_ok()
    })
}

fn check_content_type(headers: &HeaderMap) -> Result<(), WebhookAnswer> {
    let content_type = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or("");
    let media_type = content_type
        .split(';')
        .next()
        .unwrap_or("")
        .trim()
        .to_ascii_lowercase();
    match media_type.as_str() {
        "application/json" => Ok(()),
        "application/x-www-form-urlencoded" => Err(WebhookAnswer::bad_request(
            "The webhook sends forms: choose `application/json` as its content type on GitHub.",
        )),
        _ => Err(WebhookAnswer::bad_request(
            "The content type must be application/json.",
        )),
    }
}

/// The one value of a header that names something: short, and of visible ASCII.
pub(super) fn one_header<'a>(
    headers: &'a HeaderMap,
    name: &str,
    longest: usize,
) -> Result<&'a str, WebhookAnswer> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value
            .to_str()
            .ok()
            .filter(|text| {
                (1..=longest).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
            })
            .ok_or_else(|| WebhookAnswer::bad_request(format!("The header {name} is malformed."))),
        (None, _) => Err(WebhookAnswer::bad_request(format!(
            "The header {name} is missing."
        ))),
        (Some(_), Some(_)) => Err(WebhookAnswer::bad_request(format!(
            "The header {name} is there twice."
        ))),
    }
}

/// A JSON text, walked through but not kept: costs no memory, and serde_json's bound on nesting holds.
enum Json {
    Object,
    Other,
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(JsonVisitor)
    }
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Json;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Json, E> {
        Ok(Json::Other)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Json, E> {
        Ok(Json::Other)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Json, E> {
        Ok(Json::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Json, E> {
        Ok(Json::Other)
    }

    fn visit_str<E>(self, _: &str) -> Result<Json, E> {
        Ok(Json::Other)
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Json, A::Error> {
        while items.next_element::<Json>()?.is_some() {}
        Ok(Json::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Json, A::Error> {
        while entries.next_entry::<Json, Json>()?.is_some() {}
        Ok(Json::Object)
    }
}
