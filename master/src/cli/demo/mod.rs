//! `vivarium demo`: the main job shown on this machine, with nothing but the two images.
//!
//! ```text
//! folder ─► sample repository ─► master in this process ◄─HTTP─ watch ─► artifacts ─► end
//! ```
//!
//! The master polls the sample. A commit on a branch is tested on both platforms with its output live; then the branch is
//! merged and what each machine built is kept. However the demo ends, no machine is left.

mod artifacts;
mod end;
mod folder;
mod sample;
mod watch;

pub(super) use end::asked_to_stop;

use super::serve::{Guests, Master};
use super::terminal::{print, told};
use crate::vm::Accelerator;
use anyhow::{anyhow, bail};
use folder::Folder;
use owo_colors::{OwoColorize, Stream};
use sample::Sample;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use tokio::sync::oneshot;
use tokio::task::JoinError;
use url::Url;
use watch::Watcher;

/// The platforms that the sample's suite runs on.
const PLATFORMS: [&str; 2] = ["tiny-linux", "debian-12"];
/// What it cannot do without.
const PROGRAMS: [&str; 3] = ["git", "qemu-img", "qemu-system-x86_64"];
/// Where the page is, unless another program has the port.
const USUAL_PORT: u16 = 8090;

/// Options of `vivarium demo`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Folder with the two platforms, as `images/build` makes it.
    #[arg(long)]
    images: PathBuf,
    /// Folder for everything the demo makes; emptied first.
    #[arg(long)]
    dir: PathBuf,
    /// Address of the page; by default 127.0.0.1:8090, or a free port if that is taken.
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// End when the job is shown, instead of serving until Ctrl-C.
    #[arg(long)]
    exit: bool,
}

/// How far the demo came.
enum Outcome {
    CameOutRight,
    Failed(anyhow::Error),
    /// Somebody ended it before it was through.
    Stopped,
}

pub(super) async fn demo(options: Options) -> anyhow::Result<ExitCode> {
    let stop = asked_to_stop()?;
    let images = std::path::absolute(&options.images)?;
    for name in PLATFORMS {
        let file = images.join(name).join("platform.toml");
        if !file.exists() {
            bail!("{} is not there\nhint: images/build {name}", file.display());
        }
    }
    for program in PROGRAMS {
        let found = Command::new(program).arg("--version").output();
        if !found.is_ok_and(|output| output.status.success()) {
            bail!(
                "{program} is not installed or does not work\nhint: config/prepare-host installs what the demo needs"
            );
        }
    }
    let folder = Folder::take(&options.dir)?;
    // What goes wrong is told by the demo itself; the master's own log is kept beside it.
    tracing_subscriber::fmt()
        .with_env_filter("info")
        .with_ansi(false)
        .with_writer(std::fs::File::create(folder.log())?)
        .init();
    let sample = Sample::make(folder.path())?;
    let listen = options.listen.unwrap_or_else(usual_address);
    let config = folder.configure(&images, &sample.bare, listen)?;
    let master = Master::open(config).await?;
    let url = master.url.clone();
    let guests = master.guests();
    let (end_master, ended) = oneshot::channel::<()>();
    let mut running = tokio::spawn(master.run(async move {
        let _sender_gone_means_stop = ended.await;
    }));
    let mut outcome = tokio::select! {
        shown = show(&url, &sample, &guests, &folder) => match shown {
            Ok(()) => Outcome::CameOutRight,
            // Ctrl-C reaches git as well, and its failure is no news then.
            Err(_) if stop.is_cancelled() => Outcome::Stopped,
            Err(error) => Outcome::Failed(error),
        },
        () = stop.cancelled() => Outcome::Stopped,
        ended = &mut running => Outcome::Failed(why_it_ended(ended)),
    };
    if matches!(outcome, Outcome::CameOutRight) && !options.exit {
        say(&format!("look at {url} in a browser; Ctrl-C ends the demo")).ok();
        tokio::select! {
            () = stop.cancelled() => {}
            ended = &mut running => outcome = Outcome::Failed(why_it_ended(ended)),
        }
    }
    match &outcome {
        Outcome::CameOutRight => {}
        Outcome::Failed(error) => complain(&format!(
            "{}\nhint: the master's log is {}",
            told(error),
            folder.log().display()
        )),
        Outcome::Stopped => {
            complain("ending as soon as no virtual machine is left; Ctrl-C again leaves at once");
        }
    }
    // Each of these is tried, whatever became of the one before.
    let cancelled = end::cancel_everything(&guests).await;
    drop(end_master);
    let stopped = match running.is_finished() {
        true => Ok(()),
        false => running.await?,
    };
    end::sweep(&guests).await?;
    cancelled.and(stopped)?;
    Ok(match outcome {
        Outcome::CameOutRight => ExitCode::SUCCESS,
        Outcome::Failed(_) | Outcome::Stopped => ExitCode::FAILURE,
    })
}

/// A master ends by itself when somebody drains it, or when it breaks.
fn why_it_ended(ended: Result<anyhow::Result<()>, JoinError>) -> anyhow::Error {
    match ended {
        Ok(Ok(())) => anyhow!("the master was told to stop"),
        Ok(Err(error)) => error,
        Err(error) => error.into(),
    }
}

async fn show(url: &Url, sample: &Sample, guests: &Guests, folder: &Folder) -> anyhow::Result<()> {
    let watcher = Watcher::new(url)?;
    let machines = &guests.machines;
    say(&format!("the master serves {url}"))?;
    say(&match machines.accelerator() {
        Accelerator::Kvm => format!(
            "virtual machines run on KVM: {}",
            machines.accelerator_why()
        ),
        Accelerator::Tcg => format!(
            "virtual machines are emulated, several times slower than with KVM: {}",
            machines.accelerator_why()
        ),
    })?;
    let sha = sample.push_topic()?;
    say(&format!("pushed commit {} to a topic branch", short(&sha)))?;
    let build = watcher.follow(&sha).await?;
    if build.jobs.iter().any(|job| !job.artifacts.is_empty()) {
        bail!("a topic branch kept artefacts");
    }
    let sha = sample.merge()?;
    say(&format!("merged it to main as {}", short(&sha)))?;
    let build = watcher.follow(&sha).await?;
    let kept = artifacts::check(&build, &watcher, guests, &folder.objects()).await?;
    say("what was built on main is kept:")?;
    for artifact in &kept {
        print(&format!(
            "  {:<30} {:>6} bytes  sha256 {}\n    {}\n",
            artifact.path,
            artifact.size,
            artifact.sha256,
            artifact.file.display()
        ))?;
    }
    say("everything came out right")
}

fn usual_address() -> SocketAddr {
    let usual = SocketAddr::from((Ipv4Addr::LOCALHOST, USUAL_PORT));
    match TcpListener::bind(usual) {
        Ok(_) => usual,
        Err(_) => SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
    }
}

fn short(sha: &str) -> &str {
    sha.get(..10).unwrap_or(sha)
}

fn say(text: &str) -> anyhow::Result<()> {
    let name = "demo:".if_supports_color(Stream::Stdout, |name| name.bold());
    print(&format!("{name} {text}\n"))
}

/// Says it if anybody listens: the terminal may be gone.
fn complain(text: &str) {
    writeln!(std::io::stderr(), "demo: {text}").ok();
}
