//! The fake GitHub is as strict as the real one, and its Git is real.

use super::*;
use crate::git::{self, Commit};
use axum::Router;
use axum::body::Bytes;
use axum::extract::State as Shared;
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(60);
const REPOSITORY: &str = "acme/widget";

async fn github_with_repository() -> (GitHub, String) {
    let github = GitHub::start().await.unwrap();
    let sha = github
        .create_repository(REPOSITORY, &[("README.md", "hello\n")])
        .await
        .unwrap();
    (github, sha)
}

struct Client {
    github: GitHub,
    token: Option<String>,
}

impl Client {
    fn new(github: &GitHub, token: Option<&str>) -> Client {
        Client {
            github: github.clone(),
            token: token.map(str::to_owned),
        }
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> reqwest::Response {
        let mut request = request.header("User-Agent", "harness");
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        request.send().await.unwrap()
    }

    async fn get(&self, path: &str) -> (u16, HeaderMap, Value) {
        let url = format!("{}{path}", self.github.api_url());
        let response = self.send(crate::http_client().get(url)).await;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = response.text().await.unwrap();
        (
            status,
            headers,
            serde_json::from_str(&text).unwrap_or_default(),
        )
    }

    async fn post_status(&self, sha: &str, body: &Value) -> (u16, Value) {
        let url = format!(
            "{}/repos/{REPOSITORY}/statuses/{sha}",
            self.github.api_url()
        );
        let response = self
            .send(crate::http_client().post(url).body(body.to_string()))
            .await;
        let status = response.status().as_u16();
        let text = response.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or_default())
    }
}

fn pending(context: &str) -> Value {
    json!({ "state": "pending", "context": context, "description": "queued" })
}

/// A master's ear: records what it hears, answers 202.
#[derive(Debug, Clone, Default)]
struct Ear(Arc<Mutex<Vec<(HeaderMap, Bytes)>>>);

impl Ear {
    async fn open() -> (Ear, String) {
        let ear = Ear::default();
        let router = Router::new()
            .fallback(
                async |Shared(ear): Shared<Ear>, headers: HeaderMap, body: Bytes| {
                    ear.0.lock().unwrap().push((headers, body));
                    StatusCode::ACCEPTED
                },
            )
            .with_state(ear.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/webhook", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        (ear, url)
    }

    /// Event, action and body of all that was heard.
    fn heard(&self) -> Vec<(String, String, Value)> {
        let heard = self.0.lock().unwrap();
        heard
            .iter()
            .map(|(headers, body)| {
                let body: Value = serde_json::from_slice(body).unwrap();
                let event = headers["x-github-event"].to_str().unwrap().to_owned();
                let action = body["action"].as_str().unwrap_or_default().to_owned();
                (event, action, body)
            })
            .collect()
    }

    fn names(&self) -> Vec<String> {
        self.heard()
            .into_iter()
            .map(|(event, action, _)| format!("{event} {action}").trim().to_owned())
            .collect()
    }
}

#[tokio::test]
async fn a_status_is_accepted_and_read_back() {
    for prefix in ["/api/v3", ""] {
        let github = GitHub::builder().api_prefix(prefix).start().await.unwrap();
        let sha = github.create_repository(REPOSITORY, &[]).await.unwrap();
        let token = github.issue_token("ci", &[REPOSITORY]);
        let client = Client::new(&github, Some(&token));
        let (status, body) = client.post_status(&sha, &pending("vivarium")).await;
        assert_eq!((status, &body["state"]), (201, &json!("pending")));
        let success = json!({ "state": "success", "context": "Vivarium", "target_url": "http://127.0.0.1/builds/1" });
        client.post_status(&sha, &success).await;

        let (_, _, combined) = client
            .get(&format!("/repos/{REPOSITORY}/commits/main/status"))
            .await;
        assert_eq!(combined["state"], "success");
        assert_eq!(combined["total_count"], 1, "contexts differ in case only");
        let (_, headers, all) = client
            .get(&format!(
                "/repos/{REPOSITORY}/commits/{sha}/statuses?per_page=1"
            ))
            .await;
        assert_eq!(all[0]["state"], "success");
        assert_eq!(all.as_array().unwrap().len(), 1);
        let link = headers["link"].to_str().unwrap();
        assert!(link.contains("page=2>; rel=\"next\""), "{link}");
        assert!(
            link.contains(&format!("{}/repos/", github.api_url())),
            "{link}"
        );
        assert_eq!(headers["x-ratelimit-limit"], "5000");

        let history = github.status_history(REPOSITORY, &sha, "vivarium");
        history.assert_settled_once(StatusState::Success);
    }
}

#[tokio::test]
async fn a_status_that_github_refuses_is_refused() {
    let (github, sha) = github_with_repository().await;
    let token = github.issue_token("ci", &[REPOSITORY]);
    let client = Client::new(&github, Some(&token));
    let state = |state: &str| json!({ "state": state });
    let with = |name: &str, value: String| json!({ "state": "pending", name: value });
    for (body, field) in [
        (state("green"), "state"),
        (with("description", "x".repeat(141)), "description"),
        (
            with("description", "done \u{1F389}".to_owned()),
            "description",
        ),
        (with("target_url", "/builds/1".to_owned()), "target_url"),
        (
            with("target_url", "ftp://127.0.0.1/1".to_owned()),
            "target_url",
        ),
        (with("context", "x".repeat(256)), "context"),
    ] {
        let (status, answer) = client.post_status(&sha, &body).await;
        assert_eq!(status, 422, "{body}");
        assert_eq!(answer["message"], "Validation Failed");
        assert_eq!(answer["errors"][0]["field"], field);
    }
    let longest = with("description", "\u{e9}".repeat(140));
    assert_eq!(client.post_status(&sha, &longest).await.0, 201);
    assert_eq!(client.post_status(&sha, &json!({})).await.0, 422);

    let unknown = "1".repeat(40);
    let (status, answer) = client.post_status(&unknown, &pending("x")).await;
    assert_eq!(status, 422);
    assert_eq!(
        answer["message"],
        format!("No commit found for SHA: {unknown}")
    );
    assert_eq!(client.post_status("main", &pending("x")).await.0, 422);
}

#[tokio::test]
async fn only_who_may_write_sets_a_status() {
    let (github, sha) = github_with_repository().await;
    let body = pending("x");
    let status_with =
        async |token: Option<&str>| Client::new(&github, token).post_status(&sha, &body).await;
    assert_eq!(status_with(None).await.0, 401);
    let (status, answer) = status_with(Some("ghp_wrong")).await;
    assert_eq!(
        (status, &answer["message"]),
        (401, &json!("Bad credentials"))
    );
    let stranger = github.issue_token("stranger", &[]);
    assert_eq!(status_with(Some(&stranger)).await.0, 404);
    let reader = github.issue_reading_token("reader", &[REPOSITORY]);
    assert_eq!(status_with(Some(&reader)).await.0, 403);
    assert!(github.statuses_of(REPOSITORY, &sha).is_empty());

    github.set_private(REPOSITORY, true);
    let path = format!("/repos/{REPOSITORY}");
    assert_eq!(
        Client::new(&github, Some(&stranger)).get(&path).await.0,
        404
    );
    assert_eq!(Client::new(&github, Some(&reader)).get(&path).await.0, 200);
}

#[tokio::test]
async fn a_context_takes_a_thousand_statuses_and_no_more() {
    let (github, sha) = github_with_repository().await;
    let token = github.issue_token("ci", &[REPOSITORY]);
    let client = Client::new(&github, Some(&token));
    client.post_status(&sha, &pending("a")).await;
    let one = github.statuses_of(REPOSITORY, &sha).pop().unwrap();
    github
        .state()
        .statuses
        .extend(std::iter::repeat_n(one, api::STATUS_LIMIT - 1));
    let (status, answer) = client.post_status(&sha, &pending("A")).await;
    assert_eq!(status, 422);
    assert_eq!(
        answer["errors"][0]["message"],
        "This SHA and context has reached the maximum number of statuses."
    );
    assert_eq!(client.post_status(&sha, &pending("b")).await.0, 201);
}

#[tokio::test]
async fn the_hourly_limit_is_kept() {
    let (github, _) = github_with_repository().await;
    let token = github.issue_token("ci", &[REPOSITORY]);
    github.set_rate_limit(2);
    let client = Client::new(&github, Some(&token));
    assert_eq!(client.get("/user").await.0, 200);
    assert_eq!(client.get("/rate_limit").await.0, 200);
    assert_eq!(client.get("/user").await.1["x-ratelimit-remaining"], "0");
    let (status, headers, _) = client.get("/user").await;
    assert_eq!(
        (status, &headers["x-ratelimit-remaining"]),
        (403, &"0".parse().unwrap())
    );
}

#[tokio::test]
async fn pull_requests_are_paged_and_mergeable_is_computed_late() {
    let (github, main) = github_with_repository().await;
    for name in ["one", "two", "three"] {
        let commit = Commit::on(name).from(&main).file(name, "x");
        github.commit(REPOSITORY, commit).await.unwrap();
        github
            .open_pull_request(REPOSITORY, PullRequestSpec::from(name))
            .await
            .unwrap();
    }
    let client = Client::new(&github, None);
    let path = format!("/repos/{REPOSITORY}/pulls?per_page=2");
    let (_, headers, first) = client.get(&path).await;
    assert_eq!(
        (&first[0]["number"], &first[1]["number"]),
        (&json!(3), &json!(2))
    );
    assert!(first[0].get("mergeable").is_none());
    assert!(headers["link"].to_str().unwrap().contains("rel=\"last\""));
    let (_, _, second) = client.get(&format!("{path}&page=2")).await;
    assert_eq!(second[0]["number"], 1);

    let path = format!("/repos/{REPOSITORY}/pulls/1");
    assert_eq!(client.get(&path).await.2["mergeable"], Value::Null);
    assert_eq!(client.get(&path).await.2["mergeable"], true);
    assert!(
        github
            .git(REPOSITORY)
            .unwrap()
            .resolve("refs/pull/1/merge")
            .await
            .is_some()
    );
}

#[tokio::test]
async fn real_git_clones_and_fetches_pull_requests() {
    let (github, main) = github_with_repository().await;
    let fork = github.fork(REPOSITORY, "stranger").await.unwrap();
    let big: Vec<u8> = (0u32..2_000_000)
        .flat_map(|n| (n.wrapping_mul(2_654_435_761)).to_le_bytes())
        .collect();
    let head = github
        .commit(
            &fork,
            Commit::on("topic").from(&main).file("big", big.clone()),
        )
        .await
        .unwrap();
    let number = github
        .open_pull_request(
            REPOSITORY,
            PullRequestSpec::from("topic")
                .of_fork(&fork)
                .author("stranger"),
        )
        .await
        .unwrap();

    let folder = tempfile::tempdir().unwrap();
    let url = github.clone_url(REPOSITORY);
    git::run(
        folder.path(),
        &["clone", "--quiet", "--bare", &url, "c.git"],
    )
    .await
    .unwrap();
    let clone = folder.path().join("c.git");
    let reference = format!("+refs/pull/{number}/head:refs/pr");
    git::run(
        &clone,
        &[
            "-c",
            "protocol.version=2",
            "fetch",
            "--quiet",
            &url,
            &reference,
        ],
    )
    .await
    .unwrap();
    assert_eq!(
        git::run(&clone, &["rev-parse", "refs/pr"]).await.unwrap(),
        head
    );
    let size = git::run(&clone, &["cat-file", "-s", "refs/pr:big"])
        .await
        .unwrap();
    assert_eq!(size, big.len().to_string());

    // By SHA, as GitHub allows.
    git::run(folder.path(), &["init", "--quiet", "--bare", "d.git"])
        .await
        .unwrap();
    let other = folder.path().join("d.git");
    git::run(&other, &["fetch", "--quiet", "--depth=1", &url, &head])
        .await
        .unwrap();
    // Nobody pushes over this door.
    assert!(
        git::run(&clone, &["push", "--quiet", &url, "refs/pr:refs/heads/x"])
            .await
            .is_err()
    );
}

#[tokio::test]
async fn a_private_repository_is_cloned_only_with_a_token() {
    let (github, _) = github_with_repository().await;
    github.set_private(REPOSITORY, true);
    let token = github.issue_token("ci", &[REPOSITORY]);
    let stranger = github.issue_token("stranger", &[]);
    let folder = tempfile::tempdir().unwrap();
    let url = github.clone_url(REPOSITORY);
    assert!(git::run(folder.path(), &["ls-remote", &url]).await.is_err());
    let with = |token: &str| url.replace("http://", &format!("http://x-access-token:{token}@"));
    assert!(
        git::run(folder.path(), &["ls-remote", &with(&stranger)])
            .await
            .is_err()
    );
    git::run(folder.path(), &["ls-remote", &with(&token)])
        .await
        .unwrap();
    let header = format!("http.extraHeader=Authorization: Bearer {token}");
    git::run(
        folder.path(),
        &["-c", &header, "clone", "--quiet", &url, "c"],
    )
    .await
    .unwrap();
}

#[tokio::test]
async fn every_action_sends_the_webhooks_of_github() {
    let (github, main) = github_with_repository().await;
    let (ear, url) = Ear::open().await;
    github.add_hook(REPOSITORY, &url, "secret").await.unwrap();
    let topic = || Commit::on("topic").from(&main).file("a", "1");
    github.commit(REPOSITORY, topic()).await.unwrap();
    let number = github
        .open_pull_request(REPOSITORY, PullRequestSpec::from("topic"))
        .await
        .unwrap();
    let head = github
        .commit(REPOSITORY, Commit::on("topic").file("a", "2"))
        .await
        .unwrap();
    github.close_pull_request(REPOSITORY, number).await.unwrap();
    github
        .reopen_pull_request(REPOSITORY, number)
        .await
        .unwrap();
    let merge = github
        .merge_pull_request(REPOSITORY, number, MergeMethod::MergeCommit)
        .await
        .unwrap();
    github.delete_branch(REPOSITORY, "topic").await.unwrap();
    assert_eq!(
        ear.names(),
        [
            "ping",
            "push",
            "pull_request opened",
            "push",
            "pull_request synchronize",
            "pull_request closed",
            "pull_request reopened",
            "pull_request closed",
            "push",
            "push",
        ]
    );
    let heard = ear.heard();
    assert_eq!(heard[4].2["after"], head);
    assert_eq!(heard[4].2["pull_request"]["head"]["sha"], head);
    assert_eq!(heard[5].2["pull_request"]["merged"], false);
    assert_eq!(heard[7].2["pull_request"]["merged"], true);
    assert_eq!(heard[7].2["pull_request"]["merge_commit_sha"], merge);
    assert_eq!(heard[8].2["after"], merge);
    assert_eq!(heard[8].2["ref"], "refs/heads/main");
    assert_eq!(heard[9].2["deleted"], true);
    for (headers, body) in ear.0.lock().unwrap().iter() {
        assert_eq!(headers["x-hub-signature-256"], signature("secret", body));
        assert!(
            headers["user-agent"]
                .to_str()
                .unwrap()
                .starts_with("GitHub-Hookshot/")
        );
        assert!(headers.contains_key("x-github-hook-id"));
        assert!(headers.contains_key("x-github-hook-installation-target-id"));
    }
    assert!(github.deliveries().iter().all(Delivery::is_delivered));
}

/// Every field of the recorded payload is in ours, with a value of the same kind.
fn assert_same_shape(path: &str, recorded: &Value, ours: &Value) {
    match (recorded, ours) {
        (Value::Object(recorded), Value::Object(ours)) => {
            for (name, value) in recorded {
                let path = format!("{path}.{name}");
                let our = ours
                    .get(name)
                    .unwrap_or_else(|| panic!("{path} is missing"));
                assert_same_shape(&path, value, our);
            }
        }
        // What is null on one side may be filled on the other.
        (Value::Null, _) | (_, Value::Null) => {}
        (Value::Array(_), Value::Array(_))
        | (Value::String(_), Value::String(_))
        | (Value::Number(_), Value::Number(_))
        | (Value::Bool(_), Value::Bool(_)) => {}
        (recorded, ours) => panic!("{path}: recorded {recorded}, ours {ours}"),
    }
}

#[tokio::test]
async fn webhooks_have_the_shape_of_recorded_ones() {
    let (github, main) = github_with_repository().await;
    let (ear, url) = Ear::open().await;
    github.add_hook(REPOSITORY, &url, "secret").await.unwrap();
    let topic = Commit::on("topic").from(&main).file("a", "1");
    github.commit(REPOSITORY, topic).await.unwrap();
    let number = github
        .open_pull_request(REPOSITORY, PullRequestSpec::from("topic"))
        .await
        .unwrap();
    github
        .commit(REPOSITORY, Commit::on("topic").file("a", "2"))
        .await
        .unwrap();
    github
        .merge_pull_request(REPOSITORY, number, MergeMethod::Squash)
        .await
        .unwrap();
    let heard = ear.heard();
    if let Some(folder) = std::env::var_os("VIVARIUM_WEBHOOKS_TO") {
        for (index, (event, _, body)) in heard.iter().enumerate() {
            let file = Path::new(&folder).join(format!("{index}.{event}.json"));
            std::fs::write(file, body.to_string()).unwrap();
        }
    }
    for (event, action, file) in [
        ("ping", "", include_str!("../../fixtures/github/ping.json")),
        ("push", "", include_str!("../../fixtures/github/push.json")),
        (
            "pull_request",
            "opened",
            include_str!("../../fixtures/github/pull_request_opened.json"),
        ),
        (
            "pull_request",
            "synchronize",
            include_str!("../../fixtures/github/pull_request_synchronize.json"),
        ),
        (
            "pull_request",
            "closed",
            include_str!("../../fixtures/github/pull_request_closed.json"),
        ),
    ] {
        let mut recorded: Value = serde_json::from_str(file).unwrap();
        // Only what an App receives has these.
        recorded.as_object_mut().unwrap().remove("installation");
        if let Some(hook) = recorded.get_mut("hook").and_then(Value::as_object_mut) {
            hook.remove("app_id");
        }
        let (_, _, ours) = heard
            .iter()
            .find(|(name, act, _)| name == event && act == action)
            .unwrap_or_else(|| panic!("no {event} {action}"));
        assert_same_shape(event, &recorded, ours);
        let text = ours.to_string();
        for trace in ["Codertocat", "Octocoders", "api.github.com", "ec26c3e57ca3"] {
            assert!(!text.contains(trace), "{event} {action} still says {trace}");
        }
    }
}

#[tokio::test]
async fn deliveries_can_be_held_reversed_dropped_and_repeated() {
    let (github, main) = github_with_repository().await;
    let (ear, url) = Ear::open().await;
    github.set_delivery_mode(DeliveryMode::Drop);
    github.add_hook(REPOSITORY, &url, "one").await.unwrap();
    github.add_hook(REPOSITORY, &url, "two").await.unwrap();
    assert!(ear.names().is_empty());

    github.set_delivery_mode(DeliveryMode::Hold);
    let topic = Commit::on("topic").from(&main).file("a", "1");
    github.commit(REPOSITORY, topic).await.unwrap();
    let number = github
        .open_pull_request(REPOSITORY, PullRequestSpec::from("topic"))
        .await
        .unwrap();
    github.close_pull_request(REPOSITORY, number).await.unwrap();
    assert!(ear.names().is_empty());
    github.release_deliveries(ReleaseOrder::Reversed).await;
    assert_eq!(
        ear.names(),
        [
            "pull_request closed",
            "pull_request closed",
            "pull_request opened",
            "pull_request opened",
            "push",
            "push"
        ]
    );
    let deliveries = github.deliveries();
    let [.., first, second] = deliveries.as_slice() else {
        panic!("too few deliveries");
    };
    assert_eq!(first.body, second.body);
    assert_ne!(first.guid, second.guid, "two hooks, two GUIDs");

    let dropped = deliveries.first().unwrap();
    assert_eq!(dropped.status(), None);
    assert_eq!(github.redeliver(&dropped.guid).await.unwrap(), Some(202));
    let (headers, _) = ear.0.lock().unwrap().last().unwrap().clone();
    assert_eq!(headers["x-github-delivery"], dropped.guid.as_str());
}

#[tokio::test]
async fn a_missed_delivery_is_found_and_repeated_through_the_api() {
    let (github, _) = github_with_repository().await;
    let (ear, url) = Ear::open().await;
    github.set_delivery_mode(DeliveryMode::Drop);
    let hook = github.add_hook(REPOSITORY, &url, "s").await.unwrap();
    github
        .commit(REPOSITORY, Commit::on("main").file("a", "1"))
        .await
        .unwrap();
    github.set_delivery_mode(DeliveryMode::Deliver);
    let token = github.issue_token("ci", &[REPOSITORY]);
    let client = Client::new(&github, Some(&token));
    let path = format!("/repos/{REPOSITORY}/hooks/{hook}/deliveries");
    let (_, headers, page) = client.get(&format!("{path}?per_page=1")).await;
    assert_eq!(
        (&page[0]["event"], &page[0]["status_code"]),
        (&json!("push"), &json!(0))
    );
    assert!(headers["link"].to_str().unwrap().contains("cursor="));
    let attempts = format!("{}{path}/{}/attempts", github.api_url(), page[0]["id"]);
    let response = client.send(crate::http_client().post(attempts)).await;
    assert_eq!(response.status().as_u16(), 202);
    github
        .wait_until("the redelivery", DEADLINE, |github| {
            github.last_delivery("push").filter(Delivery::is_delivered)
        })
        .await
        .unwrap();
    assert_eq!(ear.names(), ["push"]);
}

/// The half of the master, as far as the library for it would do the other.
fn jwt(app: &App, claims: &Value) -> String {
    let key = jsonwebtoken::EncodingKey::from_rsa_pem(app.private_key.as_bytes()).unwrap();
    let header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::RS256);
    jsonwebtoken::encode(&header, claims, &key).unwrap()
}

#[tokio::test]
async fn an_app_signs_for_itself_and_gets_tokens_that_end() {
    let (github, sha) = github_with_repository().await;
    let (ear, url) = Ear::open().await;
    let app = github.create_app("vivarium", &[REPOSITORY]).unwrap();
    github.add_app_hook(&app, &url, "s").await.unwrap();
    github
        .commit(REPOSITORY, Commit::on("main").file("a", "1"))
        .await
        .unwrap();
    assert_eq!(ear.names(), ["ping", "push"]);
    assert_eq!(ear.heard()[1].2["installation"]["id"], app.installation);

    let now = jiff::Timestamp::now().as_second();
    let good = json!({ "iss": app.id, "iat": now - 60, "exp": now + 540 });
    for (claims, expected) in [
        (good.clone(), 200),
        (
            json!({ "iss": app.id + 1, "iat": now, "exp": now + 540 }),
            401,
        ),
        (json!({ "iss": app.id, "iat": now, "exp": now + 3600 }), 401),
        (
            json!({ "iss": app.id, "iat": now - 900, "exp": now - 300 }),
            401,
        ),
        (
            json!({ "iss": app.id, "iat": now + 300, "exp": now + 540 }),
            401,
        ),
    ] {
        let client = Client::new(&github, Some(&jwt(&app, &claims)));
        let (status, _, answer) = client.get("/app").await;
        assert_eq!(status, expected, "{claims} {answer}");
    }
    let stranger = github.create_app("other", &[REPOSITORY]).unwrap();
    let forged = Client::new(&github, Some(&jwt(&stranger, &good)));
    assert_eq!(forged.get("/app").await.0, 401);

    let client = Client::new(&github, Some(&jwt(&app, &good)));
    let (_, _, installation) = client
        .get(&format!("/repos/{REPOSITORY}/installation"))
        .await;
    assert_eq!(installation["id"], app.installation);
    assert_eq!(client.get(&format!("/repos/{REPOSITORY}")).await.0, 401);
    let (_, _, log) = client.get("/app/hook/deliveries").await;
    assert_eq!(log[0]["event"], "push");
    let detail = format!("/app/hook/deliveries/{}", log[0]["id"]);
    let (_, _, detail) = client.get(&detail).await;
    assert_eq!(detail["request"]["payload"]["ref"], "refs/heads/main");
    let path = format!(
        "{}/app/installations/{}/access_tokens",
        github.api_url(),
        app.installation
    );
    let made = client.send(crate::http_client().post(path)).await;
    assert_eq!(made.status().as_u16(), 201);
    let made: Value = serde_json::from_str(&made.text().await.unwrap()).unwrap();
    let client = Client::new(&github, made["token"].as_str());
    assert_eq!(client.post_status(&sha, &pending("x")).await.0, 201);
    assert_eq!(
        client.get("/app").await.0,
        401,
        "that is for the App itself"
    );
    github.expire_installation_tokens();
    assert_eq!(client.post_status(&sha, &pending("x")).await.0, 401);
}

#[tokio::test]
async fn a_modest_token_sees_no_hooks() {
    let (github, _) = github_with_repository().await;
    let token = github.issue_modest_token("ci", &[REPOSITORY]);
    let client = Client::new(&github, Some(&token));
    let (status, _, _) = client.get(&format!("/repos/{REPOSITORY}/hooks")).await;
    assert_eq!(status, 404);
}

#[tokio::test]
async fn a_merge_queue_asks_for_checks_of_a_commit_of_its_own() {
    let (github, main) = github_with_repository().await;
    let (ear, url) = Ear::open().await;
    github.add_hook(REPOSITORY, &url, "s").await.unwrap();
    let commit = Commit::on("topic").from(&main).file("a", "1");
    let head = github.commit(REPOSITORY, commit).await.unwrap();
    let spec = PullRequestSpec::from("topic");
    let number = github.open_pull_request(REPOSITORY, spec).await.unwrap();
    let group = github.enqueue(REPOSITORY, number).await.unwrap();
    assert!(![&main, &head].contains(&&group));
    let client = Client::new(&github, None);
    let queue = format!("/repos/{REPOSITORY}/git/matching-refs/heads/gh-readonly-queue/");
    let (_, _, refs) = client.get(&queue).await;
    assert_eq!(refs[0]["object"]["sha"], group);
    let (_, _, event) = ear
        .heard()
        .into_iter()
        .find(|(name, _, _)| name == "merge_group")
        .unwrap();
    assert_eq!(event["merge_group"]["head_sha"], group);
    assert_eq!(event["merge_group"]["head_ref"], refs[0]["ref"]);
    github.merge_from_queue(REPOSITORY, number).await.unwrap();
    assert_eq!(
        github.git(REPOSITORY).unwrap().head_of("main").await,
        Some(group)
    );
    assert_eq!(client.get(&queue).await.2, json!([]));
    let names = ear.names();
    for name in ["merge_group destroyed", "pull_request closed"] {
        assert!(names.iter().any(|known| known == name), "{names:?}");
    }
}

#[tokio::test]
async fn a_commit_of_a_fork_is_unknown_until_its_pull_request() {
    let (github, main) = github_with_repository().await;
    let token = github.issue_token("ci", &[REPOSITORY]);
    let client = Client::new(&github, Some(&token));
    let fork = github.fork(REPOSITORY, "stranger").await.unwrap();
    let commit = Commit::on("topic").from(&main).file("a", "1");
    let head = github.commit(&fork, commit).await.unwrap();
    assert_eq!(client.post_status(&head, &pending("x")).await.0, 422);
    let spec = PullRequestSpec::from("topic")
        .of_fork(&fork)
        .author("stranger");
    let number = github.open_pull_request(REPOSITORY, spec).await.unwrap();
    assert_eq!(client.post_status(&head, &pending("x")).await.0, 201);

    github.delete_repository(&fork);
    let (_, _, pull) = client
        .get(&format!("/repos/{REPOSITORY}/pulls/{number}"))
        .await;
    assert_eq!(pull["head"]["repo"], Value::Null);
    assert_eq!(pull["head"]["sha"], head);
}

#[tokio::test]
async fn branch_protection_wants_every_required_context_green() {
    let (github, main) = github_with_repository().await;
    let token = github.issue_token("ci", &[REPOSITORY]);
    let client = Client::new(&github, Some(&token));
    let commit = Commit::on("topic").from(&main).file("README.md", "topic\n");
    let head = github.commit(REPOSITORY, commit).await.unwrap();
    let number = github
        .open_pull_request(REPOSITORY, PullRequestSpec::from("topic"))
        .await
        .unwrap();
    let verdict = async || {
        github
            .is_mergeable(REPOSITORY, number, &["vivarium"])
            .await
            .unwrap()
    };
    let blocked = |state| Verdict::Blocked(vec![("vivarium".to_owned(), state)]);
    assert_eq!(verdict().await, blocked(None));
    client.post_status(&head, &pending("vivarium")).await;
    assert_eq!(verdict().await, blocked(Some(StatusState::Pending)));
    client
        .post_status(&head, &json!({ "state": "success", "context": "vivarium" }))
        .await;
    assert_eq!(verdict().await, Verdict::Mergeable);
    let other = Commit::on("main").file("README.md", "main\n");
    github.commit(REPOSITORY, other).await.unwrap();
    assert_eq!(verdict().await, Verdict::Conflict);
    github.close_pull_request(REPOSITORY, number).await.unwrap();
    assert_eq!(verdict().await, Verdict::NotOpen);
}

#[tokio::test]
async fn faults_meet_the_requests_they_are_set_for() {
    let (github, sha) = github_with_repository().await;
    let token = github.issue_token("ci", &[REPOSITORY]);
    let client = Client::new(&github, Some(&token));
    for (kind, expected) in [
        (FaultKind::Answer(502), 502),
        (
            FaultKind::SecondaryLimit {
                status: 403,
                retry_after_secs: None,
            },
            403,
        ),
        (
            FaultKind::SecondaryLimit {
                status: 429,
                retry_after_secs: Some(1),
            },
            429,
        ),
        (FaultKind::PrimaryLimit { reset_secs: 5 }, 403),
        (FaultKind::Unauthorized, 401),
        (FaultKind::CommitNotVisible, 422),
    ] {
        let fault = github.inject(Fault::on_status_post(kind.clone()).times(1));
        assert_eq!(client.get("/user").await.0, 200, "other routes are well");
        assert_eq!(
            client.post_status(&sha, &pending("x")).await.0,
            expected,
            "{kind:?}"
        );
        assert_eq!(github.fault_hits(fault), 1);
        assert!(github.statuses_of(REPOSITORY, &sha).is_empty());
    }
    let delay = FaultKind::Delay(Duration::from_millis(1));
    github.inject(Fault::on_status_post(delay).times(1));
    github.inject(Fault::on_status_post(FaultKind::AnswerAfter(502)).times(1));
    assert_eq!(client.post_status(&sha, &pending("x")).await.0, 502);
    assert_eq!(
        github.statuses_of(REPOSITORY, &sha).len(),
        1,
        "it was carried out"
    );
    assert_eq!(client.post_status(&sha, &pending("x")).await.0, 201);
}

#[tokio::test]
async fn a_connection_can_be_reset_before_or_after_the_deed() {
    let (github, sha) = github_with_repository().await;
    let token = github.issue_token("ci", &[REPOSITORY]);
    for (kind, stored) in [(FaultKind::ResetBefore, 0), (FaultKind::ResetAfter, 1)] {
        github.inject(Fault::on_status_post(kind).times(1));
        let url = format!("{}/repos/{REPOSITORY}/statuses/{sha}", github.api_url());
        let answer = crate::http_client()
            .post(url)
            .header("User-Agent", "harness")
            .bearer_auth(&token)
            .body(pending("x").to_string())
            .send()
            .await;
        assert!(answer.is_err());
        assert_eq!(github.statuses_of(REPOSITORY, &sha).len(), stored);
    }
    let last = github.requests().pop().unwrap();
    assert_eq!((last.method.as_str(), last.status), ("POST", None));
}

#[tokio::test]
async fn the_server_goes_away_and_comes_back_on_its_port() {
    let (github, sha) = github_with_repository().await;
    let token = github.issue_token("ci", &[REPOSITORY]);
    github.stop_listening().await;
    let url = format!("{}/user", github.api_url());
    let answer = crate::http_client().get(&url).send().await;
    assert!(answer.unwrap_err().is_connect());
    github.listen_again().await.unwrap();
    let client = Client::new(&github, Some(&token));
    assert_eq!(client.post_status(&sha, &pending("x")).await.0, 201);
}

#[tokio::test]
async fn waiting_for_a_status_ends_with_the_status_or_with_its_history() {
    let (github, sha) = github_with_repository().await;
    let token = github.issue_token("ci", &[REPOSITORY]);
    let waiting = tokio::spawn({
        let (github, sha) = (github.clone(), sha.clone());
        async move {
            github
                .wait_for_terminal_status(REPOSITORY, &sha, "x", DEADLINE)
                .await
        }
    });
    let client = Client::new(&github, Some(&token));
    client.post_status(&sha, &pending("x")).await;
    client
        .post_status(&sha, &json!({ "state": "failure", "context": "x" }))
        .await;
    let status = waiting.await.unwrap().unwrap();
    assert_eq!(status.state, StatusState::Failure);

    let error = github
        .wait_for_status(REPOSITORY, &sha, "x", |_| false, Duration::from_millis(10))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("pending \"queued\""), "{error}");
}

#[tokio::test]
async fn what_was_read_before_costs_nothing() {
    let (github, _) = github_with_repository().await;
    let token = github.issue_token("ci", &[REPOSITORY]);
    let client = Client::new(&github, Some(&token));
    let path = format!("/repos/{REPOSITORY}");
    let (_, headers, _) = client.get(&path).await;
    let url = format!("{}{path}", github.api_url());
    let request = crate::http_client()
        .get(url)
        .header("If-None-Match", &headers["etag"]);
    let response = client.send(request).await;
    assert_eq!(response.status().as_u16(), 304);
    assert_eq!(response.headers()["x-ratelimit-used"], "1");
}
