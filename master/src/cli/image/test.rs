//! `vivarium image test`: a table for people, the certificate for scripts and for the master.

use super::super::Local;
use super::super::demo::asked_to_stop;
use super::super::platform::{find, load};
use super::super::serve::open_agents;
use super::super::terminal::{colour_verdict, print, print_json};
use super::{bench, own_folder};
use crate::certify::{Certificate, Check, Told, Verdict};
use crate::config::Config;
use crate::vm::check_platform;
use anyhow::bail;
use indicatif::{ProgressBar, ProgressStyle};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// How often the line that says what is done is drawn anew.
const TICK: Duration = Duration::from_millis(120);
/// As a shell tells of a program that Ctrl-C ended.
const INTERRUPTED: u8 = 130;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Options {
    /// The platform's name, or a folder with a platform.toml.
    platform: PathBuf,
    /// How long the guest's clock is watched, in seconds, beside the other checks.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    drift_secs: u64,
    /// Print the certificate instead of a table.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    local: Local,
}

pub(super) async fn test(options: Options) -> anyhow::Result<ExitCode> {
    let stop = asked_to_stop()?;
    let (folder, data) = find(&options.platform, &options.local.config)?;
    let platform = match load(&folder, data.as_deref()) {
        Ok(platform) => platform,
        Err(why) => bail!("{} cannot be tested: {why}", folder.display()),
    };
    check_platform(&platform).await?;
    let config = config(&options.local.config)?;
    let bench = bench(&config, open_agents(&config));
    let bar = bar();
    let tell = |told: Told<'_>| match told {
        Told::Begins(check) => {
            let place = Check::ALL.iter().position(|one| *one == check);
            let place = place.unwrap_or_default() + 1;
            let all = Check::ALL.len();
            bar.set_message(format!("{}: {place}/{all} {}", platform.name, check.name()));
        }
        Told::Ended(result) if result.verdict.is_failed() => bar.println(format!(
            "{}: {} failed: {}",
            platform.name,
            result.check.name(),
            result.verdict.said()
        )),
        Told::Ended(_) => {}
    };
    let drift = Duration::from_secs(options.drift_secs);
    let tested = bench
        .test_until(&folder, &platform, drift, tell, stop.cancelled())
        .await;
    bar.finish_and_clear();
    let Some(certificate) = tested? else {
        eprintln!(
            "{}: ended before it was through; no machine is left",
            platform.name
        );
        return Ok(ExitCode::from(INTERRUPTED));
    };
    let written = certificate.write(&folder);
    match options.json {
        true => print_json(&certificate)?,
        false => print(&table(&certificate))?,
    }
    let path = written?;
    if !options.json {
        print(&last_line(&certificate, &path))?;
    }
    Ok(match certificate.is_pass() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// The master's; where there is none, the defaults with a folder of the user's own.
fn config(path: &Path) -> anyhow::Result<Config> {
    if path.exists() {
        return Ok(Config::load(path)?);
    }
    let mut config = Config::parse(path, "")?;
    config.data_dir = own_folder();
    Ok(config)
}

/// Shown on a terminal only.
fn bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {wide_msg} {elapsed}");
    let bar = ProgressBar::new_spinner()
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
    bar.enable_steady_tick(TICK);
    bar
}

fn table(certificate: &Certificate) -> String {
    let names = certificate.results.iter().map(|r| r.check.name().len());
    let width = names.max().unwrap_or_default();
    let mut text = String::new();
    for result in &certificate.results {
        let said = result.verdict.said();
        let indent = format!("\n{}", " ".repeat(2 + 11 + 2 + width + 2));
        let word = match &result.verdict {
            Verdict::Passed(_) => "passed",
            Verdict::Failed(_) => "failed",
            Verdict::NotChecked(_) => "not checked",
        };
        text.push_str(&format!(
            "  {}  {:<width$}  {}\n",
            colour_verdict(word, 11),
            result.check.name(),
            said.replace('\n', &indent)
        ));
    }
    text
}

fn last_line(certificate: &Certificate, path: &Path) -> String {
    let name = &certificate.platform;
    let count = |is_counted: fn(&Verdict) -> bool| {
        let verdicts = certificate.results.iter().map(|result| &result.verdict);
        verdicts.filter(|verdict| is_counted(verdict)).count()
    };
    let passed = count(|verdict| matches!(verdict, Verdict::Passed(_)));
    let left = count(|verdict| matches!(verdict, Verdict::NotChecked(_)));
    let left = match left {
        0 => String::new(),
        left => format!(", {left} not checked"),
    };
    match certificate.is_pass() {
        true => format!(
            "{name}: certified, {passed} checks passed{left}: {}\n",
            path.display()
        ),
        false => format!(
            "{name}: not certified, {} of the checks failed{left}: {}\n",
            certificate.failed().count(),
            path.display()
        ),
    }
}
