//! `vivarium restore`: the data folder of a master, from an archive that `vivarium backup` made.
//!
//! ```text
//!  FILE ─► a folder in data_dir ─► is it whole, is the place free? ─► moved into place, the database last
//! ```
//!
//! Nothing is in its place before everything is known to fit: what fails leaves no half of a master behind.

use super::archive::unpack;
use super::backup::{ABOUT, About, DATABASE, INSTALLATION, OBJECTS, WAITING};
use super::backup::{blocking, objects_folder};
use super::serve::lock::DataLock;
use super::terminal::print;
use crate::config::Config;
use crate::store::snapshot;
use anyhow::{Context, bail, ensure};
use std::path::{Path, PathBuf};

pub(super) async fn restore(config: &Path, file: &Path) -> anyhow::Result<()> {
    let config = Config::load(config)?;
    let data = config.data_dir.clone();
    std::fs::create_dir_all(&data)
        .with_context(|| format!("cannot make the data folder {}", data.display()))?;
    let _lock = DataLock::take(&data).await?;
    for name in WAITING.into_iter().chain([DATABASE]) {
        ensure_free(&data.join(name))?;
    }
    let work = tempfile::Builder::new()
        .prefix(".restore-")
        .tempdir_in(&data)
        .with_context(|| format!("cannot work in {}", data.display()))?;
    let (source, unpacked) = (file.to_owned(), work.path().to_owned());
    blocking(move || unpack(&source, &unpacked)).await?;
    let about = about(file, work.path())?;
    let database = work.path().join(DATABASE);
    if let Some(fault) = snapshot::check(&database).await? {
        bail!("the database in {} is damaged: {fault}", file.display());
    }
    let mut moves: Vec<(PathBuf, PathBuf)> = Vec::new();
    if let Some(folder) = objects_folder(&config) {
        moves.push((work.path().join(OBJECTS), folder));
    }
    // The database last: with it a master is there.
    for name in WAITING.into_iter().chain([INSTALLATION, DATABASE]) {
        moves.push((work.path().join(name), data.join(name)));
    }
    moves.retain(|(from, _)| from.exists());
    if let Some((_, folder)) = moves.iter().find(|(from, _)| from.ends_with(OBJECTS)) {
        ensure_free(folder)?;
    }
    blocking(move || move_all(&moves)).await?;
    let objects = match about.objects {
        Some(place) => format!("Sealed logs and artefacts are expected in {place}."),
        None => "Sealed logs and artefacts were restored too.".to_owned(),
    };
    print(&format!(
        "{} is restored as of {}, from a backup by version {}.\n{objects}\nNow start the master.\n",
        data.display(),
        about.time.strftime("%Y-%m-%d %H:%M:%S UTC"),
        about.version
    ))
}

/// A restore never mixes two masters.
fn ensure_free(path: &Path) -> anyhow::Result<()> {
    let is_empty_folder = std::fs::read_dir(path).is_ok_and(|mut all| all.next().is_none());
    ensure!(
        !path.exists() || is_empty_folder,
        "{} is there already\nhint: move what an earlier master left away first; nothing was restored",
        path.display()
    );
    Ok(())
}

fn about(file: &Path, unpacked: &Path) -> anyhow::Result<About> {
    let text = std::fs::read_to_string(unpacked.join(ABOUT)).ok();
    let text = text.filter(|_| unpacked.join(DATABASE).exists());
    let text = text.with_context(|| {
        let file = file.display();
        format!("{file} is no backup of a master: it lacks {ABOUT} or {DATABASE}")
    })?;
    serde_json::from_str(&text).with_context(|| format!("{ABOUT} is not understood"))
}

fn move_all(moves: &[(PathBuf, PathBuf)]) -> anyhow::Result<()> {
    for (from, to) in moves {
        let error = || format!("cannot move {} to {}", from.display(), to.display());
        if let Some(parent) = to.parent() {
            std::fs::create_dir_all(parent).with_context(error)?;
        }
        match std::fs::rename(from, to) {
            // An object folder on another file system.
            Err(moved) if moved.kind() == std::io::ErrorKind::CrossesDevices => {
                copy_folder(from, to).with_context(error)?;
            }
            moved => moved.with_context(error)?,
        }
    }
    Ok(())
}

fn copy_folder(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => copy_folder(&entry.path(), &target)?,
            false => {
                std::fs::copy(entry.path(), target)?;
            }
        }
    }
    Ok(())
}
