//! Logs on real files, a real database, and a folder as the object store.

mod power_cuts;
mod sealing;
mod throughput;

use super::*;
use crate::store::Store;
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use std::collections::BTreeMap;
use std::process::Command;
use tempfile::TempDir;

struct Fixture {
    dir: TempDir,
    store: Store,
    objects: Objects,
    job: JobId,
}

impl Fixture {
    async fn new() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("state.db")).await.unwrap();
        let job = store.insert_ended_job().await;
        let place = dir.path().join("objects").display().to_string();
        let objects = Objects::open(&place, &BTreeMap::new()).unwrap();
        Fixture {
            dir,
            store,
            objects,
            job,
        }
    }

    fn logs(&self, cap: u64) -> Logs {
        let dir = self.dir.path().join("logs");
        Logs::open(dir, cap, self.store.clone(), self.objects.clone()).unwrap()
    }

    fn folder(&self) -> PathBuf {
        self.dir.path().join("logs").join(self.job.to_string())
    }
}

fn random_bytes(random: &mut StdRng, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    random.fill_bytes(&mut bytes);
    bytes
}

/// All that a reader gets from `from` to the end, in pieces of at most `max`.
async fn read_all(logs: &Logs, job: JobId, from: u64, max: usize) -> (Vec<u8>, Chunk) {
    let mut all = Vec::new();
    let mut at = from;
    loop {
        let chunk = logs.chunk(job, at, max).await.unwrap();
        assert!(chunk.bytes.len() <= max || chunk.bytes.starts_with(b"\n[vivarium"));
        all.extend_from_slice(&chunk.bytes);
        if chunk.complete || chunk.bytes.is_empty() {
            return (all, chunk);
        }
        assert!(chunk.next > at);
        at = chunk.next;
    }
}

/// Reads at many offsets and compares with what was written.
async fn assert_reads(logs: &Logs, job: JobId, written: &[u8], random: &mut StdRng) {
    for _ in 0..60 {
        let from = random.random_range(0..=written.len());
        let max = random.random_range(1..5000);
        let chunk = logs.chunk(job, from as u64, max).await.unwrap();
        let end = chunk.next as usize;
        assert_eq!(&chunk.bytes[..], &written[from..end]);
        assert!(end > from || from == written.len());
        assert!(chunk.bytes.len() <= max);
    }
}

#[tokio::test]
async fn a_log_within_its_cap_is_kept_to_the_byte() {
    let fixture = Fixture::new().await;
    for seed in 0..4 {
        let mut random = StdRng::seed_from_u64(seed);
        let job = fixture.store.insert_ended_job().await;
        let logs = fixture.logs(1 << 18);
        let mut written: Vec<u8> = Vec::new();
        let mut writer = logs.writer(job).await.unwrap();
        while written.len() < 200_000 {
            let length = random.random_range(0..9000);
            let bytes = random_bytes(&mut random, length);
            writer.append(&bytes).await.unwrap();
            written.extend_from_slice(&bytes);
            assert_eq!(writer.len(), written.len() as u64);
            assert_eq!(logs.length(job).await.unwrap(), written.len() as u64);
            let (tail, last) =
                read_all(&logs, job, written.len() as u64 - bytes.len() as u64, 4000).await;
            assert_eq!(tail, bytes);
            assert!(!last.complete);
        }
        assert_reads(&logs, job, &written, &mut random).await;
        drop(writer);
        logs.seal(job).await.unwrap();
        assert_reads(&logs, job, &written, &mut random).await;
        let (all, last) = read_all(&logs, job, 0, 70_000).await;
        assert_eq!(all, written);
        assert!(last.complete);
    }
}

#[tokio::test]
async fn over_its_cap_a_log_keeps_head_and_tail_and_says_what_is_missing() {
    let fixture = Fixture::new().await;
    let (logs, job) = (fixture.logs(64 << 10), fixture.job);
    let mut random = StdRng::seed_from_u64(7);
    let written = random_bytes(&mut random, 1_300_000);
    let mut writer = logs.writer(job).await.unwrap();
    for bytes in written.chunks(10_000) {
        writer.append(bytes).await.unwrap();
        let on_disk: u64 = std::fs::read_dir(fixture.folder())
            .unwrap()
            .map(|entry| entry.unwrap())
            .filter(|entry| entry.path().extension().is_some_and(|e| e == "seg"))
            .map(|entry| entry.metadata().unwrap().len())
            .sum();
        assert!(on_disk <= 64 << 10, "{on_disk}");
    }
    assert_eq!(logs.length(job).await.unwrap(), 1_300_000);
    let inside = logs.chunk(job, 40_000, 1000).await.unwrap();
    let tail_from = inside.next as usize;
    let tail = written.len() - tail_from;
    assert!((28 << 10..=32 << 10).contains(&tail), "{tail}");
    let line = String::from_utf8(inside.bytes.to_vec()).unwrap();
    assert!(
        line.contains("bytes left out here: the log is over its cap of 64 KiB]\n"),
        "{line}"
    );
    let mut expected = written[..32 << 10].to_vec();
    expected.extend_from_slice(&notice(tail_from as u64 - (32 << 10), 64 << 10));
    expected.extend_from_slice(&written[tail_from..]);
    assert_eq!(read_all(&logs, job, 0, 5000).await.0, expected);

    // Sealed it reads the same, by us and by `zstd -d`.
    drop(writer);
    logs.seal(job).await.unwrap();
    assert_eq!(read_all(&logs, job, 0, 5000).await.0, expected);
    assert_eq!(read_all(&logs, job, 0, 1 << 20).await.0, expected);
    assert_eq!(
        logs.chunk(job, 40_000, 1000).await.unwrap().bytes,
        inside.bytes
    );
    assert_eq!(logs.length(job).await.unwrap(), 1_300_000);
    let object = fixture
        .dir
        .path()
        .join(format!("objects/logs/{job}.log.zst"));
    let packed = std::fs::read(&object).unwrap();
    assert_eq!(zstd::stream::decode_all(&packed[..]).unwrap(), expected);
    if let Ok(output) = Command::new("zstd").arg("-dc").arg(&object).output() {
        assert_eq!(output.stdout, expected);
    }
}

#[tokio::test]
async fn a_restart_in_the_middle_continues_the_stream() {
    let fixture = Fixture::new().await;
    let job = fixture.job;
    let mut random = StdRng::seed_from_u64(4);
    let mut written: Vec<u8> = Vec::new();
    for round in 0..8 {
        // Another cap in the configuration does not touch a log that was begun.
        let logs = fixture.logs(if round == 0 { 32 << 10 } else { 7777 * round });
        assert_eq!(logs.length(job).await.unwrap(), written.len() as u64);
        let mut writer = logs.writer(job).await.unwrap();
        assert_eq!(writer.len(), written.len() as u64);
        for _ in 0..random.random_range(5..12) {
            let length = random.random_range(0..3000);
            let bytes = random_bytes(&mut random, length);
            writer.append(&bytes).await.unwrap();
            written.extend_from_slice(&bytes);
        }
        if round % 2 == 0 {
            assert_eq!(writer.sync().await.unwrap(), written.len() as u64);
        }
    }
    let logs = fixture.logs(32 << 10);
    assert!(
        written.len() > 32 << 10,
        "the cap is met: {}",
        written.len()
    );
    let head = 16 << 10;
    assert_eq!(
        read_all(&logs, job, 0, 900).await.0[..head],
        written[..head]
    );
    let tail_from = logs.chunk(job, head as u64, 1).await.unwrap().next;
    assert_eq!(
        read_all(&logs, job, tail_from, 900).await.0,
        written[tail_from as usize..]
    );
    assert_eq!(logs.unsealed().await.unwrap(), vec![job]);
}

#[tokio::test]
async fn a_torn_last_write_leaves_a_log_that_goes_on() {
    let fixture = Fixture::new().await;
    let job = fixture.job;
    let logs = fixture.logs(16 << 10);
    let mut writer = logs.writer(job).await.unwrap();
    writer.append(&[b'a'; 3000]).await.unwrap();
    drop((writer, logs));
    // As after a power cut: the second segment lost its end, the last is still there.
    let second = fixture.folder().join(format!("{:020}.seg", 1024));
    std::fs::OpenOptions::new()
        .write(true)
        .open(second)
        .unwrap()
        .set_len(100)
        .unwrap();
    let logs = fixture.logs(16 << 10);
    assert_eq!(logs.length(job).await.unwrap(), 1124);
    let mut writer = logs.writer(job).await.unwrap();
    writer.append(&[b'b'; 2000]).await.unwrap();
    let mut expected = vec![b'a'; 1124];
    expected.extend([b'b'; 2000]);
    assert_eq!(read_all(&logs, job, 0, 5000).await.0, expected);
    drop((writer, logs));
    let logs = fixture.logs(16 << 10);
    assert_eq!(read_all(&logs, job, 0, 5000).await.0, expected);
    // A reader that knew more is led back to the end.
    let chunk = logs.chunk(job, 1_000_000, 10).await.unwrap();
    assert_eq!((chunk.next, chunk.complete), (3124, false));
}

/// Found by the fuzzer: `0.seg` was taken for the first segment, and reading then failed because no file had its name.
#[tokio::test]
async fn files_that_only_resemble_segments_are_left_aside() {
    let fixture = Fixture::new().await;
    let job = fixture.job;
    std::fs::create_dir_all(fixture.folder()).unwrap();
    for name in [
        "0.seg",
        "+0000000000000000000.seg",
        "18446744073709551615.seg",
    ] {
        std::fs::write(fixture.folder().join(name), b"no output").unwrap();
    }
    let logs = fixture.logs(16 << 10);
    assert_eq!(logs.length(job).await.unwrap(), 0);
    let mut writer = logs.writer(job).await.unwrap();
    writer.append(b"output\n").await.unwrap();
    assert_eq!(read_all(&logs, job, 0, 100).await.0, b"output\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_gets_everything_while_it_is_written_and_learns_the_end() {
    let fixture = Fixture::new().await;
    let (logs, job) = (fixture.logs(DEFAULT_CAP_BYTES), fixture.job);
    let follow = |logs: Logs, max: usize| async move {
        let mut all = Vec::new();
        let mut at = 0;
        loop {
            let chunk = logs.chunk(job, at, max).await.unwrap();
            all.extend_from_slice(&chunk.bytes);
            at = chunk.next;
            if chunk.complete {
                return all;
            }
            if chunk.bytes.is_empty() {
                logs.wait_beyond(job, at).await.unwrap();
            }
        }
    };
    // They are there before the log is.
    let followers: Vec<_> = [100_000, 3_000_000, 7777]
        .into_iter()
        .map(|max| tokio::spawn(follow(logs.clone(), max)))
        .collect();
    let mut random = StdRng::seed_from_u64(11);
    let mut written = Vec::new();
    let mut writer = logs.writer(job).await.unwrap();
    for _ in 0..400 {
        let length = random.random_range(1..20_000);
        let bytes = random_bytes(&mut random, length);
        writer.append(&bytes).await.unwrap();
        written.extend_from_slice(&bytes);
    }
    drop(writer);
    logs.seal(job).await.unwrap();
    for follower in followers {
        assert!(
            follower.await.unwrap() == written,
            "a follower missed something"
        );
    }
    let end = logs.wait_beyond(job, u64::MAX).await.unwrap();
    assert_eq!(
        end,
        Progress {
            length: written.len() as u64,
            complete: true
        }
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_the_cap_overtakes_reads_on_in_the_tail() {
    let fixture = Fixture::new().await;
    let (logs, job) = (fixture.logs(8192), fixture.job);
    let mut writer = logs.writer(job).await.unwrap();
    let follower = tokio::spawn({
        let logs = logs.clone();
        async move {
            let mut at = 0;
            loop {
                let chunk = logs.chunk(job, at, 300).await.unwrap();
                assert!(chunk.next >= at);
                at = chunk.next;
                if chunk.complete {
                    return at;
                }
                if chunk.bytes.is_empty() {
                    logs.wait_beyond(job, at).await.unwrap();
                }
            }
        }
    });
    for _ in 0..2000 {
        writer.append(&[b'x'; 700]).await.unwrap();
    }
    drop(writer);
    logs.seal(job).await.unwrap();
    assert_eq!(follower.await.unwrap(), 1_400_000);
}

#[tokio::test]
async fn one_writer_at_a_time_and_none_while_sealing() {
    let fixture = Fixture::new().await;
    let (logs, job) = (fixture.logs(DEFAULT_CAP_BYTES), fixture.job);
    let mut writer = logs.writer(job).await.unwrap();
    writer.append(b"one\n").await.unwrap();
    assert!(matches!(logs.writer(job).await, Err(LogError::Busy { .. })));
    assert!(matches!(logs.seal(job).await, Err(LogError::Busy { .. })));
    let anew = logs.begin_anew(job).await;
    assert!(matches!(anew, Err(LogError::Busy { .. })));
    drop(writer);
    let mut writer = logs.writer(job).await.unwrap();
    writer.append(b"two\n").await.unwrap();
    drop(writer);
    logs.seal(job).await.unwrap();
    assert_eq!(read_all(&logs, job, 0, 100).await.0, b"one\ntwo\n");
}

#[tokio::test]
async fn a_cancelled_append_frees_the_log_for_the_next_writer() {
    let fixture = Fixture::new().await;
    let (logs, job) = (fixture.logs(DEFAULT_CAP_BYTES), fixture.job);
    let bytes = vec![b'x'; 6 << 20];
    let mut writer = logs.writer(job).await.unwrap();
    let mut cancelled = false;
    {
        let append = writer.append(&bytes);
        tokio::pin!(append);
        // One look starts the thread, and is hardly enough for it to end; if it is, nothing was cancelled.
        if futures::poll!(&mut append).is_pending() {
            cancelled = true;
        }
    }
    if cancelled {
        let refused = writer.append(b"y").await;
        assert!(matches!(refused, Err(LogError::Abandoned { .. })));
    }
    drop(writer);
    let mut writer = logs.writer(job).await.unwrap();
    assert_eq!(
        writer.len(),
        bytes.len() as u64,
        "the thread has ended before"
    );
    writer.append(b"y").await.unwrap();
    let (all, _) = read_all(&logs, job, bytes.len() as u64 - 1, 10).await;
    assert_eq!(all, b"xy");
}
