//! Looks into the images of platforms before they are used, and fetches those that are elsewhere.
//!
//! ```text
//!  platforms.unchecked() ─► fetch (34 %) ─► hash ─► qemu-img ─► ready, or refused with a sentence
//!                             └─ broken off: again after a pause, from where it was
//! ```
//!
//! One task a platform; what it finds is for the files as they were then, and dropped when they have changed since.

use super::signals::Signals;
use crate::certify::{HashCache, standing};
use crate::config::{Platforms, Standing, Unchecked};
use crate::fetch::{FetchError, Progress, Wanted, fetch, longer, sha256, unpack};
use crate::model::{DiskSpec, Packing, PlatformKind};
use crate::pulse::Pulse;
use crate::vm::{Machines, VmError};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::task::JoinSet;
use url::Url;

/// How often it is looked whether there is anything to look into.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// The pause before a fetch is tried again; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// The log hears of a fetch at each so many percent.
const LOGGED_PERCENT: u64 = 10;

/// Owns the looks under way.
#[derive(Debug)]
pub(super) struct Inspector {
    pub(super) platforms: Platforms,
    pub(super) machines: Machines,
    pub(super) signals: Signals,
    /// The hashes of images, where only certified ones take work.
    pub(super) required: Option<HashCache>,
}

/// Whose turn it is to fetch one image.
type Turn = Arc<tokio::sync::Mutex<()>>;

/// What all looks share.
#[derive(Debug, Clone)]
struct Look {
    platforms: Platforms,
    machines: Machines,
    /// Platforms with the same image fetch it once.
    fetching: Arc<Mutex<HashMap<PathBuf, Turn>>>,
    required: Option<HashCache>,
}

impl Inspector {
    /// Runs for ever.
    pub(super) async fn run(self, pulse: Pulse) {
        let look = Look {
            platforms: self.platforms,
            machines: self.machines,
            fetching: Arc::default(),
            required: self.required,
        };
        let mut under_way: HashMap<String, Unchecked> = HashMap::new();
        let mut looks = JoinSet::new();
        loop {
            pulse.beat();
            for unchecked in look.platforms.unchecked() {
                // A look at files that have changed since ends by itself; the next one waits for that.
                if let Entry::Vacant(place) = under_way.entry(unchecked.platform.name.clone()) {
                    place.insert(unchecked.clone());
                    looks.spawn(look.clone().into(unchecked));
                }
            }
            tokio::select! {
                biased;
                Some(ended) = looks.join_next() => {
                    match ended {
                        Ok(name) => { under_way.remove(&name); }
                        Err(error) => {
                            tracing::error!(%error, "a look into an image broke off");
                            under_way.clear();
                        }
                    }
                    self.signals.scheduling.notify_one();
                }
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
            }
        }
    }
}

impl Look {
    /// Returns the platform's name.
    async fn into(self, unchecked: Unchecked) -> String {
        let name = unchecked.platform.name.clone();
        let standing = match self.find(&unchecked).await {
            Some(Ok(())) => Standing::Ready,
            Some(Err(why)) => {
                tracing::warn!(platform = name, why, "platform refused");
                Standing::Refused(why)
            }
            None => return name,
        };
        if self.platforms.tell(&unchecked, standing.clone()) && standing == Standing::Ready {
            tracing::info!(platform = name, "platform in service");
        }
        name
    }

    /// `None` when the platform has changed meanwhile.
    async fn find(&self, unchecked: &Unchecked) -> Option<Result<(), String>> {
        if let PlatformKind::Vm {
            disk: Some(disk), ..
        } = &unchecked.platform.kind
        {
            let got = match &disk.url {
                Some(url) => self.get(unchecked, disk, url).await?,
                None => self.check_hash(unchecked, disk).await?,
            };
            if let Err(why) = got {
                return Some(Err(why));
            }
        }
        let checked = self
            .machines
            .check_platform(&unchecked.platform)
            .await
            .map_err(|error| match error {
                // Which platform it is, is said beside it.
                VmError::Image { why, hint, .. } => match hint {
                    Some(hint) => format!("{why}\nhint: {hint}"),
                    None => why,
                },
                VmError::Gone(_) | VmError::Host { .. } | VmError::Away { .. } => error.to_string(),
            });
        match (checked, &self.required) {
            (Ok(()), Some(hashes)) => self.check_certificate(unchecked, hashes).await,
            (checked, _) => Some(checked),
        }
    }

    async fn check_certificate(
        &self,
        unchecked: &Unchecked,
        hashes: &HashCache,
    ) -> Option<Result<(), String>> {
        let held = Standing::Held("its certificate is being compared with its image".to_owned());
        self.platforms.tell(unchecked, held).then_some(())?;
        let platform = &unchecked.platform;
        let folder = self.platforms.dir().join(&platform.name);
        let found = standing(hashes, &folder, platform).await;
        Some(match found.is_certified() {
            true => Ok(()),
            false => Err(format!(
                "only certified images take work here (require_certificate): {found}\n\
                 hint: vivarium image test {}",
                platform.name
            )),
        })
    }

    async fn check_hash(
        &self,
        unchecked: &Unchecked,
        disk: &DiskSpec,
    ) -> Option<Result<(), String>> {
        let Some(wanted) = &disk.sha256 else {
            return Some(Ok(()));
        };
        let held = Standing::Held("the hash of its image is being checked".to_owned());
        self.platforms.tell(unchecked, held).then_some(())?;
        let path = disk.path.display();
        Some(match sha256(&disk.path).await {
            Ok(found) if found == *wanted => Ok(()),
            Ok(found) => Err(format!(
                "its disk image {path} is not the one that was meant: its SHA-256 is {found}, and `sha256` says {wanted}"
            )),
            Err(error) => Err(format!("its disk image {path} cannot be read: {error}")),
        })
    }

    /// Fetches the image, unless it is there.
    async fn get(
        &self,
        unchecked: &Unchecked,
        disk: &DiskSpec,
        url: &Url,
    ) -> Option<Result<(), String>> {
        let turn = self.turn(&disk.path);
        let _turn = turn.lock().await;
        let name = &unchecked.platform.name;
        let mut pause = FIRST_PAUSE;
        let mut trouble = String::new();
        let packed = disk.packing.map(|packing| (packing, packed(disk, packing)));
        let fetched = packed.as_ref().map_or(&disk.path, |(_, path)| path);
        while !disk.path.is_file() {
            let held = |sentence: String| {
                let told = Standing::Held(format!("{sentence}{trouble}"));
                self.platforms.tell(unchecked, told)
            };
            let outcome = match &packed {
                Some((packing, path)) if path.is_file() => {
                    let unpacked = unpack(*packing, path, &disk.path, |have| {
                        held(format!("unpacking, {} MiB so far", have >> 20));
                    });
                    unpacked.await.map(|_| ())
                }
                Some(_) | None => {
                    held(format!("fetching {url}")).then_some(())?;
                    let wanted = Wanted {
                        url,
                        sha256: disk.sha256.as_deref(),
                        path: fetched,
                    };
                    self.try_to_fetch(name, wanted, held).await?
                }
            };
            match outcome {
                // Fetched, or unpacked; the next look says what remains.
                Ok(()) => {}
                Err(FetchError::Interrupted(why)) => {
                    tracing::warn!(
                        platform = name,
                        why,
                        "the image's fetch broke off; trying again"
                    );
                    trouble = format!(" (the last try broke off: {why})");
                    let waiting = Standing::Held(format!("waiting to fetch {url}{trouble}"));
                    // In short naps: a person may mend the address meanwhile.
                    for _ in 0..pause.as_secs() {
                        self.platforms
                            .tell(unchecked, waiting.clone())
                            .then_some(())?;
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                Err(
                    error @ (FetchError::Refused { .. }
                    | FetchError::WrongHash { .. }
                    | FetchError::Damaged { .. }),
                ) => {
                    return Some(Err(error.to_string()));
                }
            }
        }
        Some(Ok(()))
    }

    /// One try; `None` when the platform has changed meanwhile, and nobody wants this image for it any more.
    async fn try_to_fetch(
        &self,
        name: &str,
        wanted: Wanted<'_>,
        held: impl Fn(String) -> bool,
    ) -> Option<Result<(), FetchError>> {
        let url = wanted.url;
        let (given_up, is_given_up) = tokio::sync::oneshot::channel();
        let mut given_up = Some(given_up);
        let mut last = None;
        let tell = |progress: Progress| {
            let percent = progress.percent();
            if percent == last && percent.is_some() {
                return;
            }
            let sentence = match percent {
                Some(percent) => format!("fetching {percent} %"),
                None => format!("fetching, {} MiB so far", progress.bytes >> 20),
            };
            if let Some(percent) = percent
                && last.is_none_or(|last| last / LOGGED_PERCENT < percent / LOGGED_PERCENT)
            {
                tracing::info!(platform = name, %url, percent, "fetching the image");
            }
            last = percent;
            if !held(sentence)
                && let Some(given_up) = given_up.take()
            {
                // Nobody listens when the fetch has just ended.
                let _ended = given_up.send(());
            }
        };
        tokio::select! {
            biased;
            Ok(()) = is_given_up => None,
            fetched = fetch(wanted, tell) => Some(fetched.map(|_| ())),
        }
    }

    fn turn(&self, path: &Path) -> Turn {
        let mut fetching = self.fetching.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(fetching.entry(path.to_owned()).or_default())
    }
}

/// Where an image lies until it is unpacked.
fn packed(disk: &DiskSpec, packing: Packing) -> PathBuf {
    longer(&disk.path, packing.ending())
}
