//! One attempt, from its slot to its end: VM, session, work, result, clean-up.
//!
//! ```text
//!  placed ─► booting ─► connecting ─► sending source ─► running ─► collecting ─► cleaning up ─► ended
//!     └──────────┴───────────┴──────────────┴──────────────┴────────────┴──────────────▲
//! ```
//!
//! Each step looks at what is there first, so that a driver started for an attempt that is under way takes it up
//! where it is. Whatever happened, the way leads through cleaning up.

mod arrive;

use super::evidence;
use super::ledger::{FailedBoot, JobOutcome, Ledger};
use super::patience::{insist, patiently};
use super::prepare::Preparer;
use super::reach::{Recorder, guest};
use super::transcript;
use super::work::{Work, log_error};
use crate::config::{Config, Platforms};
use crate::model::{
    AgentKind, Architecture, Attempt, Build, Conclusion, Ending, Job, OsFamily, Phase, Platform,
    PlatformKind, Reason,
};
use crate::result::artifacts::Artifacts;
use crate::result::log::{LogError, LogWriter, Logs, Mask};
use crate::session::Transport;
use crate::source::Source;
use crate::store::{Decided, Evidence, StoreError};
use crate::vm::Machines;
use std::sync::Arc;
use tokio::sync::watch;

/// What drivers work with; shared by all.
#[derive(Debug)]
pub struct Machinery {
    pub config: Arc<Config>,
    pub platforms: Platforms,
    pub machines: Machines,
    pub transport: Arc<dyn Transport>,
    pub sources: Arc<dyn Source>,
    pub logs: Logs,
    pub artifacts: Artifacts,
}

/// Drives one attempt.
#[derive(Debug)]
pub(super) struct Driver {
    pub(super) ledger: Ledger,
    pub(super) machinery: Arc<Machinery>,
    pub(super) build: Build,
    pub(super) job: Job,
    pub(super) attempt: Attempt,
    pub(super) cancelled: watch::Receiver<Option<Ending>>,
    /// What of the guest's words must not be shown.
    pub(super) mask: Mask,
    /// How the machine comes up.
    recorder: Recorder,
    /// The machine did not come up, for a reason that counts against its platform.
    failed_boot: Option<FailedBoot>,
}

impl Driver {
    pub(super) fn new(
        ledger: Ledger,
        machinery: Arc<Machinery>,
        build: Build,
        job: Job,
        attempt: Attempt,
        cancelled: watch::Receiver<Option<Ending>>,
    ) -> Driver {
        Driver {
            recorder: Recorder::new(ledger.clock.clone(), attempt.boot.clone()),
            ledger,
            machinery,
            build,
            job,
            attempt,
            cancelled,
            mask: Mask::default(),
            failed_boot: None,
        }
    }

    /// Runs the attempt to its end.
    #[tracing::instrument(name = "attempt", skip_all, fields(job = %self.job.id, vm = %self.attempt.id, platform = self.job.platform))]
    pub(super) async fn run(mut self) {
        if self.attempt.phase < Phase::CleaningUp {
            let done = match self.attempt.ending {
                None => self.work().await,
                Some(_) => self.leave().await,
            };
            let left = match (done, &self.attempt.ending) {
                (Ok(()), _) => Ok(()),
                (Err(ending), None) => {
                    self.decide(ending).await;
                    // A master before this one had begun there.
                    match self.attempt.phase > Phase::Connecting {
                        true => self.leave().await,
                        false => Ok(()),
                    }
                }
                (Err(why), Some(_)) => Err(why),
            };
            if let Err(why) = left {
                tracing::warn!(why = why.message, "what the job left stays on its machine");
            }
            self.conclude().await;
        }
        self.clean_up().await;
    }

    /// A machine that runs is what its platform was when it was made.
    async fn platform(&self) -> Result<Arc<Platform>, Ending> {
        if self.attempt.phase > Phase::Placed
            && let Some(platform) = self.machinery.machines.platform_of(self.attempt.id).await
        {
            return Ok(Arc::new(platform));
        }
        let now = self.machinery.platforms.get(&self.job.platform);
        now.map_err(|why| Ending::new(Reason::PlatformUnavailable, why))
    }

    async fn work(&mut self) -> Result<(), Ending> {
        let platform = self.platform().await?;
        if !self.job.plan.is_known() {
            let preparer = Preparer::new(self.ledger.clone(), &self.machinery);
            self.job.plan = preparer.plan_late(&self.build, &self.job).await?;
        }
        let is_rerun = self.job.attempts == 1 && self.attempt.number > 1;
        if is_rerun && self.attempt.phase == Phase::Placed {
            // Taken up again by a person: the log begins anew.
            let anew = self.machinery.logs.begin_anew(self.job.id).await;
            anew.map_err(|error| Ending::new(Reason::HostError, error.to_string()))?;
        }
        let mut log = self.open_log().await?;
        if self.attempt.phase == Phase::Placed {
            let stand_in = self.stand_in_for_agent(&platform);
            let opening = transcript::opening(&self.attempt, &self.build, stand_in);
            transcript::put_last(&mut log, &self.machinery.logs, &opening).await?;
        }
        let mut cancelled = self.cancelled.clone();
        let agent = tokio::select! {
            biased;
            ending = asked_to_cancel(&mut cancelled) => return Err(ending),
            agent = self.reach_agent(&platform) => agent?,
        };
        Work::new(self, platform, log, agent).run().await;
        Ok(())
    }

    /// The system for which no agent is built, where the one in `sh` does its work because of that.
    fn stand_in_for_agent(&self, platform: &Platform) -> Option<(OsFamily, Architecture)> {
        let kind = self.machinery.transport.agent_kind(&guest(platform));
        (platform.agent.is_none() && kind == Some(AgentKind::Sh))
            .then_some((platform.os, platform.arch))
    }

    /// Leaves a machine that outlives the job: the master may have died after the job was decided and before that.
    async fn leave(&mut self) -> Result<(), Ending> {
        let platform = self.platform().await?;
        match &platform.kind {
            PlatformKind::Vm { .. } => Ok(()),
            PlatformKind::Ssh { host } => {
                let agent = self.connect(&platform, host, platform.ssh.port).await?;
                let log = self.open_log().await?;
                Work::new(self, platform, log, agent).leave_machine().await;
                Ok(())
            }
        }
    }

    async fn open_log(&self) -> Result<LogWriter, Ending> {
        let opened = patiently("open the log", || self.try_to_open_log()).await?;
        opened.map_err(log_error)
    }

    /// Whether a log is still open is known to the database, whose errors are apart: it may be away for a while.
    async fn try_to_open_log(&self) -> Result<Result<LogWriter, LogError>, StoreError> {
        match self.machinery.logs.writer(self.job.id).await {
            Err(LogError::Store { source, .. }) => Err(source),
            opened => Ok(opened),
        }
    }

    pub(super) async fn enter(&mut self, phase: Phase) -> Result<(), Ending> {
        if self.attempt.phase < phase {
            let (ledger, attempt) = (&self.ledger, &self.attempt);
            patiently("record the phase", || ledger.enter_phase(attempt, phase)).await?;
            self.attempt.phase = phase;
            crate::crash::point(phase.as_str());
        }
        Ok(())
    }

    /// Writes the ending down: from now on it stands, whatever is found at a later start.
    pub(super) async fn decide(&mut self, mut ending: Ending) {
        ending.message = self.mask.text(&ending.message);
        let evidence = match ending.conclusion() {
            Conclusion::InfrastructureError => {
                evidence::gather(&self.machinery.machines, self.attempt.id, &self.mask).await
            }
            Conclusion::Success
            | Conclusion::Failure
            | Conclusion::TimedOut
            | Conclusion::Cancelled => Evidence::default(),
        };
        let log_end = match self.machinery.logs.length(self.job.id).await {
            Ok(length) => length,
            Err(error) => {
                tracing::warn!(%error, "the length of the log cannot be told");
                0
            }
        };
        self.attempt.boot = self.masked_boot();
        let decided = Decided {
            ending: &ending,
            boot: &self.attempt.boot,
            evidence: &evidence,
            log_end,
        };
        let failed_boot = self.failed_boot.as_ref();
        insist(|| self.ledger.decide(&self.attempt, decided, failed_boot)).await;
        crate::crash::point("ending_decided");
        self.attempt.ending = Some(ending);
        self.attempt.console_tail = evidence.console_tail;
        self.attempt.log_end = Some(log_end);
    }

    /// Tells the ending, in the log and to the job.
    async fn conclude(&self) {
        let Some(ending) = &self.attempt.ending else {
            return;
        };
        let tail = self.attempt.console_tail.as_deref();
        let retries = i64::from(self.machinery.config.limits.infrastructure_retries);
        let is_last = !ending.reason.is_worth_a_retry() || self.job.attempts > retries;
        let logs = &self.machinery.logs;
        let closing = transcript::closing(ending, is_last, tail);
        // Nobody would add it later.
        let written = match insist(|| self.try_to_open_log()).await {
            Ok(mut log) => {
                let at = self.attempt.log_end.unwrap_or(log.len());
                let put = transcript::put_at(&mut log, logs, at, &closing).await;
                put.map(|_| ())
            }
            Err(error) => Err(log_error(error)),
        };
        if let Err(error) = written {
            tracing::warn!(why = error.message, "the end of the log cannot be written");
        }
        crate::crash::point("closing_written");
        match insist(|| self.ledger.conclude(&self.attempt, ending, tail)).await {
            JobOutcome::Finished => {
                tracing::info!(
                    reason = ending.reason.as_str(),
                    why = ending.message,
                    "job finished"
                );
                self.close_log().await;
            }
            JobOutcome::Retried => tracing::warn!(
                reason = ending.reason.as_str(),
                why = ending.message,
                "attempt failed; the job is queued again"
            ),
        }
    }

    /// The log is sealed later, when the object store takes it.
    async fn close_log(&self) {
        if let Err(error) = self.machinery.logs.close(self.job.id).await {
            tracing::debug!(%error, "followers learn the end of the log a little later");
        }
    }

    /// The attempt keeps its slot as long as there is anything of its machine: what still runs takes room.
    async fn clean_up(&self) {
        let machines = &self.machinery.machines;
        machines.destroy_until_gone(self.attempt.id).await;
        crate::crash::point("machine_destroyed");
        insist(|| self.ledger.end_attempt(self.attempt.id)).await;
    }
}

/// Resolves with the wish, once somebody has it.
pub(super) async fn asked_to_cancel(cancelled: &mut watch::Receiver<Option<Ending>>) -> Ending {
    match cancelled
        .wait_for(Option::is_some)
        .await
        .map(|wish| wish.clone())
    {
        Ok(Some(ending)) => ending,
        // The scheduler is gone: the master stops, and the guest is left for its next start.
        Ok(None) | Err(_) => std::future::pending().await,
    }
}
