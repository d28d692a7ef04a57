//! The steps of a job, one after the other: started or attached to, their output into the log, ended when they must.

use super::interruption::Interruption;
use super::limits::{StepLimits, deadline};
use super::{Work, log_error, said};
use crate::model::{Ending, Phase, Reason, Step};
use crate::pipeline::drive::asked_to_cancel;
use crate::pipeline::patience::patiently;
use crate::pipeline::transcript;
use crate::result::log::{LogError, Masking, Synced};
use crate::session::{FollowEvent, Following, SessionError};
use crate::store::attempts::StepRecord;
use futures::FutureExt;
use futures::future::BoxFuture;
use std::time::Duration;
use tokio::time::Instant;
use vivarium_protocol::{Execution, Exit, StepCommand};

/// Output is made durable and acknowledged to the guest after this many bytes,
const SYNC_BYTES: u64 = 8 << 20;
/// or after this time, whichever comes first.
const SYNC_INTERVAL: Duration = Duration::from_secs(1);
/// After a stop, the rest of the output is waited for this much longer than the grace.
const DRAIN: Duration = Duration::from_secs(10);
/// What a step has to clean up in that nobody follows any more.
const LEFTOVER_GRACE: Duration = Duration::from_secs(5);

/// A step's output on its way into the log.
struct Output {
    following: Following,
    masking: Masking,
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

impl Work<'_> {
    pub(super) async fn run_steps(&mut self, records: &[StepRecord]) -> Result<(), Ending> {
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
                Err(Interruption::Ended(ending)) => {
                    self.notes_from = self.log.len();
                    return Err(ending);
                }
                Err(Interruption::ConnectionLost(why)) => {
                    let give_up = match &stopped {
                        Some((_, until)) => *until,
                        None => running.limits.step.min(running.limits.job),
                    };
                    let again = match &stopped {
                        // The wish that ended it is known, and it must hear of it.
                        Some(_) => self.connect_again(why, give_up).await,
                        None => self.reconnect(why, give_up).await,
                    };
                    // Where it was ended by us, that is the better reason.
                    again.map_err(|lost| match &stopped {
                        Some((ending, _)) => ending.clone(),
                        None => lost,
                    })?;
                }
            }
        }
    }

    /// Ends a step that still runs although the job is over: its connection was lost when that was wished for.
    pub(super) async fn end_leftover_step(&mut self) -> Result<(), Interruption> {
        let (store, attempt) = (&self.driver.ledger.store, &self.driver.attempt);
        let records = patiently("read the steps", || store.steps_of(attempt.id)).await?;
        let Some(record) = records.iter().find(|record| record.exit.is_none()) else {
            return Ok(());
        };
        let lost = |error: SessionError| Interruption::of(&error, Reason::AgentLost);
        let execution = Execution(format!("{}-{}", attempt.id, record.number));
        let has = attempt.log_end.unwrap_or(self.log.len());
        let from = has.saturating_sub(record.log_offset);
        let attached = self.agent.attach(&execution, from).await;
        // It was never begun, or is long over.
        let Some(mut following) = attached.map_err(lost)? else {
            return Ok(());
        };
        let stopped = self.agent.stop(&execution, LEFTOVER_GRACE).await;
        stopped.map_err(lost)?;
        loop {
            match following.next().await.map_err(lost)? {
                // The log is closed to it; but it may wait until somebody reads.
                FollowEvent::Output { bytes, offset } => {
                    let until = offset + bytes.len() as u64;
                    let acknowledged = self.agent.acknowledge(&execution, until).await;
                    acknowledged.map_err(lost)?;
                }
                FollowEvent::Exited { .. } => return Ok(()),
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
                    let result = match result {
                        // Until there is room the guest keeps what it is not told of.
                        Err(error) if error.is_disk_full() => {
                            synced_at = Instant::now();
                            continue;
                        }
                        result => result.map_err(log_error)?,
                    };
                    synced = self.log.synced(&result);
                    synced_at = Instant::now();
                    let until = synced.saturating_sub(running.log_offset + self.driver.mask.overlap());
                    self.agent
                        .acknowledge(execution, until)
                        .await
                        .map_err(|error| Interruption::of(&error, Reason::AgentLost))?;
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
        asked.map_err(|error| Interruption::of(&error, Reason::AgentLost))
    }

    fn stop_grace(&self) -> Duration {
        Duration::from_secs(self.driver.machinery.config.limits.stop_grace_secs)
    }

    /// When a step that is stopped now must have ended, its output drained.
    fn death_deadline(&self) -> Instant {
        Instant::now() + self.stop_grace() + DRAIN
    }
}

/// Its output, at once nothing where there is none.
async fn next_of<T>(future: &mut Option<BoxFuture<'_, T>>) -> Option<T> {
    Some(future.as_mut()?.await)
}
