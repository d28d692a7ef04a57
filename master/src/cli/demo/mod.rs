//! `vivarium demo`: the main job shown on this machine, with nothing but the two images.
//!
//! A sample repository is made; the master polls it; a commit on a branch is tested on both platforms with its output
//! live; then the branch is merged and the artefacts are published. Everything lies in one folder.

use super::serve::Master;
use super::show::{job_line, log_length};
use crate::config::Config;
use crate::web::{BuildView, JobView};
use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};
use owo_colors::{AnsiColors, OwoColorize, Stream};
use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;
use url::Url;

/// The demo is given up after this: two boots under emulation take less than a minute.
const DEADLINE: Duration = Duration::from_secs(900);
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// The platforms shown.
const PLATFORMS: [&str; 2] = ["tiny-linux", "debian-12"];
const REPOSITORY: &str = "sample";

/// Options of `vivarium demo`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Folder with the two platforms, as `images/build` makes it.
    #[arg(long)]
    images: PathBuf,
    /// Folder for everything the demo makes; emptied first.
    #[arg(long)]
    dir: PathBuf,
    /// Address of the page.
    #[arg(long, default_value = "127.0.0.1:8090")]
    listen: std::net::SocketAddr,
    /// End when the job is shown, instead of serving until Ctrl-C.
    #[arg(long)]
    exit: bool,
}

pub(super) async fn demo(options: Options) -> anyhow::Result<ExitCode> {
    // What goes wrong is told by the demo itself; the master's own log is kept beside it.
    let dir = std::path::absolute(&options.dir)?;
    let images = std::path::absolute(&options.images)?;
    empty(&dir)?;
    let log = std::fs::File::create(dir.join("master.log"))?;
    tracing_subscriber::fmt()
        .with_env_filter("info")
        .with_ansi(false)
        .with_writer(log)
        .init();
    for name in PLATFORMS {
        let file = images.join(name).join("platform.toml");
        if !file.exists() {
            bail!("{} is not there\nhint: images/build {name}", file.display());
        }
    }
    let sample = Sample::make(&dir.join("sample.git"), &dir.join("work"))?;
    let config = Config::parse(
        &dir.join("vivarium.toml"),
        &configuration(&dir, &images, &sample.bare, options.listen),
    )?;
    let master = Master::open(config).await?;
    let url = master.url.clone();
    let (stop, stopped) = oneshot::channel::<()>();
    let running = tokio::spawn(master.run(async move {
        let _sender_gone_means_stop = stopped.await;
    }));
    say(&format!("the master serves {url}"));
    let shown = show(&url, &sample).await;
    let came_out_right = match &shown {
        Ok(()) => true,
        Err(error) => {
            eprintln!(
                "demo: {error:#}\nhint: the master's log is {}",
                dir.join("master.log").display()
            );
            false
        }
    };
    if came_out_right {
        say("everything came out right");
    }
    if !options.exit && came_out_right {
        say(&format!("look at {url} in a browser; Ctrl-C ends the demo"));
        tokio::signal::ctrl_c().await?;
    }
    // The VMs of a build that is broken off go with the demo.
    if !came_out_right {
        cancel_all(&url, &dir).await;
    }
    wait_for_no_machine(&dir).await;
    drop(stop);
    running.await??;
    Ok(match came_out_right {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn say(text: &str) {
    println!(
        "{} {text}",
        "demo:".if_supports_color(Stream::Stdout, |t| t.bold())
    );
}

/// Removes what an earlier demo left, and nothing else.
fn empty(dir: &Path) -> anyhow::Result<()> {
    const MARK: &str = ".vivarium-demo";
    if dir.exists() && std::fs::read_dir(dir)?.next().is_some() {
        if !dir.join(MARK).exists() {
            bail!(
                "{} is not empty and not a demo's folder: choose another with --dir",
                dir.display()
            );
        }
        std::fs::remove_dir_all(dir).with_context(|| format!("cannot empty {}", dir.display()))?;
    }
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    std::fs::write(dir.join(MARK), "")?;
    Ok(())
}

fn configuration(dir: &Path, images: &Path, bare: &Path, listen: std::net::SocketAddr) -> String {
    let quoted = |path: &Path| format!("{:?}", path.display().to_string());
    format!(
        "data_dir = {}\nplatforms_dir = {}\n[server]\nlisten = \"{listen}\"\n\
         [[repository]]\nname = \"{REPOSITORY}\"\nurl = {}\npoll_secs = 1\n\
         branches = [\"main\", \"topic-*\"]\npublish = [\"main\"]\n",
        quoted(&dir.join("data")),
        quoted(images),
        quoted(bare),
    )
}

/// The sample project: a shell script with its tests, which builds a tarball.
struct Sample {
    bare: PathBuf,
    work: PathBuf,
}

const REPOSITORY_FILE: &str = r#"# What runs on each commit, and where.
[suite.test]
platforms = ["tiny-linux", "debian-12"]
reports = ["junit.xml"]

[[suite.test.step]]
name = "system"
run = "uname -srm; echo \"commit $VIVARIUM_SHA on $VIVARIUM_PLATFORM\""

[[suite.test.step]]
name = "tests"
run = "sh ./run-tests"

# What is built and kept once a commit is on the main branch.
[artifacts]
files = ["dist/*"]

[[artifacts.step]]
name = "package"
run = "mkdir -p dist && tar -czf dist/greet-$VIVARIUM_PLATFORM.tar.gz greet"
"#;

const RUN_TESTS: &str = r#"#!/bin/sh
# Runs the tests and writes a JUnit report.
failed=0
check() {
    if [ "$2" = "$3" ]; then echo "ok: $1"; else echo "FAILED: $1: got '$2'"; failed=$((failed + 1)); fi
}
check "greets by name" "$(sh ./greet World)" "Hello, World!"
check "greets everybody" "$(sh ./greet)" "Hello, everybody!"
cat > junit.xml <<END
<testsuite name="greet" tests="2" failures="$failed"><testcase name="by name"/><testcase name="everybody"/></testsuite>
END
exit $failed
"#;

impl Sample {
    fn make(bare: &Path, work: &Path) -> anyhow::Result<Sample> {
        let sample = Sample {
            bare: bare.to_owned(),
            work: work.to_owned(),
        };
        std::fs::create_dir_all(work)?;
        sample.git(&["init", "-q", "-b", "main", "."])?;
        sample.git(&[
            "init",
            "-q",
            "--bare",
            "-b",
            "main",
            &bare.display().to_string(),
        ])?;
        sample.git(&["remote", "add", "origin", &bare.display().to_string()])?;
        Ok(sample)
    }

    fn git(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = Command::new("git")
            .current_dir(&self.work)
            .args([
                "-c",
                "user.name=Demo",
                "-c",
                "user.email=demo@example.org",
                "-c",
                "commit.gpgsign=false",
            ])
            .args(arguments)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .output()
            .context("git cannot be run: install the package git")?;
        if !output.status.success() {
            bail!(
                "git {}: {}",
                arguments.join(" "),
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Commits the project on a topic branch and pushes it.
    fn push_topic(&self) -> anyhow::Result<String> {
        self.git(&["checkout", "-q", "-b", "topic-greeting"])?;
        std::fs::write(self.work.join(".vivarium.toml"), REPOSITORY_FILE)?;
        std::fs::write(
            self.work.join("greet"),
            "#!/bin/sh\necho \"Hello, ${1:-everybody}!\"\n",
        )?;
        std::fs::write(self.work.join("run-tests"), RUN_TESTS)?;
        self.git(&["add", "."])?;
        self.git(&["commit", "-q", "-m", "Greet by name"])?;
        self.git(&["push", "-q", "origin", "topic-greeting"])?;
        self.git(&["rev-parse", "HEAD"])
    }

    /// Brings the branch onto main with a commit of its own, as a merge does.
    fn merge(&self) -> anyhow::Result<String> {
        self.git(&["checkout", "-q", "-b", "main"])?;
        self.git(&[
            "commit",
            "-q",
            "--allow-empty",
            "-m",
            "Merge branch 'topic-greeting'",
        ])?;
        self.git(&["push", "-q", "origin", "main"])?;
        self.git(&["rev-parse", "HEAD"])
    }
}

async fn show(url: &Url, sample: &Sample) -> anyhow::Result<()> {
    let watcher = Watcher {
        http: reqwest::Client::new(),
        url: url.clone(),
    };
    let sha = sample.push_topic()?;
    say(&format!(
        "pushed commit {} to a topic branch",
        sha.get(..10).unwrap_or(&sha)
    ));
    let build = watcher.follow(&sha).await?;
    if build.jobs.iter().any(|job| !job.artifacts.is_empty()) {
        bail!("a topic branch published artefacts");
    }
    let sha = sample.merge()?;
    say(&format!(
        "merged it to main as {}",
        sha.get(..10).unwrap_or(&sha)
    ));
    let build = watcher.follow(&sha).await?;
    say("artefacts:");
    for job in &build.jobs {
        if job.artifacts.is_empty() {
            bail!("{} published no artefact", job.platform);
        }
        for artifact in &job.artifacts {
            println!(
                "  {:<32} {:>8} bytes  sha256 {}",
                artifact.path, artifact.size, artifact.sha256
            );
            println!("  {}", url.join(&artifact.url)?);
        }
    }
    Ok(())
}

/// Looks at the master as any program would, over HTTP.
struct Watcher {
    http: reqwest::Client,
    url: Url,
}

impl Watcher {
    /// Shows the build of a commit with the output of its jobs as it comes; fails unless all of it passes.
    async fn follow(&self, sha: &str) -> anyhow::Result<BuildView> {
        let deadline = Instant::now() + DEADLINE;
        let bar = ProgressBar::new_spinner()
            .with_style(ProgressStyle::with_template("{spinner} {msg} {elapsed}")?);
        let mut shown: HashMap<i64, Shown> = HashMap::new();
        loop {
            if Instant::now() > deadline {
                bail!("the build did not end in {} s", DEADLINE.as_secs());
            }
            let builds: Vec<BuildView> = self.get("api/builds").await?.json().await?;
            if let Some(build) = builds.into_iter().find(|build| build.head_sha == sha) {
                for (place, job) in build.jobs.iter().enumerate() {
                    self.print_new(job, place, &bar, shown.entry(job.number).or_default())
                        .await?;
                }
                bar.set_message(progress(&build));
                if build.state == "finished" {
                    bar.finish_and_clear();
                    for job in &build.jobs {
                        println!("  {}", job_line(job));
                    }
                    return match build.conclusion.as_deref() {
                        Some("success") => Ok(build),
                        _ => bail!("{}: {}", build.id, build.message.unwrap_or_default()),
                    };
                }
            }
            bar.tick();
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// Prints the lines of a job's log that are new, each with the platform before it.
    async fn print_new(
        &self,
        job: &JobView,
        place: usize,
        bar: &ProgressBar,
        shown: &mut Shown,
    ) -> anyhow::Result<()> {
        let path = format!("api/jobs/{}/log?from={}", job.number, shown.offset);
        let response = self.get(&path).await?;
        shown.offset = shown.offset.max(log_length(&response));
        let bytes = response.bytes().await?;
        shown.line.extend_from_slice(&bytes);
        let colours = [AnsiColors::Cyan, AnsiColors::Magenta];
        let colour = colours
            .get(place % colours.len())
            .copied()
            .unwrap_or(AnsiColors::Default);
        while let Some(end) = shown.line.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = shown.line.drain(..=end).collect();
            let name = format!("{:<10} |", job.platform);
            let name = name
                .if_supports_color(Stream::Stdout, |name| name.color(colour))
                .to_string();
            bar.suspend(|| {
                print!("{name} {}", String::from_utf8_lossy(&line));
                std::io::stdout().flush()
            })?;
        }
        Ok(())
    }

    async fn get(&self, path: &str) -> anyhow::Result<reqwest::Response> {
        let response = self.http.get(self.url.join(path)?).send().await?;
        Ok(response.error_for_status()?)
    }
}

/// How much of a job's log was printed, and the line that has not ended.
#[derive(Default)]
struct Shown {
    offset: u64,
    line: Vec<u8>,
}

fn progress(build: &BuildView) -> String {
    if build.jobs.is_empty() {
        return format!("{} {}", build.id, build.state);
    }
    let jobs: Vec<String> = build
        .jobs
        .iter()
        .map(|job| {
            let at = job
                .conclusion
                .as_deref()
                .or(job.phase.as_deref())
                .unwrap_or(&job.state);
            format!("{} {}", job.platform, at.replace('_', " "))
        })
        .collect();
    jobs.join(", ")
}

/// Asks the master to end what still runs; best effort, since the demo has failed already.
async fn cancel_all(url: &Url, dir: &Path) {
    let Ok(token) = std::fs::read_to_string(dir.join("data/api-token")) else {
        return;
    };
    let http = reqwest::Client::new();
    let builds: Vec<BuildView> = match http.get(format!("{url}api/builds")).send().await {
        Ok(answer) => answer.json().await.unwrap_or_default(),
        Err(_) => return,
    };
    for build in builds.iter().filter(|build| build.state != "finished") {
        let act = format!("{url}api/builds/{}/cancel", build.number);
        if let Err(error) = http.post(act).bearer_auth(token.trim()).send().await {
            eprintln!("demo: {} was not cancelled: {error}", build.id);
        }
    }
}

/// Waits, for a bounded time, until the last VM and its files are gone.
async fn wait_for_no_machine(dir: &Path) {
    const PATIENCE: Duration = Duration::from_secs(30);
    let until = Instant::now() + PATIENCE;
    let vms = dir.join("data/vms");
    while Instant::now() < until {
        let is_empty = std::fs::read_dir(&vms).map_or(true, |mut entries| entries.next().is_none());
        if is_empty {
            return;
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}
