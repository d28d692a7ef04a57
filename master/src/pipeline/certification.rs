//! Certificates of images: what they are worth is looked at all the time, and each is made anew at night.
//!
//! ```text
//!  folders ─► stamp changed? ─► standing ─► register ─► platform list, /metrics, doctor
//!  03:00 ─► each platform: test ─► failed? once more ─► certificate ─┘
//! ```
//!
//! A machine under test is none of an attempt's: it has a folder and a mark of its own, and what a test leaves that died
//! is cleared away here. One test runs at a time.

use super::signals::Signals;
use crate::certify::{Bench, Certificate, Register, Standing, standing};
use crate::config::{Listed, Platforms, Standing as Service};
use crate::model::{Platform, PlatformKind};
use crate::pulse::Pulse;
use crate::vm::check_platform;
use jiff::Zoned;
use jiff::civil::Time;
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How often the folders are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(3);
/// How often it is looked for what a test left that died.
const CLEAR_INTERVAL: Duration = Duration::from_secs(60);
/// How often the time is looked at: the wall clock may be set.
const CLOCK_INTERVAL: Duration = Duration::from_secs(1);

/// What stands by to look at images.
#[derive(Debug, Clone)]
pub struct Certification {
    pub bench: Bench,
    pub register: Register,
    pub platforms: Platforms,
    /// The time of the day at which all images are tested, by the host's clock.
    pub nightly: Option<Time>,
    /// How long the clock is watched then.
    pub drift: Duration,
}

impl Certification {
    /// Keeps the register up to date; runs for ever.
    pub(super) async fn run_looks(self, pulse: Pulse) {
        let mut seen: BTreeMap<String, Stamp> = BTreeMap::new();
        let mut cleared: Option<Instant> = None;
        loop {
            pulse.beat();
            if cleared.is_none_or(|at| at.elapsed() >= CLEAR_INTERVAL) {
                self.clear_dead().await;
                cleared = Some(Instant::now());
            }
            let images = images(&self.platforms);
            self.register
                .keep(|name| images.iter().any(|(listed, _)| listed.name == name));
            seen.retain(|name, _| images.iter().any(|(listed, _)| listed.name == *name));
            for (listed, platform) in images {
                pulse.beat();
                let stamp = stamp(&listed.folder, &platform);
                if seen.get(&listed.name) == Some(&stamp) {
                    continue;
                }
                let found = standing(&self.bench.hashes, &listed.folder, &platform).await;
                self.register.found(&listed.name, found);
                seen.insert(listed.name, stamp);
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    async fn clear_dead(&self) {
        match self.bench.site.clear_dead().await {
            Ok(0) => {}
            Ok(tests) => tracing::info!(tests, "cleared away what tests of images left that died"),
            Err(error) => {
                let error = format!("{error:#}");
                tracing::warn!(error, "what a test of an image left stays for now");
            }
        }
    }

    /// Tests each image when the time has come; runs for ever.
    pub(super) async fn run_nightly(self, signals: Signals) {
        let Some(time) = self.nightly else {
            return std::future::pending().await;
        };
        loop {
            let due = next(&Zoned::now(), time);
            while Zoned::now() < due {
                tokio::time::sleep(CLOCK_INTERVAL).await;
            }
            let images = images(&self.platforms);
            tracing::info!(
                images = images.len(),
                "the images are tested, as every night"
            );
            for (listed, platform) in images {
                if self.is_worth_a_test(&listed, &platform).await {
                    self.test(&listed, &platform).await;
                    signals.scheduling.notify_one();
                }
            }
        }
    }

    /// One that is refused for another reason than its certificate stays as it is.
    async fn is_worth_a_test(&self, listed: &Listed, platform: &Platform) -> bool {
        let is_certified = self
            .register
            .get(&listed.name)
            .is_some_and(|registered| registered.standing.is_certified());
        let is_wanted = match listed.standing {
            Service::Ready => true,
            Service::Refused(_) => !is_certified,
            // What does not come up is tried by canaries.
            Service::Held(_) | Service::OutOfService(_) => false,
        };
        is_wanted && check_platform(platform).await.is_ok()
    }

    /// Makes a platform's certificate anew. A failure counts once it was seen twice: a host is busy at times.
    async fn test(&self, listed: &Listed, platform: &Platform) {
        let name = &listed.name;
        let before = standing(&self.bench.hashes, &listed.folder, platform).await;
        let mut tested = self
            .bench
            .test(&listed.folder, platform, self.drift, |_| {})
            .await;
        if !matches!(&tested, Ok(certificate) if certificate.is_pass()) {
            tracing::warn!(
                platform = name,
                why = told(&tested),
                "the image is tested once more"
            );
            tested = self
                .bench
                .test(&listed.folder, platform, self.drift, |_| {})
                .await;
        }
        let why = told(&tested);
        let certificate = match tested {
            Ok(certificate) => certificate,
            Err(_) => {
                tracing::warn!(platform = name, why, "the image could not be tested");
                let trouble = format!("it could not be tested: {why}");
                self.register.trouble(name, Some(trouble));
                return;
            }
        };
        match (certificate.is_pass(), before.is_certified()) {
            (true, _) => tracing::info!(platform = name, "the image passed its test"),
            (false, true) => {
                tracing::error!(
                    platform = name,
                    why,
                    "the image does not pass its test any more"
                );
            }
            (false, false) => tracing::error!(platform = name, why, "the image fails its test"),
        }
        let trouble = certificate.write(&listed.folder).err();
        if let Some(error) = &trouble {
            tracing::warn!(platform = name, %error, "the test is told here and not kept");
        }
        self.register
            .trouble(name, trouble.map(|error| error.to_string()));
        // Also where it could not be written; where it was, the look finds the same.
        self.register.found(name, Standing::of_test(&certificate));
    }
}

/// What came of a test, as a clause.
fn told(tested: &anyhow::Result<Certificate>) -> String {
    match tested {
        Err(error) => format!("{error:#}"),
        Ok(certificate) => {
            let failed = certificate.failed().map(|result| {
                let (name, said) = (result.check.name(), result.verdict.said());
                format!("{name}: {said}")
            });
            failed.collect::<Vec<_>>().join("; ")
        }
    }
}

/// Platforms with an image.
fn images(platforms: &Platforms) -> Vec<(Listed, Arc<Platform>)> {
    let listed = platforms.list().into_iter();
    listed
        .filter_map(|listed| {
            let platform = listed.platform.clone()?;
            matches!(platform.kind, PlatformKind::Vm { .. }).then_some((listed, platform))
        })
        .collect()
}

/// The next time that this is the time of the day.
fn next(now: &Zoned, time: Time) -> Zoned {
    let on = |day: jiff::civil::Date| day.to_datetime(time).to_zoned(now.time_zone().clone());
    let today = on(now.date()).ok().filter(|due| due > now);
    let tomorrow = || now.date().tomorrow().ok().and_then(|day| on(day).ok());
    // The end of all times only.
    today.or_else(tomorrow).unwrap_or_else(|| now.clone())
}

/// Sizes, times and inodes of all that a certificate's worth hangs on.
type Stamp = Vec<(PathBuf, u64, i64, i64, u64)>;

fn stamp(folder: &Path, platform: &Platform) -> Stamp {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    if let PlatformKind::Vm {
        disk: Some(disk), ..
    } = &platform.kind
    {
        // One that was fetched lies elsewhere.
        files.push(disk.path.clone());
    }
    files.sort();
    files
        .into_iter()
        .filter_map(|path| {
            let file = std::fs::metadata(&path).ok()?;
            let (secs, nanos) = (file.mtime(), file.mtime_nsec());
            Some((path, file.len(), secs, nanos, file.ino()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_night_is_today_or_tomorrow() {
        let time: Time = "03:00".parse().unwrap();
        let at = |now: &str| next(&now.parse().unwrap(), time).to_string();
        assert_eq!(
            at("2027-01-31T02:59:59+01:00[Europe/Zurich]"),
            "2027-01-31T03:00:00+01:00[Europe/Zurich]"
        );
        assert_eq!(
            at("2027-01-31T03:00:00+01:00[Europe/Zurich]"),
            "2027-02-01T03:00:00+01:00[Europe/Zurich]"
        );
    }
}
