//! The folder of platforms, watched. A broken platform is refused alone, with its reason; the others serve.
//!
//! ```text
//!            ┌─ new or changed ─► settling ─► unchecked ─► ready ──► changed, or gone: running jobs keep what they have
//! [look] ────┤                      (held)      (held)  └► refused
//!            └─ the same as before: stays what it is
//! ```
//!
//! Held platforms take no job, and jobs for them wait; so it is with those that are ready but for having been put out of
//! service, by whom boots are counted. Jobs for refused ones end with the sentence. Who checks the
//! images, and fetches those that are elsewhere, is `pipeline/inspect`; where nobody does, they are taken as good.

mod look;
mod out;

use crate::config::{Config, parse_platform};
use crate::model::{HostKey, Login, Platform, PlatformKind};
use jiff::civil::Date;
use look::Stamp;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};

/// What a platform that has just changed says of itself.
const SETTLING: &str = "its files have just changed";
/// And what one that was not checked yet.
const UNCHECKED: &str = "its image is being checked";

/// Whether somebody looks into the images before they are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Inspection {
    Wanted,
    LeftOut,
}

/// Whether only images with a certificate take work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Certificates {
    Required,
    LeftOut,
}

/// The platforms, read again when their files change; clones share them.
#[derive(Debug, Clone)]
pub struct Platforms {
    dir: PathBuf,
    /// The master's own folder, where fetched images are.
    data: Option<PathBuf>,
    inspection: Inspection,
    certificates: Certificates,
    known: Arc<RwLock<Known>>,
    /// Platforms that are out of service because their guests do not come up, with the sentence.
    out: Arc<RwLock<BTreeMap<String, String>>>,
}

#[derive(Debug, Default)]
struct Known {
    /// The day of the last look: on another one a platform may have expired.
    day: Option<Date>,
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug, Clone)]
struct Entry {
    /// What the files were when they were read: a change makes a new reading worth while.
    stamp: Stamp,
    /// Changed at the last look: whoever writes the files may not be through.
    is_settling: bool,
    /// What its file says, where that can be read.
    platform: Option<Arc<Platform>>,
    state: State,
    /// Another one has the same name but for upper and lower case.
    twin: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Unchecked(String),
    Ready,
    Refused(String),
}

/// Whether a platform takes work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    Ready,
    /// Not yet: the sentence says what is waited for.
    Held(String),
    /// Its guests did not come up; it is tried by canary boots: the sentence says since when and why.
    OutOfService(String),
    /// Not before a person mends it: the sentence says what.
    Refused(String),
}

/// One folder of platforms, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub name: String,
    pub folder: PathBuf,
    pub standing: Standing,
    /// What its file says, where that can be read.
    pub platform: Option<Arc<Platform>>,
}

/// A platform that takes no work, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedPlatform {
    pub name: String,
    pub why: String,
    /// What its file says, where that can be read.
    pub platform: Option<Arc<Platform>>,
}

impl RefusedPlatform {
    pub(super) fn tags(&self) -> &[String] {
        let platform = self.platform.as_ref();
        platform.map_or(&[], |platform| &platform.tags)
    }
}

/// A platform whose image is to be looked into, as it was when that was found.
#[derive(Debug, Clone)]
pub struct Unchecked {
    pub platform: Arc<Platform>,
    stamp: Stamp,
}

impl Platforms {
    /// Reads the folder. A folder that is not there is one without platforms.
    pub fn load(dir: PathBuf) -> Platforms {
        Platforms::read(dir, None, Inspection::LeftOut)
    }

    /// The platforms of a configuration, their images taken as good.
    pub fn of(config: &Config) -> Platforms {
        let data = Some(config.data_dir.clone());
        Platforms::read(config.platforms_dir.clone(), data, Inspection::LeftOut)
    }

    /// The platforms of a folder, with the data folder of a master where there is one.
    pub fn beside(dir: PathBuf, data: Option<&Path>) -> Platforms {
        Platforms::read(dir, data.map(Path::to_owned), Inspection::LeftOut)
    }

    /// The platforms of a configuration. One with a disk, or with any image where these need
    /// certificates, is held until [`Platforms::tell`] tells of it.
    pub fn to_inspect(config: &Config) -> Platforms {
        let data = Some(config.data_dir.clone());
        let certificates = match config.images.require_certificate {
            true => Certificates::Required,
            false => Certificates::LeftOut,
        };
        let dir = config.platforms_dir.clone();
        Platforms::read_with(dir, data, Inspection::Wanted, certificates)
    }

    fn read(dir: PathBuf, data: Option<PathBuf>, inspection: Inspection) -> Platforms {
        Platforms::read_with(dir, data, inspection, Certificates::LeftOut)
    }

    fn read_with(
        dir: PathBuf,
        data: Option<PathBuf>,
        inspection: Inspection,
        certificates: Certificates,
    ) -> Platforms {
        let platforms = Platforms {
            dir,
            data,
            inspection,
            certificates,
            known: Arc::default(),
            out: Arc::default(),
        };
        platforms.look(Settling::LeftOut);
        platforms
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Looks at the folder again; returns whether anything changed. What changed is held until a look finds it the same.
    pub fn reload(&self) -> bool {
        self.look(Settling::Awaited)
    }

    fn look(&self, settling: Settling) -> bool {
        let today = jiff::Zoned::now().date();
        let before = self.known(|known| (known.day, known.entries.clone()));
        let mut entries = BTreeMap::new();
        for (name, folder) in look::folders(&self.dir) {
            let stamp = look::stamp(&folder, self.certificates);
            let known = before.1.get(&name);
            let entry = match known.filter(|known| known.stamp == stamp) {
                Some(known) if before.0 == Some(today) => Entry {
                    is_settling: false,
                    twin: None,
                    ..known.clone()
                },
                same => Entry {
                    is_settling: same.is_none() && settling == Settling::Awaited,
                    ..self.entry(&name, &folder, stamp, today)
                },
            };
            entries.insert(name, entry);
        }
        find_twins(&mut entries, &before.1);
        let is_changed = entries.len() != before.1.len()
            || entries.iter().any(|(name, entry)| {
                before.1.get(name).is_none_or(|known| {
                    known.stamp != entry.stamp || known.standing() != entry.standing()
                })
            });
        for (name, entry) in &entries {
            let was = before.1.get(name).map(Entry::standing);
            if let Standing::Refused(why) = entry.standing()
                && was != Some(entry.standing())
            {
                tracing::warn!(platform = name, why, "platform refused");
            }
        }
        for name in before.1.keys().filter(|name| !entries.contains_key(*name)) {
            tracing::info!(platform = name, "platform removed; jobs that run go on");
        }
        *self.known.write().unwrap_or_else(|e| e.into_inner()) = Known {
            day: Some(today),
            entries,
        };
        is_changed
    }

    fn entry(&self, name: &str, folder: &Path, stamp: Stamp, today: Date) -> Entry {
        let file = folder.join("platform.toml");
        let parsed = std::fs::read_to_string(&file)
            .map_err(|error| format!("{}: cannot be read: {error}", file.display()))
            .and_then(|text| parse_platform(folder, &text).map_err(|error| error.to_string()));
        let (platform, state) = match parsed {
            Ok(platform) => {
                let platform = self.with_its_place(platform);
                let state = match check(&platform, today) {
                    Err(why) => State::Refused(why),
                    Ok(()) if self.is_to_be_inspected(&platform) => {
                        State::Unchecked(UNCHECKED.to_owned())
                    }
                    Ok(()) => State::Ready,
                };
                (Some(Arc::new(platform)), state)
            }
            Err(why) => (None, State::Refused(why)),
        };
        tracing::debug!(platform = name, ?state, "platform read");
        Entry {
            stamp,
            is_settling: false,
            platform,
            state,
            twin: None,
        }
    }

    fn is_to_be_inspected(&self, platform: &Platform) -> bool {
        let is_looked_into = match self.certificates {
            Certificates::Required => matches!(platform.kind, PlatformKind::Vm { .. }),
            Certificates::LeftOut => has_disk(platform),
        };
        self.inspection == Inspection::Wanted && is_looked_into
    }

    /// A fetched image is in the master's folder, not in the platform's.
    fn with_its_place(&self, mut platform: Platform) -> Platform {
        if let (
            PlatformKind::Vm {
                disk: Some(disk), ..
            },
            Some(data),
        ) = (&mut platform.kind, &self.data)
            && disk.url.is_some()
        {
            disk.path = data.join(&disk.path);
        }
        platform
    }

    fn known<T>(&self, read: impl FnOnce(&Known) -> T) -> T {
        read(&self.known.read().unwrap_or_else(|e| e.into_inner()))
    }

    /// The platform, whether it takes work now or later, or the sentence that says why it takes none.
    pub fn get(&self, name: &str) -> Result<Arc<Platform>, String> {
        let found = self.known(|known| known.entries.get(name).cloned());
        let Some(entry) = found else {
            return Err(format!(
                "platform `{name}` is not there: no folder {}",
                self.dir.join(name).display()
            ));
        };
        match (entry.standing(), entry.platform) {
            (Standing::Ready | Standing::OutOfService(_) | Standing::Held(_), Some(platform)) => {
                Ok(platform)
            }
            (Standing::Refused(why) | Standing::OutOfService(why) | Standing::Held(why), _) => {
                // The folder has just been named, and a status on GitHub has to be short.
                let folder = format!("{}/", self.dir.join(name).display());
                let why = why.strip_prefix(&folder).unwrap_or(&why);
                Err(format!("platform `{name}` takes no work: {why}"))
            }
            (Standing::Ready, None) => Err(format!("platform `{name}` is not there")),
        }
    }

    /// What is waited for, where the platform takes no work yet.
    pub fn why_held(&self, name: &str) -> Option<String> {
        let standing = self.known(|known| known.entries.get(name).map(Entry::standing));
        match standing.map(|standing| self.in_service(name, standing)) {
            Some(Standing::Held(why) | Standing::OutOfService(why)) => Some(why),
            Some(Standing::Ready | Standing::Refused(_)) | None => None,
        }
    }

    /// A name of what the platform's files are now, which is another once they change.
    pub fn files_of(&self, name: &str) -> String {
        self.known(|known| known.entries.get(name).map(|entry| entry.stamp.digest()))
            .unwrap_or_default()
    }

    /// All of them, by name.
    pub fn list(&self) -> Vec<Listed> {
        self.known(|known| {
            let listed = known.entries.iter().map(|(name, entry)| Listed {
                name: name.clone(),
                folder: self.dir.join(name),
                standing: self.in_service(name, entry.standing()),
                platform: entry.platform.clone(),
            });
            listed.collect()
        })
    }

    /// Those that take work, by name.
    pub fn ready(&self) -> Vec<Arc<Platform>> {
        self.those(|standing| standing == Standing::Ready)
    }

    /// Those that take work now or later, by name.
    pub fn usable(&self) -> Vec<Arc<Platform>> {
        self.those(|standing| !matches!(standing, Standing::Refused(_)))
    }

    fn those(&self, are_meant: impl Fn(Standing) -> bool) -> Vec<Arc<Platform>> {
        self.list()
            .into_iter()
            .filter(|listed| are_meant(listed.standing.clone()))
            .filter_map(|listed| listed.platform)
            .collect()
    }

    pub fn refused(&self) -> Vec<RefusedPlatform> {
        let listed = self.list().into_iter();
        listed
            .filter_map(|listed| match listed.standing {
                Standing::Refused(why) => Some(RefusedPlatform {
                    name: listed.name,
                    why,
                    platform: listed.platform,
                }),
                Standing::Ready | Standing::Held(_) | Standing::OutOfService(_) => None,
            })
            .collect()
    }

    /// Those for which nothing can be planned now: refused ones, and those of whose file only half can be read yet.
    pub fn unplannable(&self) -> Vec<RefusedPlatform> {
        let listed = self.list().into_iter();
        listed
            .filter_map(|listed| match (listed.standing, &listed.platform) {
                (Standing::Refused(why), _) | (Standing::Held(why), None) => {
                    Some(RefusedPlatform {
                        name: listed.name,
                        why,
                        platform: listed.platform,
                    })
                }
                (Standing::Ready | Standing::OutOfService(_), _) | (Standing::Held(_), Some(_)) => {
                    None
                }
            })
            .collect()
    }

    /// Those whose image is to be looked into.
    pub fn unchecked(&self) -> Vec<Unchecked> {
        self.known(|known| {
            let unchecked = known.entries.values().filter(|entry| {
                matches!(entry.standing(), Standing::Held(_)) && !entry.is_settling
            });
            unchecked
                .filter_map(|entry| {
                    Some(Unchecked {
                        platform: entry.platform.clone()?,
                        stamp: entry.stamp.clone(),
                    })
                })
                .collect()
        })
    }

    /// Tells how far the look into an image is. False when the platform has changed since, or is gone.
    pub fn tell(&self, unchecked: &Unchecked, standing: Standing) -> bool {
        let mut known = self.known.write().unwrap_or_else(|e| e.into_inner());
        let entry = known.entries.get_mut(&unchecked.platform.name);
        let Some(entry) = entry.filter(|entry| entry.stamp == unchecked.stamp) else {
            return false;
        };
        if !matches!(entry.state, State::Unchecked(_)) {
            return false;
        }
        entry.state = match standing {
            Standing::Ready => State::Ready,
            Standing::Held(why) | Standing::OutOfService(why) => State::Unchecked(why),
            Standing::Refused(why) => State::Refused(why),
        };
        true
    }
}

/// Whether a change is waited upon to be over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Settling {
    Awaited,
    /// Nobody writes while the master starts, as a rule.
    LeftOut,
}

impl Entry {
    fn standing(&self) -> Standing {
        if let Some(twin) = &self.twin {
            return Standing::Refused(format!(
                "its name is that of `{twin}` but for upper and lower case: rename one of the two folders"
            ));
        }
        match &self.state {
            _ if self.is_settling => Standing::Held(SETTLING.to_owned()),
            State::Unchecked(why) => Standing::Held(why.clone()),
            State::Ready => Standing::Ready,
            State::Refused(why) => Standing::Refused(why.clone()),
        }
    }
}

/// Names that differ only by case would share their contexts on GitHub. The one that was there before stays.
fn find_twins(entries: &mut BTreeMap<String, Entry>, before: &BTreeMap<String, Entry>) {
    let mut by_name: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for name in entries.keys() {
        by_name
            .entry(name.to_ascii_lowercase())
            .or_default()
            .push(name.clone());
    }
    for mut twins in by_name.into_values().filter(|names| names.len() > 1) {
        // Lower-case letters come last.
        twins.sort_by_key(|name| {
            before
                .get(name)
                .is_some_and(|entry| entry.standing() == Standing::Ready)
        });
        let Some(stays) = twins.pop() else { continue };
        for name in twins {
            if let Some(entry) = entries.get_mut(&name) {
                entry.twin = Some(stays.clone());
            }
        }
    }
}

fn has_disk(platform: &Platform) -> bool {
    matches!(&platform.kind, PlatformKind::Vm { disk: Some(_), .. })
}

/// What can be seen without looking into anything: files that are not there, named by the path that was looked for,
/// and a date that has come.
fn check(platform: &Platform, today: Date) -> Result<(), String> {
    if let Some(expires) = platform.expires.filter(|expires| *expires <= today) {
        return Err(format!(
            "it expired on {expires}: build its image anew, and change `expires` in its platform.toml"
        ));
    }
    let mut files = Vec::new();
    match &platform.ssh.login {
        Login::Key(path) => files.push(("SSH key", path)),
        Login::Password(path) => files.push(("password file", path)),
        Login::Seeded => {}
    }
    match &platform.ssh.host_key {
        HostKey::Pinned(path) => files.push(("host key", path)),
        HostKey::Seeded => {}
    }
    match &platform.kind {
        PlatformKind::Vm { kernel, disk, .. } => {
            if let Some(kernel) = kernel {
                files.push(("kernel", &kernel.path));
                files.extend(kernel.initrd.as_ref().map(|initrd| ("initrd", initrd)));
            }
            // One that is fetched comes later.
            let disk = disk.as_ref().filter(|disk| disk.url.is_none());
            files.extend(disk.map(|disk| ("disk image", &disk.path)));
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
    Ok(())
}

#[cfg(test)]
mod tests;
