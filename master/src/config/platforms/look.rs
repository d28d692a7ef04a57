//! What is in the folder of platforms: their folders, and what tells one state of a folder from the next.

use super::Certificates;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Names, sizes, times and inodes of the files in a folder: an image that appears after its TOML file, or in the place
/// of another, is noticed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stamp(Vec<(std::ffi::OsString, u64, i64, i64, u64)>);

impl Stamp {
    /// A short name of it, the same after a restart.
    pub(super) fn digest(&self) -> String {
        use sha2::{Digest, Sha256};
        hex::encode(Sha256::digest(format!("{:?}", self.0)))
    }
}

pub(super) fn stamp(folder: &Path, certificates: Certificates) -> Stamp {
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| match certificates {
            Certificates::Required => true,
            // A test at night is no reason to look into the image.
            Certificates::LeftOut => entry.file_name() != crate::certify::FILE,
        })
        .filter_map(|entry| {
            // Behind a link: it is the image that counts.
            let file = std::fs::metadata(entry.path()).ok()?;
            let (secs, nanos) = (file.mtime(), file.mtime_nsec());
            Some((entry.file_name(), file.len(), secs, nanos, file.ino()))
        })
        .collect();
    files.sort();
    Stamp(files)
}

/// The folders with a platform file, by name.
pub(super) fn folders(dir: &Path) -> Vec<(String, PathBuf)> {
    let mut folders: Vec<(String, PathBuf)> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| {
            (
                entry.file_name().to_string_lossy().into_owned(),
                entry.path(),
            )
        })
        // A folder being written has a leading dot.
        .filter(|(name, path)| !name.starts_with('.') && path.join("platform.toml").exists())
        .collect();
    folders.sort();
    folders
}
