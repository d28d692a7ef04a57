//! Whatever the order in which GitHub's events come, what is left under way is what the pull request is now.

use super::*;
use crate::clock::Clock;
use crate::model::{Build, BuildState, Reason};
use crate::pipeline::signals::Signals;
use crate::source::Sources;
use crate::store::Store;
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use proptest::test_runner::{TestCaseError, TestRunner};
use std::sync::atomic::{AtomicI64, Ordering};

const REPOSITORY: &str = "acme/widget";

/// What somebody does to a pull request.
#[derive(Debug, Clone, Copy)]
enum Step {
    Push,
    /// The branch goes back to the head before.
    PushBack,
    /// It is closed, or opened again.
    Turn,
}

/// What GitHub tells of it, with the time that GitHub gives it.
#[derive(Debug, Clone)]
struct Event {
    at: Timestamp,
    says: Says,
}

#[derive(Debug, Clone)]
enum Says {
    Head { sha: String, before: Option<String> },
    Closed,
}

/// What the pull request is after all of it.
#[derive(Debug, Clone)]
struct Present {
    head: String,
    is_open: bool,
    at: Timestamp,
}

fn second(number: i64) -> Timestamp {
    Timestamp::UNIX_EPOCH + SignedDuration::from_secs(number)
}

fn sha(number: i64, head: usize) -> String {
    format!("{number:020x}{head:020x}")
}

/// The events of a pull request's life, each in a second of its own.
fn lived(number: i64, steps: &[Step]) -> (Vec<Event>, Present) {
    let mut heads = vec![sha(number, 1)];
    let mut is_open = true;
    let head_event = |at, sha: &String, before: Option<&String>| Event {
        at: second(at),
        says: Says::Head {
            sha: sha.clone(),
            before: before.cloned(),
        },
    };
    let mut events = vec![head_event(1, &heads[0], None)];
    let mut time = 1;
    let mut made = 1;
    for step in steps {
        time += 1;
        let before = heads[heads.len() - 1].clone();
        match step {
            Step::Turn => {
                is_open = !is_open;
                events.push(match is_open {
                    true => head_event(time, &before, None),
                    false => Event {
                        at: second(time),
                        says: Says::Closed,
                    },
                });
                continue;
            }
            Step::PushBack if heads.len() > 1 => {
                heads.pop();
            }
            Step::Push | Step::PushBack => {
                made += 1;
                heads.push(sha(number, made));
            }
        }
        // GitHub tells of no push to a closed one.
        if is_open {
            events.push(head_event(time, &heads[heads.len() - 1], Some(&before)));
        }
    }
    let at = events.iter().map(|event| event.at).max().unwrap();
    let head = heads[heads.len() - 1].clone();
    (events, Present { head, is_open, at })
}

fn intent(number: i64, says: &Says, at: Timestamp, seen_at: Option<Timestamp>) -> Intent {
    match says {
        Says::Closed => Intent::CancelPullRequest {
            number,
            reason: Reason::Closed,
            closed_at: Some(at),
        },
        Says::Head { sha, before } => Intent::BuildPullRequest(PullRequest {
            number,
            title: String::new(),
            author: None,
            head_sha: sha.clone(),
            base_ref: "main".into(),
            updated_at: Some(at),
            learnt: match seen_at {
                Some(at) => Learnt::ByLooking { at },
                None => Learnt::FromEvent {
                    before: before.clone(),
                },
            },
            from_fork: false,
        }),
    }
}

struct Desk {
    intake: Intake,
    on_new_commit: OnNewCommit,
    _folder: tempfile::TempDir,
}

impl Desk {
    async fn with(on_new_commit: OnNewCommit) -> Desk {
        let folder = tempfile::tempdir().unwrap();
        let word = match on_new_commit {
            OnNewCommit::Cancel => "cancel",
            OnNewCommit::Queue => "queue",
        };
        let text = format!(
            "[github]\ntoken_file = '/token'\n[[repository]]\nname = '{REPOSITORY}'\non_new_commit = '{word}'\n"
        );
        let config = Config::parse(&folder.path().join("vivarium.toml"), &text).unwrap();
        let config = Arc::new(config);
        let store = Store::open(&folder.path().join("state.db")).await.unwrap();
        // Each look at the clock finds it later.
        let ticks = AtomicI64::new(1_000_000_000);
        let clock = Clock::of(move || second(ticks.fetch_add(1, Ordering::SeqCst)));
        let url = "http://ci/".parse().unwrap();
        let ledger = Ledger::new(store, Signals::default(), config.clone(), url, clock);
        let sources = Sources::new(folder.path().join("mirrors"), None);
        Desk {
            intake: Intake {
                ledger,
                sources: Arc::new(sources),
                config,
            },
            on_new_commit,
            _folder: folder,
        }
    }

    async fn hear(&self, intent: Intent) {
        let repository = self.intake.config.repository(REPOSITORY).unwrap();
        self.intake
            .carry_out(repository, vec![intent])
            .await
            .unwrap();
    }

    /// What a look finds: GitHub shows what is, however late its events are.
    async fn look(&self, number: i64, present: &Present) {
        let says = match present.is_open {
            true => Says::Head {
                sha: present.head.clone(),
                before: None,
            },
            false => Says::Closed,
        };
        let now = self.intake.ledger.clock.now();
        self.hear(intent(number, &says, present.at, Some(now)))
            .await;
    }

    /// What is under way comes to its end.
    async fn pass(&self, number: i64) {
        let ending = Ending::new(Reason::Passed, "Passed");
        for build in self.builds(number).await {
            if build.state != BuildState::Finished {
                let ledger = &self.intake.ledger;
                ledger.end_build(build.id, &ending).await.unwrap();
            }
        }
    }

    async fn builds(&self, number: i64) -> Vec<Build> {
        let store = &self.intake.ledger.store;
        let mut builds = store
            .recent_builds(Some(REPOSITORY), None, 100)
            .await
            .unwrap();
        builds.retain(|build| build.new.pull_request == Some(number));
        builds
    }

    async fn check(&self, number: i64, present: &Present) -> Result<(), TestCaseError> {
        let builds = self.builds(number).await;
        let under_way: Vec<&str> = builds
            .iter()
            .filter(|build| build.state != BuildState::Finished)
            .map(|build| build.new.head_sha.as_str())
            .collect();
        if !present.is_open {
            prop_assert!(under_way.is_empty(), "{under_way:?}");
            return Ok(());
        }
        let head = builds
            .iter()
            .find(|build| build.new.head_sha == present.head);
        let reason = head.map(|build| build.ending.as_ref().map(|ending| ending.reason));
        prop_assert!(
            matches!(reason, Some(None | Some(Reason::Passed))),
            "{reason:?}"
        );
        let is_older = |sha: &&str| *sha != present.head;
        if self.on_new_commit == OnNewCommit::Cancel {
            prop_assert!(!under_way.iter().any(is_older), "{under_way:?}");
        }
        Ok(())
    }
}

fn any_order(on_new_commit: OnNewCommit, file: &'static str) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let desk = runtime.block_on(Desk::with(on_new_commit));
    let next = AtomicI64::new(1);
    let step = prop_oneof![
        2 => Just(Step::Push),
        1 => Just(Step::PushBack),
        2 => Just(Step::Turn),
    ];
    // For each event: its place in the order, whether it comes twice, whether GitHub is looked at after it, and whether what
    // is under way passes then.
    let chance = prop::bool::weighted;
    let way = (any::<u16>(), chance(0.2), chance(0.1), chance(0.2));
    let lives = (
        prop::collection::vec(step, 0..6),
        prop::collection::vec(way, 7),
    );
    let config = ProptestConfig {
        source_file: Some(file),
        ..ProptestConfig::default()
    };
    TestRunner::new(config)
        .run(&lives, |(steps, ways)| {
            let number = next.fetch_add(1, Ordering::SeqCst);
            let (events, present) = lived(number, &steps);
            let mut order: Vec<_> = events.iter().zip(&ways).collect();
            order.sort_by_key(|(_, (place, ..))| *place);
            runtime.block_on(async {
                for (event, (_, twice, look, pass)) in &order {
                    for _ in 0..1 + i32::from(*twice) {
                        desk.hear(intent(number, &event.says, event.at, None)).await;
                    }
                    if *look {
                        desk.look(number, &present).await;
                    }
                    if *pass {
                        desk.pass(number).await;
                    }
                }
                desk.check(number, &present).await
            })
        })
        .unwrap();
}

/// A late closing left a pull request cancelled that was open again; and a late push had its build.
#[test]
fn in_any_order_the_head_of_an_open_pull_request_is_built_and_nothing_of_a_closed_one() {
    any_order(OnNewCommit::Cancel, file!());
}

#[test]
fn where_commits_queue_the_same_holds() {
    any_order(OnNewCommit::Queue, file!());
}
