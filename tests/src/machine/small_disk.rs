//! A file system with little room, in memory, to be filled up.

use anyhow::{Context, Result, bail};
use nix::sys::statvfs::statvfs;
use nix::unistd::Uid;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A tmpfs of its own; unmounted when dropped.
#[derive(Debug)]
pub struct SmallDisk {
    folder: tempfile::TempDir,
}

impl SmallDisk {
    /// `None`, with the reason printed, where this user cannot mount.
    pub fn mount(mib: u64) -> Result<Option<SmallDisk>> {
        if !Uid::effective().is_root() {
            eprintln!("skipped: only root can mount a small file system");
            return Ok(None);
        }
        let folder = tempfile::Builder::new()
            .prefix("vivarium-disk-")
            .tempdir()?;
        let output = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={mib}m,mode=755")])
            .args(["vivarium-test".as_ref(), folder.path()])
            .output()
            .context("cannot run mount")?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            eprintln!(
                "skipped: no file system can be mounted here: {}",
                said.trim()
            );
            return Ok(None);
        }
        Ok(Some(SmallDisk { folder }))
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn free_bytes(&self) -> Result<u64> {
        let room = statvfs(self.path())?;
        Ok(room.blocks_available() * room.fragment_size())
    }

    fn ballast(&self) -> PathBuf {
        self.path().join("ballast")
    }

    /// Fills it up to what is left free; 0 leaves not a byte.
    pub fn fill(&self, free_bytes: u64) -> Result<()> {
        let mut file = File::options()
            .create(true)
            .append(true)
            .open(self.ballast())?;
        let chunk = vec![0xa5; 64 << 10];
        loop {
            let free = self.free_bytes()?;
            if free <= free_bytes && free_bytes > 0 {
                return Ok(());
            }
            let more = usize::try_from(free - free_bytes)
                .unwrap_or(usize::MAX)
                .clamp(1, chunk.len());
            match file.write_all(&chunk[..more]) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => return Ok(()),
                Err(error) => bail!("cannot fill {}: {error}", self.path().display()),
            }
        }
    }

    /// Makes room again.
    pub fn clear(&self) -> Result<()> {
        std::fs::remove_file(self.ballast()).context("it was not filled")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a failed test may have left somebody in it.
        let unmounted = Command::new("umount")
            .arg("--lazy")
            .arg(self.path())
            .status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("{} may still be mounted", self.path().display());
        }
    }
}
