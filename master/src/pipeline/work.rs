//! What an attempt does once its agent answers: the source goes in, the steps run, files come out.
//!
//! ```text
//!   source ──► steps (command, limits) ──► collect ──► the machine left as it was
//!      └─────────┴──── interruption: connect again, or an ending
//! ```
//!
//! The connection may break at any time; the machine and the running step are untouched by that. A new connection
//! follows the step from the byte where the log ends, so the log is the same as if nothing had happened.

mod chores;
mod command;
mod interruption;
mod limits;
mod scripts;
mod source;
mod steps;

pub(super) use interruption::Interruption;

use super::drive::{Driver, asked_to_cancel};
use super::patience::patiently;
use super::{collect, transcript};
use crate::model::{Conclusion, Ending, Phase, Platform, PlatformKind, Reason};
use crate::result::log::{LogError, LogWriter, Masking};
use crate::session::{Agent, FollowEvent, SessionError};
use chores::Chore;
use limits::deadline;
use secrecy::SecretString;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;
use vivarium_protocol::{Execution, Exit, StepCommand};

/// The pauses before a connection is made again that was lost soon after the one before it.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// A connection that lasted longer was a good one.
const GOOD_CONNECTION: Duration = Duration::from_secs(30);
/// Without any progress, collecting is given up after this.
const COLLECT_TIMEOUT: Duration = Duration::from_secs(1800);
/// How long a machine that outlives the job may take to remove its work directory: a large tree on a slow disk.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(120);

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

    /// Does the job's work and decides how it ended.
    pub(super) async fn run(mut self) {
        let ending = match self.work().await {
            Ok(()) => Ending::new(Reason::Passed, "Passed"),
            Err(ending) => ending,
        };
        // Before the machine is left: a master that died in between would find nothing there to go on with.
        self.driver.decide(ending).await;
        self.leave_machine().await;
        crate::crash::point("machine_left");
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

    /// The work directory in the guest; a machine that outlives the job gets one of its own for each.
    pub(super) fn work_dir(&self) -> String {
        match self.platform.kind {
            PlatformKind::Vm { .. } => self.platform.work_dir.clone(),
            PlatformKind::Ssh { .. } => {
                format!("{}/{}", self.platform.work_dir, self.driver.attempt.id)
            }
        }
    }

    /// Runs a command of ours in the guest; its output goes into the log.
    async fn run_aside(&mut self, chore: Chore<'_>) -> Result<Exit, Interruption> {
        let (shell, script) = chore.command(self.platform.os);
        let command = StepCommand {
            shell,
            script,
            dir: "/".into(),
            env: BTreeMap::new(),
            spool_bytes: self.spool_bytes(),
            pty: None,
        };
        let execution = Execution(format!("{}-{}", self.driver.attempt.id, chore.name()));
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

    /// Connects again, as long as the machine is there, there is time, and nobody wants the job to end.
    async fn reconnect(&mut self, why: String, give_up: Instant) -> Result<(), Ending> {
        let mut cancelled = self.driver.cancelled.clone();
        tokio::select! {
            biased;
            ending = asked_to_cancel(&mut cancelled) => Err(ending),
            connected = self.connect_again(why, give_up) => connected,
        }
    }

    /// The same, also when the job is to end: what runs has to hear of it, and the machine to be left.
    async fn connect_again(&mut self, why: String, give_up: Instant) -> Result<(), Ending> {
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
        self.agent = tokio::select! {
            agent = self.driver.connect(&platform, &host, port) => agent.map_err(|ending| match ending.reason {
                Reason::ConnectDeadline => lost(&ending.message),
                _ => ending,
            })?,
            () = tokio::time::sleep_until(give_up) => return Err(lost("its time was over")),
        };
        self.connected_at = Instant::now();
        Ok(())
    }

    /// A machine that outlives the job is left as it was found, also where its connection is lost just now.
    pub(super) async fn leave_machine(&mut self) {
        match self.platform.kind {
            PlatformKind::Vm { .. } => return,
            PlatformKind::Ssh { .. } => {}
        }
        let dir = self.work_dir();
        let give_up = Instant::now() + LEAVE_TIMEOUT;
        let why = loop {
            let left = tokio::time::timeout_at(give_up, async {
                self.end_leftover_step().await?;
                self.run_aside(Chore::Leave { dir: &dir }).await
            });
            match left.await {
                Ok(Ok(_)) => return,
                Ok(Err(Interruption::ConnectionLost(why))) => {
                    if let Err(ending) = self.connect_again(why, give_up).await {
                        break ending.message;
                    }
                }
                Ok(Err(Interruption::Ended(ending))) => break ending.message,
                Err(_) => break format!("it takes longer than {} s", LEAVE_TIMEOUT.as_secs()),
            }
        };
        tracing::warn!(why, "the work directory stays on the machine");
    }
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
