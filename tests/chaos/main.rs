//! `make chaos`: a random schedule of faults against a running master with real machines, and then the promises are
//! checked. Everything that goes wrong follows from the seed, so a run can be repeated: `make chaos SEED=… MINUTES=…`.
//!
//! ```text
//!   [changes]  commits, one after the other ──► GitHub ──► master ──► guests by libvirt, a machine by a wire
//!   [schedule] faults from the seed ──► [city] lets them happen, and puts right what is over
//!   [judge]    afterwards: every outcome told, logs and artefacts byte for byte, nothing left over
//! ```

mod changes;
mod city;
mod judge;
mod schedule;

use anyhow::{Context, Result};
use changes::Changes;
use city::{City, Met};
use schedule::Schedule;
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;
use tests::machine::guests_run_here;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long things go wrong.
const DEFAULT_MINUTES: u64 = 10;

fn main() -> ExitCode {
    if !guests_run_here() {
        return ExitCode::SUCCESS;
    }
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("chaos: {error:?}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn run() -> Result<()> {
    let seed = match setting("SEED")? {
        Some(seed) => seed,
        None => rand::random::<u32>().into(),
    };
    let minutes = setting("MINUTES")?.unwrap_or(DEFAULT_MINUTES);
    println!("chaos: make chaos SEED={seed} MINUTES={minutes}");
    let mut city = City::found().await?;
    let changes = Changes::default();
    let result = go_through(&mut city, &changes, seed, minutes).await;
    if result.is_err() {
        let kept = city.world.master.keep_files();
        eprintln!(
            "chaos: seed {seed}; what the master left is in {}",
            kept.display()
        );
    }
    result
}

/// A number from the environment.
fn setting(name: &str) -> Result<Option<u64>> {
    match std::env::var(name) {
        Ok(text) if !text.is_empty() => {
            let number = text.parse();
            number
                .map(Some)
                .with_context(|| format!("{name}={text} is no number"))
        }
        Ok(_) | Err(_) => Ok(None),
    }
}

async fn go_through(city: &mut City, changes: &Changes, seed: u64, minutes: u64) -> Result<()> {
    let github = city.world.github.clone();
    let stop = CancellationToken::new();
    let stop_deliveries = CancellationToken::new();
    let _stop_both = (
        stop.clone().drop_guard(),
        stop_deliveries.clone().drop_guard(),
    );
    let making = tokio::spawn(changes::make(github.clone(), changes.clone(), stop.clone()));
    tokio::spawn(changes::redeliver(github, stop_deliveries.clone()));

    let began = Instant::now();
    let met = let_things_go_wrong(city, seed, began + Duration::from_secs(minutes * 60)).await?;
    let lasted = began.elapsed().as_secs();
    stop.cancel();
    city.repair_all().await?;
    city.check()?;
    making.await??;
    println!("chaos: {lasted} s are over; everything has to come to its end now");
    let findings = judge::judge(city, changes).await?;

    let total: u32 = met.values().sum();
    for (kind, count) in &met {
        println!("chaos: {count:>5}  {kind}");
    }
    println!(
        "chaos: survived {total} faults in {lasted} s (seed {seed}): {} commits, {} jobs in {} attempts; \
         {} bytes of logs and {} artefacts as they should be, nothing left over",
        findings.commits, findings.jobs, findings.attempts, findings.log_bytes, findings.artifacts
    );
    Ok(())
}

/// Counts what met something, by kind.
async fn let_things_go_wrong(
    city: &mut City,
    seed: u64,
    until: Instant,
) -> Result<BTreeMap<&'static str, u32>> {
    let mut schedule = Schedule::of(seed);
    let mut met = BTreeMap::new();
    let began = Instant::now();
    let (pause, mut fault) = schedule.next();
    let mut at = began + pause;
    while at < until {
        let next = city.next_repair().map_or(at, |repair| repair.min(at));
        tokio::time::sleep_until(next).await;
        city.repair_due().await?;
        if Instant::now() < at {
            continue;
        }
        city.check()?;
        let how = city
            .suffer(fault, &mut schedule)
            .await
            .with_context(|| fault.to_string())?;
        if how == Met::Yes {
            *met.entry(fault.kind()).or_default() += 1;
            println!("chaos: {:>6.1} s  {fault}", began.elapsed().as_secs_f64());
        }
        let (pause, next) = schedule.next();
        fault = next;
        // What met nothing costs no time.
        at = Instant::now()
            + if how == Met::Yes {
                pause
            } else {
                Duration::ZERO
            };
    }
    Ok(met)
}
