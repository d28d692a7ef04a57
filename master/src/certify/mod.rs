//! Images that certify themselves: a fresh machine of an image, booted and reached as for a job, is looked at from inside.
//!
//! ```text
//!  platform ─► own folder, own mark ─► boot ─► connect ─► checks, one after the other ─► power-off ─► certificate
//!                      │                                    └─ the clock is watched beside them ─┘
//!                      └─► cleared away, however it ends; by the next one where this one died
//! ```
//!
//! What a guest does wrong is a result; what the host does wrong is an error, and says nothing of the image.

mod certificate;
mod checks;
mod guest;
mod hash;
mod place;
mod register;
mod standing;

pub use certificate::{
    Certificate, CertificateError, Check, CheckResult, FILE, TestedAgent, Verdict,
};
pub use hash::{HashCache, Hashes};
pub use place::Site;
pub use register::{Register, Registered};
pub use standing::{Standing, standing};

use crate::clock::Clock;
use crate::model::{Ending, Platform, PlatformKind};
use crate::session::Ssh;
use anyhow::{Context, bail};
use checks::Checks;
use guest::{Guest, Machine};
use place::Place;
use std::path::Path;
use std::time::Duration;

/// What tests of images work with.
#[derive(Debug, Clone)]
pub struct Bench {
    pub site: Site,
    pub ssh: Ssh,
    pub hashes: HashCache,
    pub clock: Clock,
    /// Deadlines are longer by this where guests run without KVM.
    pub tcg_deadline_scale: u32,
    pub heartbeat_secs: u64,
}

/// How far a test is.
#[derive(Debug)]
pub enum Told<'a> {
    Begins(Check),
    Ended(&'a CheckResult),
}

impl Bench {
    /// Tests the image of a platform in a machine of its own. Dropped before its end, it leaves a folder that is cleared
    /// away by the next one; [`Bench::test_until`] does not.
    pub async fn test(
        &self,
        folder: &Path,
        platform: &Platform,
        drift: Duration,
        tell: impl FnMut(Told<'_>) + Send,
    ) -> anyhow::Result<Certificate> {
        let never = std::future::pending();
        let tested = self
            .test_until(folder, platform, drift, tell, never)
            .await?;
        tested.context("the test was ended")
    }

    /// The same until `stop` resolves; then nothing is left, and there is no certificate.
    pub async fn test_until(
        &self,
        folder: &Path,
        platform: &Platform,
        drift: Duration,
        tell: impl FnMut(Told<'_>) + Send,
        stop: impl Future<Output = ()>,
    ) -> anyhow::Result<Option<Certificate>> {
        if let PlatformKind::Ssh { .. } = platform.kind {
            bail!(
                "{} is a machine reached by SSH: it has no image that could be tested",
                platform.name
            );
        }
        if let Err(error) = self.site.clear_dead().await {
            tracing::warn!(
                error = format!("{error:#}"),
                "what an earlier test left stays for now"
            );
        }
        let hashes = self.hashes.hashes(folder, platform).await?;
        let place = self.site.take().await?;
        let tested = tokio::select! {
            biased;
            () = stop => None,
            tested = self.test_in(&place, platform, drift, tell) => Some(tested),
        };
        let accelerator = place.machines.accelerator().as_str();
        let cleared = place.clear().await;
        let Some(tested) = tested else {
            cleared?;
            return Ok(None);
        };
        let (results, agent) = tested?;
        cleared?;
        if self.hashes.hashes(folder, platform).await? != hashes {
            bail!(
                "the image of {} changed while it was tested\nhint: test it again",
                platform.name
            );
        }
        Ok(Some(Certificate::new(
            &platform.name,
            hashes,
            agent,
            accelerator,
            self.clock.now(),
            results,
        )))
    }

    async fn test_in(
        &self,
        place: &Place,
        platform: &Platform,
        drift: Duration,
        mut tell: impl FnMut(Told<'_>) + Send,
    ) -> anyhow::Result<(Vec<CheckResult>, Option<TestedAgent>)> {
        let mut results = Vec::new();
        let mut told = |check: Check, verdict: Verdict, tell: &mut (dyn FnMut(Told<'_>) + Send)| {
            let result = CheckResult { check, verdict };
            tell(Told::Ended(&result));
            results.push(result);
        };
        tell(Told::Begins(Check::Boot));
        let of_host = |ending: Ending| anyhow::anyhow!(ending.message);
        let machine = Machine::start(self, place, platform).await;
        let machine = machine.map_err(of_host)?;
        let (boot, booted) = machine.boot().await.map_err(of_host)?;
        let has_failed = matches!(booted, Verdict::Failed(_));
        told(Check::Boot, booted, &mut tell);
        let mut agent = None;
        if !has_failed {
            tell(Told::Begins(Check::Connect));
            match machine.connect(boot).await {
                Ok((connected, took)) => {
                    let said = format!("{} to the agent's first word", seconds(took));
                    told(Check::Connect, Verdict::Passed(said), &mut tell);
                    agent = Some(connected);
                }
                Err(why) => told(Check::Connect, Verdict::Failed(why), &mut tell),
            }
        }
        let Some(agent) = agent else {
            for check in Check::ALL {
                if !results.iter().any(|result| result.check == check) {
                    let why = "no step could be run in the guest".to_owned();
                    let verdict = Verdict::NotChecked(why);
                    results.push(CheckResult { check, verdict });
                }
            }
            return Ok((results, None));
        };
        let tested_agent = machine.tested_agent(&agent);
        let checks = Checks::new(Guest::new(machine, agent), drift);
        results.extend(checks.run(&mut tell).await?);
        Ok((results, tested_agent))
    }
}

/// A time as people read it.
fn seconds(time: Duration) -> String {
    match time.as_secs() {
        0..10 => format!("{:.1} s", time.as_secs_f64()),
        secs => format!("{secs} s"),
    }
}
