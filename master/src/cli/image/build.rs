//! `vivarium image build`: finds the recipe and runs it.

use anyhow::{Context, bail};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tokio::process::Command;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Options {
    /// The images: folders with a recipe in the folder of recipes.
    #[arg(required = true)]
    names: Vec<String>,
    /// Folder of recipes, with the program `build` in it: `images` of Vivarium's sources.
    #[arg(long, default_value = "images")]
    recipes: PathBuf,
    /// Where the images are put. Default: `/var/cache/vivarium/images` for root, `~/.cache/vivarium/images` for others.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Build also what has not changed.
    #[arg(long)]
    force: bool,
    /// Build twice and compare byte by byte.
    #[arg(long)]
    verify: bool,
}

pub(super) async fn build(options: Options) -> anyhow::Result<ExitCode> {
    let program = options.recipes.join("build");
    if !program.is_file() {
        bail!(
            "nothing is built: {} is no folder of recipes, for there is no {}\n\
             hint: go to the folder of Vivarium's sources, or name its folder `images` with --recipes",
            options.recipes.display(),
            program.display()
        );
    }
    let known = recipes(&options.recipes)?;
    for name in &options.names {
        if !known.contains(name) {
            bail!(
                "nothing is built: there is no recipe {}\nhint: there are {}",
                options.recipes.join(name).join("recipe").display(),
                known.join(", ")
            );
        }
    }
    let mut arguments: Vec<OsString> = options.names.iter().map(OsString::from).collect();
    if let Some(out) = options.out {
        arguments.extend([OsString::from("--out"), out.into()]);
    }
    let flags = [(options.force, "--force"), (options.verify, "--verify")];
    arguments.extend(
        flags
            .iter()
            .filter(|(is_set, _)| *is_set)
            .map(|(_, flag)| OsString::from(flag)),
    );
    let program = std::path::absolute(&program)?;
    let status = Command::new(&program)
        .args(arguments)
        .status()
        .await
        .with_context(|| format!("cannot run {}", program.display()))?;
    // What went wrong it has said itself; after a signal there is no code.
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

/// The names of the folders with a recipe.
fn recipes(folder: &Path) -> anyhow::Result<Vec<String>> {
    let entries = std::fs::read_dir(folder);
    let entries = entries.with_context(|| format!("cannot list {}", folder.display()))?;
    let mut names: Vec<String> = entries
        .flatten()
        .filter(|entry| entry.path().join("recipe").is_file())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    Ok(names)
}
