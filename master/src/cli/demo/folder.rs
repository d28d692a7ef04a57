//! The folder of a demo: emptied of the last one's, locked while one runs.

use crate::config::Config;
use anyhow::{Context, bail};
use nix::fcntl::{Flock, FlockArg};
use std::fs::{File, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Says that the folder is a demo's; locked while the demo runs.
const MARK: &str = ".vivarium-demo";
/// The master's mark on its machines. It outlives the other files, so that the sweep of the next demo finds what one
/// that was killed has left.
const INSTALLATION: &str = "installation";

/// Dropping it lets the next demo in.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    _lock: Flock<File>,
}

impl Folder {
    /// Takes the folder and removes what an earlier demo left in it, and nothing else.
    pub(super) fn take(dir: &Path) -> anyhow::Result<Folder> {
        let path = std::path::absolute(dir)?;
        let mark = path.join(MARK);
        let is_strange = path.exists() && std::fs::read_dir(&path)?.next().is_some();
        if is_strange && !mark.exists() {
            bail!(
                "{} is not empty and not a demo's folder\nhint: name another one with --dir",
                path.display()
            );
        }
        let failed = || format!("cannot make {}", path.display());
        std::fs::create_dir_all(&path).with_context(failed)?;
        // QEMU may run as a user of its own, and passes through to the files of its machine.
        std::fs::set_permissions(&path, Permissions::from_mode(0o755)).with_context(failed)?;
        let file = File::create(&mark).with_context(failed)?;
        let Ok(lock) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else {
            bail!(
                "another demo runs in {}\nhint: end it, or name another folder with --dir",
                path.display()
            );
        };
        let folder = Folder { path, _lock: lock };
        folder
            .empty()
            .with_context(|| format!("cannot empty {}", folder.path.display()))?;
        Ok(folder)
    }

    fn empty(&self) -> std::io::Result<()> {
        let installation = std::fs::read(self.data().join(INSTALLATION)).ok();
        for entry in std::fs::read_dir(&self.path)? {
            let entry = entry?;
            if entry.file_name() == MARK {
                continue;
            }
            match entry.file_type()?.is_dir() {
                true => std::fs::remove_dir_all(entry.path())?,
                false => std::fs::remove_file(entry.path())?,
            }
        }
        std::fs::create_dir(self.data())?;
        std::fs::set_permissions(self.data(), Permissions::from_mode(0o711))?;
        match installation {
            Some(mark) => std::fs::write(self.data().join(INSTALLATION), mark),
            None => Ok(()),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn log(&self) -> PathBuf {
        self.path.join("master.log")
    }

    fn data(&self) -> PathBuf {
        self.path.join("data")
    }

    /// Where finished logs and artefacts are kept.
    pub(super) fn objects(&self) -> PathBuf {
        self.data().join("objects")
    }

    /// The master's configuration, in a file beside the rest for whoever wants to look at it.
    pub(super) fn configure(
        &self,
        images: &Path,
        sample: &Path,
        listen: SocketAddr,
    ) -> anyhow::Result<Config> {
        let quoted = |path: &Path| toml::Value::from(path.display().to_string());
        let text = format!(
            "data_dir = {}\nplatforms_dir = {}\n\n[server]\nlisten = \"{listen}\"\n\n\
             [storage]\nurl = {}\n\n\
             [[repository]]\nname = \"sample\"\nurl = {}\npoll_secs = 1\n\
             branches = [\"main\", \"topic-*\"]\npublish = [\"main\"]\n",
            quoted(&self.data()),
            quoted(images),
            quoted(&self.objects()),
            quoted(sample),
        );
        let file = self.path.join("vivarium.toml");
        std::fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        Ok(Config::load(&file)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_demo_keeps_out_and_a_later_one_keeps_only_the_mark_on_machines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("demo");
        let folder = Folder::take(&path).unwrap();
        let refused = Folder::take(&path).unwrap_err().to_string();
        assert!(refused.starts_with("another demo runs in"), "{refused}");
        std::fs::write(folder.data().join(INSTALLATION), "mine").unwrap();
        std::fs::write(folder.data().join("vivarium.sqlite"), "").unwrap();
        drop(folder);
        let folder = Folder::take(&path).unwrap();
        let mut left: Vec<_> = std::fs::read_dir(folder.data())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        left.sort();
        assert_eq!(left, [INSTALLATION]);
    }

    #[test]
    fn a_folder_of_somebody_else_is_not_emptied() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("thesis.txt"), "precious").unwrap();
        assert!(Folder::take(dir.path()).is_err());
        assert!(dir.path().join("thesis.txt").exists());
    }

    #[test]
    fn the_configuration_is_one_the_master_reads() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::take(&dir.path().join("with \"quotes\"")).unwrap();
        let listen = "127.0.0.1:0".parse().unwrap();
        let config = folder
            .configure(Path::new("/images"), Path::new("/sample.git"), listen)
            .unwrap();
        assert_eq!(config.data_dir, folder.data());
        assert!(config.repository("sample").is_some());
    }
}
