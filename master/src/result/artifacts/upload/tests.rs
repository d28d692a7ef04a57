use super::*;
use crate::model::{BuildId, JobPlan, JobState, Priority, Timeouts};
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
    job: Job,
}

impl Fixture {
    async fn new() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("state.db")).await.unwrap();
        let id = store.insert_bare_job().await;
        let place = dir.path().join("objects").display().to_string();
        let objects = Objects::open(&place, &BTreeMap::new()).unwrap();
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
            job,
        }
    }

    async fn begin(&self) -> ArtifactUpload {
        let (objects, store) = (self.objects.clone(), self.store.clone());
        ArtifactUpload::begin(objects, store, &self.job, "c0ffee", CAPS)
            .await
            .unwrap()
    }

    async fn keys(&self) -> Vec<String> {
        let listed = self.objects.list("").await.unwrap();
        listed.into_iter().map(|l| l.key).collect()
    }
}

const FOLDER: &str = "artifacts/octo/tools/build-12/unit%2F..%2Fx/freebsd-14";

#[tokio::test]
async fn what_is_stored_is_whole_and_the_manifest_says_so() {
    let fixture = Fixture::new().await;
    let mut upload = fixture.begin().await;
    let tool = vec![7u8; 700_001];
    upload
        .store("bin/tool#1", tool.len() as u64, true, &tool[..])
        .await
        .unwrap();
    upload.store("empty", 0, false, &b""[..]).await.unwrap();
    assert!(
        !fixture
            .keys()
            .await
            .iter()
            .any(|key| key.ends_with("manifest.json"))
    );
    let manifest = upload.finish().await.unwrap();
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
    let mut upload = fixture.begin().await;
    for announced in [0, 3, 5, 600_000] {
        let error = upload
            .store("a", announced, false, &b"four"[..])
            .await
            .unwrap_err();
        assert_eq!(error.fault(), Fault::Session, "{error}");
    }
    assert_eq!(fixture.keys().await, Vec::<String>::new());
    // Its name is free again.
    upload.store("a", 4, false, &b"four"[..]).await.unwrap();
    assert_eq!(upload.finish().await.unwrap().artifacts.len(), 1);
}

#[tokio::test]
async fn caps_and_names_are_the_jobs_own_fault_and_hurt_nothing_else() {
    let fixture = Fixture::new().await;
    let mut upload = fixture.begin().await;
    upload.store("a", 1, false, &b"1"[..]).await.unwrap();
    for (name, size) in [
        ("A", 1),
        ("../a", 1),
        ("a/b", 1),
        ("big", 1 << 20),
        ("manifest.json", 1),
        ("x", u64::MAX),
    ] {
        let error = upload
            .store(name, size, false, &b"1"[..])
            .await
            .unwrap_err();
        assert_eq!(error.fault(), Fault::Job, "{error}");
    }
    for name in ["b", "c", "d"] {
        upload.store(name, 1, false, &b"1"[..]).await.unwrap();
    }
    let error = upload.store("e", 1, false, &b"1"[..]).await.unwrap_err();
    assert_eq!(error.to_string(), "the job has more than 4 artefacts");
    assert_eq!(upload.finish().await.unwrap().artifacts.len(), 4);
}

#[tokio::test]
async fn the_next_attempt_begins_with_nothing_of_the_last() {
    let fixture = Fixture::new().await;
    let mut first = fixture.begin().await;
    first.store("old", 3, false, &b"old"[..]).await.unwrap();
    first.finish().await.unwrap();
    let mut second = fixture.begin().await;
    assert_eq!(fixture.keys().await, Vec::<String>::new());
    assert_eq!(fixture.store.artifacts(fixture.job.id).await.unwrap(), []);
    second.store("new", 3, false, &b"new"[..]).await.unwrap();
    second.finish().await.unwrap();
    assert_eq!(
        fixture.store.artifacts(fixture.job.id).await.unwrap()[0].path,
        "new"
    );
    drop(fixture.dir);
}
