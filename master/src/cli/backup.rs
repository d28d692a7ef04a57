//! `vivarium backup`: an archive of what a master cannot make anew, made while it runs.
//!
//! ```text
//!  copy of the database, as of one moment ──────────────────────────────┐ last
//!  logs/, artifacts/ ─► records of logs that were sealed meanwhile ─► (objects/) ─► archive ─► FILE
//! ```
//!
//! What the folders have beyond the copy of the database does no harm: a log is only longer, a set of artefacts
//! received again, an object not known. What they lack because it went to the object store in between is there: its
//! folder is read after them.

use super::archive::Archive;
use super::terminal::print;
use crate::config::Config;
use crate::store::snapshot::Snapshot;
use anyhow::{Context, bail, ensure};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::path::{Path, PathBuf};

pub(super) const DATABASE: &str = "vivarium.sqlite";
pub(super) const INSTALLATION: &str = "installation";
/// Folders with results that are not in the object store.
pub(super) const WAITING: [&str; 2] = ["logs", "artifacts"];
pub(super) const OBJECTS: &str = "objects";
/// What the archive says of itself.
pub(super) const ABOUT: &str = "backup.json";

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct About {
    /// The program that made it.
    pub(super) version: String,
    /// Of the copy of the database.
    pub(super) time: Timestamp,
    /// Where the objects are that the database names, unless they are in the archive.
    pub(super) objects: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Objects {
    Included,
    LeftOut,
}

pub(super) async fn backup(config: &Path, file: &Path, objects: Objects) -> anyhow::Result<()> {
    let config = Config::load(config)?;
    let data = config.data_dir.clone();
    let database = data.join(DATABASE);
    ensure!(
        database.exists(),
        "there is nothing to back up: {} is not there\nhint: --config names the master's configuration",
        database.display()
    );
    refuse_to_replace(file)?;
    let folder = match (objects, objects_folder(&config)) {
        (Objects::Included, None) => bail!(
            "the objects are not in a folder but in {}\nhint: back them up by the store's own means, and leave --objects out",
            place_of_objects(&config)
        ),
        (Objects::Included, folder) => folder,
        (Objects::LeftOut, _) => None,
    };
    let place = folder.is_none().then(|| place_of_objects(&config));
    let parent = parent_of(file);
    let work = tempfile::Builder::new()
        .prefix(".vivarium-backup-")
        .tempdir_in(&parent)
        .with_context(|| format!("cannot work in {}", parent.display()))?;
    let copy = work.path().join(DATABASE);
    let about = About {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        time: Timestamp::now(),
        objects: place.clone(),
    };
    let mut snapshot = Snapshot::take(&database, &copy).await?;
    let part = work.path().join("archive");
    let mut archive = Archive::create(&part, file)?;
    let mut archive = blocking(move || {
        archive.add_text(ABOUT, &serde_json::to_string_pretty(&about)?)?;
        archive.add_file(&data.join(INSTALLATION), Path::new(INSTALLATION))?;
        for name in WAITING {
            archive.add_folder(&data.join(name), Path::new(name))?;
        }
        Ok(archive)
    })
    .await?;
    snapshot.take_over_sealed_logs().await?;
    snapshot.close().await?;
    let target = file.to_owned();
    let (files, size) = blocking(move || {
        if let Some(folder) = folder {
            archive.add_folder(&folder, Path::new(OBJECTS))?;
        }
        archive.add_file(&copy, Path::new(DATABASE))?;
        let files = archive.files;
        let size = archive.finish()?;
        refuse_to_replace(&target)?;
        std::fs::rename(&part, &target)
            .with_context(|| format!("cannot make {}", target.display()))?;
        File::open(parent_of(&target))?.sync_all()?;
        Ok((files, size))
    })
    .await?;
    let objects = match place {
        None => "Sealed logs and artefacts are in it.".to_owned(),
        Some(place) => format!(
            "Not in it: sealed logs and artefacts. They are in {place}, which needs a backup of its own."
        ),
    };
    print(&format!(
        "{}: the database and {} other files, {}\n{objects}\n\
         Not in it: the configuration, the secrets, the platforms.\n",
        file.display(),
        files - 1,
        indicatif::BinaryBytes(size)
    ))
}

fn refuse_to_replace(file: &Path) -> anyhow::Result<()> {
    ensure!(
        !file.exists(),
        "{} is there already\nhint: give another name; a backup never replaces a file",
        file.display()
    );
    Ok(())
}

fn parent_of(file: &Path) -> PathBuf {
    match file.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        Some(_) | None => PathBuf::from("."),
    }
}

/// Where the objects are, if that is a folder.
pub(super) fn objects_folder(config: &Config) -> Option<PathBuf> {
    match config.storage.url {
        Some(_) => config.storage.folder(),
        None => Some(config.data_dir.join(OBJECTS)),
    }
}

fn place_of_objects(config: &Config) -> String {
    match objects_folder(config) {
        Some(folder) => folder.display().to_string(),
        None => config.storage.url.clone().unwrap_or_default(),
    }
}

/// File work on a thread for it.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(work).await?
}
