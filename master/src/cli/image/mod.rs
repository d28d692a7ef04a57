//! `vivarium image`: makes images by their recipes, and tests them before jobs use them.

mod build;
mod test;

use super::serve::hypervisor;
use crate::certify::{Bench, HashCache, Site};
use crate::clock::Clock;
use crate::config::Config;
use crate::session::{Agents, Ssh};
use clap::Subcommand;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, Subcommand)]
pub(super) enum ImageCommand {
    /// Boot a platform's image in a machine of its own, as a job would, look at it from inside, and write a certificate
    /// beside the image. Exits with 0 only if no check failed.
    Test(test::Options),
    /// Make images by their recipes, in `images/NAME/`.
    Build(build::Options),
}

pub(super) async fn image(command: ImageCommand) -> anyhow::Result<ExitCode> {
    match command {
        ImageCommand::Test(options) => test::test(options).await,
        ImageCommand::Build(options) => build::build(options).await,
    }
}

/// What tests of images work with under this configuration.
pub(super) fn bench(config: &Config, agents: Agents) -> Bench {
    let (uri, acceleration) = hypervisor(config);
    let data = &config.data_dir;
    Bench {
        site: Site {
            uri,
            acceleration,
            dir: data.join("certify"),
        },
        ssh: Ssh { agents },
        hashes: HashCache::kept_in(data.join("image-hashes.json")),
        clock: Clock::system(),
        tcg_deadline_scale: config.hypervisor.tcg_deadline_scale,
        heartbeat_secs: config.limits.heartbeat_secs,
    }
}

/// Where a user without a configuration keeps what a test makes.
fn own_folder() -> PathBuf {
    if nix::unistd::Uid::effective().is_root() {
        return "/var/cache/vivarium".into();
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache"),
        PathBuf::from,
    );
    cache.join("vivarium")
}
