//! Measurements of the real thing in a release build, each beside what it is to be judged by, in one run.
//!
//! ```text
//!  deliveries ─┐                        ┌─ ours: the real `vivarium serve`
//!  boots      ─┼─► rounds, in turns of ─┤
//!  output     ─┤                        └─ theirs: the bare disk, `virsh start` and `ssh` by hand, `ssh … cat`
//!  memory     ─┘                                                │
//!                                             samples ─► one table at the end
//! ```
//!
//! `make bench` runs them all; names after it choose: `make bench ONLY="deliveries output"`. Nothing here asserts a
//! duration. What each line means stands in docs/performance.md.

mod boots;
mod by_hand;
mod deliveries;
mod disk;
mod memory;
mod output;
mod samples;
mod table;

use anyhow::Result;
use std::time::Instant;
use table::Table;

/// The measurements by name, in the order they are taken.
const NAMES: [&str; 5] = ["deliveries", "statuses", "output", "memory", "boots"];

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let chosen: Vec<&str> = arguments
        .iter()
        .map(String::as_str)
        // Cargo adds `--bench`.
        .filter(|argument| !argument.starts_with("--"))
        .collect();
    for name in &chosen {
        anyhow::ensure!(
            NAMES.contains(name),
            "there is no measurement `{name}`\nhint: there are {}",
            NAMES.join(", ")
        );
    }
    // So that Ctrl-C leaves nothing running either.
    tokio::select! {
        measured = measure(&chosen) => measured,
        _ = tokio::signal::ctrl_c() => anyhow::bail!("stopped"),
    }
}

async fn measure(chosen: &[&str]) -> Result<()> {
    println!("{}", about_this_machine());
    let mut table = Table::default();
    for name in NAMES {
        if !chosen.is_empty() && !chosen.contains(&name) {
            continue;
        }
        println!("\n{name}:");
        let begun = Instant::now();
        match name {
            "deliveries" => deliveries::measure(&mut table).await?,
            "statuses" => deliveries::measure_statuses(&mut table).await?,
            "output" => output::measure(&mut table).await?,
            "memory" => memory::measure(&mut table).await?,
            _ => boots::measure(&mut table).await?,
        }
        println!("  ({name}: {} s)", begun.elapsed().as_secs());
    }
    println!("\n{table}\n{}", about_this_machine());
    Ok(())
}

fn about_this_machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let load = read("/proc/loadavg");
    let load: Vec<&str> = load.split(' ').take(3).collect();
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    format!(
        "{processors} processors, load {} (1, 5, 15 minutes), measured in {}",
        load.join(" "),
        std::env::temp_dir().display()
    )
}
