//! Files as Windows has them: no modes, no links for everybody, and names that are in use and cannot be removed.

use anyhow::{Context, Result, bail};
use std::ffi::OsStr;
use std::fs::{DirBuilder, File, FileType, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::windows::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::windows::io::AsHandle;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long something that is in use is waited for: a scanner looks at what is new, a process that was killed lets go.
const PATIENCE: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(20);

const FILE_FLAG_OPEN_REPARSE_POINT: u32 = 0x0020_0000;
const FILE_ATTRIBUTE_READONLY: u32 = 1;
const ERROR_ACCESS_DENIED: i32 = 5;
const ERROR_SHARING_VIOLATION: i32 = 32;
const ERROR_LOCK_VIOLATION: i32 = 33;
const ERROR_DIR_NOT_EMPTY: i32 = 145;

/// Creates a folder, and those above it. Who may enter it is inherited from the folder above: a user's own, as a rule.
pub(crate) fn create_private_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).create(dir)
}

/// Opens a file for reading without following a link.
/// The caller looks again at what it has got: the name may have changed its meaning since it was listed.
pub(crate) fn open_regular(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(FILE_FLAG_OPEN_REPARSE_POINT)
        .open(path)
}

/// There is no such mark here: a file's name tells.
pub(crate) fn is_executable(_metadata: &std::fs::Metadata) -> bool {
    false
}

pub(crate) fn set_executable(_file: &File, _executable: bool) -> io::Result<()> {
    Ok(())
}

/// Standard output as a file, without the standard library's line buffer.
pub(crate) fn raw_stdout() -> io::Result<File> {
    Ok(File::from(io::stdout().as_handle().try_clone_to_owned()?))
}

/// A folder's contents are their owner's to remove; what is read-only is seen to by [`remove`].
pub(crate) fn make_removable(_dir: &Path) -> io::Result<()> {
    Ok(())
}

/// Removes a file, a folder with all that is in it, or a link, which is not followed. Read-only ones too; those in use
/// are waited for, and then named.
pub(crate) fn remove(path: &Path, kind: FileType) -> io::Result<()> {
    if kind.is_dir() {
        for entry in std::fs::read_dir(path)? {
            let entry = entry?;
            remove(&entry.path(), entry.file_type()?)?;
        }
    }
    let is_folder = kind.is_dir() || kind.is_symlink_dir();
    patiently(|| {
        let removed = if is_folder {
            std::fs::remove_dir(path)
        } else {
            std::fs::remove_file(path)
        };
        match removed {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                clear_read_only(path)?;
                Err(error)
            }
            other => other,
        }
    })
    .map_err(|error| {
        io::Error::new(
            error.kind(),
            format!("cannot remove {}: {error}", path.display()),
        )
    })
}

fn clear_read_only(path: &Path) -> io::Result<()> {
    let metadata = std::fs::symlink_metadata(path)?;
    if metadata.file_attributes() & FILE_ATTRIBUTE_READONLY == 0 {
        return Ok(());
    }
    let mut permissions = metadata.permissions();
    #[expect(
        clippy::permissions_set_readonly_false,
        reason = "on Windows this is the one bit there is"
    )]
    permissions.set_readonly(false);
    std::fs::set_permissions(path, permissions)
}

/// Gives a file or a folder another name, in one step, once nobody looks at it.
pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    patiently(|| std::fs::rename(from, to))
}

/// Tries again for a while what fails because somebody has the file open.
pub(super) fn patiently<T>(mut act: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match act() {
            Err(error) if is_in_use(&error) && Instant::now() < deadline => {
                std::thread::sleep(PAUSE);
            }
            other => return other,
        }
    }
}

pub(super) fn is_in_use(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            ERROR_ACCESS_DENIED
                | ERROR_SHARING_VIOLATION
                | ERROR_LOCK_VIOLATION
                | ERROR_DIR_NOT_EMPTY
        )
    )
}

/// No room is taken before it is needed.
pub(crate) fn reserve(_file: &File, _bytes: u64) {}

/// The path from the root of the file system; not in the `\\?\` form, which `cmd` does not take.
pub(crate) fn resolve(path: &Path) -> io::Result<PathBuf> {
    std::path::absolute(path)
}

/// The path by which names in a folder are found: its own, for a current folder can be neither removed nor renamed here.
pub(crate) fn enter(dir: &Path) -> Result<PathBuf> {
    resolve(dir).with_context(|| format!("cannot find {}", dir.display()))
}

/// Refuses a part of a path that would be a stream of a file.
pub(crate) fn check_name(name: &OsStr) -> Result<()> {
    if name.as_encoded_bytes().contains(&b':') {
        bail!("a name cannot hold a colon on Windows");
    }
    Ok(())
}

/// Writes a symbolic link of an archive as a small file that holds its target, as Git for Windows does: to make a link
/// is not every user's right. Then nothing in the tree leads out of it either.
pub(crate) fn write_link(path: &Path, target: &[u8]) -> Result<bool> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(metadata) => remove(path, metadata.file_type())?,
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    std::fs::write(path, target)?;
    Ok(true)
}
