//! What strangers wrote, shown; and paths that strangers ask for.

use super::*;
use crate::model::TestCounts;

/// Markup, a terminal's escape, an override of the direction, an invisible character, a template's own marks.
const HOSTILE: &str = "<script>alert(1)</script>'\"><img src=x onerror=alert(2)>\u{1b}[31m\u{202e}gpj\u{200b}\0{{ page }}{% raw %}";

/// A job in which everything that a stranger can name has that name.
async fn hostile_job(site: &Site) -> JobId {
    let job = site.job().await;
    let mut tx = site.store.write().await.unwrap();
    for (query, times) in [
        (
            "UPDATE builds SET title = ?, author = ?, reference = ?, repository = ?, message = ?, state = 'finished', reason = 'repository_file'",
            5,
        ),
        (
            "UPDATE jobs SET suite = ?, platform = ?, repository = ?, message = ?, state = 'finished', reason = 'step_failed'",
            4,
        ),
        (
            "INSERT INTO attempts (job, number, platform, phase, phases, reason, message, console_tail) \
          SELECT id, 1, ?, 'ended', '[[\"placed\",0],[\"ended\",1]]', 'guest_died', ?, ? FROM jobs",
            3,
        ),
        (
            "INSERT INTO evidence (attempt, qemu_log) SELECT id, ? FROM attempts",
            1,
        ),
        (
            "UPDATE attempts SET boot = json_object('milestones', json_array(json_array('ssh_banner', '2026-01-01T00:00:00Z')), \
             'waited_for', ?)",
            1,
        ),
        (
            "INSERT INTO steps (attempt, number, name, log_offset, started_at) SELECT id, 0, ?, 0, 0 FROM attempts",
            1,
        ),
    ] {
        let mut query = sqlx::query(query);
        for _ in 0..times {
            query = query.bind(HOSTILE);
        }
        query.execute(&mut *tx).await.unwrap();
    }
    tx.commit().await.unwrap();
    let counts = TestCounts {
        failed: 1,
        failing: vec![HOSTILE.to_owned()],
        ..TestCounts::default()
    };
    site.store.record_tests(job, &counts).await.unwrap();
    site.record_artifact(job, &format!("dist/{HOSTILE}")).await;
    job
}

#[tokio::test]
async fn hostile_names_are_shown_as_what_they_are() {
    let site = Site::public().await;
    let job = hostile_job(&site).await;
    for path in ["/", "/builds/1", &format!("/jobs/{}", job.0)] {
        let answer = site.get(path).await;
        assert_eq!(answer.status, StatusCode::OK, "{path}: {}", answer.text());
        let page = answer.text();
        let (_, body) = page.split_once("<main>").unwrap();
        for forbidden in ["<script", "<img", "\u{1b}", "\u{202e}", "\u{200b}", "\0"] {
            assert!(!body.contains(forbidden), "{path}: {forbidden:?} in {body}");
        }
        assert!(
            body.contains("&lt;script&gt;") && body.contains("⟨U+202E⟩gpj"),
            "{path}: {body}"
        );
        assert_page_is_safe(&answer);
    }
    // JSON tells the bytes as they are, and browsers do not guess at them.
    let json = site.get(&format!("/api/jobs/{}", job.0)).await;
    assert_eq!(json.json()["suite"], HOSTILE);
    assert_eq!(json.header("content-type"), "application/json");
    assert_eq!(json.header("x-content-type-options"), "nosniff");
}

fn assert_page_is_safe(answer: &Answer) {
    let policy = answer.header("content-security-policy");
    for part in [
        "default-src 'none'",
        "script-src 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
    ] {
        assert!(policy.contains(part), "{policy}");
    }
    assert!(!policy.contains("unsafe"), "{policy}");
    assert_eq!(answer.header("x-content-type-options"), "nosniff");
    assert_eq!(answer.header("referrer-policy"), "same-origin");
    let page = answer.text();
    for inline in ["<style", "style=", "javascript:", "<script>"] {
        assert!(!page.contains(inline), "{inline} in {page}");
    }
}

#[tokio::test]
async fn errors_are_pages_too_and_echo_nothing_dangerous() {
    let site = Site::public().await;
    for (path, expected) in [
        ("/jobs/999", StatusCode::NOT_FOUND),
        (
            "/jobs/%3Cscript%3Ealert(1)%3C%2Fscript%3E",
            StatusCode::BAD_REQUEST,
        ),
        ("/builds/%E2%80%AEx", StatusCode::BAD_REQUEST),
    ] {
        let answer = site.get(path).await;
        assert_eq!(answer.status, expected, "{path}");
        let page = answer.text();
        let (_, body) = page.split_once("<main>").unwrap();
        assert!(
            !body.contains("<script") && !body.contains('\u{202e}'),
            "{body}"
        );
        assert_page_is_safe(&answer);
    }
}

#[tokio::test]
async fn bytes_of_guests_are_never_a_page() {
    let site = Site::public().await;
    let job = site.job().await.0;
    let log = site.get(&format!("/api/jobs/{job}/log")).await;
    assert_eq!(log.header("content-type"), "text/plain; charset=utf-8");
    let artifact = site
        .get(&format!("/api/jobs/{job}/artifacts/dist/a%20file.html"))
        .await;
    assert_eq!(artifact.body, b"artefact");
    assert_eq!(artifact.header("content-type"), "application/octet-stream");
    assert_eq!(
        artifact.header("content-disposition"),
        "attachment; filename*=UTF-8''a%20file.html"
    );
    for answer in [log, artifact] {
        assert_eq!(answer.status, StatusCode::OK);
        assert!(answer.header("content-security-policy").contains("sandbox"));
        assert_eq!(answer.header("x-content-type-options"), "nosniff");
    }
}

/// Every route that takes a name, with names that mean a file elsewhere to whoever takes them for a path.
#[tokio::test]
async fn no_path_leads_out_of_the_data_folder() {
    let site = Site::public().await;
    let job = site.job().await.0;
    let secret = site.local_token();
    let names = [
        "../api-token",
        "../../api-token",
        "..%2fapi-token",
        "%2e%2e%2fapi-token",
        "%2e%2e/%2e%2e/api-token",
        "..%5capi-token",
        "%252e%252e%252fapi-token",
        "..%c0%afapi-token",
        "....//api-token",
        "dist/../../api-token",
        "dist/a%20file.html/../../../api-token",
        "dist/a%20file.html%00",
        "api-token%00.css",
        "%00",
        "//etc/passwd",
        "/etc/passwd",
        "%2fetc%2fpasswd",
        "file:///etc/passwd",
        "vivarium.sqlite",
        "artifacts/x",
        ".",
        "..",
        "%FF%FE",
    ];
    let absolute = format!("%2f{}", site.dir.path().join("api-token").display());
    let names = names.iter().copied().chain([absolute.as_str()]);
    for name in names {
        for path in [
            format!("/static/{name}"),
            format!("/builds/{name}"),
            format!("/jobs/{name}"),
            format!("/api/builds/{name}"),
            format!("/api/jobs/{name}"),
            format!("/api/jobs/{name}/log"),
            format!("/api/jobs/{name}/log/stream"),
            format!("/api/jobs/{job}/artifacts/{name}"),
            format!("/api/jobs/{name}/artifacts/dist/a%20file.html"),
            format!("/api/builds?repository={name}"),
            format!("/login?next={name}"),
        ] {
            let Ok(uri) = path.parse::<Uri>() else {
                continue;
            };
            let answer = site.get(&uri.to_string()).await;
            assert!(answer.status.as_u16() < 500, "{path}: {}", answer.status);
            let text = answer.text();
            assert!(!text.contains(&secret), "{path}: {text}");
            assert!(!text.contains("root:"), "{path}: {text}");
            assert!(!answer.body.starts_with(b"SQLite"), "{path}");
            let takes_no_name = path.contains('?');
            assert!(
                takes_no_name || answer.status.is_client_error(),
                "{path}: {}",
                answer.status
            );
        }
    }
}
