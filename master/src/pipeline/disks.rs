//! The file systems that jobs fill, and how much room each has.

use crate::config::Config;
use nix::sys::statvfs::statvfs;
use serde::Serialize;
use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where overlays, logs, the database and objects lie; clones share it.
#[derive(Debug, Clone)]
pub struct Disks {
    folders: Arc<[PathBuf]>,
    /// No job is placed while one of them has less.
    pub min_free_mib: u64,
}

/// A file system with what it is used for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileSystem {
    /// Where it is mounted.
    pub mount: PathBuf,
    /// The first of our folders on it.
    pub folder: PathBuf,
    pub free_mib: u64,
}

impl Disks {
    pub fn of(config: &Config) -> Disks {
        let data = &config.data_dir;
        let parts = ["vms", "logs", "artifacts", "mirrors", "objects"].map(|name| data.join(name));
        let objects = config.storage.folder();
        Disks {
            folders: std::iter::once(data.clone())
                .chain(parts)
                .chain(objects)
                .collect(),
            min_free_mib: config.hypervisor.min_free_disk_mib,
        }
    }

    /// Looks at each file system once. A folder that is not there yet will be made where its parent is.
    pub async fn look(&self) -> io::Result<Vec<FileSystem>> {
        let folders = Arc::clone(&self.folders);
        tokio::task::spawn_blocking(move || look(&folders))
            .await
            .map_err(io::Error::other)?
    }
}

fn look(folders: &[PathBuf]) -> io::Result<Vec<FileSystem>> {
    let mut by_device = BTreeMap::new();
    for folder in folders {
        let told = |error: io::Error| {
            let what = format!("cannot see the room on {}: {error}", folder.display());
            io::Error::new(error.kind(), what)
        };
        let there = existing(folder);
        let device = there.metadata().map_err(told)?.dev();
        if by_device.contains_key(&device) {
            continue;
        }
        let room = statvfs(there).map_err(|e| told(e.into()))?;
        // What root alone may use is not free for QEMU.
        let free = u128::from(room.blocks_available()) * u128::from(room.fragment_size());
        let file_system = FileSystem {
            mount: mount_point(there, device).map_err(told)?,
            folder: folder.clone(),
            free_mib: u64::try_from(free >> 20).unwrap_or(u64::MAX),
        };
        by_device.insert(device, file_system);
    }
    Ok(by_device.into_values().collect())
}

fn existing(folder: &Path) -> &Path {
    folder
        .ancestors()
        .find(|path| path.exists())
        .unwrap_or(Path::new("/"))
}

/// The highest folder above that is on the same device.
fn mount_point(folder: &Path, device: u64) -> io::Result<PathBuf> {
    let folder = folder.canonicalize()?;
    let on_it = |path: &&Path| path.metadata().is_ok_and(|meta| meta.dev() == device);
    let mount = folder.ancestors().take_while(on_it).last();
    Ok(mount.unwrap_or(&folder).to_path_buf())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_file_system_is_looked_at_once_and_named_by_its_mount_point() {
        let dir = tempfile::tempdir().unwrap();
        let folders = [dir.path().to_path_buf(), dir.path().join("not/yet/there")];
        let found = look(&folders).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].folder, dir.path());
        assert!(
            dir.path()
                .canonicalize()
                .unwrap()
                .starts_with(&found[0].mount)
        );
        assert!(found[0].free_mib > 0);
    }
}
