//! The door that strangers reach: what is wrong is refused, in the right words, and leaves nothing behind.

use anyhow::Result;
use serde_json::json;
use tests::github::{WebhookPost, signature};
use tests::master::Master;

const SECRET: &str = "secret";

async fn master() -> Result<Master> {
    Master::builder()
        .webhook_secret("an older secret")
        .webhook_secret(SECRET)
        .start()
        .await
}

/// Deliveries that the master has stored.
async fn stored(master: &Master) -> Result<u64> {
    Ok(master.metric("vivarium_deliveries").await? as u64)
}

/// Bodies of every size and depth are parsed only after their signature was found good.
#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_with_a_wrong_signature_is_refused_and_not_stored() -> Result<()> {
    let mut master = master().await?;
    let url = master.webhook_url();
    let body = json!({ "zen": "Keep it logically awesome." }).to_string();
    let good = signature(SECRET, body.as_bytes());
    let wrong = signature("guessed", body.as_bytes());
    let sha1 = good.replace("sha256=", "sha1=");
    let short = &good[..good.len() - 2];
    for claimed in [
        None,
        Some(wrong.as_str()),
        Some(sha1.as_str()),
        Some(short),
        Some("sha256="),
        Some("sha256=zz"),
        Some(""),
    ] {
        let post = WebhookPost::signed("ping", body.clone(), SECRET).signature(claimed);
        let answer = post.send(&url).await?;
        assert_eq!(answer.status, 401, "{claimed:?}: {}", answer.body);
    }
    assert_eq!(stored(&master).await?, 0);
    // Both secrets are good while one is rotated.
    for secret in [SECRET, "an older secret"] {
        let post = WebhookPost::signed("ping", body.clone(), secret);
        assert_eq!(post.send(&url).await?.status, 202);
    }
    assert_eq!(stored(&master).await?, 2);
    master.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_no_json_is_refused_with_a_reason() -> Result<()> {
    let mut master = master().await?;
    let url = master.webhook_url();
    let bodies: [&[u8]; 6] = [
        b"",
        b"{",
        b"{\"a\":1}}",
        b"\xff\xfe",
        b"payload=%7B%7D",
        b"{\"zen\": \"\xc3\x28\"}",
    ];
    for body in bodies {
        let answer = WebhookPost::signed("push", body.to_vec(), SECRET)
            .send(&url)
            .await?;
        assert_eq!(answer.status, 400, "{}", String::from_utf8_lossy(body));
        assert!(!answer.body.trim().is_empty());
    }
    let form = WebhookPost::signed("push", "payload=%7B%7D", SECRET)
        .content_type("application/x-www-form-urlencoded");
    let answer = form.send(&url).await?;
    assert!((400..500).contains(&answer.status));
    assert_eq!(stored(&master).await?, 0);
    master.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn events_and_actions_not_known_are_taken_and_forgotten() -> Result<()> {
    let mut master = master().await?;
    let url = master.webhook_url();
    let repository = json!({ "id": 1, "name": "widget", "full_name": "acme/widget", "owner": { "login": "acme" } });
    for (event, body) in [
        (
            "star_exploded",
            json!({ "action": "created", "repository": repository }),
        ),
        (
            "pull_request",
            json!({ "action": "stacked", "number": 1, "pull_request": {}, "repository": repository }),
        ),
        ("pull_request", json!({ "action": "opened" })),
        ("push", json!({ "ref": "refs/heads/main" })),
        ("push", json!([1, 2, 3])),
        (
            "push",
            json!({ "ref": "refs/heads/main", "after": "not a sha", "repository": null }),
        ),
    ] {
        let answer = WebhookPost::signed(event, body.to_string(), SECRET)
            .send(&url)
            .await?;
        assert!(
            (200..300).contains(&answer.status) || answer.status == 400,
            "{event} {body}: {} {}",
            answer.status,
            answer.body
        );
    }
    assert!(master.builds().await?.is_empty());
    assert!(master.is_running());
    master.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_over_25_megabytes_is_refused_and_one_below_is_not() -> Result<()> {
    let mut master = master().await?;
    let url = master.webhook_url();
    const LIMIT: usize = 25 << 20;
    let body = |length: usize| {
        let frame = "{\"zen\":\"\"}".len();
        format!("{{\"zen\":\"{}\"}}", "x".repeat(length - frame))
    };
    let largest = WebhookPost::signed("ping", body(LIMIT), SECRET)
        .send(&url)
        .await?;
    assert_eq!(largest.status, 202);
    // The master may answer and close before all was sent; a client may see either.
    match WebhookPost::signed("ping", body(LIMIT + 1), SECRET)
        .send(&url)
        .await
    {
        Ok(answer) => assert_eq!(answer.status, 413),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    assert_eq!(stored(&master).await?, 1);
    assert!(master.is_running());
    master.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nesting_a_million_deep_does_not_end_the_master() -> Result<()> {
    let mut master = master().await?;
    let url = master.webhook_url();
    const DEPTH: usize = 1 << 20;
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let body = format!("{}1{}", open.repeat(DEPTH), close.repeat(DEPTH));
        let answer = WebhookPost::signed("push", body, SECRET).send(&url).await?;
        assert!((200..500).contains(&answer.status), "{}", answer.status);
    }
    let unclosed = WebhookPost::signed("push", "[".repeat(DEPTH), SECRET)
        .send(&url)
        .await?;
    assert!((400..500).contains(&unclosed.status));
    assert!(master.is_running());
    let good = WebhookPost::signed("ping", "{}", SECRET).send(&url).await?;
    assert_eq!(good.status, 202);
    assert!(master.builds().await?.is_empty());
    master.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_delivery_twice_is_stored_once() -> Result<()> {
    let mut master = master().await?;
    let url = master.webhook_url();
    let post = WebhookPost::signed("ping", "{}", SECRET);
    assert_eq!(post.send(&url).await?.status, 202);
    assert!((200..300).contains(&post.send(&url).await?.status));
    // Another body under the same id is nobody's redelivery.
    let forged = WebhookPost::signed("ping", "{\"a\":1}", SECRET).guid(&post.guid);
    assert_eq!(forged.send(&url).await?.status, 409);
    assert_eq!(stored(&master).await?, 1);
    master.stop().await?;
    Ok(())
}
