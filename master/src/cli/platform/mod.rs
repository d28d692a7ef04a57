//! `vivarium platform`: what is in the folder of platforms, and a way to put something there.

mod add;
mod check;
mod list;

pub(super) use check::{find, load};

use super::terminal::{print, print_json};
use super::{Local, Remote};
use crate::config::{platform_manual, platform_schema};
use clap::Subcommand;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, Subcommand)]
pub(super) enum PlatformCommand {
    /// Show the running master's platforms: which take work, and why the others do not.
    List {
        #[command(flatten)]
        remote: Remote,
    },
    /// Look into a platform as the master does before it uses it: its file, its keys, its image and the image's hash.
    Check {
        /// The platform's name, or a folder with a platform.toml.
        platform: PathBuf,
        #[command(flatten)]
        local: Local,
    },
    /// Make a platform of a cloud image: a folder with the image and a platform.toml of a few lines.
    Add(add::Options),
    /// Print the manual of platform.toml: every key, what it means, and its default.
    Schema {
        /// Print a JSON Schema, for editors.
        #[arg(long)]
        json: bool,
    },
}

pub(super) async fn platform(command: PlatformCommand) -> anyhow::Result<ExitCode> {
    match command {
        PlatformCommand::List { remote } => list::list(&remote).await,
        PlatformCommand::Check { platform, local } => check::check(&platform, &local.config).await,
        PlatformCommand::Add(options) => add::add(options).await,
        PlatformCommand::Schema { json } => {
            match json {
                true => print_json(&platform_schema())?,
                false => print(&platform_manual())?,
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}
