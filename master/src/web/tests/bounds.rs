//! What one visitor may take, and that others do not miss it.

use super::*;

const SOMEBODY: &str = "203.0.113.9";
const ANOTHER: &str = "203.0.113.10";
const FORM: (&str, &str) = ("content-type", "application/x-www-form-urlencoded");
const FROM_HERE: (&str, &str) = ("sec-fetch-site", "same-origin");

async fn status(site: &Site, from: &str, headers: &[(&str, &str)]) -> StatusCode {
    let request = request("GET", "/healthz", headers, "");
    site.begin(from, request).await.status()
}

/// Asks until it was too often.
async fn exhaust(site: &Site, from: &str, headers: &[(&str, &str)]) -> Response {
    for _ in 0..100 {
        let answer = site
            .begin(from, request("GET", "/healthz", headers, ""))
            .await;
        if answer.status() == StatusCode::TOO_MANY_REQUESTS {
            return answer;
        }
    }
    panic!("a hundred requests were not too many");
}

#[tokio::test]
async fn who_asks_too_often_waits_and_nobody_else_does() {
    let site = Site::with("limits.requests_per_second = 1").await;
    let refused = exhaust(&site, SOMEBODY, &[]).await;
    let wait: u64 = refused.headers()["retry-after"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((1..=2).contains(&wait), "{wait}");
    assert_eq!(status(&site, ANOTHER, &[]).await, StatusCode::OK);
    assert_eq!(status(&site, "127.0.0.1", &[]).await, StatusCode::OK);
    // With a token, nobody is a stranger.
    let token = format!("Bearer {}", site.local_token());
    assert_eq!(
        status(&site, SOMEBODY, &[("authorization", &token)]).await,
        StatusCode::OK
    );
}

#[tokio::test]
async fn behind_a_proxy_the_client_is_counted_not_the_proxy() {
    let site = Site::with("trusted_proxies = ['127.0.0.1']\nlimits.requests_per_second = 1").await;
    let proxy = "127.0.0.1";
    exhaust(&site, proxy, &[("x-forwarded-for", SOMEBODY)]).await;
    let another = [("x-forwarded-for", ANOTHER)];
    assert_eq!(status(&site, proxy, &another).await, StatusCode::OK);
    // Who is no proxy is not believed.
    exhaust(&site, SOMEBODY, &[("x-forwarded-for", "198.51.100.1")]).await;
    assert_eq!(
        status(&site, proxy, &[("x-forwarded-for", "198.51.100.1")]).await,
        StatusCode::OK
    );
}

#[tokio::test]
async fn tokens_are_not_tried_without_end() {
    let site = Site::public().await;
    exhaust(&site, SOMEBODY, &[("authorization", "Bearer viv_guess")]).await;
    let login = |from, token: &str| {
        let body = format!("token={token}");
        site.begin(from, request("POST", "/login", &[FORM, FROM_HERE], &body))
    };
    // Also the right one waits then: the tries are of the address.
    let right = site.local_token();
    assert_eq!(
        login(SOMEBODY, &right).await.status(),
        StatusCode::TOO_MANY_REQUESTS
    );
    assert_eq!(login(ANOTHER, &right).await.status(), StatusCode::SEE_OTHER);
    for _ in 0..100 {
        if login(ANOTHER, "viv_guess").await.status() == StatusCode::TOO_MANY_REQUESTS {
            return;
        }
    }
    panic!("a hundred tries were not too many");
}

#[tokio::test]
async fn open_streams_are_bounded_and_room_comes_back() {
    let site = Site::with("limits = { streams = 3, streams_per_address = 2 }").await;
    let job = site.job().await.0;
    let stream = format!("/api/jobs/{job}/log/stream");
    let open = |from, path: &str| site.begin(from, request("GET", path, &[], ""));
    let log = format!("/api/jobs/{job}/log");
    let artifact = format!("/api/jobs/{job}/artifacts/dist/a%20file.html");
    let first = open(SOMEBODY, &stream).await;
    let second = open(SOMEBODY, &log).await;
    assert_eq!(
        (first.status(), second.status()),
        (StatusCode::OK, StatusCode::OK)
    );
    for path in [&stream, &log, &artifact] {
        let refused = open(SOMEBODY, path).await;
        assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE, "{path}");
        assert!(refused.headers().contains_key("retry-after"));
    }
    let third = open(ANOTHER, &artifact).await;
    assert_eq!(third.status(), StatusCode::OK);
    assert_eq!(
        open("127.0.0.1", &stream).await.status(),
        StatusCode::SERVICE_UNAVAILABLE
    );
    drop(first);
    assert_eq!(open("127.0.0.1", &stream).await.status(), StatusCode::OK);
    // Pages are no streams.
    assert_eq!(status(&site, SOMEBODY, &[]).await, StatusCode::OK);
}

#[tokio::test]
async fn bodies_have_the_size_that_the_route_needs() {
    let site = Site::public().await;
    let token = format!("Bearer {}", site.local_token());
    let json = [
        ("content-type", "application/json"),
        ("authorization", token.as_str()),
    ];
    let large = "x".repeat(MOST_BODY_BYTES + 1);
    let body = format!("{{\"name\":\"{large}\",\"may\":\"read\"}}");
    for path in ["/api/tokens", "/api/builds", "/api/drain"] {
        let answer = site.post(path, &json, &body).await;
        assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE, "{path}");
        assert!(answer.json()["error"].is_string());
    }
    let login = site
        .post("/login", &[FORM, FROM_HERE], &format!("token={large}"))
        .await;
    assert_eq!(login.status, StatusCode::PAYLOAD_TOO_LARGE);
    for wrong in [
        "",
        "{",
        "[]",
        "null",
        "{\"name\":3}",
        "{\"name\":\"a\",\"may\":\"fly\"}",
    ] {
        let answer = site.post("/api/tokens", &json, wrong).await;
        assert!(
            answer.status.is_client_error(),
            "{wrong}: {}",
            answer.status
        );
    }
    for name in ["", "a b", "../x", "a/b", "<b>", &"x".repeat(65)] {
        let body = serde_json::json!({ "name": name, "may": "read" }).to_string();
        let answer = site.post("/api/tokens", &json, &body).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{name}");
    }
}
