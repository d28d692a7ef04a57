//! `vivarium check-config`: everything that can be known of a configuration without starting anything.

use super::terminal::print;
use crate::config::{Config, Platforms, REPOSITORY_FILE, RepositoryFile};
use crate::web::Tls;
use anyhow::Context;
use std::path::Path;
use std::process::ExitCode;

pub(super) fn check_config(path: &Path) -> anyhow::Result<ExitCode> {
    let is_repository_file = path.file_name().is_some_and(|name| name == REPOSITORY_FILE);
    if is_repository_file {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        RepositoryFile::parse(&text)?;
        print(&format!("{}: right\n", path.display()))?;
        return Ok(ExitCode::SUCCESS);
    }
    let config = Config::load(path)?;
    let mut faults = Vec::new();
    let github = &config.github;
    for (what, file) in github
        .token_file
        .iter()
        .map(|file| ("GitHub token", file))
        .chain(
            github
                .app
                .iter()
                .map(|app| ("GitHub App's key", &app.private_key_file)),
        )
        .chain(
            github
                .webhook_secret_files
                .iter()
                .map(|file| ("webhook secret", file)),
        )
        .chain(
            config
                .storage
                .secrets_file
                .iter()
                .map(|file| ("storage secrets", file)),
        )
    {
        if let Err(error) = std::fs::File::open(file) {
            faults.push(format!(
                "the {what} file {} cannot be read: {error}",
                file.display()
            ));
        }
    }
    if let Some(Err(error)) = config.server.tls.as_ref().map(Tls::open) {
        faults.push(format!("[server.tls]: {error:#}"));
    }
    let platforms = Platforms::of(&config);
    for refused in platforms.refused() {
        faults.push(format!(
            "platform `{}` takes no work: {}",
            refused.name, refused.why
        ));
    }
    let ready = platforms.ready();
    if ready.is_empty() {
        faults.push(format!(
            "no platform takes work: {} needs a folder with a platform.toml",
            config.platforms_dir.display()
        ));
    }
    print(&format!(
        "{}: repositories: {}, platforms in service: {}\n",
        path.display(),
        config.repositories.len(),
        ready.len()
    ))?;
    for fault in &faults {
        print(&format!("fault: {fault}\n"))?;
    }
    Ok(match faults.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}
