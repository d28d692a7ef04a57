//! A log that is complete: sealed, read back, removed, and what a crash leaves.

use super::*;

#[tokio::test]
async fn a_crash_between_any_steps_of_sealing_is_mended_by_sealing_again() {
    for steps in 0..4 {
        let fixture = Fixture::new().await;
        let job = fixture.job;
        let written = random_bytes(&mut StdRng::seed_from_u64(steps), 2_500_000);
        {
            let logs = fixture.logs(DEFAULT_CAP_BYTES);
            logs.writer(job)
                .await
                .unwrap()
                .append(&written)
                .await
                .unwrap();
            let Whereabouts::Live(live) = logs.find(job).await.unwrap() else {
                panic!("the log is live");
            };
            if steps > 0 {
                let row = logs.upload_log(&live).await.unwrap();
                if steps > 1 {
                    logs.record_sealed(&live, row).await.unwrap();
                }
                if steps > 2 {
                    logs.remove_segments(job).await.unwrap();
                }
            }
        }
        let logs = fixture.logs(DEFAULT_CAP_BYTES);
        let open: Vec<JobId> = if steps < 3 { vec![job] } else { vec![] };
        assert_eq!(logs.unsealed().await.unwrap(), open, "after {steps} steps");
        assert_eq!(read_all(&logs, job, 0, 1 << 20).await.0, written);
        for _ in 0..2 {
            logs.seal(job).await.unwrap();
            assert!(!fixture.folder().exists());
            let (all, last) = read_all(&logs, job, 0, 1 << 20).await;
            assert_eq!(all, written);
            assert!(last.complete);
        }
        assert_eq!(logs.unsealed().await.unwrap(), vec![]);
        let row = fixture.store.sealed_log(job).await.unwrap().unwrap();
        assert_eq!(row.length, written.len() as u64);
        assert_eq!(row.sealed.frames.len(), 3);
        assert!(matches!(
            logs.writer(job).await,
            Err(LogError::Complete { .. })
        ));
    }
}

#[tokio::test]
async fn a_job_without_output_is_sealed_empty() {
    let fixture = Fixture::new().await;
    let (logs, job) = (fixture.logs(DEFAULT_CAP_BYTES), fixture.job);
    let nothing = logs.chunk(job, 0, 100).await.unwrap();
    assert_eq!((nothing.next, nothing.complete), (0, false));
    logs.seal(job).await.unwrap();
    let end = logs.chunk(job, 0, 100).await.unwrap();
    assert_eq!((end.bytes.len(), end.next, end.complete), (0, 0, true));
    assert!(logs.wait_beyond(job, 0).await.unwrap().complete);
    assert_eq!(fixture.objects.list("").await.unwrap(), []);
}

#[tokio::test]
async fn a_removed_log_leaves_a_note_and_nothing_else() {
    let fixture = Fixture::new().await;
    let (logs, job) = (fixture.logs(DEFAULT_CAP_BYTES), fixture.job);
    for _ in 0..2 {
        let mut writer = logs.writer(job).await.unwrap();
        writer.append(b"text").await.unwrap();
        drop(writer);
        logs.seal(job).await.unwrap();
        assert_eq!(read_all(&logs, job, 0, 10).await.0, b"text");
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        for _ in 0..2 {
            logs.remove(job, now).await.unwrap();
        }
        assert!(!fixture.folder().exists());
        assert_eq!(fixture.objects.list("").await.unwrap(), []);
        assert_eq!(fixture.store.sealed_log(job).await.unwrap(), None);
        assert_eq!(fixture.store.removed(job).await.unwrap().log, Some(now));
        assert_eq!(logs.length(job).await.unwrap(), 0);
    }
}

#[tokio::test]
async fn a_damaged_object_is_told_not_shown() {
    let fixture = Fixture::new().await;
    let (logs, job) = (fixture.logs(DEFAULT_CAP_BYTES), fixture.job);
    logs.writer(job)
        .await
        .unwrap()
        .append(&[b'x'; 50_000])
        .await
        .unwrap();
    logs.seal(job).await.unwrap();
    let object = fixture
        .dir
        .path()
        .join(format!("objects/logs/{job}.log.zst"));
    let mut packed = std::fs::read(&object).unwrap();
    let middle = packed.len() / 2;
    packed[middle] ^= 0x55;
    std::fs::write(&object, packed).unwrap();
    assert!(matches!(
        logs.chunk(job, 0, 100).await,
        Err(LogError::Damaged { .. })
    ));
}

#[tokio::test]
async fn times_tell_when_an_offset_came_before_and_after_sealing() {
    let fixture = Fixture::new().await;
    let (logs, job) = (fixture.logs(DEFAULT_CAP_BYTES), fixture.job);
    let before = Timestamp::now();
    let mut writer = logs.writer(job).await.unwrap();
    for _ in 0..10 {
        writer.append(&[b'x'; 40_000]).await.unwrap();
    }
    drop(writer);
    let times = logs.times(job).await.unwrap();
    let offsets: Vec<u64> = times.iter().map(|(_, offset)| *offset).collect();
    assert!(
        offsets.starts_with(&[0]) && offsets.contains(&80_000),
        "{offsets:?}"
    );
    assert!(
        times
            .iter()
            .all(|(time, _)| time.as_millisecond() >= before.as_millisecond())
    );
    logs.seal(job).await.unwrap();
    assert_eq!(logs.times(job).await.unwrap(), times);
}

/// A rerun needs nothing of the object store.
#[tokio::test]
async fn a_log_begins_anew_while_the_store_is_away() {
    let fixture = Fixture::new().await;
    let (logs, job) = (fixture.logs(DEFAULT_CAP_BYTES), fixture.job);
    let append = async |text: &[u8]| {
        let mut writer = logs.writer(job).await.unwrap();
        writer.append(text).await.unwrap();
    };
    append(b"first run").await;
    logs.seal(job).await.unwrap();
    let objects = fixture.dir.path().join("objects");
    let away = fixture.dir.path().join("away");
    std::fs::rename(&objects, &away).unwrap();
    std::fs::write(&objects, "no folder").unwrap();
    logs.begin_anew(job).await.unwrap();
    append(b"second").await;
    assert!(matches!(logs.seal(job).await, Err(LogError::Object { .. })));
    // It waits, and can be read.
    assert_eq!(logs.unsealed().await.unwrap(), [job]);
    assert_eq!(logs.waiting_bytes(job).await.unwrap(), 6);
    assert_eq!(read_all(&logs, job, 0, 100).await.0, b"second");
    std::fs::remove_file(&objects).unwrap();
    std::fs::rename(&away, &objects).unwrap();
    logs.seal(job).await.unwrap();
    assert_eq!(read_all(&logs, job, 0, 100).await.0, b"second");
    assert_eq!(logs.unsealed().await.unwrap(), []);
}

/// The job was taken up again between the look at it and the sealing of its log.
#[tokio::test]
async fn the_log_of_a_job_that_runs_again_is_not_sealed() {
    let fixture = Fixture::new().await;
    let (logs, job) = (fixture.logs(DEFAULT_CAP_BYTES), fixture.job);
    fixture.store.set_bare_job_state(job, "running").await;
    assert!(matches!(
        logs.seal(job).await,
        Err(LogError::Overtaken { .. })
    ));
    let mut writer = logs.writer(job).await.unwrap();
    writer.append(b"goes on").await.unwrap();
    assert_eq!(read_all(&logs, job, 0, 100).await.0, b"goes on");
}

#[tokio::test]
async fn followers_learn_the_end_before_the_log_is_sealed() {
    let fixture = Fixture::new().await;
    let (logs, job) = (fixture.logs(DEFAULT_CAP_BYTES), fixture.job);
    let mut writer = logs.writer(job).await.unwrap();
    writer.append(b"all").await.unwrap();
    let follower = tokio::spawn({
        let logs = logs.clone();
        async move { logs.wait_beyond(job, 3).await.unwrap() }
    });
    drop(writer);
    while !follower.is_finished() {
        logs.close(job).await.unwrap();
        tokio::task::yield_now().await;
    }
    let progress = follower.await.unwrap();
    assert_eq!((progress.length, progress.complete), (3, true));
}
