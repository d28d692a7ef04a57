//! The folder of one test, with a mark of its own in libvirt: no master's sweep takes its machine while it runs, and one
//! that died is cleared away by whoever comes next.
//!
//! ```text
//! <dir>/run-3f2a…/{lock, installation, vms/vm-1/}       locked as long as the test lives
//! ```

use crate::model::AttemptId;
use crate::vm::{Acceleration, Machines, VmConfig};
use anyhow::Context;
use nix::fcntl::{Flock, FlockArg};
use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, Permissions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// QEMU's user passes through but does not list.
const FOLDER_MODE: u32 = 0o711;
/// The one machine of a test.
pub(super) const VM: AttemptId = AttemptId(1);
const PREFIX: &str = "run-";
const LOCK: &str = "lock";
const INSTALLATION: &str = "installation";

/// Where tests keep their folders, and the libvirt that they use.
#[derive(Debug, Clone)]
pub struct Site {
    /// libvirt's connection URI.
    pub uri: String,
    pub acceleration: Acceleration,
    pub dir: PathBuf,
}

/// One test's folder and machines.
#[derive(Debug)]
pub(super) struct Place {
    path: PathBuf,
    pub(super) machines: Machines,
    lock: Flock<File>,
}

impl Site {
    pub(super) async fn take(&self) -> anyhow::Result<Place> {
        let dir = std::path::absolute(&self.dir)?;
        let failed = || {
            format!(
                "cannot make a folder for the test in {}\nhint: run it as the user that the master runs as",
                dir.display()
            )
        };
        make(&dir).with_context(failed)?;
        let mark = hex::encode(rand::random::<[u8; 16]>());
        let path = dir.join(format!("{PREFIX}{mark}"));
        // Under another name until it is locked: else it would look like one whose test has died.
        let new = dir.join(format!(".{mark}"));
        make(&new).with_context(failed)?;
        let file = File::create(new.join(LOCK)).with_context(failed)?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, error)| std::io::Error::from(error))
            .with_context(failed)?;
        fs::write(new.join(INSTALLATION), &mark).with_context(failed)?;
        fs::rename(&new, &path).with_context(failed)?;
        match self.machines(&path, &mark).await {
            Ok(machines) => Ok(Place {
                path,
                machines,
                lock,
            }),
            Err(error) => {
                // Nothing was made in it yet.
                fs::remove_dir_all(&path).with_context(failed)?;
                Err(error)
            }
        }
    }

    async fn machines(&self, path: &Path, mark: &str) -> anyhow::Result<Machines> {
        let config = VmConfig {
            uri: self.uri.clone(),
            dir: path.join("vms"),
            acceleration: self.acceleration,
            installation: mark.to_owned(),
        };
        Ok(Machines::open(config).await?)
    }

    /// Clears away what tests left that died; returns how many.
    pub async fn clear_dead(&self) -> anyhow::Result<usize> {
        let mut cleared = 0;
        for path in runs(&self.dir)? {
            let Some(lock) = lock_of_dead(&path)? else {
                continue;
            };
            if let Ok(mark) = fs::read_to_string(path.join(INSTALLATION)) {
                let machines = self.machines(&path, mark.trim()).await?;
                clear(&machines).await?;
            }
            remove(&path, lock)?;
            cleared += 1;
        }
        Ok(cleared)
    }
}

impl Place {
    /// Ends what still runs, and removes the folder.
    pub(super) async fn clear(self) -> anyhow::Result<()> {
        // Waits for a start that nobody waits for any more, which a sweep would spare.
        self.machines.destroy(VM).await?;
        remove(&self.path, self.lock)
    }
}

async fn clear(machines: &Machines) -> anyhow::Result<()> {
    let swept = machines.sweep(&HashSet::new()).await?;
    anyhow::ensure!(
        swept.left.is_empty(),
        "the test's machine is left: {swept}\nhint: the next test, or the running master, tries again"
    );
    Ok(())
}

fn make(path: &Path) -> std::io::Result<()> {
    if !path.is_dir() {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(FOLDER_MODE).create(path)?;
        // The umask may have taken bits away.
        fs::set_permissions(path, Permissions::from_mode(FOLDER_MODE))?;
    }
    Ok(())
}

fn runs(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("cannot list {}", dir.display()))?,
    };
    let names = entries.flatten().map(|entry| entry.path());
    Ok(names
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(PREFIX)
        })
        .collect())
}

/// The lock of a run whose test is dead.
fn lock_of_dead(path: &Path) -> anyhow::Result<Option<Flock<File>>> {
    let file = match File::options().write(true).open(path.join(LOCK)) {
        // It goes just now.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        file => file.with_context(|| format!("cannot look at {}", path.display()))?,
    };
    Ok(Flock::lock(file, FlockArg::LockExclusiveNonblock).ok())
}

fn remove(path: &Path, lock: Flock<File>) -> anyhow::Result<()> {
    let removed = match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    };
    drop(lock);
    removed.with_context(|| format!("cannot remove {}", path.display()))
}
