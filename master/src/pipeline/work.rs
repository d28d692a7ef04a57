//! What an attempt does once its agent answers: the source goes in, the steps run, files come out.
//!
//! The connection may break at any time; the machine and the running step are untouched by that. A new connection
//! follows the step from the byte where the log ends, so the log is the same as if nothing had happened.

use super::drive::{Driver, asked_to_cancel};
use super::patience::patiently;
use super::{collect, transcript};
use crate::clock::Clock;
use crate::config::may_have_secrets;
use crate::model::{Ending, Phase, Platform, PlatformKind, Reason, Step};
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
/// Connections lost in one attempt before the machine is given up.
const MAX_RECONNECTS: u32 = 20;
/// Where the guest finds the list of changed files, below the agent's folder.
const CHANGED_FILES: &str = "changed-files";

/// One attempt at work in its guest.
#[derive(Debug)]
pub(super) struct Work<'a> {
    driver: &'a mut Driver,
    pub(super) platform: std::sync::Arc<Platform>,
    pub(super) log: LogWriter,
    pub(super) agent: Agent,
    reconnects: u32,
    /// Those of all steps; empty where the commit may not have any.
    secrets: Vec<(String, SecretString)>,
}

/// How following a command ended, when it was not by the command's own exit.
enum Interruption {
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
            reconnects: 0,
            secrets: Vec::new(),
        }
    }

    pub(super) fn driver(&self) -> &Driver {
        self.driver
    }

    pub(super) async fn run(mut self) -> Result<(), Ending> {
        let (store, id) = (&self.driver.ledger.store, self.driver.attempt.id);
        let records = patiently("read the steps", || store.steps_of(id)).await?;
        self.read_secrets(records.is_empty()).await?;
        if records.is_empty() {
            self.driver.enter(Phase::SendingSource).await?;
            let mut cancelled = self.driver.cancelled.clone();
            tokio::select! {
                biased;
                ending = asked_to_cancel(&mut cancelled) => return Err(ending),
                sent = self.send_source() => sent?,
            }
        }
        self.driver.enter(Phase::Running).await?;
        let outcome = self.run_steps(&records).await;
        let outcome = match outcome {
            // A machine that answers still has its reports, whatever the suite said.
            Ok(())
            | Err(Ending {
                reason: Reason::StepFailed,
                ..
            }) => {
                self.driver.enter(Phase::Collecting).await?;
                collect::reports(&mut self).await;
                match outcome {
                    Ok(()) => collect::artifacts(&mut self).await,
                    failed => failed,
                }
            }
            other => other,
        };
        self.leave_machine().await;
        outcome
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
                transcript::note(&mut self.log, &text).await?;
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

    async fn send_source(&mut self) -> Result<(), Ending> {
        let driver = &*self.driver;
        let config = &driver.machinery.config;
        let source =
            |error: &dyn std::fmt::Display| Ending::new(Reason::SourceError, error.to_string());
        let repository = config
            .repository(&driver.build.new.repository)
            .ok_or_else(|| source(&"the repository is not configured any more"))?;
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
                .map_err(|e| source(&e))?;
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
                .map_err(|e| source(&e))?;
            archive.finish().await.map_err(|e| source(&e))?;
        }
        self.agent
            .write(&path, changed.as_bytes(), false)
            .await
            .map_err(|e| source(&e))?;
        Ok(())
    }

    /// Makes a clone of the bundle in the guest, with its own git.
    async fn unbundle(&mut self, bundle: &str, dir: &str) -> Result<(), Ending> {
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
            )),
            exit => Err(Ending::new(
                Reason::SourceError,
                format!("The guest's git cannot clone the history ({})", said(exit)),
            )),
        }
    }

    /// Runs a command of ours in the guest; its output goes into the log.
    async fn run_aside(&mut self, name: &str, script: String) -> Result<Exit, Ending> {
        let command = StepCommand {
            shell: ["sh", "-e", "-c"].map(str::to_owned).to_vec(),
            script,
            dir: "/".into(),
            env: BTreeMap::new(),
            spool_bytes: self.spool_bytes(),
        };
        let execution = Execution(format!("{}-{name}", self.driver.attempt.id));
        let lost = |error: SessionError| Ending::new(Reason::AgentLost, error.to_string());
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
        let job_deadline = self.job_deadline();
        for (number, step) in steps.iter().enumerate() {
            let record = records.get(number);
            let exit = match record.and_then(|record| record.exit) {
                Some(exit) => exit,
                None => self.run_step(number, step, record, job_deadline).await?,
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

    /// When the job's time is over; it began with the first step.
    fn job_deadline(&self) -> Instant {
        let secs = self.driver.job.plan.timeouts.job_secs;
        let began = self
            .driver
            .attempt
            .phases
            .iter()
            .find(|(phase, _)| *phase == Phase::Running)
            .map(|(_, at)| *at);
        let clock = &self.driver.ledger.clock;
        deadline(clock, began.unwrap_or_else(|| clock.now()), secs)
    }

    async fn run_step(
        &mut self,
        number: usize,
        step: &Step,
        record: Option<&StepRecord>,
        job_deadline: Instant,
    ) -> Result<Exit, Ending> {
        let count = self.driver.job.plan.steps.len();
        let header = transcript::step_header(number, count, step);
        let (log_offset, started_at) = match record {
            Some(record) => (record.log_offset, record.started_at),
            None => {
                // The row first: a master that is started anew finds where the output begins.
                let offset = self.log.len() + header.len() as u64;
                let now = self.driver.ledger.clock.now();
                let (store, id) = (&self.driver.ledger.store, self.driver.attempt.id);
                patiently("record the step", || {
                    store.begin_step(id, number as i64, &step.name, offset, now)
                })
                .await?;
                (offset, now)
            }
        };
        let missing = log_offset.saturating_sub(self.log.len()) as usize;
        if missing > 0 {
            let rest = header.len().saturating_sub(missing);
            let rest = header.as_bytes().get(rest..).unwrap_or_default();
            self.log.append(rest).await.map_err(log_error)?;
        }
        let execution = Execution(format!("{}-{number}", self.driver.attempt.id));
        let limits = StepLimits {
            step: deadline(&self.driver.ledger.clock, started_at, step.timeout_secs),
            job: job_deadline,
            job_secs: self.driver.job.plan.timeouts.job_secs,
            silence: Duration::from_secs(self.driver.job.plan.timeouts.no_output_secs),
        };
        let command = self.command(step);
        // What a stop by us means, once one was sent: it outlives a lost connection.
        let mut stopped = None;
        loop {
            let from = self.log.len().saturating_sub(log_offset);
            let followed = match self.follow_from(step, &execution, &command, from).await {
                Ok(output) => {
                    self.follow(step, &execution, output, log_offset, &limits, &mut stopped)
                        .await
                }
                Err(interruption) => Err(interruption),
            };
            match followed {
                Ok(exit) => {
                    self.log.sync().await.map_err(log_error)?;
                    let now = self.driver.ledger.clock.now();
                    let (store, id) = (&self.driver.ledger.store, self.driver.attempt.id);
                    patiently("record the step's end", || {
                        store.finish_step(id, number as i64, exit, now)
                    })
                    .await?;
                    return match stopped {
                        Some((ending, _)) => Err(ending),
                        None => Ok(exit),
                    };
                }
                Err(Interruption::Ended(ending)) => return Err(ending),
                Err(Interruption::ConnectionLost(why)) => self.reconnect(why).await?,
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
        let lost = |error: SessionError| match error.is_fatal() {
            true => Interruption::ConnectionLost(error.to_string()),
            false => Interruption::Ended(Ending::new(Reason::AgentLost, error.to_string())),
        };
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
        step: &Step,
        execution: &Execution,
        output: Output,
        log_offset: u64,
        limits: &StepLimits,
        stopped: &mut Option<(Ending, Instant)>,
    ) -> Result<Exit, Interruption> {
        let Output {
            mut following,
            mut masking,
        } = output;
        let mut heard = Instant::now();
        let mut synced_at = Instant::now();
        let mut synced = self.log.len();
        // Beside the output: a slow disk holds it up only once the guest's spool is full.
        let mut syncing: Option<BoxFuture<'_, Result<Synced, LogError>>> = None;
        let mut cancelled = self.driver.cancelled.clone();
        let gone = self.driver.machine_gone(&self.platform);
        tokio::pin!(gone);
        loop {
            let (limit, overdue) = limits.hard(step, stopped);
            let (silent, fell_silent) = limits.silent(step, heard);
            tokio::select! {
                // A wish and a limit go before any amount of output; output that is here goes before the lack of it.
                biased;
                ending = asked_to_cancel(&mut cancelled), if stopped.is_none() => {
                    self.stop(execution, ending, stopped).await?;
                }
                () = tokio::time::sleep_until(limit) => {
                    if let Some((ending, _)) = stopped {
                        // It does not even die: the machine will.
                        return Err(ending.clone().into());
                    }
                    self.stop(execution, overdue, stopped).await?;
                }
                Some(result) = next_of(&mut syncing) => {
                    syncing = None;
                    synced = self.log.synced(&result.map_err(log_error)?);
                    synced_at = Instant::now();
                    let until = synced.saturating_sub(log_offset + self.driver.mask.overlap());
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
                    self.stop(execution, fell_silent, stopped).await?;
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
        execution: &Execution,
        why: Ending,
        stopped: &mut Option<(Ending, Instant)>,
    ) -> Result<(), Interruption> {
        let grace = Duration::from_secs(self.driver.machinery.config.limits.stop_grace_secs);
        tracing::info!(%execution, why = why.message, "step is stopped");
        *stopped = Some((why, Instant::now() + grace + DRAIN));
        self.agent
            .stop(execution, grace)
            .await
            .map_err(|error| Interruption::ConnectionLost(error.to_string()))
    }

    /// Connects again, as long as the machine is there.
    async fn reconnect(&mut self, why: String) -> Result<(), Ending> {
        /// QEMU's death shows on the connection first: libvirt is given this long to know of it.
        const SETTLE: Duration = Duration::from_millis(1500);
        self.reconnects += 1;
        if self.reconnects > MAX_RECONNECTS {
            return Err(Ending::new(
                Reason::AgentLost,
                format!("The connection broke {MAX_RECONNECTS} times, at last: {why}"),
            ));
        }
        tracing::warn!(why, "connection lost; connecting again");
        let platform = self.platform.clone();
        let gone = self.driver.machine_gone(&platform);
        if let Ok(gone) = tokio::time::timeout(SETTLE, gone).await {
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
        let mut cancelled = self.driver.cancelled.clone();
        self.agent = tokio::select! {
            biased;
            ending = asked_to_cancel(&mut cancelled) => return Err(ending),
            agent = self.driver.connect(&platform, &host, port) => agent.map_err(|ending| match ending.reason {
                Reason::ConnectDeadline => Ending::new(Reason::AgentLost, format!("The connection was lost ({why}) and did not come back: {}", ending.message)),
                _ => ending,
            })?,
        };
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
                if let Err(ending) = self.run_aside("leave", script).await {
                    tracing::warn!(
                        error = ending.message,
                        "the work directory stays on the machine"
                    );
                }
            }
        }
    }
}

/// Its output, at once nothing where there is none.
async fn next_of<T>(future: &mut Option<BoxFuture<'_, T>>) -> Option<T> {
    Some(future.as_mut()?.await)
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
