//! The checks in a guest that answers, one after the other.
//!
//! A check gives a verdict, or says that the guest did something else; what it said then is the verdict. A lost connection
//! fails the check that lost it, and the next one has another.

mod clock;
mod files;
mod network;
mod processes;
mod resources;
mod shell;

use super::certificate::{Check, CheckResult, Verdict};
use super::guest::{Guest, Trouble};
use super::{Told, seconds};
use crate::model::OsFamily;
use crate::vm::image_facts;
use clock::Ticks;
use std::time::Duration;
use tokio::time::timeout;

/// The time for one check, in seconds; longer where guests run without KVM.
const LIMIT_SECS: u64 = 60;

/// A guest, and what is known of it so far.
pub(super) struct Checks<'a> {
    pub(super) guest: Guest<'a>,
    /// How long the clock is watched.
    drift: Duration,
    /// The clock when it was first looked at.
    ticks: Option<Ticks>,
    connected_unix_ms: i128,
}

impl<'a> Checks<'a> {
    pub(super) fn new(guest: Guest<'a>, drift: Duration) -> Checks<'a> {
        Checks {
            guest,
            drift,
            ticks: None,
            connected_unix_ms: clock::unix_ms(),
        }
    }

    /// All but boot and connect. An error is the host's.
    pub(super) async fn run(
        mut self,
        tell: &mut (dyn FnMut(Told<'_>) + Send),
    ) -> anyhow::Result<Vec<CheckResult>> {
        let facts = image_facts(self.guest.platform()).await?;
        let mut lost: Option<String> = None;
        let mut results = Vec::new();
        for check in Check::ALL {
            if matches!(check, Check::Boot | Check::Connect) {
                continue;
            }
            tell(Told::Begins(check));
            let verdict = match &lost {
                Some(why) => Verdict::NotChecked(format!("the guest was lost: {why}")),
                None => {
                    let (verdict, is_lost) = self.perform(check, facts.disk_bytes).await;
                    // After the power-off nothing is asked any more.
                    if is_lost
                        && check != Check::Poweroff
                        && let Err(why) = self.guest.reconnect().await
                    {
                        lost = Some(why);
                    }
                    verdict
                }
            };
            let result = CheckResult { check, verdict };
            tell(Told::Ended(&result));
            results.push(result);
        }
        Ok(results)
    }

    /// The verdict, and whether the connection is lost.
    async fn perform(&mut self, check: Check, disk_bytes: Option<u64>) -> (Verdict, bool) {
        let watched = match check {
            Check::ClockDrift => self.drift,
            Check::Boot
            | Check::Connect
            | Check::WorkDirectory
            | Check::Clock
            | Check::Shell
            | Check::Environment
            | Check::ExitCodes
            | Check::Entropy
            | Check::Memory
            | Check::Processors
            | Check::Disk
            | Check::Network
            | Check::ProcessTree
            | Check::Output
            | Check::Artefacts
            | Check::Poweroff => Duration::ZERO,
        };
        let limit = self.guest.machine.scaled(LIMIT_SECS) + watched;
        match timeout(limit, self.look(check, disk_bytes)).await {
            Ok(Ok(verdict)) => (verdict, false),
            Ok(Err(Trouble::Check(why))) => (Verdict::Failed(why), false),
            Ok(Err(Trouble::Lost(why))) => (Verdict::Failed(why), true),
            Err(_) => {
                let why = format!("it did not end in {}", seconds(limit));
                (Verdict::Failed(why), true)
            }
        }
    }

    async fn look(&mut self, check: Check, disk_bytes: Option<u64>) -> Result<Verdict, Trouble> {
        match check {
            Check::Boot | Check::Connect => Ok(Verdict::NotChecked("it is over".to_owned())),
            Check::WorkDirectory => self.work_directory().await,
            Check::Clock => self.clock().await,
            Check::Shell => self.shell().await,
            Check::Environment => self.environment().await,
            Check::ExitCodes => self.exit_codes().await,
            Check::Entropy => self.entropy().await,
            Check::Memory => self.memory().await,
            Check::Processors => self.processors().await,
            Check::Disk => self.disk(disk_bytes).await,
            Check::Network => self.network().await,
            Check::ProcessTree => self.process_tree().await,
            Check::Output => self.output().await,
            Check::Artefacts => self.artefacts().await,
            Check::ClockDrift => self.clock_drift().await,
            Check::Poweroff => self.poweroff().await,
        }
    }

    /// What cannot be looked at in such a guest, and is not.
    fn unless_unix(&self) -> Option<Verdict> {
        let os = self.guest.platform().os;
        (!os.is_unix()).then(|| {
            let why = format!("nobody has shown yet how to look at it on {}", os.as_str());
            Verdict::NotChecked(why)
        })
    }

    fn is_linux(&self) -> bool {
        self.guest.platform().os == OsFamily::Linux
    }
}

/// A number that a guest printed, in its first line.
fn number(text: &str) -> Result<u64, Trouble> {
    let line = text.lines().next().unwrap_or_default().trim();
    line.parse().map_err(|_| {
        let said = super::guest::shown(text.as_bytes());
        Trouble::Check(format!("it was asked for a number, and {said}"))
    })
}
