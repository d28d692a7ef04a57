//! What a power cut leaves of a log that grows: what was synced, and of the rest any beginning.
//!
//! ```text
//!  append, append, sync ─► each file as it was then, at least
//!  append, append ───────► the folder as it was after any of these; of each file any length from then on
//! ```
//!
//! A file system may write content late, but it changes folders in order, and a file has no length before its content.

use super::*;

/// The files of a log at one moment.
type Files = BTreeMap<String, Vec<u8>>;

fn look(folder: &Path) -> Files {
    std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let name = entry.file_name().to_string_lossy().into_owned();
            (name, std::fs::read(entry.path()).unwrap())
        })
        .collect()
}

/// What the disk may hold: `moments` are the folder as it was at the last sync and after each change since then.
fn torn(moments: &[Files], random: &mut StdRng) -> Files {
    let synced = &moments[0];
    let moment = random.random_range(0..moments.len());
    let mut left = Files::new();
    for name in moments[moment].keys() {
        let newest = moments.iter().rev().find_map(|files| files.get(name));
        let newest = newest.expect("it is in one of them");
        let least = synced.get(name).map_or(0, Vec::len);
        let length = match name.as_str() {
            // Synced before it got its name.
            "cap" => newest.len(),
            // Replaced as a whole, or torn anywhere.
            "times" => random.random_range(0..=newest.len()),
            _ => random.random_range(least..=newest.len()),
        };
        left.insert(name.clone(), newest[..length].to_vec());
    }
    left
}

/// Everything that is read of it is what was written there; only a log that was over its cap once has a gap.
async fn assert_true(logs: &Logs, job: JobId, was_over: Option<u64>, written: &[u8]) {
    let mut at = 0;
    loop {
        let chunk = logs.chunk(job, at, 900).await.unwrap();
        if chunk.bytes.is_empty() {
            return;
        }
        let (from, to) = (at as usize, chunk.next as usize);
        if chunk.bytes[..] != written[from..to] {
            let cap = was_over.unwrap_or_else(|| panic!("bytes {from} to {to} are lost"));
            assert_eq!(chunk.bytes, notice(chunk.next - at, cap), "from byte {at}");
        }
        at = chunk.next;
    }
}

#[tokio::test]
async fn a_power_cut_takes_nothing_that_was_synced_and_the_log_goes_on() {
    let fixture = Fixture::new().await;
    for seed in 0..40 {
        let mut random = StdRng::seed_from_u64(seed);
        let job = JobId(1000 + seed as i64);
        let cap = random.random_range(4096..20_000);
        let folder = fixture.dir.path().join("logs").join(job.to_string());
        let mut written: Vec<u8> = Vec::new();
        let mut longest = 0;
        // The power goes several times in the life of a long job.
        for _ in 0..random.random_range(1..4) {
            let logs = fixture.logs(cap);
            let mut writer = logs.writer(job).await.unwrap();
            // What the cut before left is on the disk.
            let mut synced = writer.len();
            let mut moments = vec![look(&folder)];
            for _ in 0..random.random_range(1..40) {
                if random.random_bool(0.2) {
                    let at_sync = look(&folder);
                    let syncing = writer.sync_beside().unwrap();
                    let mut since = Vec::new();
                    for _ in 0..random.random_range(0..3) {
                        append(&mut writer, &mut written, &mut random).await;
                        since.push(look(&folder));
                    }
                    synced = writer.synced(&syncing.await.unwrap());
                    moments = [vec![at_sync], since].concat();
                }
                append(&mut writer, &mut written, &mut random).await;
                moments.push(look(&folder));
            }
            drop((writer, logs));
            std::fs::remove_dir_all(&folder).unwrap();
            std::fs::create_dir_all(&folder).unwrap();
            for (name, content) in torn(&moments, &mut random) {
                std::fs::write(folder.join(name), content).unwrap();
            }
            let logs = fixture.logs(cap);
            let length = logs.length(job).await.unwrap();
            let range = synced..=written.len() as u64;
            assert!(
                range.contains(&length),
                "seed {seed}: {length} not in {range:?}"
            );
            longest = longest.max(written.len());
            let was_over = (longest as u64 > cap).then_some(cap);
            written.truncate(length as usize);
            assert_true(&logs, job, was_over, &written).await;
            let mut writer = logs.writer(job).await.unwrap();
            append(&mut writer, &mut written, &mut random).await;
            assert_eq!(writer.len(), written.len() as u64);
            longest = longest.max(written.len());
            let was_over = (longest as u64 > cap).then_some(cap);
            assert_true(&logs, job, was_over, &written).await;
        }
    }
}

/// Found by reading: the first segment behind the head had lost its bytes, and they were taken for some that the cap had
/// left out, although the guest still had them.
#[tokio::test]
async fn bytes_that_a_power_cut_took_are_not_taken_for_left_out() {
    let fixture = Fixture::new().await;
    let job = fixture.job;
    let logs = fixture.logs(4096);
    let mut writer = logs.writer(job).await.unwrap();
    writer.append(&[b'a'; 3000]).await.unwrap();
    drop((writer, logs));
    let behind_the_head = fixture.folder().join(format!("{:020}.seg", 2048));
    std::fs::write(behind_the_head, b"").unwrap();
    let logs = fixture.logs(4096);
    assert_eq!(logs.length(job).await.unwrap(), 2048);
    let mut writer = logs.writer(job).await.unwrap();
    writer.append(&[b'b'; 1000]).await.unwrap();
    let written = [[b'a'; 2048].as_slice(), &[b'b'; 1000]].concat();
    assert_eq!(read_all(&logs, job, 0, 5000).await.0, written);
}

async fn append(writer: &mut LogWriter, written: &mut Vec<u8>, random: &mut StdRng) {
    let length = random.random_range(1..700);
    let bytes = random_bytes(random, length);
    writer.append(&bytes).await.unwrap();
    written.extend_from_slice(&bytes);
}
