//! `vivarium platform check`: all that can be known of a platform without booting it.

use super::super::terminal::{HINT, print};
use crate::config::{Config, Platforms, Standing, parse_platform};
use crate::fetch::sha256;
use crate::model::{DiskSpec, Platform, PlatformKind};
use crate::vm::{VmError, check_platform};
use anyhow::{Context, bail};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

pub(super) async fn check(wanted: &Path, config: &Path) -> anyhow::Result<ExitCode> {
    let (folder, data) = find(wanted, config)?;
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    match look(&folder, data.as_deref()).await {
        Ok(found) => {
            for line in found {
                print(&format!("{name}: {line}\n"))?;
            }
            print(&format!("{name}: fit for work\n"))?;
            Ok(ExitCode::SUCCESS)
        }
        Err(why) => {
            print(&format!("{name}: takes no work: {why}\n"))?;
            Ok(ExitCode::FAILURE)
        }
    }
}

/// The platform's folder, and the master's where it is known: a folder is looked into without a configuration, too.
pub(in crate::cli) fn find(
    wanted: &Path,
    config: &Path,
) -> anyhow::Result<(PathBuf, Option<PathBuf>)> {
    let config = Config::load(config);
    let data = config.as_ref().ok().map(|config| config.data_dir.clone());
    let is_name = wanted.components().count() == 1 && !wanted.join("platform.toml").is_file();
    let folder = match is_name {
        true => config?.platforms_dir.join(wanted),
        false => std::path::absolute(wanted)
            .with_context(|| format!("cannot use {}", wanted.display()))?,
    };
    if !folder.join("platform.toml").is_file() {
        bail!(
            "there is no platform {}: no file {}",
            wanted.display(),
            folder.join("platform.toml").display()
        );
    }
    Ok((folder, data))
}

/// The platform in this folder as its file and its neighbours say, or why it takes no work.
pub(in crate::cli) fn load(folder: &Path, data: Option<&Path>) -> Result<Arc<Platform>, String> {
    let file = folder.join("platform.toml");
    let text = std::fs::read_to_string(&file)
        .map_err(|error| format!("{} cannot be read: {error}", file.display()))?;
    // The sentence for the name is the reader's; what its neighbours say matters as well.
    parse_platform(folder, &text).map_err(|error| error.to_string())?;
    let parent = folder.parent().unwrap_or(Path::new("/")).to_owned();
    let name = folder.file_name().unwrap_or_default();
    let listed = Platforms::beside(parent, data)
        .list()
        .into_iter()
        .find(|listed| listed.name.as_str() == name);
    let listed =
        listed.ok_or("its folder's name begins with a dot, so the master passes over it")?;
    match (listed.standing, listed.platform) {
        (Standing::Ready, Some(platform)) => Ok(platform),
        (Standing::Refused(why) | Standing::OutOfService(why) | Standing::Held(why), _) => Err(why),
        (Standing::Ready, None) => Err("its file cannot be read".to_owned()),
    }
}

/// What there is to tell of a good platform, or what is wrong.
pub(super) async fn look(folder: &Path, data: Option<&Path>) -> Result<Vec<String>, String> {
    let platform = load(folder, data)?;
    let mut found = vec![format!("platform.toml is right: {}", about(&platform))];
    if let PlatformKind::Vm {
        disk: Some(disk), ..
    } = &platform.kind
    {
        if let Some(url) = &disk.url
            && !disk.path.is_file()
        {
            found.push(format!(
                "its image is not fetched yet: the master does that, from {url}"
            ));
            return Ok(found);
        }
        found.extend(check_hash(disk).await?);
    }
    check_platform(&platform)
        .await
        .map_err(|error| match error {
            VmError::Image { why, hint, .. } => match hint {
                Some(hint) => format!("{why}{HINT}{hint}"),
                None => why,
            },
            other @ (VmError::Gone(_) | VmError::Host { .. } | VmError::Away { .. }) => {
                other.to_string()
            }
        })?;
    found.push("what it boots from is there and whole".to_owned());
    Ok(found)
}

fn about(platform: &Platform) -> String {
    let system = platform.os_version.as_ref().map_or_else(
        || platform.os.as_str().to_owned(),
        |version| format!("{} {version}", platform.os.as_str()),
    );
    match &platform.kind {
        PlatformKind::Vm { .. } => format!(
            "{system}, {} MiB, vCPUs: {}, user {}",
            platform.memory_mib(),
            platform.vcpus(),
            platform.ssh.user
        ),
        PlatformKind::Ssh { host } => format!("{system} at {host}, user {}", platform.ssh.user),
    }
}

async fn check_hash(disk: &DiskSpec) -> Result<Option<String>, String> {
    let Some(wanted) = &disk.sha256 else {
        return Ok(None);
    };
    let path = disk.path.display();
    match sha256(&disk.path).await {
        Ok(found) if found == *wanted => Ok(Some(format!("{path} has the hash that it should"))),
        Ok(found) => Err(format!(
            "its disk image {path} is not the one that was meant: its SHA-256 is {found}, and `sha256` says {wanted}"
        )),
        Err(error) => Err(format!("its disk image {path} cannot be read: {error}")),
    }
}
