//! What an attempt does once its agent answers: the source goes in, the steps run, files come out.
//!
//! The connection may break at any time; the machine and the running step are untouched by that. A new connection
//! follows the step from the byte where the log ends, so the log is the same as if nothing had happened.

use super::drive::{Driver, asked_to_cancel};
use super::patience::patiently;
use super::{collect, transcript};
use crate::clock::Clock;
use crate::config::may_have_secrets;
use crate::model::{Conclusion, Ending, Phase, Platform, PlatformKind, Reason, Step};
use crate::result::log::{LogError, LogWriter, Mask, Masking, Synced};
use crate::session::{Agent, FollowEvent, Following, SessionError};
use crate::store::attempts::StepRecord;
use futures::FutureExt;
use futures::future::BoxFuture;
use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::Instant;
use vivarium_protocol::{Execution, Exit, StepCommand};

/// Output is made durable and acknowledged to the guest after this many bytes,
const SYNC_BYTES: u64 = 8 << 20;
/// or after this time, whichever comes first.
const SYNC_INTERVAL: Duration = Duration::from_secs(1);
/// After a stop, the rest of the output is waited for this much longer than the grace.
const DRAIN: Duration = Duration::from_secs(10);
/// The pauses before a connection is made again that was lost soon after the one before it.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// A connection that lasted longer was a good one.
const GOOD_CONNECTION: Duration = Duration::from_secs(30);
/// Without any progress, collecting is given up after this.
const COLLECT_TIMEOUT: Duration = Duration::from_secs(1800);
/// Where the guest finds the list of changed files, below the agent's folder.
const CHANGED_FILES: &str = "changed-files";

/// One attempt at work in its guest.
#[derive(Debug)]
pub(super) struct Work<'a> {
    driver: &'a mut Driver,
    pub(super) platform: std::sync::Arc<Platform>,
    pub(super) log: LogWriter,
    pub(super) agent: Agent,
    /// Those of all steps; empty where the commit may not have any.
    secrets: Vec<(String, SecretString)>,
    connected_at: Instant,
    /// The next pause before connecting again.
    pause: Duration,
    /// Where the output of the last step ended in the log, and our notes begin.
    pub(super) notes_from: u64,
}

/// Why something in the guest did not come to its own end.
pub(super) enum Interruption {
    /// The connection broke; the machine may still be there.
    ConnectionLost(String),
    Ended(Ending),
}

/// A step's output on its way into the log.
struct Output {
    following: Following,
    masking: Masking,
}

impl From<Ending> for Interruption {
    fn from(ending: Ending) -> Self {
        Interruption::Ended(ending)
    }
}

impl Interruption {
    /// A step that did not come to its exit. Where the agent answered and could not do it, the guest is as the
    /// suite has left it (its disk full, its shell not there), and another machine would do no better.
    fn of_step(
        step: &Step,
        what: &str,
        execution: &Execution,
        error: SessionError,
    ) -> Interruption {
        match error {
            SessionError::Refused { message, .. } => {
                let message = message
                    .strip_prefix(&format!("{execution}: "))
                    .unwrap_or(&message);
                let message = format!("Step `{}` {what}: {message}", step.name);
                Interruption::Ended(Ending::new(Reason::StepFailed, message))
            }
            error => Interruption::ConnectionLost(error.to_string()),
        }
    }

    /// What an error of the session means; `reason` is for those that a new connection does not mend.
    pub(super) fn of(error: &SessionError, reason: Reason) -> Interruption {
        match error {
            SessionError::Lost { .. } | SessionError::Agent { .. } => {
                Interruption::ConnectionLost(error.to_string())
            }
            SessionError::KeyFile { .. }
            | SessionError::NoAgent { .. }
            | SessionError::Unreachable { .. }
            | SessionError::HostKey { .. }
            | SessionError::Authentication { .. }
            | SessionError::Refused { .. }
            | SessionError::Source { .. }
            | SessionError::Incomplete { .. } => {
                Interruption::Ended(Ending::new(reason, error.to_string()))
            }
        }
    }
}

impl<'a> Work<'a> {
    pub(super) fn new(
        driver: &'a mut Driver,
        platform: std::sync::Arc<Platform>,
        log: LogWriter,
        agent: Agent,
    ) -> Work<'a> {
        Work {
            driver,
            platform,
            log,
            agent,
            secrets: Vec::new(),
            connected_at: Instant::now(),
            pause: FIRST_PAUSE,
            notes_from: 0,
        }
    }

    pub(super) fn driver(&self) -> &Driver {
        self.driver
    }

    pub(super) async fn run(mut self) -> Result<(), Ending> {
        let outcome = self.work().await;
        self.leave_machine().await;
        outcome
    }

    async fn work(&mut self) -> Result<(), Ending> {
        let (store, id) = (self.driver.ledger.store.clone(), self.driver.attempt.id);
        let records = patiently("read the steps", || store.steps_of(id)).await?;
        self.read_secrets(records.is_empty()).await?;
        if records.is_empty() {
            self.driver.enter(Phase::SendingSource).await?;
            self.send_source().await?;
        }
        self.driver.enter(Phase::Running).await?;
        self.notes_from = self.log.len();
        let outcome = self.run_steps(&records).await;
        match outcome {
            // A machine that answers still has its reports, whatever the suite said.
            Ok(())
            | Err(Ending {
                reason: Reason::StepFailed,
                ..
            }) => {
                self.driver.enter(Phase::Collecting).await?;
                match self.collect(outcome.is_ok()).await {
                    // What the suite said stands, also when its machine is lost now.
                    Err(lost)
                        if lost.conclusion() == Conclusion::InfrastructureError
                            && !(outcome.is_ok() && collect::publishes(self.driver)) =>
                    {
                        let text = format!("reports were not collected: {}", lost.message);
                        self.note(self.log.len(), &text).await?;
                        outcome
                    }
                    collected => collected.and(outcome),
                }
            }
            other => other,
        }
    }

    /// Puts the source into the guest; over a new connection from its beginning.
    async fn send_source(&mut self) -> Result<(), Ending> {
        let give_up = self.job_deadline(Phase::SendingSource);
        let mut cancelled = self.driver.cancelled.clone();
        loop {
            let sent = tokio::select! {
                biased;
                ending = asked_to_cancel(&mut cancelled) => return Err(ending),
                sent = self.try_to_send_source() => sent,
            };
            match sent {
                Ok(()) => return Ok(()),
                Err(Interruption::Ended(ending)) => return Err(ending),
                Err(Interruption::ConnectionLost(why)) => self.reconnect(why, give_up).await?,
            }
        }
    }

    /// Takes reports out of the guest, and of a suite that passed its artefacts; over a new connection all of them.
    async fn collect(&mut self, has_passed: bool) -> Result<(), Ending> {
        let give_up = Instant::now() + COLLECT_TIMEOUT;
        let mut cancelled = self.driver.cancelled.clone();
        loop {
            let collected = tokio::select! {
                biased;
                ending = asked_to_cancel(&mut cancelled) => return Err(ending),
                collected = collect::collect(self, has_passed) => collected,
                () = tokio::time::sleep_until(give_up) => {
                    let message = format!(
                        "What the job left behind was not collected in {} s",
                        COLLECT_TIMEOUT.as_secs()
                    );
                    return Err(Ending::new(Reason::AgentLost, message));
                }
            };
            match collected {
                Ok(()) => return Ok(()),
                Err(Interruption::Ended(ending)) => return Err(ending),
                Err(Interruption::ConnectionLost(why)) => self.reconnect(why, give_up).await?,
            }
        }
    }

    /// Puts a line of ours at this place of the log, unless it is there; returns the place after it.
    pub(super) async fn note(&mut self, at: u64, text: &str) -> Result<u64, Ending> {
        let logs = &self.driver.machinery.logs;
        transcript::put_at(&mut self.log, logs, at, &transcript::note(text)).await
    }

    /// Reads the values that the steps ask for and arms the mask, before the guest says anything.
    async fn read_secrets(&mut self, is_fresh: bool) -> Result<(), Ending> {
        let driver = &mut *self.driver;
        let steps = &driver.job.plan.steps;
        let names: BTreeSet<&String> = steps.iter().flat_map(|step| &step.secrets).collect();
        if names.is_empty() {
            return Ok(());
        }
        if !may_have_secrets(&driver.build) {
            if is_fresh {
                let names: Vec<&str> = names.into_iter().map(String::as_str).collect();
                let why = "secrets are for commits of the repository itself, and this one may be somebody else's";
                let text = format!("not given to this job: {} ({why})", names.join(", "));
                let note = transcript::note(&text);
                transcript::put_last(&mut self.log, &driver.machinery.logs, &note).await?;
            }
            return Ok(());
        }
        let host_error = |error: &dyn std::fmt::Display| {
            Ending::new(
                Reason::HostError,
                format!("The job cannot have its secrets: {error}"),
            )
        };
        let config = &driver.machinery.config;
        self.secrets = config
            .read_secrets(&driver.build.new.repository, names)
            .map_err(|error| host_error(&error))?;
        let values = self.secrets.iter().map(|(_, value)| value.expose_secret());
        driver.mask = Mask::new(values).map_err(|error| host_error(&error))?;
        Ok(())
    }

    /// The work directory in the guest; a machine that outlives the job gets one of its own for each.
    pub(super) fn work_dir(&self) -> String {
        match self.platform.kind {
            PlatformKind::Vm { .. } => self.platform.work_dir.clone(),
            PlatformKind::Ssh { .. } => {
                format!("{}/{}", self.platform.work_dir, self.driver.attempt.id)
            }
        }
    }

    async fn try_to_send_source(&mut self) -> Result<(), Interruption> {
        let driver = &*self.driver;
        let config = &driver.machinery.config;
        let source =
            |error: &dyn std::fmt::Display| Ending::new(Reason::SourceError, error.to_string());
        let repository = config
            .repository(&driver.build.new.repository)
            .ok_or_else(|| source(&"the repository is not configured any more"))?;
        let broken = |error: SessionError| Interruption::of(&error, Reason::SourceError);
        let sources = &driver.machinery.sources;
        let sha = self.tested_sha();
        let dir = self.work_dir();
        let changed = driver.build.changed_files.clone().unwrap_or_default();
        let path = format!("{}/{CHANGED_FILES}", self.platform.state_dir);
        if driver.job.plan.history {
            let mut bundle = sources
                .bundle(repository, &sha, "vivarium")
                .await
                .map_err(|e| source(&e))?;
            let there = format!("{}/source.bundle", self.platform.state_dir);
            self.agent
                .write(&there, &mut bundle, false)
                .await
                .map_err(broken)?;
            bundle.finish().await.map_err(|e| source(&e))?;
            self.unbundle(&there, &dir).await?;
        } else {
            let mut archive = sources
                .archive(repository, &sha)
                .await
                .map_err(|e| source(&e))?;
            self.agent
                .unpack(&dir, &mut archive)
                .await
                .map_err(broken)?;
            archive.finish().await.map_err(|e| source(&e))?;
        }
        self.agent
            .write(&path, changed.as_bytes(), false)
            .await
            .map_err(broken)?;
        Ok(())
    }

    /// Makes a clone of the bundle in the guest, with its own git.
    async fn unbundle(&mut self, bundle: &str, dir: &str) -> Result<(), Interruption> {
        let script = format!(
            "rm -rf '{dir}' && git clone -q --branch vivarium '{bundle}' '{dir}' && git -C '{dir}' remote remove origin && rm -f '{bundle}'"
        );
        match self.run_aside("source", script).await? {
            Exit::Code { code: 0 } => Ok(()),
            // The shell's own word for a program that is not there.
            Exit::Code { code: 127 } => Err(Ending::new(
                Reason::RepositoryFile,
                format!(
                    "`history = true` needs git in the guest, and {} has none",
                    self.platform.name
                ),
            )
            .into()),
            exit => Err(Ending::new(
                Reason::SourceError,
                format!("The guest's git cannot clone the history ({})", said(exit)),
            )
            .into()),
        }
    }

    /// Runs a command of ours in the guest; its output goes into the log.
    async fn run_aside(&mut self, name: &str, script: String) -> Result<Exit, Interruption> {
        let command = StepCommand {
            shell: ["sh", "-e", "-c"].map(str::to_owned).to_vec(),
            script,
            dir: "/".into(),
            env: BTreeMap::new(),
            spool_bytes: self.spool_bytes(),
        };
        let execution = Execution(format!("{}-{name}", self.driver.attempt.id));
        let lost = |error: SessionError| Interruption::of(&error, Reason::AgentLost);
        let mut following = self.agent.start(&execution, command).await.map_err(lost)?;
        let mut masking = Masking::new(self.driver.mask.clone(), 0);
        loop {
            match following.next().await.map_err(lost)? {
                FollowEvent::Output { bytes, .. } => {
                    let bytes = masking.feed(bytes);
                    self.log.append(&bytes).await.map_err(log_error)?;
                }
                FollowEvent::Exited { exit, .. } => {
                    self.log
                        .append(&masking.finish())
                        .await
                        .map_err(log_error)?;
                    return Ok(exit);
                }
            }
        }
    }

    fn spool_bytes(&self) -> u64 {
        self.driver.machinery.config.limits.spool_mib << 20
    }

    fn tested_sha(&self) -> String {
        let build = &self.driver.build;
        build
            .tested_sha
            .clone()
            .unwrap_or_else(|| build.new.head_sha.clone())
    }

    async fn run_steps(&mut self, records: &[StepRecord]) -> Result<(), Ending> {
        let steps = self.driver.job.plan.steps.clone();
        let job_deadline = self.job_deadline(Phase::Running);
        for (number, step) in steps.iter().enumerate() {
            let record = records.get(number);
            let exit = match record {
                // It has ended; a stop by us says more than the signal that it died of.
                Some(StepRecord {
                    exit: Some(exit),
                    stop,
                    log_end,
                    ..
                }) => {
                    self.notes_from = log_end.unwrap_or(self.log.len());
                    match stop {
                        Some(ending) => return Err(ending.clone()),
                        None => *exit,
                    }
                }
                Some(StepRecord { exit: None, .. }) | None => {
                    self.run_step(number, step, record, job_deadline).await?
                }
            };
            if exit != (Exit::Code { code: 0 }) {
                return Err(match exit {
                    Exit::Lost => Ending::new(
                        Reason::AgentLost,
                        format!(
                            "Step `{}` vanished in the guest with the process that watched it",
                            step.name
                        ),
                    ),
                    Exit::Code { .. } | Exit::Signal { .. } => Ending::new(
                        Reason::StepFailed,
                        format!("Step `{}` {}", step.name, said(exit)),
                    ),
                });
            }
        }
        Ok(())
    }

    /// When the job's time is over, counted from a phase's begin.
    fn job_deadline(&self, from: Phase) -> Instant {
        let secs = self.driver.job.plan.timeouts.job_secs;
        let clock = &self.driver.ledger.clock;
        let phases = &self.driver.attempt.phases;
        let began = phases.iter().find(|(phase, _)| *phase == from);
        deadline(
            clock,
            began.map_or_else(|| clock.now(), |(_, at)| *at),
            secs,
        )
    }

    async fn run_step(
        &mut self,
        number: usize,
        step: &Step,
        record: Option<&StepRecord>,
        job_deadline: Instant,
    ) -> Result<Exit, Ending> {
        let (store, id) = (self.driver.ledger.store.clone(), self.driver.attempt.id);
        let clock = self.driver.ledger.clock.clone();
        let count = self.driver.job.plan.steps.len();
        let header = transcript::step_header(number, count, step);
        let (log_offset, started_at) = match record {
            Some(record) => (record.log_offset, record.started_at),
            None => {
                // The row first: a master that is started anew finds where the output begins.
                let offset = self.log.len() + header.len() as u64;
                let now = clock.now();
                patiently("record the step", || {
                    store.begin_step(id, number as i64, &step.name, offset, now)
                })
                .await?;
                crate::crash::point("step_begun");
                (offset, now)
            }
        };
        let missing = log_offset.saturating_sub(self.log.len()) as usize;
        if missing > 0 {
            let rest = header.len().saturating_sub(missing);
            let rest = header.as_bytes().get(rest..).unwrap_or_default();
            self.log.append(rest).await.map_err(log_error)?;
        }
        let running = Running {
            number: number as i64,
            step,
            execution: Execution(format!("{}-{number}", self.driver.attempt.id)),
            log_offset,
            limits: StepLimits {
                step: deadline(&clock, started_at, step.timeout_secs),
                job: job_deadline,
                job_secs: self.driver.job.plan.timeouts.job_secs,
                silence: Duration::from_secs(self.driver.job.plan.timeouts.no_output_secs),
            },
        };
        let command = self.command(step);
        // What a stop by us means, once one was sent: it outlives a lost connection and the master.
        let stop = record.and_then(|record| record.stop.clone());
        let mut stopped = stop.map(|ending| (ending, self.death_deadline()));
        loop {
            let from = self.log.len().saturating_sub(log_offset);
            let execution = &running.execution;
            let followed = match self.follow_from(step, execution, &command, from).await {
                Ok(output) => {
                    crate::crash::point("step_followed");
                    self.follow(&running, output, &mut stopped).await
                }
                Err(interruption) => Err(interruption),
            };
            match followed {
                Ok(exit) => {
                    let end = self.log.sync().await.map_err(log_error)?;
                    crate::crash::point("step_exited");
                    let now = clock.now();
                    patiently("record the step's end", || {
                        store.finish_step(id, number as i64, exit, end, now)
                    })
                    .await?;
                    self.notes_from = end;
                    return match stopped {
                        Some((ending, _)) => Err(ending),
                        None => Ok(exit),
                    };
                }
                Err(Interruption::Ended(ending)) => return Err(ending),
                Err(Interruption::ConnectionLost(why)) => {
                    let give_up = match &stopped {
                        Some((_, until)) => *until,
                        None => running.limits.step.min(running.limits.job),
                    };
                    self.reconnect(why, give_up).await?;
                }
            }
        }
    }

    /// Starts the command, or attaches to it where this attempt has started it before.
    async fn follow_from(
        &mut self,
        step: &Step,
        execution: &Execution,
        command: &StepCommand,
        from: u64,
    ) -> Result<Output, Interruption> {
        // A secret may lie across the place where the log goes on.
        let overlap = self.driver.mask.overlap().min(from);
        let masking = Masking::new(self.driver.mask.clone(), overlap);
        let lost = |error: SessionError| Interruption::of(&error, Reason::AgentLost);
        if from > 0 {
            let attached = self.agent.attach(execution, from - overlap).await;
            return match attached.map_err(lost)? {
                Some(following) => Ok(Output { following, masking }),
                None => {
                    let message = "The guest lost a running step: it does not know it any more";
                    Err(Ending::new(Reason::AgentLost, message).into())
                }
            };
        }
        // One that is there already is attached to: no need to ask for it first.
        let following = self
            .agent
            .start(execution, command.clone())
            .await
            .map_err(|error| Interruption::of_step(step, "cannot be started", execution, error))?;
        Ok(Output { following, masking })
    }

    async fn follow(
        &mut self,
        running: &Running<'_>,
        output: Output,
        stopped: &mut Option<(Ending, Instant)>,
    ) -> Result<Exit, Interruption> {
        let Output {
            mut following,
            mut masking,
        } = output;
        let Running {
            step,
            execution,
            limits,
            ..
        } = running;
        let mut heard = Instant::now();
        let mut synced_at = Instant::now();
        let mut synced = self.log.len();
        // Beside the output: a slow disk holds it up only once the guest's spool is full.
        let mut syncing: Option<BoxFuture<'_, Result<Synced, LogError>>> = None;
        let mut cancelled = self.driver.cancelled.clone();
        let gone = self.driver.machine_gone(&self.platform);
        tokio::pin!(gone);
        if stopped.is_some() {
            // Whether the guest heard of it before is not known; twice does no harm.
            self.ask_to_stop(execution).await?;
        }
        loop {
            let (limit, overdue) = limits.hard(step, stopped);
            let (silent, fell_silent) = limits.silent(step, heard);
            tokio::select! {
                // A wish and a limit go before any amount of output; output that is here goes before the lack of it.
                biased;
                ending = asked_to_cancel(&mut cancelled), if stopped.is_none() => {
                    self.stop(running, ending, stopped).await?;
                }
                () = tokio::time::sleep_until(limit) => {
                    if let Some((ending, _)) = stopped {
                        // It does not even die: the machine will.
                        return Err(ending.clone().into());
                    }
                    self.stop(running, overdue, stopped).await?;
                }
                Some(result) = next_of(&mut syncing) => {
                    syncing = None;
                    synced = self.log.synced(&result.map_err(log_error)?);
                    synced_at = Instant::now();
                    let until = synced.saturating_sub(running.log_offset + self.driver.mask.overlap());
                    self.agent
                        .acknowledge(execution, until)
                        .await
                        .map_err(|error| Interruption::ConnectionLost(error.to_string()))?;
                }
                event = following.next() => match event {
                    Ok(FollowEvent::Output { bytes, .. }) => {
                        heard = Instant::now();
                        let bytes = masking.feed(bytes);
                        self.log.append(&bytes).await.map_err(log_error)?;
                        crate::crash::point("output_stored");
                    }
                    Ok(FollowEvent::Exited { exit, .. }) => {
                        self.log.append(&masking.finish()).await.map_err(log_error)?;
                        return Ok(exit);
                    }
                    Err(error) => {
                        let interruption =
                            Interruption::of_step(step, "was given up", execution, error);
                        let Interruption::Ended(ending) = interruption else {
                            return Err(interruption);
                        };
                        self.log.append(&masking.finish()).await.map_err(log_error)?;
                        // Where it was ended by us, that is the better reason.
                        let ending = stopped.take().map_or(ending, |(ending, _)| ending);
                        return Err(ending.into());
                    }
                },
                why = &mut gone => {
                    return Err(Ending::new(Reason::GuestDied, format!("The VM died during step `{}`: {why}", step.name)).into());
                }
                () = tokio::time::sleep_until(silent), if stopped.is_none() => {
                    self.stop(running, fell_silent, stopped).await?;
                }
                () = tokio::time::sleep_until(synced_at + SYNC_INTERVAL), if syncing.is_none() && self.log.len() > synced => {
                    synced_at = Instant::now() - SYNC_INTERVAL;
                }
            }
            let unsynced = self.log.len() - synced;
            let is_due = unsynced > 0 && synced_at.elapsed() >= SYNC_INTERVAL;
            if syncing.is_none() && (unsynced >= SYNC_BYTES || is_due) {
                syncing = Some(self.log.sync_beside().map_err(log_error)?.boxed());
            }
        }
    }

    async fn stop(
        &mut self,
        running: &Running<'_>,
        why: Ending,
        stopped: &mut Option<(Ending, Instant)>,
    ) -> Result<(), Interruption> {
        tracing::info!(execution = %running.execution, why = why.message, "step is stopped");
        let (store, id) = (&self.driver.ledger.store, self.driver.attempt.id);
        patiently("record the stop", || {
            store.stop_step(id, running.number, &why)
        })
        .await?;
        *stopped = Some((why, self.death_deadline()));
        crate::crash::point("step_stopped");
        self.ask_to_stop(&running.execution).await
    }

    async fn ask_to_stop(&self, execution: &Execution) -> Result<(), Interruption> {
        let asked = self.agent.stop(execution, self.stop_grace()).await;
        asked.map_err(|error| Interruption::ConnectionLost(error.to_string()))
    }

    fn stop_grace(&self) -> Duration {
        Duration::from_secs(self.driver.machinery.config.limits.stop_grace_secs)
    }

    /// When a step that is stopped now must have ended, its output drained.
    fn death_deadline(&self) -> Instant {
        Instant::now() + self.stop_grace() + DRAIN
    }

    /// Connects again, as long as the machine is there and there is time.
    async fn reconnect(&mut self, why: String, give_up: Instant) -> Result<(), Ending> {
        /// QEMU's death shows on the connection first: libvirt is given this long to know of it.
        const SETTLE: Duration = Duration::from_millis(1500);
        tracing::warn!(why, "connection lost; connecting again");
        self.pause = match self.connected_at.elapsed() < GOOD_CONNECTION {
            true => (self.pause * 2).min(LONGEST_PAUSE),
            false => FIRST_PAUSE,
        };
        let platform = self.platform.clone();
        let gone = self.driver.machine_gone(&platform);
        if let Ok(gone) = tokio::time::timeout(SETTLE.max(self.pause), gone).await {
            return Err(Ending::new(
                Reason::GuestDied,
                format!("The VM died: {gone}"),
            ));
        }
        let (host, port) = match &platform.kind {
            PlatformKind::Ssh { host } => (host.clone(), platform.ssh.port),
            PlatformKind::Vm { .. } => {
                let (store, id) = (&self.driver.ledger.store, self.driver.attempt.id);
                let row = patiently("read the port", || store.attempt(id)).await?;
                let port = row.and_then(|attempt| attempt.ssh_port).unwrap_or_default();
                ("127.0.0.1".to_owned(), port)
            }
        };
        let lost = |how: &str| {
            let message = format!("The connection was lost ({why}) and did not come back: {how}");
            Ending::new(Reason::AgentLost, message)
        };
        let mut cancelled = self.driver.cancelled.clone();
        self.agent = tokio::select! {
            biased;
            ending = asked_to_cancel(&mut cancelled) => return Err(ending),
            agent = self.driver.connect(&platform, &host, port) => agent.map_err(|ending| match ending.reason {
                Reason::ConnectDeadline => lost(&ending.message),
                _ => ending,
            })?,
            () = tokio::time::sleep_until(give_up) => return Err(lost("its time was over")),
        };
        self.connected_at = Instant::now();
        Ok(())
    }

    fn command(&self, step: &Step) -> StepCommand {
        let build = &self.driver.build;
        let job = &self.driver.job;
        let mut env = BTreeMap::from([
            ("CI".to_owned(), "true".to_owned()),
            ("VIVARIUM".to_owned(), "true".to_owned()),
        ]);
        let mut set = |name: &str, value: &str| {
            env.insert(format!("VIVARIUM_{name}"), value.to_owned());
        };
        set("REPOSITORY", &build.new.repository);
        set("SHA", &self.tested_sha());
        set("HEAD_SHA", &build.new.head_sha);
        set("BASE_SHA", build.base_sha.as_deref().unwrap_or_default());
        set("REF", &build.new.reference);
        set("EVENT", build.new.trigger.as_str());
        set(
            "PULL_REQUEST",
            &build
                .new
                .pull_request
                .map(|n| n.to_string())
                .unwrap_or_default(),
        );
        set("PLATFORM", &job.platform);
        set("SUITE", &job.suite);
        set("BUILD", &build.id.to_string());
        set("JOB", &job.id.to_string());
        set(
            "CHANGED_FILES",
            &format!("{}/{CHANGED_FILES}", self.platform.state_dir),
        );
        env.extend(step.env.clone());
        let secrets = self
            .secrets
            .iter()
            .filter(|(name, _)| step.secrets.contains(name));
        env.extend(secrets.map(|(name, value)| (name.clone(), value.expose_secret().to_owned())));
        StepCommand {
            shell: step.shell.clone(),
            script: step.run.clone(),
            dir: self.work_dir(),
            env,
            spool_bytes: self.spool_bytes(),
        }
    }

    /// A machine that outlives the job is left as it was found.
    async fn leave_machine(&mut self) {
        match self.platform.kind {
            PlatformKind::Vm { .. } => {}
            PlatformKind::Ssh { .. } => {
                let script = format!("rm -rf '{}'", self.work_dir());
                let why = match self.run_aside("leave", script).await {
                    Ok(_) => return,
                    Err(Interruption::ConnectionLost(why)) => why,
                    Err(Interruption::Ended(ending)) => ending.message,
                };
                tracing::warn!(why, "the work directory stays on the machine");
            }
        }
    }
}

/// Its output, at once nothing where there is none.
async fn next_of<T>(future: &mut Option<BoxFuture<'_, T>>) -> Option<T> {
    Some(future.as_mut()?.await)
}

/// A step that has been begun.
struct Running<'s> {
    number: i64,
    step: &'s Step,
    execution: Execution,
    /// Where its output begins in the job's log.
    log_offset: u64,
    limits: StepLimits,
}

/// The times at which a step is ended.
struct StepLimits {
    step: Instant,
    job: Instant,
    /// What the job had in all, for the sentence.
    job_secs: u64,
    silence: Duration,
}

impl StepLimits {
    /// The next deadline that output does not put off, and what it means when it passes.
    fn hard(&self, step: &Step, stopped: &Option<(Ending, Instant)>) -> (Instant, Ending) {
        if let Some((ending, until)) = stopped {
            return (*until, ending.clone());
        }
        if self.step <= self.job {
            let message = format!(
                "Step `{}` ran longer than its {} s",
                step.name, step.timeout_secs
            );
            (self.step, Ending::new(Reason::StepTimeout, message))
        } else {
            let message = format!(
                "The job ran longer than its {} s, at last in step `{}`",
                self.job_secs, step.name
            );
            (self.job, Ending::new(Reason::JobTimeout, message))
        }
    }

    /// When the step has been silent for too long, and what that means.
    fn silent(&self, step: &Step, heard: Instant) -> (Instant, Ending) {
        let message = format!(
            "Step `{}` printed nothing for {} s",
            step.name,
            self.silence.as_secs()
        );
        let ending = Ending::new(Reason::NoOutputTimeout, message);
        (heard + self.silence, ending)
    }
}

/// A moment some seconds after a time of the wall clock.
fn deadline(clock: &Clock, began: Timestamp, secs: u64) -> Instant {
    let elapsed = clock.now().duration_since(began);
    let elapsed = Duration::try_from(elapsed).unwrap_or_default();
    Instant::now() + Duration::from_secs(secs).saturating_sub(elapsed)
}

fn said(exit: Exit) -> String {
    match exit {
        Exit::Code { code } => format!("exited with {code}"),
        Exit::Signal { signal } => format!("was ended by signal {signal}"),
        Exit::Lost => "ended in a way nobody saw".to_owned(),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "handed to map_err")]
pub(super) fn log_error(error: LogError) -> Ending {
    Ending::new(Reason::HostError, error.to_string())
}
