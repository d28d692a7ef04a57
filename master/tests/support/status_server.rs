//! As much of GitHub as takes commit statuses: strict about what it takes, and faulty where a test says so.

use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Notify, watch};

pub(crate) const TOKEN: &str = "ghp_the_token_of_the_test";

/// What becomes of the next request.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    Answer(u16, Vec<(&'static str, String)>, Value),
    /// Shown, but the connection breaks before the answer.
    ShownThenReset,
    /// Not shown, and never answered.
    Silence,
    Redirect(String),
}

impl Fault {
    pub(crate) fn answer(status: u16, message: &str) -> Fault {
        Fault::Answer(status, Vec::new(), json!({ "message": message }))
    }
}

/// A request that was answered, or was not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shown {
    pub(crate) sha: String,
    pub(crate) context: String,
    pub(crate) state: String,
    pub(crate) description: String,
    pub(crate) target_url: String,
}

#[derive(Debug, Default)]
struct Records {
    requests: usize,
    shown: Vec<Shown>,
    faults: VecDeque<Fault>,
    token: String,
    /// Descriptions of requests that a strict server does not take.
    complaints: Vec<String>,
}

#[derive(Debug, Clone)]
pub(crate) struct StatusServer {
    pub(crate) url: String,
    records: Arc<Mutex<Records>>,
    changed: Arc<Notify>,
    open: watch::Sender<bool>,
}

impl StatusServer {
    /// Listens on loopback; the API begins at a path, as that of an Enterprise server does.
    pub(crate) async fn start() -> StatusServer {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/api/v3", listener.local_addr().unwrap());
        let server = StatusServer {
            url,
            records: Arc::new(Mutex::new(Records {
                token: TOKEN.to_owned(),
                ..Records::default()
            })),
            changed: Arc::default(),
            open: watch::channel(true).0,
        };
        let app = axum::Router::new()
            .route("/api/v3/repos/{owner}/{name}/statuses/{sha}", post(named))
            .route("/api/v3/repositories/{id}/statuses/{sha}", post(numbered))
            .route(
                "/api/v3/repos/{owner}/{name}/commits/{sha}/status",
                get(combined),
            )
            .route("/api/v3/rate_limit", get(rate_limit))
            .route("/api/v3/repos/{owner}/{name}", get(repository))
            .with_state(server.clone());
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        server
    }

    pub(crate) fn fault(&self, fault: Fault) {
        self.records.lock().unwrap().faults.push_back(fault);
    }

    /// Accepts this token alone from now on.
    pub(crate) fn expect_token(&self, token: &str) {
        self.records.lock().unwrap().token = token.to_owned();
    }

    /// Requests are kept waiting until [`StatusServer::release`].
    pub(crate) fn hold(&self) {
        self.open.send_replace(false);
    }

    pub(crate) fn release(&self) {
        self.open.send_replace(true);
    }

    /// All statuses that were sent so far, taken or not.
    pub(crate) fn requests(&self) -> usize {
        self.records.lock().unwrap().requests
    }

    pub(crate) fn shown(&self) -> Vec<Shown> {
        self.records.lock().unwrap().shown.clone()
    }

    pub(crate) fn states(&self) -> Vec<String> {
        self.shown().into_iter().map(|shown| shown.state).collect()
    }

    /// What a person sees now, by commit and context.
    pub(crate) fn seen(&self) -> BTreeMap<(String, String), String> {
        self.shown()
            .into_iter()
            .map(|shown| ((shown.sha, shown.context.to_lowercase()), shown.state))
            .collect()
    }

    pub(crate) fn complaints(&self) -> Vec<String> {
        self.records.lock().unwrap().complaints.clone()
    }

    /// Waits for an event, with a bound far beyond what is needed.
    pub(crate) async fn until(&self, what: &str, is_so: impl Fn(&StatusServer) -> bool) {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                if is_so(self) {
                    return;
                }
                changed.await;
            }
        };
        if tokio::time::timeout(Duration::from_secs(20), wait)
            .await
            .is_err()
        {
            panic!("never came: {what}; {:?}", self.records.lock().unwrap());
        }
    }

    async fn status(&self, sha: String, headers: &HeaderMap, body: &Value) -> Response {
        let mut open = self.open.subscribe();
        let (fault, token) = {
            let mut records = self.records.lock().unwrap();
            records.requests += 1;
            let token = records.token.clone();
            (records.faults.pop_front(), token)
        };
        self.changed.notify_waiters();
        open.wait_for(|open| *open).await.unwrap();
        let refuse = |status: u16, message: &str| {
            let status = StatusCode::from_u16(status).unwrap();
            (status, Json(json!({ "message": message }))).into_response()
        };
        match fault {
            Some(Fault::Answer(status, more, body)) => {
                let mut response =
                    (StatusCode::from_u16(status).unwrap(), Json(body)).into_response();
                for (name, value) in more {
                    response.headers_mut().insert(name, value.parse().unwrap());
                }
                return response;
            }
            Some(Fault::Silence) => std::future::pending().await,
            Some(Fault::Redirect(to)) => {
                return (StatusCode::TEMPORARY_REDIRECT, [("location", to)]).into_response();
            }
            Some(Fault::ShownThenReset) | None => {}
        }
        if headers
            .get("authorization")
            .and_then(|value| value.to_str().ok())
            != Some(&format!("Bearer {token}"))
        {
            return refuse(401, "Bad credentials");
        }
        if let Some(complaint) = complaint(headers, body) {
            self.records
                .lock()
                .unwrap()
                .complaints
                .push(complaint.clone());
            return refuse(422, &complaint);
        }
        let text = |key: &str| body[key].as_str().unwrap().to_owned();
        self.records.lock().unwrap().shown.push(Shown {
            sha,
            context: text("context"),
            state: text("state"),
            description: text("description"),
            target_url: text("target_url"),
        });
        self.changed.notify_waiters();
        if matches!(fault, Some(Fault::ShownThenReset)) {
            // Ends the connection's task without a word.
            std::panic::resume_unwind(Box::new(()));
        }
        (StatusCode::CREATED, Json(json!({"id": 1}))).into_response()
    }
}

/// What GitHub would not take.
fn complaint(headers: &HeaderMap, body: &Value) -> Option<String> {
    for name in ["user-agent", "x-github-api-version", "accept"] {
        if !headers.contains_key(name) {
            return Some(format!("no {name}"));
        }
    }
    let object = body.as_object()?;
    let mut keys: Vec<_> = object.keys().map(String::as_str).collect();
    keys.sort_unstable();
    if keys != ["context", "description", "state", "target_url"] {
        return Some(format!("keys {keys:?}"));
    }
    let description = body["description"].as_str().unwrap_or("");
    if description.chars().count() > 140 {
        return Some("description is too long (maximum is 140 characters)".into());
    }
    if description.chars().any(|c| c.len_utf8() > 3) {
        return Some("description doesn't accept 4-byte Unicode".into());
    }
    let states = ["pending", "success", "failure", "error"];
    (!states.contains(&body["state"].as_str().unwrap_or(""))).then(|| "state".into())
}

async fn named(
    State(server): State<StatusServer>,
    Path((_, _, sha)): Path<(String, String, String)>,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> Response {
    server.status(sha, &headers, &body).await
}

async fn numbered(
    State(server): State<StatusServer>,
    Path((_, sha)): Path<(u64, String)>,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> Response {
    server.status(sha, &headers, &body).await
}

/// The latest status of each context.
async fn combined(
    State(server): State<StatusServer>,
    Path((_, _, sha)): Path<(String, String, String)>,
) -> Response {
    let latest: BTreeMap<String, Value> = server
        .shown()
        .into_iter()
        .filter(|shown| shown.sha == sha)
        .map(|shown| {
            let value = json!({
                "context": shown.context,
                "state": shown.state,
                "description": shown.description,
                "target_url": shown.target_url,
            });
            (shown.context.to_lowercase(), value)
        })
        .collect();
    let statuses: Vec<Value> = latest.into_values().collect();
    Json(json!({ "sha": sha, "total_count": statuses.len(), "statuses": statuses })).into_response()
}

async fn rate_limit(State(server): State<StatusServer>, headers: HeaderMap) -> Response {
    let token = server.records.lock().unwrap().token.clone();
    if headers["authorization"] != format!("Bearer {token}") {
        return (
            StatusCode::UNAUTHORIZED,
            Json(json!({"message": "Bad credentials"})),
        )
            .into_response();
    }
    let rate = json!({"resources": {"core": {"limit": 5000, "remaining": 4990}}});
    ([("x-oauth-scopes", "repo:status, read:org")], Json(rate)).into_response()
}

async fn repository(Path((owner, name)): Path<(String, String)>) -> Response {
    let name = format!("{owner}/{name}");
    Json(json!({"full_name": name, "permissions": {"push": true}})).into_response()
}
