//! The command line: one binary for the service and for those who use it.
//!
//! `serve`, `demo`, `doctor`, `check-config`, `backup`, `restore`, `image` and all of `platform` but its list work on this machine;
//! the others speak to a running master over HTTP.

mod archive;
mod backup;
mod check_config;
mod client;
mod demo;
mod doctor;
mod drain;
mod image;
mod platform;
mod restore;
mod serve;
mod show;
mod terminal;
mod token;

use crate::model::AfterDrain;
use clap::{CommandFactory, Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

/// As a shell tells of a program that ended because nobody read its output.
const READER_GONE: u8 = 141;

/// A CI master that runs each commit's suites in throw-away virtual machines.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

/// Where the running master is, and how to authenticate.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Remote {
    /// Address of the master.
    #[arg(
        long,
        env = "VIVARIUM_URL",
        default_value = "http://127.0.0.1:8090",
        global = true
    )]
    url: url::Url,
    /// File with the token, for requests that change something and where reading needs one.
    #[arg(
        long,
        env = "VIVARIUM_TOKEN_FILE",
        default_value = "/var/lib/vivarium/api-token",
        global = true
    )]
    token_file: PathBuf,
    /// Print JSON for scripts.
    #[arg(long, global = true)]
    json: bool,
}

/// Which master's files are worked on, on this machine.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Local {
    /// The master's configuration file.
    #[arg(
        long,
        short,
        env = "VIVARIUM_CONFIG",
        default_value = "/etc/vivarium/vivarium.toml"
    )]
    config: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the master.
    Serve {
        #[command(flatten)]
        local: Local,
    },
    /// Show the main job on this machine: a sample repository, two platforms, a commit, a merge.
    Demo(demo::Options),
    /// Check this machine and say what to do for each fault.
    Doctor {
        /// The configuration file; without one, the defaults are checked.
        #[arg(long, short, env = "VIVARIUM_CONFIG")]
        config: Option<PathBuf>,
        /// Print JSON for scripts.
        #[arg(long)]
        json: bool,
    },
    /// Read a configuration, its platforms and secrets, and say what is wrong with them.
    CheckConfig {
        /// The configuration file, or a repository's `.vivarium.toml`.
        #[arg(default_value = "/etc/vivarium/vivarium.toml")]
        config: PathBuf,
    },
    /// Build a branch, tag or commit by hand.
    Build {
        /// The repository's name in the configuration.
        #[arg(long)]
        repo: String,
        /// Branch, tag or commit.
        #[arg(long = "ref")]
        reference: String,
        /// Only these platforms: names, tags or globs. May be given several times.
        #[arg(long = "platform")]
        platforms: Vec<String>,
        /// Wait for the end; exit with 0 only if everything passed.
        #[arg(long)]
        wait: bool,
        #[command(flatten)]
        remote: Remote,
    },
    /// Show the newest builds, or one build with its jobs.
    Status {
        /// A build, e.g. `build-12`.
        build: Option<String>,
        /// Only this repository's.
        #[arg(long)]
        repo: Option<String>,
        #[command(flatten)]
        remote: Remote,
    },
    /// Print a job's log.
    Logs {
        /// A job, e.g. `job-204`.
        job: String,
        /// Go on as it grows, until the job ends.
        #[arg(long, short)]
        follow: bool,
        /// Start at this byte.
        #[arg(long, default_value_t = 0)]
        from: u64,
        #[command(flatten)]
        remote: Remote,
    },
    /// Cancel a build or a job.
    Cancel {
        /// `build-12` or `job-204`.
        id: String,
        #[command(flatten)]
        remote: Remote,
    },
    /// Run a finished build or job again.
    Rerun {
        /// `build-12` or `job-204`.
        id: String,
        #[command(flatten)]
        remote: Remote,
    },
    /// Write what the master cannot make anew into an archive; it may run meanwhile.
    Backup {
        /// The new file: a tar archive, compressed if its name ends with `.zst`.
        file: PathBuf,
        /// With sealed logs and artefacts, where they are in a folder.
        #[arg(long)]
        objects: bool,
        #[command(flatten)]
        local: Local,
    },
    /// Put a backup into a data folder that is empty.
    Restore {
        /// What `vivarium backup` made.
        file: PathBuf,
        #[command(flatten)]
        local: Local,
    },
    /// Start no more jobs and let those that run end; queued ones stay queued.
    Drain {
        /// Wait until nothing runs, and show what still does.
        #[arg(long)]
        wait: bool,
        /// Stop the master once nothing runs. Started again, it takes jobs.
        #[arg(long)]
        stop: bool,
        #[command(flatten)]
        remote: Remote,
    },
    /// Take jobs again after a drain.
    Resume {
        #[command(flatten)]
        remote: Remote,
    },
    /// List, check and add platforms; print the manual of platform.toml.
    #[command(subcommand)]
    Platform(platform::PlatformCommand),
    /// Test images before jobs use them, and make them by their recipes.
    #[command(subcommand)]
    Image(image::ImageCommand),
    /// Make, list and revoke tokens: for people who log in on the page, for scripts, for Prometheus.
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Print completions for a shell.
    Completions { shell: clap_complete::Shell },
}

/// Runs the command line; the exit code is 0 only when what was asked for came out right.
pub async fn run() -> ExitCode {
    let arguments = Arguments::parse();
    match execute(arguments.command).await {
        Ok(code) => code,
        Err(error) if terminal::is_reader_gone(&error) => ExitCode::from(READER_GONE),
        Err(error) => {
            eprintln!("error: {}", terminal::told(&error));
            ExitCode::FAILURE
        }
    }
}

async fn execute(command: Command) -> anyhow::Result<ExitCode> {
    let done = |()| ExitCode::SUCCESS;
    match command {
        Command::Serve { local } => serve::serve(&local.config).await.map(done),
        Command::Demo(options) => demo::demo(options).await,
        Command::Doctor { config, json } => doctor::doctor(config.as_deref(), json).await,
        Command::CheckConfig { config } => check_config::check_config(&config),
        Command::Build {
            repo,
            reference,
            platforms,
            wait,
            remote,
        } => show::build(&remote, repo, reference, platforms, wait).await,
        Command::Status {
            build,
            repo,
            remote,
        } => show::status(&remote, build, repo).await.map(done),
        Command::Logs {
            job,
            follow,
            from,
            remote,
        } => show::logs(&remote, &job, follow, from).await.map(done),
        Command::Cancel { id, remote } => show::act(&remote, &id, "cancel").await.map(done),
        Command::Rerun { id, remote } => show::act(&remote, &id, "rerun").await.map(done),
        Command::Backup {
            file,
            objects,
            local,
        } => {
            let objects = match objects {
                true => backup::Objects::Included,
                false => backup::Objects::LeftOut,
            };
            backup::backup(&local.config, &file, objects)
                .await
                .map(done)
        }
        Command::Restore { file, local } => restore::restore(&local.config, &file).await.map(done),
        Command::Drain { wait, stop, remote } => {
            let then = match stop {
                true => AfterDrain::Stop,
                false => AfterDrain::Stay,
            };
            drain::drain(&remote, then, wait).await
        }
        Command::Resume { remote } => drain::resume(&remote).await,
        Command::Platform(command) => platform::platform(command).await,
        Command::Image(command) => image::image(command).await,
        Command::Token(command) => token::token(command).await.map(done),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "vivarium", &mut script);
            terminal::write(&script).map(done)
        }
    }
}
