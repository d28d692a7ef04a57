//! The files of one VM: everything it writes, and copies of what it boots from, in a folder of its own.
//!
//! ```text
//! <data>/vms/vm-17/{platform.json, overlay.qcow2, console.log, kernel, initrd, firmware-variables}
//!                  {ssh_key, ssh_host_key.pub, seed.iso}      where the VM has keys of its own
//! ```
//!
//! The kernel and initrd are copies: libvirt makes QEMU's user the owner of the files it hands to QEMU, and root when
//! the machine ends. That must not happen to golden files, which a guest that broke out could then write.

use super::VmError;
use crate::model::{AttemptId, KernelSpec, Platform};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// QEMU's user passes through but does not list.
const FOLDER_MODE: u32 = 0o711;
const PLATFORM: &str = "platform.json";
const KERNEL: &str = "kernel";
const INITRD: &str = "initrd";

#[derive(Debug, Clone)]
pub(super) struct VmFolder {
    path: PathBuf,
}

impl VmFolder {
    pub(super) fn of(vms: &Path, attempt: AttemptId) -> VmFolder {
        VmFolder {
            path: vms.join(attempt.to_string()),
        }
    }

    pub(super) fn is_there(&self) -> bool {
        self.path.is_dir()
    }

    pub(super) fn overlay(&self) -> PathBuf {
        self.path.join("overlay.qcow2")
    }

    pub(super) fn console(&self) -> PathBuf {
        self.path.join("console.log")
    }

    pub(super) fn firmware_variables(&self) -> PathBuf {
        self.path.join("firmware-variables")
    }

    /// The private key that logs in, where it was made for this VM.
    pub(super) fn ssh_key(&self) -> PathBuf {
        self.path.join("ssh_key")
    }

    /// The public host key that was made for this VM.
    pub(super) fn ssh_host_key(&self) -> PathBuf {
        self.path.join("ssh_host_key.pub")
    }

    pub(super) fn seed(&self) -> PathBuf {
        self.path.join("seed.iso")
    }

    /// Keeps what the machine is made from: its platform's own files may change, or go, while it runs.
    pub(super) fn keep_platform(&self, platform: &Platform) -> Result<(), VmError> {
        let path = self.path.join(PLATFORM);
        let text = serde_json::to_vec(platform)
            .map_err(|error| VmError::host(format!("write {}", path.display()), error))?;
        VmFolder::write_secret(&path, &text)
    }

    /// What the machine was made from, where that can be read.
    pub(super) fn platform(&self) -> Option<Platform> {
        let text = fs::read(self.path.join(PLATFORM)).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Writes a file that only the master's user reads, until libvirt gives it to QEMU's.
    pub(super) fn write_secret(path: &Path, content: &[u8]) -> Result<(), VmError> {
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .and_then(|mut file| file.write_all(content))
            .map_err(|error| VmError::host(format!("write {}", path.display()), error))
    }

    /// An empty folder with an empty console file; what an earlier try left goes.
    pub(super) fn make(&self) -> Result<(), VmError> {
        self.remove()?;
        let failed =
            |error: io::Error| VmError::host(format!("make {}", self.path.display()), error);
        fs::DirBuilder::new()
            .mode(FOLDER_MODE)
            .create(&self.path)
            .map_err(failed)?;
        // The umask may have taken bits away.
        fs::set_permissions(&self.path, Permissions::from_mode(FOLDER_MODE)).map_err(failed)?;
        // Made by us beforehand: whoever writes it later, it stays ours to read.
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(self.console())
            .map_err(failed)?;
        Ok(())
    }

    /// Copies of the kernel's files.
    pub(super) fn copy_kernel(&self, kernel: &KernelSpec) -> Result<KernelSpec, VmError> {
        let copy = |from: &Path, name: &str| {
            let to = self.path.join(name);
            // Shares the blocks where the file system can.
            fs::copy(from, &to)
                .and_then(|_| fs::set_permissions(&to, Permissions::from_mode(0o644)))
                .map_err(|error| {
                    VmError::host(
                        format!("copy {} to {}", from.display(), to.display()),
                        error,
                    )
                })?;
            Ok(to)
        };
        Ok(KernelSpec {
            path: copy(&kernel.path, KERNEL)?,
            initrd: kernel
                .initrd
                .as_deref()
                .map(|initrd| copy(initrd, INITRD))
                .transpose()?,
            cmdline: kernel.cmdline.clone(),
        })
    }

    /// QEMU has read the copies once it runs, and a guest that reboots is destroyed: they go before they reach the
    /// disk. Empty files take their places, or libvirt would complain when it takes the machine down.
    pub(super) fn empty_kernel(&self) {
        for name in [KERNEL, INITRD] {
            let copy = self.path.join(name);
            let empty = self.path.join("empty");
            // By rename: QEMU may have the copy mapped.
            if copy.exists()
                && let Err(error) = File::create(&empty).and_then(|_| fs::rename(&empty, &copy))
            {
                // It goes with the folder.
                tracing::debug!(path = %copy.display(), %error, "the copy stays for now");
            }
        }
    }

    /// Fine if it is not there.
    pub(super) fn remove(&self) -> Result<(), VmError> {
        match fs::remove_dir_all(&self.path) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(VmError::host(
                format!("remove {}", self.path.display()),
                error,
            )),
        }
    }
}

/// Makes the folder of all VMs.
pub(super) fn make_parent(vms: &Path) -> Result<(), VmError> {
    let failed = |error: io::Error| VmError::host(format!("make {}", vms.display()), error);
    if !vms.is_dir() {
        fs::create_dir_all(vms).map_err(failed)?;
        fs::set_permissions(vms, Permissions::from_mode(FOLDER_MODE)).map_err(failed)?;
    }
    Ok(())
}

/// The attempts that have a folder.
pub(super) fn list(vms: &Path) -> Result<Vec<AttemptId>, VmError> {
    let failed = |error: io::Error| VmError::host(format!("list {}", vms.display()), error);
    let mut found = Vec::new();
    for entry in fs::read_dir(vms).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        // Only names that we give: whatever else lies here is not ours to remove.
        if let Some(attempt) = name
            .to_str()
            .and_then(|name| name.parse::<AttemptId>().ok())
            && name.to_str() == Some(&attempt.to_string())
        {
            found.push(attempt);
        }
    }
    Ok(found)
}

/// The first folder above `path`, or the path itself, that others may not pass or read; QEMU's user is one of them.
pub(super) fn closed_to_others(path: &Path) -> Option<PathBuf> {
    let mut above: Vec<&Path> = path.ancestors().skip(1).collect();
    above.reverse();
    let mode = |path: &Path| fs::metadata(path).map(|metadata| metadata.mode()).ok();
    above
        .into_iter()
        .find(|folder| mode(folder).is_some_and(|mode| mode & 0o001 == 0))
        .or_else(|| {
            mode(path)
                .is_some_and(|mode| mode & 0o004 == 0)
                .then_some(path)
        })
        .map(Path::to_path_buf)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_can_be_made_again_over_a_half_made_one_and_removed_twice() {
        let vms = tempfile::tempdir().expect("a folder");
        let folder = VmFolder::of(vms.path(), AttemptId(17));
        folder.make().expect("made");
        fs::write(folder.overlay(), b"left over").expect("written");
        folder.make().expect("made again");
        assert!(!folder.overlay().exists());
        let console = fs::metadata(folder.console()).expect("a console file");
        assert_eq!((console.len(), console.mode() & 0o777), (0, 0o600));
        assert_eq!(list(vms.path()).expect("listed"), [AttemptId(17)]);
        folder.remove().expect("removed");
        folder.remove().expect("removed again");
        assert_eq!(list(vms.path()).expect("listed"), []);
    }

    #[test]
    fn only_names_that_we_give_are_listed() {
        let vms = tempfile::tempdir().expect("a folder");
        for name in ["17", "vm-017", "vm-x", "vm-+3", "notes"] {
            fs::create_dir(vms.path().join(name)).expect("made");
        }
        assert_eq!(list(vms.path()).expect("listed"), []);
    }

    #[test]
    fn the_folder_that_keeps_others_out_is_named() {
        let parent = tempfile::tempdir().expect("a folder");
        let inner = parent.path().join("images");
        fs::create_dir(&inner).expect("made");
        let file = inner.join("disk.qcow2");
        fs::write(&file, b"").expect("written");
        fs::set_permissions(parent.path(), Permissions::from_mode(0o700)).expect("closed");
        assert_eq!(closed_to_others(&file).as_deref(), Some(parent.path()));
        fs::set_permissions(parent.path(), Permissions::from_mode(0o711)).expect("opened");
        fs::set_permissions(&file, Permissions::from_mode(0o640)).expect("closed");
        assert_eq!(closed_to_others(&file), Some(file.clone()));
        fs::set_permissions(&file, Permissions::from_mode(0o644)).expect("opened");
        assert_eq!(closed_to_others(&file), None);
    }
}
