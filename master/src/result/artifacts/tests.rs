use super::*;
use crate::model::{BuildId, JobPlan, JobState, Priority, Timeouts};
use bytes::Bytes;
use std::collections::BTreeMap;
use tempfile::TempDir;

const CAPS: Caps = Caps {
    files: 4,
    bytes: 1 << 20,
};

struct Fixture {
    dir: TempDir,
    store: Store,
    objects: Objects,
    artifacts: Artifacts,
    job: Job,
}

impl Fixture {
    async fn new() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("state.db")).await.unwrap();
        let id = store.insert_ended_job().await;
        let place = dir.path().join("objects").display().to_string();
        let objects = Objects::open(&place, &BTreeMap::new()).unwrap();
        let waiting = dir.path().join("artifacts");
        let artifacts = Artifacts::open(waiting, store.clone(), objects.clone()).unwrap();
        let job = Job {
            id,
            build: BuildId(12),
            repository: "octo/tools".to_string(),
            suite: "unit/../x".to_string(),
            platform: "freebsd-14".to_string(),
            plan: JobPlan {
                steps: Vec::new(),
                timeouts: Timeouts {
                    job_secs: 60,
                    no_output_secs: 60,
                },
                artifacts: Vec::new(),
                reports: Vec::new(),
                history: false,
                known_issue: None,
            },
            priority: Priority::Merge,
            state: JobState::Running,
            attempts: 1,
            attempt: None,
            cancel: None,
            ending: None,
            queued_at: Timestamp::UNIX_EPOCH,
            not_before: Timestamp::UNIX_EPOCH,
            started_at: None,
            finished_at: None,
        };
        Fixture {
            dir,
            store,
            objects,
            artifacts,
            job,
        }
    }

    async fn begin(&self) -> Reception {
        self.artifacts
            .receive(&self.job, "c0ffee", CAPS)
            .await
            .unwrap()
    }

    /// Receives a set of these files, each with its own name in it.
    async fn receive(&self, paths: &[&str]) {
        let mut reception = self.begin().await;
        for path in paths {
            let bytes = path.as_bytes();
            reception
                .store(path, bytes.len() as u64, false, bytes)
                .await
                .unwrap();
        }
        reception.finish().await.unwrap();
    }

    async fn send(&self) {
        self.artifacts.send(self.job.id).await.unwrap();
    }

    /// What a reader gets of each artefact.
    async fn read_all(&self) -> Vec<(String, Vec<u8>)> {
        let mut all = Vec::new();
        for row in self.store.artifacts(self.job.id).await.unwrap() {
            let fetched = self.artifacts.read(self.job.id, &row).await.unwrap();
            let size = fetched.size;
            let pieces: Vec<Bytes> = fetched.bytes.try_collect().await.unwrap();
            let bytes = pieces.concat();
            assert_eq!(bytes.len() as u64, size);
            assert_eq!(hex::encode(Sha256::digest(&bytes)), row.sha256);
            all.push((row.path, bytes));
        }
        all
    }

    async fn is_waiting(&self) -> bool {
        self.artifacts.waiting().await.unwrap() == [self.job.id]
    }

    async fn keys(&self) -> Vec<String> {
        let listed = self.objects.list("").await.unwrap();
        listed.into_iter().map(|l| l.key).collect()
    }
}

const FOLDER: &str = "artifacts/octo/tools/build-12/unit%2F..%2Fx/freebsd-14";

#[tokio::test]
async fn what_was_received_waits_is_read_and_goes_to_the_store_whole() {
    let fixture = Fixture::new().await;
    let mut reception = fixture.begin().await;
    let tool = vec![7u8; 700_001];
    reception
        .store("bin/tool#1", tool.len() as u64, true, &tool[..])
        .await
        .unwrap();
    reception.store("empty", 0, false, &b""[..]).await.unwrap();
    // Not a set yet, and nothing to read.
    assert_eq!(fixture.read_all().await, []);
    let manifest = reception.finish().await.unwrap();
    let whole = [
        ("bin/tool#1".to_string(), tool.clone()),
        ("empty".to_string(), Vec::new()),
    ];
    assert_eq!(fixture.read_all().await, whole);
    assert!(fixture.is_waiting().await);
    assert_eq!(
        fixture
            .artifacts
            .waiting_bytes(fixture.job.id)
            .await
            .unwrap(),
        tool.len() as u64
    );
    assert_eq!(fixture.keys().await, Vec::<String>::new());

    fixture.send().await;
    assert!(!fixture.is_waiting().await);
    assert_eq!(fixture.read_all().await, whole);
    assert_eq!(
        fixture.keys().await,
        ["bin/tool%231", "empty", "manifest.json"].map(|path| format!("{FOLDER}/{path}"))
    );
    let stored = fixture
        .objects
        .get_range(&format!("{FOLDER}/bin/tool%231"), 0..1 << 30)
        .await
        .unwrap();
    assert_eq!(stored, tool);
    let written = fixture
        .objects
        .get_range(&format!("{FOLDER}/manifest.json"), 0..1 << 20)
        .await
        .unwrap();
    assert_eq!(
        serde_json::from_slice::<Manifest>(&written).unwrap(),
        manifest
    );
    assert_eq!(
        (manifest.commit.as_str(), manifest.build.as_str()),
        ("c0ffee", "build-12")
    );
    assert_eq!(manifest.artifacts[0].path, "bin/tool#1");
    assert!(manifest.artifacts[0].executable && !manifest.artifacts[1].executable);
    assert_eq!(
        manifest.artifacts[0].sha256,
        hex::encode(Sha256::digest(&tool))
    );
    let rows = fixture.store.artifacts(fixture.job.id).await.unwrap();
    assert_eq!(rows.len(), 2);
    assert_eq!(
        (rows[0].path.as_str(), rows[0].size),
        ("bin/tool#1", 700_001)
    );
    assert_eq!(rows[0].object, format!("{FOLDER}/bin/tool%231"));
}

#[tokio::test]
async fn a_file_of_another_size_than_announced_is_given_up() {
    let fixture = Fixture::new().await;
    let mut reception = fixture.begin().await;
    for announced in [0, 3, 5, 600_000] {
        let error = reception
            .store("a", announced, false, &b"four"[..])
            .await
            .unwrap_err();
        assert_eq!(error.fault(), Fault::Session, "{error}");
    }
    let waiting = fixture.artifacts.waiting_bytes(fixture.job.id);
    assert_eq!(waiting.await.unwrap(), 0);
    // Its name is free again.
    reception.store("a", 4, false, &b"four"[..]).await.unwrap();
    assert_eq!(reception.finish().await.unwrap().artifacts.len(), 1);
}

#[tokio::test]
async fn caps_and_names_are_the_jobs_own_fault_and_hurt_nothing_else() {
    let fixture = Fixture::new().await;
    let mut reception = fixture.begin().await;
    reception.store("a", 1, false, &b"1"[..]).await.unwrap();
    for (name, size) in [
        ("A", 1),
        ("../a", 1),
        ("a/b", 1),
        ("big", 1 << 20),
        ("manifest.json", 1),
        ("x", u64::MAX),
    ] {
        let error = reception
            .store(name, size, false, &b"1"[..])
            .await
            .unwrap_err();
        assert_eq!(error.fault(), Fault::Job, "{error}");
    }
    for name in ["b", "c", "d"] {
        reception.store(name, 1, false, &b"1"[..]).await.unwrap();
    }
    let error = reception.store("e", 1, false, &b"1"[..]).await.unwrap_err();
    assert_eq!(error.to_string(), "the job has more than 4 artefacts");
    assert_eq!(reception.finish().await.unwrap().artifacts.len(), 4);
}

#[tokio::test]
async fn the_next_attempt_begins_with_nothing_of_the_last() {
    let fixture = Fixture::new().await;
    fixture.receive(&["old", "both"]).await;
    fixture.send().await;
    fixture.receive(&["new", "both"]).await;
    let paths = async || -> Vec<String> {
        let all = fixture.read_all().await;
        all.into_iter().map(|(path, _)| path).collect()
    };
    assert_eq!(paths().await, ["both", "new"]);
    fixture.send().await;
    assert_eq!(paths().await, ["both", "new"]);
    assert_eq!(
        fixture.keys().await,
        ["both", "manifest.json", "new"].map(|path| format!("{FOLDER}/{path}"))
    );
}

#[tokio::test]
async fn a_set_that_was_only_begun_is_never_seen() {
    let fixture = Fixture::new().await;
    let mut reception = fixture.begin().await;
    reception.store("a", 1, false, &b"1"[..]).await.unwrap();
    drop(reception);
    assert!(fixture.is_waiting().await);
    fixture.send().await;
    assert!(!fixture.is_waiting().await);
    assert_eq!(fixture.keys().await, Vec::<String>::new());
    assert_eq!(fixture.read_all().await, []);
}

/// Killed at any point of it, sending begins again and ends the same.
#[tokio::test]
async fn a_crash_while_a_set_is_sent_is_mended_by_sending_again() {
    for crash_after in 0..3 {
        let fixture = Fixture::new().await;
        fixture.receive(&["a", "b"]).await;
        let folder = fixture.artifacts.folder(fixture.job.id);
        for path in ["a", "b"].into_iter().take(crash_after) {
            let key = format!("{FOLDER}/{path}");
            let bytes = Bytes::from_static(path.as_bytes());
            fixture.objects.put(&key, bytes).await.unwrap();
            std::fs::remove_file(file_of(&folder, &key)).unwrap();
            assert_eq!(fixture.read_all().await.len(), 2);
        }
        // Of the file that was on its way a part is left beside it.
        let objects = fixture.dir.path().join("objects").join(FOLDER);
        std::fs::create_dir_all(&objects).unwrap();
        std::fs::write(objects.join("b#1"), "half").unwrap();
        fixture.send().await;
        assert_eq!(
            fixture.keys().await,
            ["a", "b", "manifest.json"].map(|path| format!("{FOLDER}/{path}"))
        );
        assert_eq!(fixture.read_all().await.len(), 2);
        assert_eq!(objects.join("b#1").exists(), crash_after == 2);
    }
}

#[tokio::test]
async fn a_store_that_refuses_leaves_the_set_here_to_be_read() {
    let fixture = Fixture::new().await;
    fixture.receive(&["a"]).await;
    let objects = fixture.dir.path().join("objects");
    std::fs::remove_dir(&objects).unwrap();
    std::fs::write(&objects, "no folder").unwrap();
    let error = fixture.artifacts.send(fixture.job.id).await.unwrap_err();
    assert!(matches!(error, ArtifactError::Object { .. }), "{error}");
    assert_eq!(fixture.read_all().await.len(), 1);
    assert!(fixture.is_waiting().await);
    std::fs::remove_file(&objects).unwrap();
    fixture.send().await;
    assert_eq!(fixture.read_all().await.len(), 1);
}

#[tokio::test]
async fn removed_artefacts_leave_nothing_sent_or_not() {
    for is_sent in [false, true] {
        let fixture = Fixture::new().await;
        fixture.receive(&["a", "b"]).await;
        if is_sent {
            fixture.send().await;
        }
        let now = Timestamp::now();
        fixture.artifacts.remove(&fixture.job, now).await.unwrap();
        assert_eq!(fixture.keys().await, Vec::<String>::new());
        assert_eq!(fixture.read_all().await, []);
        assert!(!fixture.is_waiting().await);
    }
}
