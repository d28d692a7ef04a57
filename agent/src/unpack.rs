//! Unpacking a tar stream into an emptied folder, and nowhere else.

use crate::platform;
use anyhow::{Context, Result, bail};
use std::io::{ErrorKind, Read};
use std::path::{Component, Path, PathBuf};
use tar::{Archive, EntryType};

/// Empties `dir`, creates it if need be, and unpacks `data`; says how many entries there were.
/// A folder that holds one of the paths in `kept` is refused.
pub(crate) fn unpack(dir: &Path, kept: &[PathBuf], data: &mut impl Read) -> Result<u64> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let dir = dir
        .canonicalize()
        .with_context(|| format!("cannot find {}", dir.display()))?;
    if dir.parent().is_none() {
        bail!(
            "{} is the root of the file system: it is not emptied",
            dir.display()
        );
    }
    for path in kept {
        if path.canonicalize().is_ok_and(|path| path.starts_with(&dir)) {
            bail!(
                "{} holds the agent itself: it is not emptied",
                dir.display()
            );
        }
    }
    empty(&dir).with_context(|| format!("cannot empty {}", dir.display()))?;
    let entries =
        extract(&dir, data).with_context(|| format!("cannot unpack into {}", dir.display()))?;
    // The archive's reader stops at its end marker; padding may follow.
    std::io::copy(data, &mut std::io::sink())?;
    Ok(entries)
}

fn extract(dir: &Path, data: &mut impl Read) -> Result<u64> {
    let mut archive = Archive::new(data);
    archive.set_preserve_permissions(true);
    archive.set_preserve_mtime(true);
    archive.set_overwrite(true);
    let mut entries = 0;
    // A folder gets its mode and time when everything is in it: it may be read-only.
    let mut folders = Vec::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let kind = entry.header().entry_type();
        if kind == EntryType::XGlobalHeader {
            continue;
        }
        let path = entry.path()?.into_owned();
        check_path(&path)?;
        entries += 1;
        if kind == EntryType::Symlink
            && platform::write_link(
                &dir.join(&path),
                &entry.link_name_bytes().unwrap_or_default(),
            )
            .with_context(|| format!("cannot unpack {}", path.display()))?
        {
            continue;
        }
        match kind {
            EntryType::Directory => folders.push(entry),
            EntryType::Regular
            | EntryType::Continuous
            | EntryType::Link
            | EntryType::Symlink
            | EntryType::GNUSparse => {
                let inside = entry.unpack_in(dir);
                if !inside.with_context(|| format!("cannot unpack {}", path.display()))? {
                    bail!("{} leads out of the folder", path.display());
                }
            }
            other => bail!(
                "{} is of the kind {other:?}, which is not unpacked",
                path.display()
            ),
        }
    }
    // Those deepest in the tree first.
    folders.sort_by_cached_key(|folder| std::cmp::Reverse(folder.path_bytes().into_owned()));
    for mut folder in folders {
        let path = folder.path()?.into_owned();
        folder
            .unpack_in(dir)
            .with_context(|| format!("cannot unpack {}", path.display()))?;
    }
    Ok(entries)
}

/// Refuses what the `tar` crate would mend in silence.
fn check_path(path: &Path) -> Result<()> {
    for part in path.components() {
        match part {
            Component::Normal(name) => platform::check_name(name)
                .with_context(|| format!("cannot unpack {}", path.display()))?,
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                bail!("{} leads out of the folder", path.display());
            }
        }
    }
    Ok(())
}

/// Removes everything in a folder, read-only folders included; links are removed and not followed.
fn empty(dir: &Path) -> std::io::Result<()> {
    match remove_entries(dir) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {}
        other => return other,
    }
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        platform::make_removable(&folder)?;
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    remove_entries(dir)
}

fn remove_entries(dir: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        platform::remove(&entry.path(), entry.file_type()?)?;
    }
    Ok(())
}
