//! What a suite prints is kept, byte for byte.

use crate::{TINY, needs_guests};
use anyhow::{Context, Result};
use tests::github::StatusState;
use tests::machine::Platforms;
use tests::master::LogFrom;
use tests::repository::Suites;
use tests::world::{AGGREGATE, DEADLINE, World};
use tests::{find, sha256};

/// The output of the step at `index` begins here in the log of the only job of the pull request.
async fn step_output(world: &World, head: &str, index: usize) -> Result<bytes::Bytes> {
    let build = world.master.wait_for_finished_build(head, DEADLINE).await?;
    let job = build.jobs.first().context("no job")?;
    let job = world.master.job(job.number).await?;
    let attempt = job.attempts.last().context("no attempt")?;
    let step = attempt.steps.get(index).context("no such step")?;
    world.master.log(job.number, step.log_offset).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_100_megabytes_arrives_byte_for_byte() -> Result<()> {
    needs_guests!();
    // Every line differs within a copy, so that nothing lost or doubled goes unseen; and copies cost the guest little.
    const COPIES: usize = 15;
    let flood = format!(
        "seq 1 1000000 >numbers; for copy in $(seq 1 {COPIES}); do echo copy $copy; cat numbers; done"
    );
    let suites = Suites::test_on(&[TINY])
        .step("flood", &flood)
        .step("after", "echo the end");
    let world = World::with(&[TINY], &suites).await?;
    let (_, head) = world
        .propose("topic", |commit| commit.file("a", "1"))
        .await?;
    let status = world.settled(&head, AGGREGATE).await?;
    assert_eq!(status.state, StatusState::Success);

    let numbers: String = (1..=1_000_000)
        .map(|number| format!("{number}\n"))
        .collect();
    let expected: String = (1..=COPIES)
        .map(|copy| format!("copy {copy}\n{numbers}"))
        .collect();
    assert!(expected.len() > 100_000_000);
    let output = step_output(&world, &head, 0).await?;
    let flood = output
        .get(..expected.len())
        .context("the log is too short")?;
    assert_eq!(sha256(flood), sha256(expected.as_bytes()));
    let rest = &output[expected.len()..];
    assert!(rest.len() < 10_000, "nothing came twice");
    assert!(find(rest, b"the end\n").is_some());
    world.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn output_that_is_not_utf_8_is_kept_as_it_is() -> Result<()> {
    needs_guests!();
    let suites = Suites::test_on(&[TINY]).step(
        "bytes",
        "printf '\\377\\376\\200 \\303\\050 \\000 \\033[31mred\\r\\n'; printf 'err\\366r\\n' >&2",
    );
    let world = World::with(&[TINY], &suites).await?;
    let (_, head) = world
        .propose("topic", |commit| commit.file("a", "1"))
        .await?;
    let status = world.settled(&head, AGGREGATE).await?;
    assert_eq!(status.state, StatusState::Success);
    let output = step_output(&world, &head, 0).await?;
    let expected = b"\xff\xfe\x80 \xc3\x28 \x00 \x1b[31mred\r\nerr\xf6r\n";
    assert_eq!(output.get(..expected.len()), Some(&expected[..]));
    world.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_over_its_cap_keeps_head_and_tail_and_says_what_is_missing() -> Result<()> {
    needs_guests!();
    const HALF: usize = 512 << 10;
    let suites = Suites::test_on(&[TINY]).step("flood", "seq 1 600000; sleep 1; echo the end");
    let platforms = Platforms::new()?;
    platforms.add(TINY)?;
    let world = World::with_platforms(platforms, &suites, |master, entry| {
        master.repository(entry).set("limits", "log_mib", 1)
    })
    .await?;
    let head = world.propose_any().await?;
    let job = world.master.wait_for_job(&head, TINY, DEADLINE).await?;
    // One reader follows from the start, as fast as it can.
    let live = world.master.follow_log(job.number, LogFrom::Offset(0));
    let live = tokio::time::timeout(DEADLINE, live).await??;
    let job = world.ended_job(&head, "test", TINY).await?;
    assert_eq!(
        job.conclusion.as_deref(),
        Some("success"),
        "{:?}",
        job.message
    );

    let numbers: String = (1..=600_000).map(|number| format!("{number}\n")).collect();
    let begin = job.attempts[0].steps[0].log_offset;
    let length = world.master.log_length(job.number).await?;
    let whole = world.log(&job).await?;
    let at = find(&whole, b"\n[vivarium: ").context("nothing says that bytes are missing")?;
    assert_eq!(at, HALF, "half of the cap is for the head");
    let notice = &whole[at..at + 1 + find(&whole[at + 1..], b"\n").context("no line")? + 1];
    let tail = &whole[at + notice.len()..];
    let resumes = length - tail.len() as u64;
    assert!(
        tail.len() <= HALF && tail.len() > HALF / 2,
        "{}",
        tail.len()
    );
    let left_out = (resumes - HALF as u64).to_string();
    let said: String = String::from_utf8_lossy(notice).replace(',', "");
    assert!(
        said.contains(&format!(" {left_out} bytes left out here")),
        "{said}"
    );
    assert!(said.contains("cap of 1 MiB"), "{said}");

    // Every byte that was kept stands at its offset in the whole output.
    let is_true = |from: u64, bytes: &[u8]| {
        let from = usize::try_from(from - begin).unwrap();
        let expected = &numbers.as_bytes()[from.min(numbers.len())..];
        let common = expected.len().min(bytes.len());
        expected[..common] == bytes[..common]
    };
    assert!(is_true(begin, &whole[begin as usize..at]));
    assert!(is_true(resumes, tail));
    assert!(find(tail, b"\nthe end\n").is_some());
    assert_eq!(world.master.log(job.number, resumes + 7).await?, tail[7..]);
    let from_the_gap = world.master.log(job.number, resumes - 1000).await?;
    assert!(from_the_gap.starts_with(b"\n[vivarium: 1,000 bytes left out here"));
    assert!(from_the_gap.ends_with(tail));

    // The same as events; the one that stands for the gap leads over it.
    let mut at = 0;
    for piece in &live {
        let is_whole = piece.next - at == piece.bytes.len() as u64;
        let is_notice = piece.bytes.starts_with(b"\n[vivarium: ");
        assert!(
            is_whole || is_notice,
            "{} bytes from {at} to {}",
            piece.bytes.len(),
            piece.next
        );
        if at >= begin && !is_notice {
            assert!(is_true(at, &piece.bytes), "from {at}");
        }
        at = piece.next;
    }
    assert_eq!(at, length);
    let sealed = world
        .master
        .follow_log(job.number, LogFrom::Offset(0))
        .await?;
    let bytes: Vec<u8> = sealed
        .iter()
        .flat_map(|piece| piece.bytes.clone())
        .collect();
    assert_eq!(sha256(&bytes), sha256(&whole));
    let before = sealed
        .iter()
        .take_while(|piece| piece.next < resumes)
        .last();
    let again = before.context("no event before the gap")?.next;
    let rest = world
        .master
        .follow_log(job.number, LogFrom::AfterEvent(again))
        .await?;
    assert_eq!(
        rest,
        sealed
            .iter()
            .filter(|piece| piece.next > again)
            .cloned()
            .collect::<Vec<_>>()
    );
    world.end().await
}
