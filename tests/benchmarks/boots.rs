//! From a delivery to the first byte that a step prints in its guest, beside the same machine by hand.

use super::by_hand::ByHand;
use super::deliveries::{Sender, held_proposal, world};
use super::samples::Samples;
use super::table::{Figure, Table, Target};
use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt;
use jiff::Timestamp;
use std::time::Duration;
use tests::machine::Platforms;
use tests::repository::Suites;
use tests::world::{DEADLINE, World};

const IMAGES: [&str; 2] = ["tiny-linux", "debian-12"];
const ROUNDS: usize = 7;
const WORD: &str = "the-first-word-of-the-step";
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// The stretches of a job's way, by what ends them.
const STRETCHES: [&str; 6] = [
    "job queued",
    "slot given",
    "VM made",
    "booted",
    "agent there",
    "source there",
];

pub(crate) async fn measure(table: &mut Table) -> Result<()> {
    for image in IMAGES {
        measure_image(table, image).await?;
    }
    Ok(())
}

async fn measure_image(table: &mut Table, image: &str) -> Result<()> {
    let platforms = Platforms::new()?;
    platforms.add(image)?;
    // Long enough to be looked at while it runs.
    let run = format!("echo {WORD}; sleep 3");
    let world = world(platforms, &Suites::test_on(&[image]).step("speak", &run)).await?;
    let sender = Sender::to(&world);
    // Warms the caches for both, and shows what machine the master makes.
    let (head, _) = deliver(&world, &sender, image, 0).await?;
    let by_hand = ByHand::like_that_of(&world.master, image).await?;
    end_of(&world, &head).await?;
    by_hand.start_and_log_in().await?;

    let (mut ours, mut theirs, mut more) =
        (Samples::default(), Samples::default(), Samples::default());
    let mut stretches = vec![Samples::default(); STRETCHES.len() + 1];
    for round in 1..=ROUNDS {
        let hand = by_hand.start_and_log_in().await?;
        let (head, way) = deliver(&world, &sender, image, round).await?;
        end_of(&world, &head).await?;
        println!(
            "  {image}, round {round}: ours {:.2} s, by hand {:.2} s",
            way.whole.as_secs_f64(),
            hand.as_secs_f64()
        );
        ours.add(way.whole.as_secs_f64());
        theirs.add(hand.as_secs_f64());
        more.add(way.whole.as_secs_f64() - hand.as_secs_f64());
        for (samples, time) in stretches.iter_mut().zip(way.stretches) {
            samples.add_time(time);
        }
    }
    let names = STRETCHES.iter().chain([&"first byte"]);
    let told: Vec<String> = names
        .zip(&stretches)
        .map(|(name, times)| format!("{name} {:.0} ms", times.median()))
        .collect();
    println!("  {image}, medians of the way: {}", told.join(", "));
    table.compare(
        &format!("delivery to first byte, {image}"),
        Figure::median(&ours, "s"),
        "virsh start to the end of the first ssh true",
        Figure::median(&theirs, "s"),
        Target::None,
    );
    table.add(
        &format!("what is ours of it, {image}"),
        Figure::median(&more, "s"),
        Target::Below(1.0),
    );
    world.end().await
}

/// How long it took to the first byte, and how that divides.
struct Way {
    whole: Duration,
    stretches: Vec<Duration>,
}

/// Delivers a pull request and waits for its job's first byte; returns its head too.
async fn deliver(
    world: &World,
    sender: &Sender,
    image: &str,
    round: usize,
) -> Result<(String, Way)> {
    let (head, post) = held_proposal(world, &format!("topic-{round}")).await?;
    let began = Timestamp::now();
    sender.post(&post).await?;
    let job = loop {
        let builds = world.master.builds().await?;
        let build = builds.into_iter().find(|build| build.head_sha == head);
        if let Some(job) = build.and_then(|build| build.jobs.into_iter().next()) {
            break job;
        }
        anyhow::ensure!(
            Timestamp::now().duration_since(began).unsigned_abs() < DEADLINE,
            "no job for {head} on {image}"
        );
        tokio::time::sleep(LOOK_EVERY).await;
    };
    let first = tokio::time::timeout(DEADLINE, first_byte(world, job.number))
        .await
        .context("no output in time")??;
    let since = |time: Timestamp| Duration::try_from(time.duration_since(began));
    let job = world.master.job(job.number).await?;
    let attempt = job.attempts.last().context("the job has no attempt")?;
    let phase = |wanted: &str| {
        let found = attempt.phases.iter().find(|(name, _)| name == wanted);
        found
            .map(|(_, at)| *at)
            .with_context(|| format!("the attempt was never {wanted}"))
    };
    let mut times = vec![since(job.queued_at)?];
    for name in [
        "placed",
        "booting",
        "connecting",
        "sending_source",
        "running",
    ] {
        times.push(since(phase(name)?)?);
    }
    times.push(since(first)?);
    let mut before = Duration::ZERO;
    let stretches = times
        .into_iter()
        .map(|time| time.saturating_sub(std::mem::replace(&mut before, time)))
        .collect();
    Ok((
        head,
        Way {
            whole: since(first)?,
            stretches,
        },
    ))
}

/// When a reader of the live log saw the step's first byte.
async fn first_byte(world: &World, job: i64) -> Result<Timestamp> {
    let url = world.master.url(&format!("/api/jobs/{job}/log/stream"));
    let answer = tests::http_client().get(url).send().await?;
    let mut stream = answer.error_for_status()?.bytes_stream();
    let (mut text, mut log) = (String::new(), Vec::new());
    while let Some(bytes) = stream.next().await {
        let now = Timestamp::now();
        text.push_str(std::str::from_utf8(&bytes?)?);
        while let Some((line, rest)) = text.split_once('\n') {
            if let Some(data) = line.strip_prefix("data:") {
                log.extend(STANDARD.decode(data.trim()).unwrap_or_default());
            }
            text = rest.to_owned();
        }
        if tests::find(&log, format!("\n{WORD}\n").as_bytes()).is_some() {
            return Ok(now);
        }
    }
    bail!(
        "the log ended without the step's output:\n{}",
        String::from_utf8_lossy(&log)
    )
}

async fn end_of(world: &World, head: &str) -> Result<()> {
    let build = world.master.wait_for_finished_build(head, DEADLINE).await?;
    anyhow::ensure!(
        build.conclusion.as_deref() == Some("success"),
        "the build ended with {:?}: {:?}",
        build.conclusion,
        build.message
    );
    world.master.wait_until_nothing_is_left(DEADLINE).await
}
