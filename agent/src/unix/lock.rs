//! The lock by which everybody knows whether an execution's supervisor lives: `flock` on a file in its folder.

use crate::record;
use anyhow::{Context, Result};
use std::fs::{File, OpenOptions, TryLockError};
use std::path::Path;

/// Locks the execution that is being made in `making` and will be called `dir`; `None` if another connection has it.
/// Who holds what is returned, or a copy of it, holds the lock.
pub(crate) fn lock_execution(making: &Path, _dir: &Path) -> Result<Option<File>> {
    let lock = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(making.join(record::LOCK))
        .context("cannot create the execution's lock")?;
    lock.lock().context("cannot lock the execution")?;
    Ok(Some(lock))
}

/// Whether the execution's supervisor lives. Its lock tells, and not its process id, which another process may have by now.
pub(crate) fn is_supervised(dir: &Path) -> Result<bool> {
    let lock = File::open(dir.join(record::LOCK)).context("cannot open the execution's lock")?;
    match lock.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(error).context("cannot try the execution's lock"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_locked_execution_counts_as_supervised_until_the_lock_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let lock = lock_execution(dir.path(), dir.path()).unwrap();
        assert!(is_supervised(dir.path()).unwrap());
        drop(lock);
        assert!(!is_supervised(dir.path()).unwrap());
    }
}
