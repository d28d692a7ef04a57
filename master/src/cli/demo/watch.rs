//! Looks at the master as any program would, over HTTP, and shows a build as it goes.

use super::super::show::{job_line, log_length};
use super::super::terminal::{colour, print};
use crate::model::Phase;
use crate::web::{BuildView, JobView};
use anyhow::bail;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use owo_colors::{AnsiColors, OwoColorize, Stream};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;
use url::Url;

/// The demo is given up after this: two boots under emulation take less than a minute.
const DEADLINE: Duration = Duration::from_secs(900);
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// The length of a bar: a job has ended when its attempt begins to clean up.
const PHASES: u64 = Phase::CleaningUp as u64;

#[derive(Debug)]
pub(super) struct Watcher {
    http: reqwest::Client,
    url: Url,
}

impl Watcher {
    pub(super) fn new(url: &Url) -> anyhow::Result<Watcher> {
        // The master is on this machine: a proxy would not find it.
        let http = reqwest::Client::builder().no_proxy().build()?;
        let url = url.clone();
        Ok(Watcher { http, url })
    }

    /// Shows the build of a commit with the output of its jobs as it comes; fails unless all of it passes.
    pub(super) async fn follow(&self, sha: &str) -> anyhow::Result<BuildView> {
        let deadline = Instant::now() + DEADLINE;
        let bars = MultiProgress::new();
        let mut shown: BTreeMap<i64, Shown> = BTreeMap::new();
        loop {
            if Instant::now() > deadline {
                bail!("the build did not end in {} s", DEADLINE.as_secs());
            }
            let builds: Vec<BuildView> = self.get("api/builds").await?.json().await?;
            if let Some(build) = builds.into_iter().find(|build| build.head_sha == sha) {
                for (place, job) in build.jobs.iter().enumerate() {
                    let shown = shown
                        .entry(job.number)
                        .or_insert_with(|| Shown::new(job, place, &bars));
                    shown.show_phase(job);
                    let path = format!("api/jobs/{}/log?from={}", job.number, shown.offset);
                    let answer = self.get(&path).await?;
                    shown.offset = shown.offset.max(log_length(&answer));
                    shown.output.extend_from_slice(&answer.bytes().await?);
                    let lines = shown.take_lines();
                    bars.suspend(|| print(&lines))?;
                }
                if build.state == "finished" {
                    bars.clear()?;
                    return concluded(build);
                }
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// A job's whole log.
    pub(super) async fn log(&self, job: i64) -> anyhow::Result<String> {
        let answer = self.get(&format!("api/jobs/{job}/log")).await?;
        Ok(String::from_utf8_lossy(&answer.bytes().await?).into_owned())
    }

    async fn get(&self, path: &str) -> anyhow::Result<reqwest::Response> {
        let response = self.http.get(self.url.join(path)?).send().await?;
        Ok(response.error_for_status()?)
    }
}

fn concluded(build: BuildView) -> anyhow::Result<BuildView> {
    let result = build.conclusion.as_deref().unwrap_or_default();
    super::say(&format!("{} {}", build.id, colour(result, 0)))?;
    for job in &build.jobs {
        print(&format!("  {}\n", job_line(job)))?;
    }
    match result {
        "success" => Ok(build),
        _ => bail!("{}: {}", build.id, build.message.unwrap_or_default()),
    }
}

/// What of a job is on the screen: lines of output and, on a terminal, a bar below those of all jobs.
#[derive(Debug)]
struct Shown {
    name: String,
    /// How much of the log has come.
    offset: u64,
    /// The line that has not ended.
    output: Vec<u8>,
    bar: ProgressBar,
}

impl Shown {
    fn new(job: &JobView, place: usize, bars: &MultiProgress) -> Shown {
        let colour = match place % 2 {
            0 => AnsiColors::Cyan,
            _ => AnsiColors::Magenta,
        };
        let name = format!("{:<10} |", job.platform);
        let style = ProgressStyle::with_template("{prefix:<10} [{bar:24}] {msg} {elapsed}")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::new(PHASES)
            .with_prefix(job.platform.clone())
            .with_style(style.progress_chars("=> "));
        Shown {
            name: name
                .if_supports_color(Stream::Stdout, |name| name.color(colour))
                .to_string(),
            offset: 0,
            output: Vec::new(),
            bar: bars.add(bar),
        }
    }

    fn show_phase(&self, job: &JobView) {
        let phase = job.phase.as_deref().and_then(Phase::from_name);
        let (at, name) = match (&job.conclusion, phase) {
            (Some(conclusion), _) => (PHASES, conclusion.as_str()),
            (None, Some(phase)) => (phase as u64, phase.as_str()),
            (None, None) => (0, job.state.as_str()),
        };
        self.bar.set_position(at);
        self.bar.set_message(name.replace('_', " "));
        self.bar.tick();
    }

    /// The lines that have ended, each with the platform before it.
    fn take_lines(&mut self) -> String {
        let mut text = String::new();
        while let Some(end) = self.output.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.output.drain(..=end).collect();
            text += &format!("{} {}", self.name, String::from_utf8_lossy(&line));
        }
        text
    }
}
