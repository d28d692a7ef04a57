//! The lock by which everybody knows whether an execution's supervisor lives: a file that is open for it alone.
//!
//! It stands beside the execution's folder, for a folder with an open file in it cannot be renamed here. And it is no lock of
//! a range of bytes, for such a lock belongs to the process that took it and does not pass to the supervisor; that
//! nobody else may open the file does, with the handle.

use super::files::is_in_use;
use anyhow::{Context, Result, bail};
use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::windows::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long another connection may take to start the same name, or to look whether its supervisor lives.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(5);

/// Locks the execution that will be called `dir`; `None` if another connection has it.
/// Who holds what is returned, or a copy of it, holds the lock.
pub(crate) fn lock_execution(_making: &Path, dir: &Path) -> Result<Option<File>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let opened = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .share_mode(0)
            .open(path(dir));
        // Looked for after the lock was taken: whoever had it before may have named it meanwhile.
        if dir.is_dir() {
            return Ok(None);
        }
        match opened {
            Ok(lock) => return Ok(Some(lock)),
            Err(error) if is_in_use(&error) && Instant::now() < deadline => {
                std::thread::sleep(PAUSE);
            }
            Err(error) if is_in_use(&error) => {
                bail!("another connection has been starting it for too long: {error}")
            }
            Err(error) => return Err(error).context("cannot lock the execution"),
        }
    }
}

/// Whether the execution's supervisor lives. Its lock tells, and not its process id, which another process may have by now.
pub(crate) fn is_supervised(dir: &Path) -> Result<bool> {
    match File::open(path(dir)) {
        Ok(_) => Ok(false),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) if is_in_use(&error) => Ok(true),
        Err(error) => Err(error).context("cannot try the execution's lock"),
    }
}

/// An execution's name holds no dot, so this is nobody else's.
fn path(dir: &Path) -> PathBuf {
    dir.with_extension("lock")
}
