//! File modes and the flags of a careful open.

use anyhow::{Context, Result};
use nix::fcntl::OFlag;
use std::ffi::OsStr;
use std::fs::{DirBuilder, File, FileType, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Creates a folder, and those above it, that only this user may enter.
pub(crate) fn create_private_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Opens a file for reading without following a link and without waiting for a pipe's other end.
/// The caller looks again at what it has got: the name may have changed its meaning since it was listed.
pub(crate) fn open_regular(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
        .open(path)
}

pub(crate) fn is_executable(metadata: &std::fs::Metadata) -> bool {
    metadata.permissions().mode() & 0o111 != 0
}

pub(crate) fn set_executable(file: &File, executable: bool) -> io::Result<()> {
    file.set_permissions(Permissions::from_mode(if executable {
        0o755
    } else {
        0o644
    }))
}

/// Standard output as a file, without the standard library's line buffer.
pub(crate) fn raw_stdout() -> io::Result<File> {
    Ok(File::from(io::stdout().as_fd().try_clone_to_owned()?))
}

/// Gives the owner the right to empty a folder; `dir` is no link.
pub(crate) fn make_removable(dir: &Path) -> io::Result<()> {
    std::fs::set_permissions(dir, Permissions::from_mode(0o700))
}

/// Removes a file, a folder with all that is in it, or a link, which is not followed.
pub(crate) fn remove(path: &Path, kind: FileType) -> io::Result<()> {
    if kind.is_dir() {
        std::fs::remove_dir_all(path)
    } else {
        std::fs::remove_file(path)
    }
}

/// Gives a file or a folder another name, in one step.
pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::rename(from, to)
}

/// The path from the root of the file system, for a folder that is there.
pub(crate) fn resolve(path: &Path) -> io::Result<PathBuf> {
    path.canonicalize()
}

/// Makes a folder the current one and gives the path by which names in it are short: a socket's may have about a hundred
/// bytes only.
pub(crate) fn enter(dir: &Path) -> Result<PathBuf> {
    std::env::set_current_dir(dir).with_context(|| format!("cannot enter {}", dir.display()))?;
    Ok(PathBuf::from("."))
}

/// Whether a part of a path means what it says, and nothing else.
pub(crate) fn check_name(_name: &OsStr) -> Result<()> {
    Ok(())
}

/// Writes a symbolic link of an archive in this system's own way; `false`: it is a link here as elsewhere.
pub(crate) fn write_link(_path: &Path, _target: &[u8]) -> Result<bool> {
    Ok(false)
}

/// Takes room on the disk for the file to grow into, where the system has a way to do that and the disk has the room.
pub(crate) fn reserve(file: &File, bytes: u64) {
    #[cfg(target_os = "linux")]
    {
        use nix::fcntl::{FallocateFlags, fallocate};
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        fallocate(file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, bytes).ok();
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (file, bytes);
}
