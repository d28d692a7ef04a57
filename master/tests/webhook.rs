//! GitHub's deliveries over real HTTP, into a real database.

use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use http::HeaderMap;
use jiff::Timestamp;
use sha2::Sha256;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;
use vivarium::event::webhook::{MOST_BODY_BYTES, Secrets, Webhooks, routes};
use vivarium::store::{AfterFailure, DeliveryState, MOST_TRIES, Store};

const SECRET: &str = "It's a Secret to Everybody";
const OPENED: &str = include_str!("fixtures/github/pull_request.opened.json");

struct Door {
    address: SocketAddr,
    client: reqwest::Client,
    store: Store,
    arrived: Arc<Notify>,
    folder: tempfile::TempDir,
}

async fn door(secrets: &[&str]) -> Door {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("vivarium.db"))
        .await
        .unwrap();
    let arrived = Arc::new(Notify::new());
    let files: Vec<_> = (0..secrets.len())
        .map(|number| folder.path().join(format!("secret-{number}")))
        .collect();
    for (file, secret) in files.iter().zip(secrets) {
        std::fs::write(file, secret).unwrap();
    }
    let secrets = Secrets::read(&files).unwrap();
    let webhooks = Webhooks::new(store.clone(), secrets, Arc::clone(&arrived));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = routes(webhooks);
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    Door {
        address,
        client: reqwest::Client::new(),
        store,
        arrived,
        folder,
    }
}

fn signature(secret: &str, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(body);
    format!("sha256={}", hex::encode(mac.finalize().into_bytes()))
}

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    pairs
        .iter()
        .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
        .collect()
}

impl Door {
    async fn post(&self, headers: HeaderMap, body: impl Into<Bytes>) -> (u16, String) {
        let response = self
            .client
            .post(format!("http://{}/webhook/github", self.address))
            .headers(headers)
            .body(body.into())
            .send()
            .await
            .unwrap();
        let status = response.status().as_u16();
        (status, response.text().await.unwrap())
    }

    /// As GitHub does, correct in everything.
    async fn deliver(&self, guid: &str, event: &str, body: &str) -> (u16, String) {
        let headers = self.good_headers(guid, event, body.as_bytes());
        self.post(headers, body.to_owned()).await
    }

    fn good_headers(&self, guid: &str, event: &str, body: &[u8]) -> HeaderMap {
        headers(&[
            ("content-type", "application/json"),
            ("x-github-event", event),
            ("x-github-delivery", guid),
            ("x-hub-signature-256", &signature(SECRET, body)),
        ])
    }

    async fn stored(&self) -> usize {
        self.store.recent_deliveries(1000).await.unwrap().len()
    }
}

#[tokio::test]
async fn githubs_own_example_is_accepted_as_signed() {
    let door = door(&[SECRET]).await;
    let vector = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
    let mut headers = door.good_headers("g", "push", b"");
    headers.insert("x-hub-signature-256", vector.parse().unwrap());
    let (status, text) = door.post(headers, "Hello, World!").await;
    assert_eq!(status, 400, "{text}");
    assert!(text.contains("not JSON"), "{text}");
    assert_eq!(door.stored().await, 0);
}

#[tokio::test]
async fn a_delivery_is_stored_before_it_is_answered() {
    let door = door(&[SECRET]).await;
    let guid = "72d3162e-cc78-11e3-81ab-4c9367dc0958";
    let (status, _) = door.deliver(guid, "pull_request", OPENED).await;
    assert_eq!(status, 202);
    let next = door
        .store
        .next_deliveries(Timestamp::now(), 10)
        .await
        .unwrap();
    assert_eq!(next.len(), 1);
    assert_eq!(next[0].guid, guid);
    assert_eq!(next[0].event, "pull_request");
    assert_eq!(next[0].body, OPENED.as_bytes());
    door.arrived.notified().await;
}

#[tokio::test]
async fn either_secret_will_do_while_one_is_rotated() {
    let door = door(&["the new one", SECRET]).await;
    assert_eq!(door.deliver("old", "push", "{}").await.0, 202);
    let mut headers = door.good_headers("new", "push", b"{}");
    let new = signature("the new one", b"{}");
    headers.insert("x-hub-signature-256", new.parse().unwrap());
    assert_eq!(door.post(headers, "{}").await.0, 202);
    let mut headers = door.good_headers("other", "push", b"{}");
    let other = signature("a third one", b"{}");
    headers.insert("x-hub-signature-256", other.parse().unwrap());
    assert_eq!(door.post(headers, "{}").await.0, 401);
}

#[tokio::test]
async fn what_is_not_signed_so_is_refused_and_not_stored() {
    let door = door(&[SECRET]).await;
    let good = signature(SECRET, OPENED.as_bytes());
    let digits = good.strip_prefix("sha256=").unwrap();
    let mut flipped = good.clone().into_bytes();
    let last = flipped.last_mut().unwrap();
    *last = if *last == b'0' { b'1' } else { b'0' };
    for signature in [
        String::from_utf8(flipped).unwrap(),
        digits.to_owned(),
        format!("sha1={digits}"),
        format!("SHA256={digits}"),
        format!("sha256={}", &digits[..62]),
        format!("{good}00"),
        "sha256=".to_owned(),
        format!("sha256={}", "z".repeat(64)),
    ] {
        let mut headers = door.good_headers("g", "pull_request", OPENED.as_bytes());
        headers.insert("x-hub-signature-256", signature.parse().unwrap());
        let (status, text) = door.post(headers, OPENED).await;
        assert_eq!(status, 401, "{signature}");
        assert!(!text.contains(digits) && !text.contains(SECRET), "{text}");
    }
    let mut unsigned = door.good_headers("g", "pull_request", OPENED.as_bytes());
    unsigned.remove("x-hub-signature-256");
    assert_eq!(door.post(unsigned, OPENED).await.0, 401);
    let tampered = OPENED.replace("opened", "closed");
    let headers = door.good_headers("g", "pull_request", OPENED.as_bytes());
    assert_eq!(door.post(headers, tampered).await.0, 401);
    assert_eq!(door.stored().await, 0);
}

#[tokio::test]
async fn without_a_secret_nothing_is_accepted() {
    let door = door(&[]).await;
    let (status, text) = door.deliver("g", "push", "{}").await;
    assert_eq!(status, 403);
    assert!(text.contains("webhook_secret_files"), "{text}");
    assert_eq!(door.stored().await, 0);
}

#[tokio::test]
async fn a_malformed_delivery_is_refused_with_the_reason() {
    let door = door(&[SECRET]).await;
    let deep = format!("{{\"a\":{}1{}}}", "[".repeat(1 << 20), "]".repeat(1 << 20));
    let deep_objects = "{\"a\":".repeat(1 << 20);
    for (body, reason) in [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("{} x", "not JSON"),
        ("[]", "not an object"),
        ("\"text\"", "not an object"),
        (deep.as_str(), "recursion limit"),
        (deep_objects.as_str(), "recursion limit"),
    ] {
        let (status, text) = door.deliver("g", "push", body).await;
        assert_eq!(status, 400, "{text}");
        assert!(text.contains(reason), "{text}");
    }
    let not_text = b"{\"a\":\"\xff\"}";
    let headers = door.good_headers("g", "push", not_text);
    assert_eq!(door.post(headers, &not_text[..]).await.0, 400);

    let long = "x".repeat(101);
    for (name, value, reason) in [
        (
            "content-type",
            Some("application/x-www-form-urlencoded"),
            "sends forms",
        ),
        ("content-type", Some("text/plain"), "application/json"),
        ("content-type", None, "application/json"),
        ("x-github-event", None, "missing"),
        ("x-github-event", Some(long.as_str()), "malformed"),
        ("x-github-delivery", None, "missing"),
        ("x-github-delivery", Some(long.as_str()), "malformed"),
        ("x-github-delivery", Some("a b"), "malformed"),
        ("x-github-delivery", Some(""), "malformed"),
    ] {
        let mut headers = door.good_headers("g", "push", b"{}");
        headers.remove(name);
        if let Some(value) = value {
            headers.insert(name, value.parse().unwrap());
        }
        let (status, text) = door.post(headers, "{}").await;
        assert_eq!(status, 400, "{name} {value:?}");
        assert!(text.contains(reason), "{name} {value:?}: {text}");
    }
    assert_eq!(door.stored().await, 0);
}

#[tokio::test]
async fn the_largest_delivery_of_github_fits_and_no_larger_one() {
    let door = door(&[SECRET]).await;
    let frame = "{\"a\":\"\"}".len();
    let largest = format!("{{\"a\":\"{}\"}}", "x".repeat(MOST_BODY_BYTES - frame));
    assert_eq!(largest.len(), MOST_BODY_BYTES);
    assert_eq!(door.deliver("large", "push", &largest).await.0, 202);

    // Refused by its length, before its bytes come.
    let mut stream = tokio::net::TcpStream::connect(door.address).await.unwrap();
    let head = format!(
        "POST /webhook/github HTTP/1.1\r\nhost: x\r\nx-hub-signature-256: {}\r\ncontent-length: {}\r\n\r\n",
        signature(SECRET, b""),
        MOST_BODY_BYTES + 1
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert!(answer.contains("25 MiB"), "{answer}");

    // Without a length, by what has come.
    let body = Bytes::from(vec![b' '; MOST_BODY_BYTES + 1]);
    let headers = door.good_headers("g", "push", &body);
    let chunks = futures::stream::iter([Ok::<_, std::io::Error>(body)]);
    let response = door
        .client
        .post(format!("http://{}/webhook/github", door.address))
        .headers(headers)
        .body(reqwest::Body::wrap_stream(chunks))
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 413);
    assert_eq!(door.stored().await, 1);
}

#[tokio::test]
async fn the_same_delivery_twice_is_one() {
    let door = door(&[SECRET]).await;
    assert_eq!(door.deliver("g", "push", "{}").await.0, 202);
    let (status, text) = door.deliver("g", "push", "{}").await;
    assert_eq!(status, 200);
    assert!(text.contains("Already known"), "{text}");
    assert_eq!(door.deliver("g", "push", "{\"x\":1}").await.0, 409);
    // The event's name is not signed.
    assert_eq!(door.deliver("g", "pull_request", "{}").await.0, 409);
    let all = door.store.recent_deliveries(10).await.unwrap();
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].state, DeliveryState::Stored);
}

#[tokio::test]
async fn a_delivery_that_failed_is_tried_again_when_it_comes_again() {
    let door = door(&[SECRET]).await;
    door.deliver("g", "push", "{}").await;
    let now = Timestamp::now();
    let id = door.store.next_deliveries(now, 1).await.unwrap()[0].id;
    for _ in 1..MOST_TRIES {
        let after = door.store.fail_delivery(id, "no", now).await.unwrap();
        let AfterFailure::TriedAgainAt(at) = after else {
            panic!("{after:?}")
        };
        assert!(at > now);
        assert!(door.store.next_deliveries(now, 1).await.unwrap().is_empty());
        assert_eq!(door.store.next_deliveries(at, 1).await.unwrap().len(), 1);
        assert_eq!(
            door.store
                .next_delivery_at()
                .await
                .unwrap()
                .map(|t| t.as_millisecond()),
            Some(at.as_millisecond())
        );
    }
    let last = door.store.fail_delivery(id, "no", now).await.unwrap();
    assert_eq!(last, AfterFailure::GivenUp);
    assert_eq!(door.store.delivery_counts().await.unwrap().failed, 1);

    let (status, text) = door.deliver("g", "push", "{}").await;
    assert_eq!(status, 200);
    assert!(text.contains("tried again"), "{text}");
    let again = door.store.next_deliveries(now, 1).await.unwrap();
    assert_eq!((again[0].id, again[0].tries), (id, 0));
    let done = [(id, "done".to_owned())];
    door.store.finish_deliveries(&done).await.unwrap();
    assert_eq!(door.deliver("g", "push", "{}").await.0, 200);
    assert_eq!(door.store.delivery_counts().await.unwrap().done, 1);
}

#[tokio::test]
async fn what_asks_for_nothing_is_recorded_as_done() {
    let door = door(&[SECRET]).await;
    for (event, outcome) in [("ping", "works"), ("watch", "not acted upon")] {
        assert_eq!(door.deliver(event, event, "{}").await.0, 202);
        let latest = door.store.recent_deliveries(1).await.unwrap().remove(0);
        assert_eq!(latest.state, DeliveryState::Done);
        assert!(latest.outcome.unwrap().contains(outcome));
    }
    assert_eq!(door.store.next_delivery_at().await.unwrap(), None);
    // And forgotten one day, unlike what still waits.
    door.deliver("waits", "push", "{}").await;
    let tomorrow = Timestamp::now() + jiff::SignedDuration::from_hours(24);
    assert_eq!(
        door.store.forget_deliveries(tomorrow, 100).await.unwrap(),
        2
    );
    assert_eq!(door.stored().await, 1);
}

#[tokio::test]
async fn a_database_that_fails_is_the_only_5xx() {
    let door = door(&[SECRET]).await;
    door.store.close().await;
    assert_eq!(door.deliver("g", "push", "{}").await.0, 503);
}

#[tokio::test]
async fn a_burst_is_stored_whole() {
    const COUNT: usize = 200;
    let door = door(&[SECRET]).await;
    let posts = (0..COUNT).map(|n| {
        let door = &door;
        // Each comes twice.
        let guid = format!("g{}", n / 2);
        async move { door.deliver(&guid, "pull_request", OPENED).await.0 }
    });
    let mut answers = futures::future::join_all(posts).await;
    answers.sort_unstable();
    assert_eq!(answers[..COUNT / 2], [200; COUNT / 2]);
    assert_eq!(answers[COUNT / 2..], [202; COUNT / 2]);
    let counts = door.store.delivery_counts().await.unwrap();
    assert_eq!(counts.stored, 100);
}

#[test]
fn a_file_without_a_secret_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("secret");
    for text in ["", "\n"] {
        std::fs::write(&path, text).unwrap();
        let error = Secrets::read(std::slice::from_ref(&path)).unwrap_err();
        assert!(error.to_string().contains("is empty"));
    }
    std::fs::write(&path, "hidden").unwrap();
    let secrets = Secrets::read(std::slice::from_ref(&path)).unwrap();
    assert!(!format!("{secrets:?}").contains("hidden"));
    std::fs::remove_file(&path).unwrap();
    assert!(Secrets::read(&[path]).is_err());
}

/// Such a door refused every delivery after the secret was replaced, until somebody thought of a restart.
#[tokio::test]
async fn a_secret_that_is_replaced_is_good_at_once() {
    let door = door(&["first"]).await;
    let file = door.folder.path().join("secret-0");
    let answer = async |guid: &str, secret: &str| {
        let mut headers = door.good_headers(guid, "push", b"{}");
        let signed = signature(secret, b"{}");
        headers.insert("x-hub-signature-256", signed.parse().unwrap());
        door.post(headers, "{}").await.0
    };
    assert_eq!(answer("a", "first").await, 202);
    // A newline is what editors add, and no part of it.
    std::fs::write(&file, "the second\r\n").unwrap();
    assert_eq!(answer("b", "first").await, 401);
    assert_eq!(answer("c", "the second").await, 202);
    // Gone or empty for a moment, while it is replaced.
    std::fs::write(&file, "").unwrap();
    assert_eq!(answer("d", "the second").await, 202);
    assert_eq!(answer("e", "").await, 401);
    std::fs::remove_file(&file).unwrap();
    assert_eq!(answer("f", "the second").await, 202);
}
