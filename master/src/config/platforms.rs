//! The folder of platforms. A broken platform is refused alone, with its reason; the others serve.

use super::platform::parse_platform;
use crate::model::Platform;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};

/// The platforms in service, read again when their files change; clones share them.
#[derive(Debug, Clone)]
pub struct Platforms {
    dir: PathBuf,
    known: Arc<RwLock<Arc<Known>>>,
}

#[derive(Debug, Default, PartialEq)]
struct Known {
    /// What the files were when they were read: a change makes a new look worth while.
    fingerprint: Vec<(PathBuf, Option<std::time::SystemTime>, u64)>,
    ready: BTreeMap<String, Arc<Platform>>,
    refused: BTreeMap<String, RefusedPlatform>,
}

/// A platform that takes no work, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedPlatform {
    pub name: String,
    pub why: String,
}

impl Platforms {
    /// Reads the folder. A folder that is not there is one without platforms.
    pub fn load(dir: PathBuf) -> Platforms {
        let platforms = Platforms {
            dir,
            known: Arc::default(),
        };
        platforms.reload();
        platforms
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Looks at the folder again; returns whether anything changed.
    pub fn reload(&self) -> bool {
        let folders = self.folders();
        let fingerprint = folders.iter().map(|folder| fingerprint(folder)).collect();
        if self.known().fingerprint == fingerprint {
            return false;
        }
        let mut known = Known {
            fingerprint,
            ..Known::default()
        };
        for folder in folders {
            let name = folder
                .file_name()
                .map(|name| name.to_string_lossy().into_owned())
                .unwrap_or_default();
            let file = folder.join("platform.toml");
            let parsed = std::fs::read_to_string(&file)
                .map_err(|error| format!("{}: cannot be read: {error}", file.display()))
                .and_then(|text| parse_platform(&folder, &text).map_err(|error| error.to_string()))
                .and_then(with_its_files);
            match parsed {
                Ok(platform) => {
                    known.ready.insert(name, Arc::new(platform));
                }
                Err(why) => {
                    tracing::warn!(platform = name, why, "platform refused");
                    known
                        .refused
                        .insert(name.clone(), RefusedPlatform { name, why });
                }
            }
        }
        *self.known.write().unwrap_or_else(|e| e.into_inner()) = Arc::new(known);
        true
    }

    fn known(&self) -> Arc<Known> {
        self.known.read().unwrap_or_else(|e| e.into_inner()).clone()
    }

    /// The platform, or the sentence that says why it takes no work.
    pub fn get(&self, name: &str) -> Result<Arc<Platform>, String> {
        let known = self.known();
        if let Some(platform) = known.ready.get(name) {
            return Ok(platform.clone());
        }
        Err(match known.refused.get(name) {
            Some(refused) => {
                // The folder has just been named, and a status on GitHub has to be short.
                let folder = format!("{}/", self.dir.join(name).display());
                let why = refused.why.strip_prefix(&folder).unwrap_or(&refused.why);
                format!("platform `{name}` takes no work: {why}")
            }
            None => format!(
                "platform `{name}` is not there: no folder {}",
                self.dir.join(name).display()
            ),
        })
    }

    /// Those that take work, by name.
    pub fn ready(&self) -> Vec<Arc<Platform>> {
        self.known().ready.values().cloned().collect()
    }

    pub fn refused(&self) -> Vec<RefusedPlatform> {
        self.known().refused.values().cloned().collect()
    }

    /// The folders with a platform file, in order of their names.
    fn folders(&self) -> Vec<PathBuf> {
        let mut folders: Vec<PathBuf> = std::fs::read_dir(&self.dir)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| {
                path.join("platform.toml").exists()
                    // A folder being written has a leading dot.
                    && !path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"."))
            })
            .collect();
        folders.sort();
        folders
    }
}

/// Refuses a platform whose image, kernel or key files are missing, naming the path that was looked for.
fn with_its_files(platform: Platform) -> Result<Platform, String> {
    use crate::model::PlatformKind;
    let mut files = vec![
        ("SSH key", &platform.ssh.key),
        ("host key", &platform.ssh.host_key),
    ];
    match &platform.kind {
        PlatformKind::Vm { kernel, disk, .. } => {
            if let Some(kernel) = kernel {
                files.push(("kernel", &kernel.path));
                files.extend(kernel.initrd.as_ref().map(|initrd| ("initrd", initrd)));
            }
            files.extend(disk.as_ref().map(|disk| ("disk image", &disk.path)));
        }
        PlatformKind::Ssh { .. } => {}
    }
    for (what, path) in files {
        if let Err(error) = std::fs::File::open(path) {
            return Err(format!(
                "its {what} {} cannot be opened: {error}",
                path.display()
            ));
        }
    }
    Ok(platform)
}

fn fingerprint(folder: &Path) -> (PathBuf, Option<std::time::SystemTime>, u64) {
    // Names, sizes and times of all files: an image that appears after its TOML file brings the platform up.
    let mut newest = None;
    let mut sum = 0_u64;
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if let Ok(meta) = std::fs::metadata(entry.path()) {
            newest = newest.max(meta.modified().ok());
            sum = sum
                .wrapping_mul(31)
                .wrapping_add(meta.len())
                .wrapping_add(entry.file_name().len() as u64);
        }
    }
    (folder.to_path_buf(), newest, sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLATFORM: &str =
        "[kernel]\npath = 'vmlinuz'\n[ssh]\nuser = 'build'\nkey = 'key'\nhost_key = 'host.pub'\n";

    #[test]
    fn a_broken_platform_is_refused_alone_and_comes_back_when_mended() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["good", "bad"] {
            let folder = dir.path().join(name);
            std::fs::create_dir(&folder).unwrap();
            std::fs::write(folder.join("platform.toml"), PLATFORM).unwrap();
            for file in ["key", "host.pub"] {
                std::fs::write(folder.join(file), "").unwrap();
            }
        }
        std::fs::write(dir.path().join("good/vmlinuz"), "").unwrap();
        let platforms = Platforms::load(dir.path().to_path_buf());
        assert!(platforms.get("good").is_ok());
        let missing = dir.path().join("bad/vmlinuz");
        let why = platforms.get("bad").unwrap_err();
        assert!(
            why.contains(&format!("its kernel {}", missing.display())),
            "{why}"
        );
        assert!(platforms.get("none").unwrap_err().contains("no folder"));
        let misspelt = PLATFORM.replace("host_key", "hostkey");
        std::fs::write(dir.path().join("good/platform.toml"), misspelt).unwrap();
        assert!(platforms.reload());
        assert_eq!(
            platforms.get("good").unwrap_err(),
            "platform `good` takes no work: platform.toml:6:1: unknown key `hostkey`: did you mean `host_key`?"
        );
        std::fs::write(dir.path().join("good/platform.toml"), PLATFORM).unwrap();
        assert!(platforms.reload());
        assert!(!platforms.reload());
        std::fs::write(missing, "kernel").unwrap();
        assert!(platforms.reload());
        assert!(platforms.get("bad").is_ok());
    }
}
