use super::*;
use crate::model::{BuildId, JobId};
use crate::pulse::Pulses;
use crate::result::artifacts::Caps;
use crate::result::objects::Objects;
use crate::store::Evidence;
use jiff::ToSpan;
use std::collections::{BTreeMap, BTreeSet};
use tempfile::TempDir;

/// A master's results without a master, and a day from which ages count.
struct Fixture {
    dir: TempDir,
    store: Store,
    objects: Objects,
    logs: Logs,
    artifacts: Artifacts,
    today: Timestamp,
}

/// A build as far as retention looks at it.
#[derive(Clone, Copy)]
struct Past {
    days: i64,
    branch: &'static str,
    publish: bool,
    passed: bool,
}

const MAIN: Past = Past {
    days: 0,
    branch: "main",
    publish: true,
    passed: true,
};
const PULL: Past = Past {
    days: 0,
    branch: "topic",
    publish: false,
    passed: true,
};

impl Fixture {
    async fn new() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("state.db")).await.unwrap();
        let place = dir.path().join("objects").display().to_string();
        let objects = Objects::open(&place, &BTreeMap::new()).unwrap();
        let logs = dir.path().join("logs");
        let logs = Logs::open(logs, 1 << 20, store.clone(), objects.clone()).unwrap();
        let artifacts = dir.path().join("artifacts");
        let artifacts = Artifacts::open(artifacts, store.clone(), objects.clone()).unwrap();
        Fixture {
            dir,
            store,
            objects,
            logs,
            artifacts,
            today: "2026-06-01T00:00:00Z".parse().unwrap(),
        }
    }

    /// A build with one job that ended so many days ago, its log and, where it publishes and passed, an artefact.
    async fn ended(&self, past: Past) -> (BuildId, JobId) {
        let at = self.today.checked_sub((24 * past.days).hours()).unwrap();
        let at = at.as_millisecond();
        let mut tx = self.store.write().await.unwrap();
        let reason = if past.passed { "passed" } else { "step_failed" };
        let build: i64 = sqlx::query_scalar(
            "INSERT INTO builds (repository, trigger_name, build_key, reference, head_sha, from_fork, publish, title, \
             only_platforms, state, reason, created_at, finished_at) \
             SELECT 'octo/tools', 'push', 'key-' || COUNT(*), ?, 'sha-' || COUNT(*), FALSE, ?, '', '[]', 'finished', ?, ?, ? \
             FROM builds RETURNING id",
        )
        .bind(format!("refs/heads/{}", past.branch))
        .bind(past.publish)
        .bind(reason)
        .bind(at)
        .bind(at)
        .fetch_one(&mut *tx)
        .await
        .unwrap();
        let plan = r#"{"steps":[],"timeouts":{"job_secs":1,"no_output_secs":1},"artifacts":["x"],"reports":[],"history":false}"#;
        let job: i64 = sqlx::query_scalar(
            "INSERT INTO jobs (build, repository, suite, platform, plan, priority, state, reason, queued_at, not_before, \
             finished_at) VALUES (?, 'octo/tools', 'unit', 'linux', ?, 1, 'finished', ?, 0, 0, ?) RETURNING id",
        )
        .bind(build)
        .bind(plan)
        .bind(reason)
        .bind(at)
        .fetch_one(&mut *tx)
        .await
        .unwrap();
        sqlx::query(
            "INSERT INTO attempts (job, number, platform, phase, phases) VALUES (?, 1, 'linux', 'ended', '[]')",
        )
        .bind(job)
        .execute(&mut *tx)
        .await
        .unwrap();
        sqlx::query(
            "INSERT INTO evidence (attempt, qemu_log, screenshot) SELECT id, 'log', x'89' FROM attempts WHERE job = ?",
        )
        .bind(job)
        .execute(&mut *tx)
        .await
        .unwrap();
        tx.commit().await.unwrap();
        let id = JobId(job);
        let mut writer = self.logs.writer(id).await.unwrap();
        writer.append(b"text").await.unwrap();
        drop(writer);
        self.logs.seal(id).await.unwrap();
        if past.publish && past.passed {
            let job = self.store.job(id).await.unwrap().unwrap();
            let caps = Caps {
                files: 1,
                bytes: 100,
            };
            let mut reception = self.artifacts.receive(&job, "c0ffee", caps).await.unwrap();
            reception.store("a", 1, false, &b"a"[..]).await.unwrap();
            reception.finish().await.unwrap();
            self.artifacts.send(id).await.unwrap();
        }
        (BuildId(build), id)
    }

    fn retention(&self) -> Retention {
        let today = self.today;
        Retention {
            config: RetentionConfig::default(),
            store: self.store.clone(),
            logs: self.logs.clone(),
            artifacts: self.artifacts.clone(),
            clock: Clock::of(move || today),
            refused: Refused::default(),
        }
    }

    async fn round(&self) -> Round {
        let pulse = Pulses::default().watch("retention", Duration::from_secs(60));
        self.retention().round(&pulse).await.unwrap()
    }

    /// Every row leads to objects that are there, and every object is led to.
    async fn assert_nothing_dangles(&self) {
        let mut expected = BTreeSet::new();
        let jobs: Vec<i64> = {
            let mut tx = self.store.write().await.unwrap();
            sqlx::query_scalar("SELECT id FROM jobs")
                .fetch_all(&mut *tx)
                .await
                .unwrap()
        };
        for job in jobs.into_iter().map(JobId) {
            let log = self.store.sealed_log(job).await.unwrap();
            expected.extend(log.and_then(|row| row.sealed.object));
            for artifact in self.store.artifacts(job).await.unwrap() {
                let folder = artifact.object.rsplit_once('/').unwrap().0.to_owned();
                expected.insert(format!("{folder}/manifest.json"));
                expected.insert(artifact.object);
            }
        }
        let listed = self.objects.list("").await.unwrap();
        let there: BTreeSet<String> = listed.into_iter().map(|listed| listed.key).collect();
        assert_eq!(there, expected);
    }
}

#[tokio::test]
async fn logs_and_artefacts_go_after_their_days_and_the_job_says_so() {
    let fixture = Fixture::new().await;
    let (_, old) = fixture.ended(Past { days: 91, ..MAIN }).await;
    let (_, young) = fixture.ended(Past { days: 89, ..MAIN }).await;
    let (_, pull) = fixture.ended(Past { days: 91, ..PULL }).await;
    let round = fixture.round().await;
    assert_eq!((round.logs, round.artifacts, round.builds), (2, 1, 0));
    for (job, is_removed) in [(old, true), (young, false), (pull, true)] {
        let removed = fixture.store.removed(job).await.unwrap();
        assert_eq!(removed.log, is_removed.then_some(fixture.today));
        assert_eq!(fixture.logs.length(job).await.unwrap() == 0, is_removed);
        let attempt = fixture.store.attempts_of(job).await.unwrap()[0].id;
        let evidence = fixture.store.evidence(attempt).await.unwrap();
        assert_eq!(evidence == Evidence::default(), is_removed);
    }
    fixture.assert_nothing_dangles().await;
    assert_eq!(fixture.round().await, Round::default());
}

#[tokio::test]
async fn of_each_branch_that_publishes_the_newest_and_the_newest_that_passed_stay() {
    let fixture = Fixture::new().await;
    let old = |days| Past { days, ..MAIN };
    let (_, older) = fixture.ended(old(500)).await;
    let (passed, _) = fixture.ended(old(450)).await;
    let (failed, _) = fixture
        .ended(Past {
            passed: false,
            ..old(400)
        })
        .await;
    let (release, _) = fixture
        .ended(Past {
            branch: "release",
            ..old(900)
        })
        .await;
    // Of the highest number, which must not be given out again.
    let (highest, _) = fixture.ended(Past { days: 700, ..PULL }).await;
    fixture.round().await;
    fixture.round().await;
    for build in [passed, failed, release] {
        let job = fixture.store.jobs_of(build).await.unwrap()[0].id;
        assert!(fixture.store.sealed_log(job).await.unwrap().is_some());
    }
    for build in [passed, release] {
        let job = fixture.store.jobs_of(build).await.unwrap()[0].id;
        assert_eq!(fixture.store.artifacts(job).await.unwrap().len(), 1);
    }
    assert!(fixture.store.job(older).await.unwrap().is_none());
    assert!(fixture.store.build(highest).await.unwrap().is_some());
    fixture.assert_nothing_dangles().await;
}

#[tokio::test]
async fn records_go_with_all_that_belongs_to_them_and_the_file_shrinks() {
    let fixture = Fixture::new().await;
    for days in 400..440 {
        let (build, _) = fixture.ended(Past { days, ..PULL }).await;
        let mut tx = fixture.store.write().await.unwrap();
        sqlx::query(
            "INSERT INTO statuses (repository, sha, context_key, context, generation, state, description, target_url, \
             changed_at, version, sent_version) SELECT repository, head_sha, 'vivarium', 'vivarium', id, 'success', ?, '', \
             0, 1, 1 FROM builds WHERE id = ?",
        )
        .bind("x".repeat(20_000))
        .bind(build.0)
        .execute(&mut *tx)
        .await
        .unwrap();
        tx.commit().await.unwrap();
    }
    fixture.ended(Past { days: 1, ..MAIN }).await;
    let pages = async || -> i64 {
        let mut tx = fixture.store.write().await.unwrap();
        sqlx::query_scalar("PRAGMA page_count")
            .fetch_one(&mut *tx)
            .await
            .unwrap()
    };
    let before = pages().await;
    let round = fixture.round().await;
    assert_eq!((round.logs, round.builds), (40, 40));
    let mut tx = fixture.store.write().await.unwrap();
    for (table, left) in [
        ("builds", 1),
        ("jobs", 1),
        ("attempts", 1),
        ("evidence", 1),
        ("statuses", 0),
    ] {
        let count: i64 = sqlx::query_scalar(&format!("SELECT COUNT(*) FROM {table}"))
            .fetch_one(&mut *tx)
            .await
            .unwrap();
        assert_eq!(count, left, "{table}");
    }
    tx.rollback().await.unwrap();
    let after = pages().await;
    assert!(after < before / 2, "{after} of {before} pages");
    fixture.assert_nothing_dangles().await;
}

/// An object store that is away costs a round, never an object that nobody finds again.
#[tokio::test]
async fn rows_stay_as_long_as_their_objects_cannot_be_removed() {
    let fixture = Fixture::new().await;
    let (_, job) = fixture.ended(Past { days: 400, ..PULL }).await;
    fixture.ended(MAIN).await;
    let objects = fixture.dir.path().join("objects");
    let away = fixture.dir.path().join("away");
    std::fs::rename(&objects, &away).unwrap();
    std::fs::write(&objects, "no folder").unwrap();
    assert_eq!(fixture.round().await.refused, 1);
    assert!(fixture.store.sealed_log(job).await.unwrap().is_some());
    std::fs::remove_file(&objects).unwrap();
    std::fs::rename(&away, &objects).unwrap();
    fixture.round().await;
    assert!(fixture.store.job(job).await.unwrap().is_none());
    fixture.assert_nothing_dangles().await;
}

/// Found by reading: one object under a lock, or in a folder of another user, and nothing after it was removed any more.
#[tokio::test]
async fn what_the_store_does_not_let_go_holds_up_nothing_else() {
    let fixture = Fixture::new().await;
    let (_, stubborn) = fixture.ended(Past { days: 420, ..PULL }).await;
    let (_, other) = fixture.ended(Past { days: 410, ..PULL }).await;
    fixture.ended(MAIN).await;
    let log = fixture.store.sealed_log(stubborn).await.unwrap();
    let key = log.and_then(|row| row.sealed.object).unwrap();
    let object = fixture.dir.path().join("objects").join(key);
    let aside = object.with_extension("aside");
    std::fs::rename(&object, &aside).unwrap();
    // A folder is no file, and cannot be removed like one.
    std::fs::create_dir_all(object.join("locked")).unwrap();
    let pulse = Pulses::default().watch("retention", Duration::from_secs(60));
    let mut retention = fixture.retention();
    for _ in 0..2 {
        assert_eq!(retention.round(&pulse).await.unwrap().refused, 1);
        assert!(fixture.store.job(stubborn).await.unwrap().is_some());
        assert!(fixture.store.job(other).await.unwrap().is_none());
    }
    std::fs::remove_dir_all(&object).unwrap();
    std::fs::rename(&aside, &object).unwrap();
    assert_eq!(retention.round(&pulse).await.unwrap().logs, 1);
    assert!(fixture.store.job(stubborn).await.unwrap().is_none());
    fixture.assert_nothing_dangles().await;
}

#[tokio::test]
async fn nothing_goes_where_everything_is_to_be_kept() {
    let fixture = Fixture::new().await;
    fixture.ended(Past { days: 9999, ..PULL }).await;
    fixture.ended(MAIN).await;
    let mut retention = Retention {
        config: RetentionConfig {
            keep_logs_days: 0,
            keep_artifacts_days: 0,
            keep_records_days: 0,
            keep_deliveries_days: 0,
        },
        ..fixture.retention()
    };
    let pulse = Pulses::default().watch("retention", Duration::from_secs(60));
    assert_eq!(retention.round(&pulse).await.unwrap(), Round::default());
}
