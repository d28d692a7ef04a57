//! A small local file that is read again when it changes: tokens, secrets and keys are replaced without a restart.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

/// Whether the file is read even though it looks the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reread {
    IfChanged,
    Always,
}

/// A file and what was made of its text when it was read last. It is a few bytes and local, so it is read here and now.
#[derive(Debug)]
pub(crate) struct Watched<T> {
    path: PathBuf,
    known: Mutex<Known<T>>,
}

#[derive(Debug)]
struct Known<T> {
    /// How the file looked at the last reading, whatever came of it.
    looked: Option<Option<Stamp>>,
    /// The last reading that was good.
    good: Option<(Option<Stamp>, T)>,
}

/// What tells one state of a file from the next: a file that was replaced has another inode.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    modified: SystemTime,
    size: u64,
    inode: u64,
}

impl<T: Clone> Watched<T> {
    pub(crate) fn new(path: &Path) -> Watched<T> {
        Watched {
            path: path.to_owned(),
            known: Mutex::new(Known {
                looked: None,
                good: None,
            }),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the file looks different from when it was read last.
    pub(crate) fn has_changed(&self) -> bool {
        self.lock().looked != Some(self.stamp())
    }

    /// What `parse` makes of the text.
    pub(crate) fn get<E>(
        &self,
        reread: Reread,
        parse: impl FnOnce(std::io::Result<String>) -> Result<T, E>,
    ) -> Result<T, E> {
        // Before the text: a change between the two is seen the next time.
        let stamp = self.stamp();
        let mut known = self.lock();
        if let (Reread::IfChanged, Some((good, value))) = (reread, &known.good)
            && *good == stamp
        {
            return Ok(value.clone());
        }
        known.looked = Some(stamp.clone());
        let value = parse(std::fs::read_to_string(&self.path))?;
        known.good = Some((stamp, value.clone()));
        Ok(value)
    }

    /// What was read last and was good, however the file looks now.
    pub(crate) fn last(&self) -> Option<T> {
        self.lock().good.as_ref().map(|(_, value)| value.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Known<T>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stamp(&self) -> Option<Stamp> {
        let metadata = std::fs::metadata(&self.path).ok()?;
        Some(Stamp {
            modified: metadata.modified().ok()?,
            size: metadata.len(),
            inode: metadata.ino(),
        })
    }
}
