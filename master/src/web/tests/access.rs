//! Who may see and do what.

use super::*;
use sqlx::Row;

const FORM: (&str, &str) = ("content-type", "application/x-www-form-urlencoded");
const JSON: (&str, &str) = ("content-type", "application/json");
const FROM_HERE: (&str, &str) = ("sec-fetch-site", "same-origin");

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

/// The cookie that a login gives, as the browser sends it back.
async fn log_in(site: &Site, token: &str) -> String {
    let body = format!("token={token}&next=/jobs/1");
    let answer = site.post("/login", &[FORM, FROM_HERE], &body).await;
    assert_eq!(answer.status, StatusCode::SEE_OTHER, "{}", answer.text());
    assert_eq!(answer.header("location"), "/jobs/1");
    let cookie = answer.header("set-cookie");
    assert!(cookie.contains("; HttpOnly; SameSite=Strict"), "{cookie}");
    cookie.split(';').next().unwrap().to_owned()
}

/// The secret in the forms of a page.
fn form_secret(page: &str) -> Option<&str> {
    let (_, rest) = page.split_once(r#"name="secret" value=""#)?;
    rest.split('"').next()
}

async fn make_token(site: &Site, name: &str, may: &str) -> String {
    let admin = bearer(&site.local_token());
    let body = format!(r#"{{"name":"{name}","may":"{may}"}}"#);
    let headers = [("authorization", admin.as_str()), JSON];
    let made = site.post("/api/tokens", &headers, &body).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.text());
    made.json()["token"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_token_does_what_it_may_until_it_is_revoked() {
    let site = Site::public().await;
    let job = site.job().await;
    let local = bearer(&site.local_token());
    let tokens = [
        (
            "reader",
            "read",
            StatusCode::FORBIDDEN,
            StatusCode::FORBIDDEN,
        ),
        ("actor", "act", StatusCode::OK, StatusCode::FORBIDDEN),
        ("chief", "admin", StatusCode::OK, StatusCode::OK),
    ];
    let cancel = format!("/api/jobs/{}/cancel", job.0);
    for (name, may, for_acts, for_tokens) in tokens {
        let token = bearer(&make_token(&site, name, may).await);
        let by_token = [("authorization", token.as_str())];
        assert_eq!(
            site.get_with("/api/builds", &by_token).await.status,
            StatusCode::OK
        );
        assert_eq!(
            site.post(&cancel, &by_token, "").await.status,
            for_acts,
            "{name}"
        );
        assert_eq!(
            site.get_with("/api/tokens", &by_token).await.status,
            for_tokens,
            "{name}"
        );

        let revoke = format!("/api/tokens/{name}");
        let by_local = [("authorization", local.as_str())];
        let revoked = site.ask(request("DELETE", &revoke, &by_local, "")).await;
        assert_eq!(revoked.status, StatusCode::OK);
        let after = site.post(&cancel, &by_token, "").await;
        assert_eq!(after.status, StatusCode::UNAUTHORIZED, "{name}");
        assert_eq!(after.header("www-authenticate"), "Bearer");
    }
    // The local token is the file's.
    let revoke = request(
        "DELETE",
        "/api/tokens/local",
        &[("authorization", &local)],
        "",
    );
    assert_eq!(site.ask(revoke).await.status, StatusCode::CONFLICT);
}

#[tokio::test]
async fn nothing_is_done_without_a_token() {
    let site = Site::public().await;
    let job = site.job().await;
    let cookie = log_in(&site, &site.local_token()).await;
    let acts = [
        ("POST", "/api/builds".to_owned()),
        ("POST", "/api/builds/1/cancel".to_owned()),
        ("POST", "/api/builds/1/rerun".to_owned()),
        ("POST", format!("/api/jobs/{}/cancel", job.0)),
        ("POST", format!("/api/jobs/{}/rerun", job.0)),
        ("POST", "/api/tokens".to_owned()),
        ("GET", "/api/tokens".to_owned()),
        ("DELETE", "/api/tokens/x".to_owned()),
    ];
    let local = site.local_token();
    let shortened = bearer(&local[..local.len() - 1]);
    for (method, path) in &acts {
        for headers in [
            vec![JSON],
            vec![JSON, ("authorization", shortened.as_str())],
            vec![JSON, ("authorization", "Bearer ")],
            // Forms send cookies; the API does not take them.
            vec![JSON, FROM_HERE, ("cookie", cookie.as_str())],
        ] {
            let answer = site.ask(request(method, path, &headers, "{}")).await;
            assert_eq!(
                answer.status,
                StatusCode::UNAUTHORIZED,
                "{method} {path} {headers:?}"
            );
        }
    }
}

#[tokio::test]
async fn the_database_has_no_secret_in_plain() {
    let site = Site::public().await;
    let token = make_token(&site, "ci", "act").await;
    let cookie = log_in(&site, &token).await;
    let secret = cookie.split_once('=').unwrap().1;
    let mut tx = site.store.write().await.unwrap();
    let mut all = String::new();
    for query in [
        "SELECT name, digest FROM tokens",
        "SELECT token, digest FROM logins",
    ] {
        for row in sqlx::query(query).fetch_all(&mut *tx).await.unwrap() {
            all.push_str(&format!(
                "{} {}\n",
                row.get::<String, _>(0),
                row.get::<String, _>(1)
            ));
        }
    }
    assert_eq!(all.lines().count(), 3, "{all}");
    for plain in [&site.local_token(), &token, secret] {
        assert!(!all.contains(plain), "{all}");
    }
    // Nor can the file be read by others.
    use std::os::unix::fs::PermissionsExt;
    let file = std::fs::metadata(site.dir.path().join("api-token")).unwrap();
    assert_eq!(file.permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn the_use_of_a_token_is_shown() {
    let site = Site::public().await;
    let token = bearer(&make_token(&site, "ci", "read").await);
    assert_eq!(
        site.get_with("/", &[("authorization", &token)])
            .await
            .status,
        StatusCode::OK
    );
    let local = bearer(&site.local_token());
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(60);
    loop {
        let list = site
            .get_with("/api/tokens", &[("authorization", &local)])
            .await
            .json();
        let ci = list
            .as_array()
            .unwrap()
            .iter()
            .find(|token| token["name"] == "ci")
            .unwrap()
            .clone();
        assert!(
            ci["created_at"].is_string() && ci.get("token").is_none(),
            "{ci}"
        );
        if ci["last_used_at"].is_string() {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "{list}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_private_master_shows_strangers_nothing() {
    let site = Site::private().await;
    let job = site.job().await;
    let reader = bearer(&make_token(&site, "reader", "read").await);
    let cookie = log_in(&site, reader.strip_prefix("Bearer ").unwrap()).await;
    let job = job.0;
    let mut tx = site.store.write().await.unwrap();
    for query in [
        "INSERT INTO attempts (job, number, platform, phase, phases) SELECT id, 1, '', 'ended', '[]' FROM jobs",
        "INSERT INTO evidence (attempt, screenshot) SELECT id, x'89504e47' FROM attempts",
    ] {
        sqlx::query(query).execute(&mut *tx).await.unwrap();
    }
    tx.commit().await.unwrap();
    for path in [
        "/".to_owned(),
        "/platforms".to_owned(),
        format!("/api/jobs/{job}/attempts/1/screenshot.png"),
        "/builds/1".to_owned(),
        format!("/jobs/{job}"),
        "/metrics".to_owned(),
        "/api/builds".to_owned(),
        "/api/builds/1".to_owned(),
        format!("/api/jobs/{job}"),
        format!("/api/jobs/{job}/log"),
        format!("/api/jobs/{job}/artifacts/dist/a%20file.html"),
        "/api/platforms".to_owned(),
    ] {
        let stranger = site.get(&path).await;
        let is_page = !path.starts_with("/api") && path != "/metrics";
        match is_page {
            true => {
                assert_eq!(stranger.status, StatusCode::SEE_OTHER, "{path}");
                let expected = format!("/login?next={}", path.replace('/', "%2F"));
                assert_eq!(stranger.header("location"), expected);
            }
            false => assert_eq!(stranger.status, StatusCode::UNAUTHORIZED, "{path}"),
        }
        let by_token = site.get_with(&path, &[("authorization", &reader)]).await;
        assert_eq!(by_token.status, StatusCode::OK, "{path}");
        let by_login = site.get_with(&path, &[("cookie", &cookie)]).await;
        assert_eq!(by_login.status, StatusCode::OK, "{path}");
        assert_eq!(by_login.header("cache-control"), "no-store", "{path}");
    }
    let stream = format!("/api/jobs/{job}/log/stream");
    assert_eq!(site.get(&stream).await.status, StatusCode::UNAUTHORIZED);
    for open in ["/healthz", "/login", "/static/style.css"] {
        assert_eq!(site.get(open).await.status, StatusCode::OK, "{open}");
    }
    // The webhook has its own check: here no secret is configured, and it says so itself.
    let delivery = site.post("/webhook/github", &[JSON], "{}").await;
    assert!(!delivery.text().contains("Bearer"), "{}", delivery.text());
}

/// A link on GitHub brings no `SameSite=Strict` cookie along: the page asks once more from here.
#[tokio::test]
async fn a_link_on_another_site_finds_the_login_that_there_is() {
    let site = Site::private().await;
    let by_link = [
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-mode", "navigate"),
    ];
    let first = site.get_with("/jobs/7", &by_link).await;
    assert_eq!(first.status, StatusCode::OK);
    assert!(
        first
            .text()
            .contains(r#"http-equiv="refresh" content="0; url=&#x2f;jobs&#x2f;7""#),
        "{}",
        first.text()
    );
    let second = site.get_with("/jobs/7", &[FROM_HERE]).await;
    assert_eq!(second.header("location"), "/login?next=%2Fjobs%2F7");
}

#[tokio::test]
async fn a_login_acts_by_the_forms_of_its_pages_alone() {
    let site = Site::public().await;
    let job = site.job().await;
    let page = format!("/jobs/{}", job.0);
    let cancel = format!("/jobs/{}/cancel", job.0);
    assert_eq!(form_secret(&site.get(&page).await.text()), None);

    let cookie = log_in(&site, &site.local_token()).await;
    let cookie = ("cookie", cookie.as_str());
    let shown = site.get_with(&page, &[cookie]).await.text();
    assert!(shown.contains(">Cancel<"), "{shown}");
    let secret = form_secret(&shown).unwrap();
    let right = format!("secret={secret}");
    let elsewhere = ("sec-fetch-site", "cross-site");
    let by_origin = ("origin", "http://127.0.0.1:8090");
    for (headers, body, expected) in [
        (
            vec![FORM, FROM_HERE],
            right.as_str(),
            StatusCode::UNAUTHORIZED,
        ),
        (vec![FORM, cookie, FROM_HERE], "", StatusCode::FORBIDDEN),
        (
            vec![FORM, cookie, FROM_HERE],
            "secret=",
            StatusCode::FORBIDDEN,
        ),
        (
            vec![FORM, cookie, elsewhere],
            right.as_str(),
            StatusCode::FORBIDDEN,
        ),
        (vec![FORM, cookie], right.as_str(), StatusCode::FORBIDDEN),
        (
            vec![FORM, cookie, ("origin", "null")],
            right.as_str(),
            StatusCode::FORBIDDEN,
        ),
        (
            vec![FORM, cookie, FROM_HERE],
            right.as_str(),
            StatusCode::SEE_OTHER,
        ),
        (
            vec![FORM, cookie, by_origin],
            right.as_str(),
            StatusCode::SEE_OTHER,
        ),
    ] {
        let answer = site.post(&cancel, &headers, body).await;
        assert_eq!(
            answer.status,
            expected,
            "{headers:?} {body}: {}",
            answer.text()
        );
    }
    assert_eq!(
        site.get_with(&cancel, &[cookie]).await.status,
        StatusCode::METHOD_NOT_ALLOWED
    );

    // Another login's form is not this one's.
    let other = log_in(&site, &site.local_token()).await;
    let mixed = site
        .post(&cancel, &[FORM, FROM_HERE, ("cookie", &other)], &right)
        .await;
    assert_eq!(mixed.status, StatusCode::FORBIDDEN);

    let out = site
        .post("/logout", &[FORM, FROM_HERE, cookie], &right)
        .await;
    assert_eq!(out.status, StatusCode::SEE_OTHER);
    assert!(out.header("set-cookie").contains("Max-Age=0"));
    let after = site.post(&cancel, &[FORM, FROM_HERE, cookie], &right).await;
    assert_eq!(after.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_reader_logs_in_but_gets_no_buttons() {
    let site = Site::public().await;
    let job = site.job().await;
    let cookie = log_in(&site, &make_token(&site, "reader", "read").await).await;
    let page = site
        .get_with(&format!("/jobs/{}", job.0), &[("cookie", &cookie)])
        .await
        .text();
    assert!(
        page.contains("Log out") && !page.contains("Cancel"),
        "{page}"
    );
    let body = format!("secret={}", form_secret(&page).unwrap());
    let cancel = format!("/jobs/{}/cancel", job.0);
    let refused = site
        .post(&cancel, &[FORM, FROM_HERE, ("cookie", &cookie)], &body)
        .await;
    assert_eq!(refused.status, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn a_wrong_token_and_a_forged_login_get_no_cookie() {
    let site = Site::public().await;
    let right = format!("token={}", site.local_token());
    for (headers, body, expected) in [
        (
            vec![FORM, FROM_HERE],
            "token=viv_guessed",
            StatusCode::UNAUTHORIZED,
        ),
        (vec![FORM, FROM_HERE], "token=", StatusCode::UNAUTHORIZED),
        (
            vec![FORM, ("sec-fetch-site", "cross-site")],
            right.as_str(),
            StatusCode::FORBIDDEN,
        ),
    ] {
        let answer = site.post("/login", &headers, body).await;
        assert_eq!(answer.status, expected, "{body}");
        assert_eq!(answer.header("set-cookie"), "");
        assert!(!answer.text().contains(&site.local_token()));
    }
}

#[tokio::test]
async fn under_https_the_cookie_is_sent_by_https_alone() {
    let site = Site::with("public_url = 'https://ci.example.org/'").await;
    let body = format!("token={}", site.local_token());
    let from_there = ("origin", "https://ci.example.org");
    let answer = site.post("/login", &[FORM, from_there], &body).await;
    let cookie = answer.header("set-cookie");
    assert!(
        cookie.starts_with("__Host-vivarium=") && cookie.ends_with("; Secure"),
        "{cookie}"
    );
    let by_http = ("origin", "http://127.0.0.1:8090");
    assert_eq!(
        site.post("/login", &[FORM, by_http], &body).await.status,
        StatusCode::FORBIDDEN
    );
}

#[tokio::test]
async fn a_login_ends_after_a_week() {
    let site = Site::private().await;
    let cookie = log_in(&site, &site.local_token()).await;
    for (hours, expected) in [
        (0, StatusCode::OK),
        (167, StatusCode::OK),
        (169, StatusCode::SEE_OTHER),
    ] {
        site.passed.store(hours, Ordering::SeqCst);
        let answer = site.get_with("/", &[("cookie", &cookie)]).await;
        assert_eq!(answer.status, expected, "after {hours} h");
    }
}
