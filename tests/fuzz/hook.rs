//! A delivery of GitHub's, or of somebody who has its secret.

use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderMap, HeaderValue};
use sha2::Sha256;
use std::path::Path;
use std::sync::{Arc, LazyLock};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::Notify;
use vivarium::config::Config;
use vivarium::event::interpret::interpret;
use vivarium::event::webhook::{Secrets, Webhooks};
use vivarium::store::Store;

const SECRET: &str = "It's a Secret to Everybody";
const EVENTS: [&str; 4] = ["pull_request", "push", "ping", "merge_group"];
/// In memory where the machine has it: each delivery is written down for good.
const FAST_FOLDER: &str = "/dev/shm";

struct Door {
    runtime: Runtime,
    webhooks: Webhooks,
    config: Config,
    _folder: TempDir,
}

static DOOR: LazyLock<Door> = LazyLock::new(|| {
    let folder = tempfile::tempdir_in(FAST_FOLDER)
        .or_else(|_| tempfile::tempdir())
        .expect("a folder");
    let secret = folder.path().join("secret");
    std::fs::write(&secret, SECRET).expect("the secret's file");
    let secrets = Secrets::read(&[secret]).expect("the secret");
    let runtime = Runtime::new().expect("a runtime");
    let webhooks = runtime.block_on(async {
        let store = Store::open(&folder.path().join("state.sqlite"))
            .await
            .expect("a database");
        Webhooks::new(store, secrets, Arc::new(Notify::new()))
    });
    let text = "[github]\ntoken_file = 'token'\n[[repository]]\nname = 'acme/widget'\n\
                [[repository]]\nname = 'Codertocat/Hello-World'\n";
    Door {
        runtime,
        webhooks,
        config: Config::parse(Path::new("/etc/vivarium/vivarium.toml"), text)
            .expect("a configuration"),
        _folder: folder,
    }
});

/// The first byte says which event, the second which header is spoilt; the rest is the body.
pub(crate) fn webhook(data: &[u8]) {
    let [event, spoilt, body @ ..] = data else {
        return;
    };
    let event = EVENTS[usize::from(*event) % EVENTS.len()];
    // Deliveries bear the body's digest as their id, so that the same one again is a duplicate.
    let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).expect("any key will do");
    mac.update(body);
    let digest = hex::encode(mac.finalize().into_bytes());
    let mut headers = HeaderMap::new();
    let mut set = |name: &'static str, value: &str| {
        headers.insert(name, HeaderValue::from_str(value).expect("a plain value"));
    };
    set("x-hub-signature-256", &format!("sha256={digest}"));
    set("content-type", "application/json");
    set("x-github-delivery", &digest);
    set("x-github-event", event);
    let names = [
        "x-hub-signature-256",
        "content-type",
        "x-github-delivery",
        "x-github-event",
    ];
    if let Some(name) = names.get(usize::from(*spoilt)) {
        let bytes: Vec<u8> = body
            .iter()
            .copied()
            .filter(|b| *b >= 32 && *b != 127)
            .take(200)
            .collect();
        headers.insert(*name, HeaderValue::from_bytes(&bytes).expect("filtered"));
    }
    let door = &*DOOR;
    let received = door
        .webhooks
        .receive(&headers, Bytes::copy_from_slice(body));
    let answer = door.runtime.block_on(received);
    assert!(!answer.status.is_server_error(), "{answer:?}");
    if let Err(error) = interpret(event, body, &door.config) {
        assert!(!error.to_string().is_empty());
    }
}
