//! How fast logs are on this machine.

use super::*;

/// `cargo test --release -p vivarium --lib -- --ignored --nocapture throughput`
#[tokio::test]
#[ignore = "a measurement, not a promise"]
async fn throughput() {
    let fixture = Fixture::new().await;
    let (logs, job) = (fixture.logs(2 << 30), fixture.job);
    let rate = |bytes: usize, since: std::time::Instant| {
        bytes as f64 / 1e6 / since.elapsed().as_secs_f64()
    };
    let line = b"test result::log::a_line_as_a_test_runner_prints_it ... ok in 0.0123 s\n";
    let mut text = line.repeat(65_536 / line.len() + 1);
    for (piece, total) in [
        (1024, 64 << 20),
        (16 << 10, 256 << 20),
        (64 << 10, 512 << 20),
    ] {
        text.truncate(64 << 10);
        let mut writer = logs.writer(job).await.unwrap();
        let start = std::time::Instant::now();
        for _ in 0..total / piece {
            writer.append(&text[..piece]).await.unwrap();
        }
        println!(
            "append in pieces of {piece}: {:.0} MB/s",
            rate(total, start)
        );
    }
    let length = logs.length(job).await.unwrap() as usize;
    let read = async |what: &str, max: usize| {
        let start = std::time::Instant::now();
        let (mut at, mut bytes) = (0, 0);
        while at < length as u64 {
            let chunk = logs.chunk(job, at, max).await.unwrap();
            bytes += chunk.bytes.len();
            at = chunk.next;
        }
        println!(
            "read {what} in chunks of {max}: {:.0} MB/s",
            rate(bytes, start)
        );
    };
    read("segments without a writer", 64 << 10).await;
    let writer = logs.writer(job).await.unwrap();
    read("segments", 64 << 10).await;
    read("segments", 1 << 20).await;
    drop(writer);
    let start = std::time::Instant::now();
    logs.seal(job).await.unwrap();
    println!("seal: {:.0} MB/s", rate(length, start));
    let sealed = fixture.objects.list("logs").await.unwrap();
    println!("compressed to {} of {length} bytes", sealed[0].size);
    read("sealed", 64 << 10).await;
    read("sealed", 1 << 20).await;
    read("sealed", 4 << 20).await;
}
