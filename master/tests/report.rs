//! The outbox against a strict and faulty GitHub on loopback.

#[path = "support/status_server.rs"]
mod status_server;

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use serde_json::json;
use status_server::{Fault, StatusServer, TOKEN};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use vivarium::clock::Clock;
use vivarium::config::GithubConfig;
use vivarium::github::{GitHub, GitHubCheck, GitHubError};
use vivarium::model::{BuildId, CommitStatus, StatusState};
use vivarium::pulse::Pulses;
use vivarium::report::{Pace, Reporter};
use vivarium::store::{Reopen, StatusRow, Store, Wanted};

const SHA: &str = "ec26c3e57ca3a959ca5aad62de7213c562f8c821";
const REPOSITORY: &str = "octo/hello.world";

struct Outbox {
    server: StatusServer,
    store: Store,
    wake: Arc<Notify>,
    config: GithubConfig,
    token_file: PathBuf,
    pace: Pace,
    running: Option<(CancellationToken, JoinHandle<()>)>,
    _folder: tempfile::TempDir,
}

async fn outbox() -> Outbox {
    let folder = tempfile::tempdir().unwrap();
    let server = StatusServer::start().await;
    let token_file = folder.path().join("token");
    std::fs::write(&token_file, format!("{TOKEN}\n")).unwrap();
    Outbox {
        store: Store::open(&folder.path().join("vivarium.db"))
            .await
            .unwrap(),
        wake: Arc::default(),
        config: GithubConfig {
            api_url: server.url.parse().unwrap(),
            token_file: Some(token_file.clone()),
            ..GithubConfig::default()
        },
        server,
        token_file,
        // As patient as needed, in thousandths of the time.
        pace: Pace {
            concurrency: 8,
            first_retry: Duration::from_millis(2),
            longest_retry: Duration::from_millis(20),
            first_pause: Duration::from_millis(10),
            longest_pause: Duration::from_millis(50),
            token_pause: Duration::from_millis(20),
            tries_for_commit: 4,
            look: Duration::from_secs(5),
        },
        running: None,
        _folder: folder,
    }
}

fn status(context: &str, state: StatusState, description: &str) -> CommitStatus {
    CommitStatus {
        context: context.into(),
        state,
        description: description.into(),
        target_url: "https://ci.example.org/builds/1".into(),
    }
}

impl Outbox {
    fn github(&self) -> GitHub {
        GitHub::new(&self.config)
            .unwrap()
            .with_deadline(Duration::from_millis(500))
    }

    fn start(&mut self) {
        let shutdown = CancellationToken::new();
        let reporter = Reporter::new(
            self.store.clone(),
            Arc::new(self.github()),
            Arc::clone(&self.wake),
            self.pace.clone(),
            Clock::system(),
        );
        let pulse = Pulses::default().watch("reports", Duration::from_secs(60));
        let task = tokio::spawn(reporter.run(shutdown.clone(), pulse));
        self.running = Some((shutdown, task));
    }

    async fn stop(&mut self) {
        let (shutdown, task) = self.running.take().unwrap();
        shutdown.cancel();
        task.await.unwrap();
    }

    async fn want(&self, build: i64, state: StatusState, description: &str) -> Wanted {
        self.want_context("vivarium", build, state, description)
            .await
    }

    async fn want_context(
        &self,
        context: &str,
        build: i64,
        state: StatusState,
        description: &str,
    ) -> Wanted {
        // Long enough ago that no pending is waited for.
        let now = Timestamp::now() - SignedDuration::from_mins(1);
        let status = status(context, state, description);
        let wanted = self
            .store
            .want_status(REPOSITORY, SHA, &status, BuildId(build), Reopen::No, now)
            .await
            .unwrap();
        self.wake.notify_one();
        wanted
    }

    async fn row(&self) -> StatusRow {
        let rows = self.store.statuses_of(REPOSITORY, SHA).await.unwrap();
        rows.into_iter().next().unwrap()
    }

    /// Waits until nothing is left to send.
    async fn drained(&self) {
        let wait = async {
            while self.store.status_backlog().await.unwrap().unsent > 0 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        if tokio::time::timeout(Duration::from_secs(20), wait)
            .await
            .is_err()
        {
            panic!("not sent: {:?}", self.row().await);
        }
    }
}

#[tokio::test]
async fn the_first_pending_goes_at_once_and_the_outcome_follows() {
    let mut outbox = outbox().await;
    outbox.start();
    outbox.want(1, StatusState::Pending, "Waiting").await;
    outbox
        .server
        .until("the pending", |s| s.states() == ["pending"])
        .await;
    outbox.want(1, StatusState::Success, "Passed").await;
    outbox.drained().await;
    assert_eq!(outbox.server.states(), ["pending", "success"]);
    assert_eq!(
        outbox.want(1, StatusState::Success, "Passed").await,
        Wanted::Unchanged
    );
    outbox.drained().await;
    assert_eq!(outbox.server.requests(), 2);
    assert!(outbox.server.complaints().is_empty());
}

#[tokio::test]
async fn what_was_overtaken_while_it_waited_is_not_sent() {
    let mut outbox = outbox().await;
    outbox.server.hold();
    outbox.start();
    outbox.want(1, StatusState::Pending, "Waiting").await;
    outbox
        .server
        .until("the request", |s| s.requests() == 1)
        .await;
    outbox.want(1, StatusState::Pending, "Booting").await;
    outbox.want(1, StatusState::Pending, "Running").await;
    outbox
        .want(1, StatusState::Failure, "1 of 2 tests failed")
        .await;
    // One request for a row, however much is wanted.
    assert_eq!(outbox.server.requests(), 1);
    outbox.server.release();
    outbox.drained().await;
    assert_eq!(outbox.server.states(), ["pending", "failure"]);
}

#[tokio::test]
async fn a_late_pending_never_comes_over_an_outcome() {
    let outbox = outbox().await;
    outbox.want(7, StatusState::Success, "Passed").await;
    assert_eq!(
        outbox.want(7, StatusState::Pending, "Late").await,
        Wanted::Ended
    );
    assert_eq!(
        outbox.want(6, StatusState::Pending, "Older").await,
        Wanted::Outdated
    );
    assert_eq!(
        outbox.want(6, StatusState::Failure, "Older").await,
        Wanted::Outdated
    );
    assert_eq!(outbox.row().await.status.description, "Passed");
    // Contexts are compared as GitHub does.
    let late = outbox.want_context("Vivarium", 6, StatusState::Failure, "Older");
    assert_eq!(late.await, Wanted::Outdated);
    // A newer build begins anew; a rerun says that it is one.
    assert_eq!(
        outbox.want(8, StatusState::Pending, "Waiting").await,
        Wanted::Changed
    );
    assert_eq!(
        outbox.want(8, StatusState::Error, "Lost").await,
        Wanted::Changed
    );
    let again = status("vivarium", StatusState::Pending, "Waiting again");
    let reopened = outbox
        .store
        .want_status(
            REPOSITORY,
            SHA,
            &again,
            BuildId(8),
            Reopen::Yes,
            Timestamp::now(),
        )
        .await
        .unwrap();
    assert_eq!(reopened, Wanted::Changed);
    assert_eq!(outbox.row().await.version, 4);
}

#[tokio::test]
async fn a_pending_that_only_replaces_a_pending_waits_for_something_better() {
    let mut outbox = outbox().await;
    outbox.start();
    outbox.want(1, StatusState::Pending, "Waiting").await;
    outbox.drained().await;
    let now = Timestamp::now();
    let running = status("vivarium", StatusState::Pending, "Running");
    let wanted = outbox
        .store
        .want_status(REPOSITORY, SHA, &running, BuildId(1), Reopen::No, now);
    assert_eq!(wanted.await.unwrap(), Wanted::Changed);
    assert!(outbox.store.due_statuses(now, 9).await.unwrap().is_empty());
    let next = outbox.store.next_status_after(now).await.unwrap().unwrap();
    assert_eq!(outbox.store.due_statuses(next, 9).await.unwrap().len(), 1);
    // The outcome does not wait.
    outbox.want(1, StatusState::Success, "Passed").await;
    outbox.drained().await;
    assert_eq!(outbox.server.states(), ["pending", "success"]);
}

#[tokio::test]
async fn faults_of_the_server_are_outlasted() {
    let mut outbox = outbox().await;
    for status in [500, 502, 503, 504, 500] {
        outbox.server.fault(Fault::answer(status, "Server Error"));
    }
    outbox.server.fault(Fault::Silence);
    outbox.start();
    outbox.want(1, StatusState::Failure, "No").await;
    outbox.drained().await;
    assert_eq!(outbox.server.states(), ["failure"]);
    assert_eq!(outbox.server.requests(), 7);
    let row = outbox.row().await;
    assert_eq!((row.tries, row.trouble), (0, None));
}

#[tokio::test]
async fn an_answer_that_is_lost_after_the_fact_does_no_harm() {
    let mut outbox = outbox().await;
    outbox.server.fault(Fault::ShownThenReset);
    outbox.start();
    outbox.want(1, StatusState::Pending, "Waiting").await;
    outbox
        .server
        .until("the first", |s| !s.shown().is_empty())
        .await;
    outbox.server.fault(Fault::ShownThenReset);
    outbox.want(1, StatusState::Success, "Passed").await;
    outbox.drained().await;
    // GitHub was asked what it shows before anything was sent again.
    assert_eq!(outbox.server.states(), ["pending", "success"]);
}

/// A master that was killed between sending and writing that down does not send again what GitHub shows.
#[tokio::test]
async fn what_was_sent_before_a_crash_is_not_sent_again() {
    let mut outbox = outbox().await;
    outbox.start();
    outbox.want(1, StatusState::Success, "Passed").await;
    outbox.drained().await;
    outbox.stop().await;
    let row = outbox.row().await;
    let now = Timestamp::now();
    let mut tx = outbox.store.write().await.unwrap();
    sqlx::query("UPDATE statuses SET sent_version = 0, sent_state = NULL")
        .execute(&mut *tx)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    assert_eq!(outbox.store.due_statuses(now, 9).await.unwrap(), [row.id]);
    outbox.start();
    outbox.drained().await;
    assert_eq!(outbox.server.states(), ["success"]);
    assert_eq!(outbox.server.requests(), 1);
}

#[tokio::test]
async fn a_limit_pauses_all_rows_as_long_as_the_server_says() {
    let mut outbox = outbox().await;
    outbox.pace.concurrency = 1;
    // Not waiting would be seen: it would be hours.
    outbox.pace.first_pause = Duration::from_secs(3600);
    outbox.pace.longest_pause = Duration::from_secs(3600);
    let after = vec![("retry-after", "1".to_owned())];
    let body = json!({"message": "You have exceeded a secondary rate limit."});
    outbox.server.fault(Fault::Answer(403, after, body));
    for n in 0..5 {
        let context = format!("vivarium/check ({n})");
        outbox
            .want_context(&context, 1, StatusState::Success, "Passed")
            .await;
    }
    outbox.start();
    outbox
        .server
        .until("the limit", |s| s.requests() == 1)
        .await;
    outbox.drained().await;
    assert_eq!(outbox.server.requests(), 6);
}

#[tokio::test]
async fn a_limit_without_a_hint_is_met_with_growing_pauses() {
    let mut outbox = outbox().await;
    outbox.pace.concurrency = 1;
    for _ in 0..4 {
        let message = "You have exceeded a secondary rate limit.";
        outbox.server.fault(Fault::answer(403, message));
    }
    for n in 0..5 {
        let context = format!("vivarium/check ({n})");
        outbox
            .want_context(&context, 1, StatusState::Success, "Passed")
            .await;
    }
    outbox.start();
    outbox.drained().await;
    assert_eq!(outbox.server.requests(), 9);
}

#[tokio::test]
async fn after_a_limit_one_request_goes_first() {
    let mut outbox = outbox().await;
    outbox.start();
    outbox.server.fault(Fault::answer(429, "slow down"));
    outbox
        .want_context("first", 1, StatusState::Success, "Passed")
        .await;
    outbox
        .server
        .until("the limit", |s| s.requests() == 1)
        .await;
    outbox.server.hold();
    for n in 0..5 {
        outbox
            .want_context(&format!("{n}"), 1, StatusState::Success, "Passed")
            .await;
    }
    outbox
        .server
        .until("the first after it", |s| s.requests() == 2)
        .await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(outbox.server.requests(), 2);
    outbox.server.release();
    outbox.drained().await;
    assert_eq!(outbox.server.shown().len(), 6);
}

#[tokio::test]
async fn a_commit_that_is_not_visible_yet_is_waited_for_and_one_that_never_comes_is_not() {
    let mut outbox = outbox().await;
    let message = format!("No commit found for SHA: {SHA}");
    outbox.server.fault(Fault::answer(422, &message));
    outbox.server.fault(Fault::answer(422, &message));
    outbox.start();
    outbox.want(1, StatusState::Pending, "Waiting").await;
    outbox.drained().await;
    assert_eq!(outbox.server.states(), ["pending"]);

    for _ in 0..4 {
        outbox.server.fault(Fault::answer(422, &message));
    }
    outbox.want(1, StatusState::Success, "Passed").await;
    outbox.drained().await;
    assert_eq!(outbox.server.requests(), 7);
    let row = outbox.row().await;
    assert!(row.refused.unwrap().contains("No commit found"));
    assert_eq!(outbox.store.status_backlog().await.unwrap().refused, 1);

    // What a newer build says is tried again, even if it is the same.
    assert_eq!(
        outbox.want(2, StatusState::Success, "Passed").await,
        Wanted::Changed
    );
    outbox.drained().await;
    assert_eq!(outbox.server.states(), ["pending", "success"]);
}

#[tokio::test]
async fn what_is_refused_for_good_is_not_repeated() {
    for (code, message) in [
        (
            422,
            "This SHA and context has reached the maximum number of statuses.",
        ),
        (404, "Not Found"),
        (403, "Resource not accessible by personal access token"),
        (410, "Gone"),
        (400, "Problems parsing JSON"),
    ] {
        let mut outbox = outbox().await;
        outbox.server.fault(Fault::answer(code, message));
        outbox.start();
        outbox.want(1, StatusState::Success, "Passed").await;
        outbox.drained().await;
        assert_eq!(outbox.server.requests(), 1);
        let why = outbox.row().await.refused.unwrap();
        assert!(why.contains(message), "{why}");
        // Until a person who has mended the reason asks for it.
        let since = Timestamp::UNIX_EPOCH;
        let again = outbox.store.retry_refused_statuses(since).await.unwrap();
        assert_eq!(again, 1);
        outbox.wake.notify_one();
        outbox.drained().await;
        assert_eq!(outbox.server.states(), ["success"]);
    }
}

#[tokio::test]
async fn a_rotated_token_is_taken_up_without_a_restart() {
    let mut outbox = outbox().await;
    outbox.server.expect_token("ghp_another_one");
    outbox.start();
    outbox.want(1, StatusState::Success, "Passed").await;
    outbox
        .server
        .until("two refusals", |s| s.requests() >= 2)
        .await;
    assert!(outbox.server.shown().is_empty());
    std::fs::write(&outbox.token_file, "ghp_another_one").unwrap();
    outbox.drained().await;
    assert_eq!(outbox.server.states(), ["success"]);
    // Away for a moment, as when an editor replaces it.
    std::fs::remove_file(&outbox.token_file).unwrap();
    outbox.want(2, StatusState::Failure, "Failed").await;
    tokio::time::sleep(Duration::from_millis(30)).await;
    std::fs::write(&outbox.token_file, "ghp_another_one").unwrap();
    outbox.drained().await;
    assert_eq!(outbox.server.states(), ["success", "failure"]);
}

#[tokio::test]
async fn any_description_is_made_one_that_github_takes() {
    let mut outbox = outbox().await;
    outbox.start();
    let description = format!("😀 {}\n{}", "ä".repeat(100), "x".repeat(100));
    outbox.want(1, StatusState::Failure, &description).await;
    outbox.drained().await;
    let shown = &outbox.server.shown()[0].description;
    assert_eq!(shown.chars().count(), 140);
    assert!(shown.ends_with("x…"), "{shown}");
    assert!(outbox.server.complaints().is_empty());
}

#[tokio::test]
async fn a_renamed_repository_is_followed_but_only_on_the_same_server() {
    let mut outbox = outbox().await;
    let to = format!("{}/repositories/42/statuses/{SHA}", outbox.server.url);
    outbox.server.fault(Fault::Redirect(to));
    outbox.start();
    outbox.want(1, StatusState::Success, "Passed").await;
    outbox.drained().await;
    assert_eq!(outbox.server.states(), ["success"]);

    let stranger = StatusServer::start().await;
    let to = format!("{}/repositories/42/statuses/{SHA}", stranger.url);
    outbox.server.fault(Fault::Redirect(to));
    outbox.want(2, StatusState::Failure, "Failed").await;
    outbox.drained().await;
    assert_eq!(stranger.requests(), 0);
    assert!(outbox.row().await.refused.unwrap().contains("307"));
}

#[tokio::test]
async fn a_restart_loses_nothing() {
    let mut outbox = outbox().await;
    outbox.server.fault(Fault::answer(500, "no"));
    outbox.pace.first_retry = Duration::from_secs(1);
    outbox.start();
    outbox.want(1, StatusState::Success, "Passed").await;
    outbox
        .server
        .until("the request", |s| s.requests() == 1)
        .await;
    outbox.stop().await;
    assert!(outbox.row().await.trouble.unwrap().contains("500"));
    outbox.start();
    outbox.drained().await;
    assert_eq!(outbox.server.states(), ["success"]);
}

#[tokio::test]
async fn the_check_says_what_the_token_may() {
    let outbox = outbox().await;
    let GitHubCheck::Token(check) = outbox.github().check().await.unwrap() else {
        panic!("a token was configured");
    };
    assert_eq!(check.scopes.unwrap(), ["repo:status", "read:org"]);
    assert_eq!((check.limit, check.remaining), (Some(5000), Some(4990)));
    let repository = outbox.github().check_repository(REPOSITORY).await.unwrap();
    assert_eq!(
        (repository.full_name.as_str(), repository.may_write),
        (REPOSITORY, Some(true))
    );
    outbox.server.expect_token("another");
    let error = outbox.github().check().await.unwrap_err();
    assert!(matches!(error, GitHubError::Unauthorized { .. }));
    assert!(
        error
            .to_string()
            .contains("hint: put valid credentials into"),
        "{error}"
    );
    let nobody = GithubConfig {
        api_url: "http://127.0.0.1:9/".parse().unwrap(),
        ..outbox.config.clone()
    };
    let error = GitHub::new(&nobody).unwrap().check().await.unwrap_err();
    assert!(matches!(error, GitHubError::Unreachable { .. }));
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn the_token_is_nowhere_to_be_read() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let mut outbox = outbox().await;
    outbox.server.expect_token("another");
    outbox.server.fault(Fault::answer(500, "no"));
    outbox.server.fault(Fault::ShownThenReset);
    outbox.start();
    outbox.want(1, StatusState::Success, "Passed").await;
    outbox
        .server
        .until("a refusal", |s| s.requests() >= 4)
        .await;
    let github = outbox.github();
    let error = github.check().await.unwrap_err();
    let texts = format!("{github:?} {error:?} {error} {:?}", outbox.row().await);
    outbox.stop().await;
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(log.contains("does not accept the token"), "{log}");
    assert!(!texts.contains("ghp_") && !log.contains("ghp_"), "{log}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    /// Whatever is wanted, in whatever order, with whatever faults: in the end GitHub shows what the outbox says, and on
    /// the way there nothing older ever came over something newer, and nothing twice.
    #[test]
    fn github_shows_what_is_wanted_in_the_end(
        wishes in prop::collection::vec((0_usize..3, 1_i64..4, 0_usize..4), 1..25),
        faults in prop::collection::vec(0_usize..6, 0..10),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut outbox = outbox().await;
            for fault in faults {
                outbox.server.fault(match fault {
                    0 => Fault::answer(500, "no"),
                    1 => Fault::answer(403, "secondary rate limit"),
                    2 => Fault::answer(422, "No commit found for SHA"),
                    3 => Fault::ShownThenReset,
                    4 => Fault::answer(429, "no"),
                    _ => Fault::answer(503, "no"),
                });
            }
            // Never given up in this test.
            outbox.pace.tries_for_commit = 100;
            outbox.start();
            for (n, (context, build, state)) in wishes.into_iter().enumerate() {
                let context = format!("vivarium/{context}");
                let description = format!("{build:03} {n:03}");
                outbox.want_context(&context, build, StatusState::ALL[state], &description).await;
                if n % 3 == 0 {
                    tokio::time::sleep(Duration::from_millis(3)).await;
                }
            }
            outbox.drained().await;
            let rows = outbox.store.statuses_of(REPOSITORY, SHA).await.unwrap();
            let wanted: BTreeMap<_, _> = rows
                .iter()
                .map(|row| ((SHA.to_owned(), row.status.context.clone()), row.status.state.as_str().to_owned()))
                .collect();
            assert_eq!(outbox.server.seen(), wanted);
            let mut last: BTreeMap<String, String> = BTreeMap::new();
            for shown in outbox.server.shown() {
                if let Some(before) = last.insert(shown.context.clone(), shown.description.clone()) {
                    assert!(before < shown.description, "{before} then {}", shown.description);
                }
            }
            outbox.stop().await;
        });
    }
}
