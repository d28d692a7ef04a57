//! The webhook's answer, which waits for the disk, and the first status after it.

use super::disk::Probe;
use super::samples::Samples;
use super::table::{Figure, Table, Target};
use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tests::github::{DeliveryMode, WebhookPost};
use tests::machine::{Platforms, SshServer};
use tests::repository::Suites;
use tests::world::{AGGREGATE, DEADLINE, REPOSITORY, SECRET, World, context};

/// Deliveries a second that come whatever the answers take.
const PACE: u32 = 200;
const ROUNDS: usize = 5;
/// Of one round at that pace: five seconds of deliveries, two of the bare disk.
const DELIVERIES: u32 = 1000;
const WRITES: u32 = 400;
/// Of one round at full speed.
const FULL_SPEED: Duration = Duration::from_secs(3);
const CLIENTS: usize = 64;
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);
const FIRST_STATUSES: usize = 30;

/// Posts one delivery after the other to a master.
#[derive(Debug, Clone)]
pub(crate) struct Sender {
    client: reqwest::Client,
    url: String,
}

impl Sender {
    pub(crate) fn to(world: &World) -> Sender {
        Sender {
            client: tests::http_client(),
            url: world.master.webhook_url(),
        }
    }

    /// How long the answer took; anything but 202 is an error.
    pub(crate) async fn post(&self, post: &WebhookPost) -> Result<Duration> {
        let begun = Instant::now();
        let answer = post.send_with(&self.client, &self.url).await?;
        let took = begun.elapsed();
        ensure!(answer.status == 202, "{}: {}", answer.status, answer.body);
        Ok(took)
    }
}

/// A folder whose files are in memory: what is left there of an answer's time is not the disk's.
const MEMORY: &str = "/dev/shm";

/// A world whose log is as long as in everyday use, with no platforms unless they are given.
pub(crate) async fn world(platforms: Platforms, suites: &Suites) -> Result<World> {
    World::with_platforms(platforms, suites, |master, entry| {
        master.environment("RUST_LOG", "info").repository(entry)
    })
    .await
}

/// A pull request that is open, and its delivery, which the master has not got yet.
pub(crate) async fn held_proposal(world: &World, name: &str) -> Result<(String, WebhookPost)> {
    world.github.set_delivery_mode(DeliveryMode::Hold);
    let (_, head) = world
        .propose(name, |commit| commit.file(name, name))
        .await
        .context("cannot open a pull request")?;
    let delivery = world
        .github
        .last_delivery("pull_request")
        .context("no delivery of the pull request")?;
    Ok((
        head,
        WebhookPost::signed("pull_request", delivery.body, SECRET),
    ))
}

/// A world for deliveries alone, and one that is stored and then looked at like any other, but asks for nothing.
async fn door(below: &Path) -> Result<(World, WebhookPost)> {
    let suites = Suites::test_on(&["nowhere"]).step("none", "true");
    let world = World::with_platforms(Platforms::new()?, &suites, |master, entry| {
        master
            .environment("RUST_LOG", "info")
            .below(below)
            .repository(entry)
    })
    .await?;
    let (_, post) = held_proposal(&world, "topic").await?;
    let body = String::from_utf8(post.body.to_vec())?.replacen("\"opened\"", "\"labeled\"", 1);
    let post = WebhookPost::signed("pull_request", body.into_bytes(), SECRET);
    Ok((world, post))
}

pub(crate) async fn measure(table: &mut Table) -> Result<()> {
    let (world, post) = door(&std::env::temp_dir()).await?;
    println!("  deliveries of {} bytes", post.body.len());
    let sender = Sender::to(&world);
    let mut probe = Probe::new(&world.master.data_dir(), post.body.len())?;

    let (mut disk, mut one, mut many) =
        (Samples::default(), Samples::default(), Samples::default());
    for _ in 0..ROUNDS {
        disk.add(tokio::task::block_in_place(|| {
            probe.at_full_speed(FULL_SPEED)
        })?);
        one.add(full_speed(&sender, &post, 1).await?);
        many.add(full_speed(&sender, &post, CLIENTS).await?);
    }
    let disk = Figure::median(&disk, "/s");
    let against = "write and fdatasync of as many bytes";
    for (name, samples) in [("one client", one), ("64 clients", many)] {
        let name = format!("durable deliveries, {name}");
        let ours = Figure::median(&samples, "/s");
        table.compare(&name, ours, against, disk.clone(), Target::AtLeast(200.0));
    }
    settled(&world).await?;

    let tick = Duration::from_secs(1) / PACE;
    let (in_memory, _) = door(Path::new(MEMORY)).await?;
    let sender_in_memory = Sender::to(&in_memory);
    let (mut ours, mut theirs, mut without_disk) =
        (Samples::default(), Samples::default(), Samples::default());
    for round in 1..=ROUNDS {
        let disk = tokio::task::block_in_place(|| probe.at_pace(WRITES, tick))?;
        let answers = steady(&sender, &post, tick).await?;
        let memory = steady(&sender_in_memory, &post, tick).await?;
        let told = |times: &Samples| format!("{:.2} and {:.2} ms", times.median(), times.p99());
        println!(
            "  round {round}, median and 99th percentile: answers {}, the bare disk {}, answers without the disk {}",
            told(&answers),
            told(&disk),
            told(&memory)
        );
        ours.join(answers);
        theirs.join(disk);
        without_disk.join(memory);
    }
    let name = "webhook's answer at 200/s";
    let ms = |value: f64| Figure::one(value, "ms");
    table.compare(
        &format!("{name}, median"),
        ms(ours.median()),
        against,
        ms(theirs.median()),
        Target::None,
    );
    for (name, samples) in [
        (format!("{name}, 99th percentile"), &ours),
        (
            format!("{name}, 99th percentile, database in memory"),
            &without_disk,
        ),
    ] {
        let target = Target::Below(10.0);
        table.compare(&name, ms(samples.p99()), against, ms(theirs.p99()), target);
    }
    settled(&world).await?;
    Ok(())
}

/// Deliveries a second of so many clients.
async fn full_speed(sender: &Sender, post: &WebhookPost, clients: usize) -> Result<f64> {
    let begun = Instant::now();
    let tasks: Vec<_> = (0..clients)
        .map(|_| {
            let (sender, post) = (sender.clone(), post.clone());
            tokio::spawn(async move {
                let mut count = 0_u32;
                while begun.elapsed() < FULL_SPEED {
                    let post = post.clone().guid(&tests::github::guid());
                    sender.post(&post).await?;
                    count += 1;
                }
                anyhow::Ok(count)
            })
        })
        .collect();
    let mut count = 0;
    for task in tasks {
        count += task.await??;
    }
    Ok(f64::from(count) / begun.elapsed().as_secs_f64())
}

/// The answers' times at a pace that does not wait for them. One that did not come within GitHub's ten seconds, or was
/// another than 202, counts as those ten.
async fn steady(sender: &Sender, post: &WebhookPost, tick: Duration) -> Result<Samples> {
    let mut pace = tokio::time::interval(tick);
    let sender = Arc::new(sender.clone());
    let mut answers = Vec::new();
    for _ in 0..DELIVERIES {
        pace.tick().await;
        let post = post.clone().guid(&tests::github::guid());
        let sender = Arc::clone(&sender);
        answers.push(tokio::spawn(async move { sender.post(&post).await }));
    }
    let mut times = Samples::default();
    let mut missed = 0;
    for answer in answers {
        match answer.await? {
            Ok(time) => times.add_time(time),
            Err(_) => {
                missed += 1;
                times.add_time(ANSWER_DEADLINE);
            }
        }
    }
    if missed > 0 {
        println!("  {missed} of {DELIVERIES} were not answered with 202");
    }
    Ok(times)
}

/// Waits until every delivery was acted upon.
async fn settled(world: &World) -> Result<()> {
    world
        .master
        .wait_for("all deliveries acted upon", DEADLINE, async |master| {
            let text = master.get_text("/metrics").await?;
            Ok(text
                .contains("vivarium_deliveries{state=\"stored\"} 0\n")
                .then_some(()))
        })
        .await
}

pub(crate) async fn measure_statuses(table: &mut Table) -> Result<()> {
    const DESK: &str = "desk";
    let server = SshServer::start().await?;
    let platforms = Platforms::new()?;
    platforms.add_ssh(DESK, &server)?;
    let world = world(platforms, &Suites::test_on(&[DESK]).step("none", "true")).await?;
    let sender = Sender::to(&world);
    let mut first = Samples::default();
    let mut of_job = Samples::default();
    for number in 0..FIRST_STATUSES {
        let (head, post) = held_proposal(&world, &format!("topic-{number}")).await?;
        let began = jiff::Timestamp::now();
        sender.post(&post).await?;
        for (context, times) in [
            (AGGREGATE.to_owned(), &mut first),
            (context(DESK), &mut of_job),
        ] {
            let status = world
                .github
                .wait_until("a status", DEADLINE, |github| {
                    let history = github.status_history(REPOSITORY, &head, &context);
                    history.statuses.into_iter().next()
                })
                .await?;
            times.add_time(Duration::try_from(status.at.duration_since(began))?);
        }
        world.settled(&head, AGGREGATE).await?;
    }
    let name = "delivery to the first status (pending)";
    table.add(
        &format!("{name}, median"),
        Figure::median(&first, "ms"),
        Target::Below(100.0),
    );
    table.add(
        &format!("{name}, 90th percentile"),
        Figure::one(first.percentile(0.9), "ms"),
        Target::Below(100.0),
    );
    table.add(
        "delivery to the first status of a job, median",
        Figure::median(&of_job, "ms"),
        Target::None,
    );
    Ok(())
}
