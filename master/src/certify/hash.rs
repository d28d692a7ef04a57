//! What tells one image from another: the hash of all that its guest boots from, and of what platform.toml says.
//!
//! ```text
//!  kernel, initrd, disk, what that stands on ─► SHA-256 each (kept while size, times and inode are the same) ─┐
//!                                                                                       image's SHA-256 ◄─────┘
//!  platform.toml, without what is none of the guest's business ─► platform's SHA-256
//! ```

use crate::fetch::sha256;
use crate::model::Platform;
use crate::vm::{VmError, image_facts};
use anyhow::Context;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Keys of platform.toml that change nothing for a guest: a certificate outlives their change.
const FOR_PEOPLE: [&str; 7] = [
    "tags",
    "limit",
    "owner",
    "known_issue",
    "expires",
    "notes",
    "os_version",
];

/// Of one platform, in hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hashes {
    pub image: String,
    pub platform: String,
}

/// What a file was when it was hashed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    inode: u64,
}

impl Stamp {
    fn of(path: &Path) -> std::io::Result<Stamp> {
        let meta = std::fs::metadata(path)?;
        Ok(Stamp {
            bytes: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
            inode: meta.ino(),
        })
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Known {
    stamp: Stamp,
    sha256: String,
}

/// Hashes of files, kept until a file changes; clones share them.
#[derive(Debug, Clone, Default)]
pub struct HashCache {
    known: Arc<Mutex<HashMap<PathBuf, Known>>>,
    /// Where they outlive the process.
    file: Option<PathBuf>,
}

impl HashCache {
    /// With those of an earlier run; a file that cannot be read is one without any.
    pub fn kept_in(file: PathBuf) -> HashCache {
        let known = std::fs::read(&file)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default();
        HashCache {
            known: Arc::new(Mutex::new(known)),
            file: Some(file),
        }
    }

    /// Of the platform whose folder this is.
    pub async fn hashes(&self, folder: &Path, platform: &Platform) -> anyhow::Result<Hashes> {
        let facts = image_facts(platform).await.map_err(|error| match error {
            // Which platform it is, is said beside it.
            VmError::Image { why, .. } => anyhow::anyhow!("{why}"),
            other @ (VmError::Gone(_) | VmError::Host { .. } | VmError::Away { .. }) => {
                other.into()
            }
        })?;
        let mut whole = Sha256::new();
        for file in &facts.files {
            whole.update(self.of_file(file).await?);
            whole.update("\n");
        }
        let file = folder.join("platform.toml");
        let text = std::fs::read_to_string(&file)
            .with_context(|| format!("{} cannot be read", file.display()))?;
        Ok(Hashes {
            image: hex::encode(whole.finalize()),
            platform: of_platform(&text).with_context(|| file.display().to_string())?,
        })
    }

    async fn of_file(&self, path: &Path) -> anyhow::Result<String> {
        let told = || format!("{} cannot be read", path.display());
        let stamp = Stamp::of(path).with_context(told)?;
        if let Some(known) = self.lock().get(path)
            && known.stamp == stamp
        {
            return Ok(known.sha256.clone());
        }
        let sha256 = sha256(path).await.with_context(told)?;
        // Written to meanwhile, it is neither what it was nor what it is.
        if Stamp::of(path).with_context(told)? != stamp {
            anyhow::bail!("{} changed while it was read", path.display());
        }
        let known = Known {
            stamp,
            sha256: sha256.clone(),
        };
        self.lock().insert(path.to_owned(), known);
        if let Err(error) = self.keep() {
            tracing::debug!(%error, "hashes of images are not kept for the next start");
        }
        Ok(sha256)
    }

    fn keep(&self) -> std::io::Result<()> {
        let Some(file) = &self.file else {
            return Ok(());
        };
        let mut known = self.lock().clone();
        known.retain(|path, _| path.exists());
        let folder = file.parent().unwrap_or(Path::new("/"));
        let mut new = tempfile::NamedTempFile::new_in(folder)?;
        new.write_all(&serde_json::to_vec(&known)?)?;
        new.persist(file).map_err(|error| error.error)?;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PathBuf, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Comments, order and what is for people alone do not count.
fn of_platform(text: &str) -> anyhow::Result<String> {
    let mut table: toml::Table = toml::from_str(text)?;
    for key in FOR_PEOPLE {
        table.remove(key);
    }
    // A table is sorted by its keys.
    let canonical = serde_json::to_vec(&table)?;
    Ok(hex::encode(Sha256::digest(canonical)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_for_people_leaves_a_certificate_as_it_is() {
        let of = |text| of_platform(text).unwrap();
        let first = of("memory_mib = 384\nlimit = 8\n[kernel]\npath = 'vmlinux'\n");
        let same = of(
            "# other words\nlimit = 2\nowner = 'me'\nmemory_mib = 384\n[kernel]\npath = \"vmlinux\"\n",
        );
        assert_eq!(first, same);
        let other = of("memory_mib = 385\nlimit = 8\n[kernel]\npath = 'vmlinux'\n");
        assert_ne!(first, other);
    }

    #[tokio::test]
    async fn a_file_is_hashed_again_when_it_changed_and_known_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let (image, kept) = (folder.path().join("image"), folder.path().join("kept"));
        std::fs::write(&image, "one").unwrap();
        let cache = HashCache::kept_in(kept.clone());
        let first = cache.of_file(&image).await.unwrap();
        assert_eq!(first, hex::encode(Sha256::digest("one")));
        let again = HashCache::kept_in(kept);
        assert_eq!(again.lock()[&image].sha256, first);
        assert_eq!(again.of_file(&image).await.unwrap(), first);
        // Of the same size, in the same place.
        std::fs::write(folder.path().join("new"), "two").unwrap();
        std::fs::rename(folder.path().join("new"), &image).unwrap();
        let second = again.of_file(&image).await.unwrap();
        assert_eq!(second, hex::encode(Sha256::digest("two")));
    }
}
