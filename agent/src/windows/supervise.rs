//! The supervisor: one process per command, apart from every connection.
//!
//! ```text
//!   reader thread (output, as much as it is asked for) ──┐
//!   waiter thread (how the main process ended) ──────────┼──> one loop ──> keeper: spool, lifetime
//!   callers' threads ("ack", "stop") ────────────────────┘       └──> a ring to each caller: "look again"
//! ```
//!
//! The loop's thread owns everything: the [`Keeper`], the job object, the list of callers. The reader reads when it is asked
//! to, and no more than is wanted: while the spool is at its bound or the disk is full nothing is read, and so the
//! command waits in its own write.

use super::child::{Started, exit_of, spawn};
use super::control::{self, Call, Client};
use super::sys::{self, Job};
use super::terminal::Terminal;
use crate::keeper::{Keeper, complain};
use crate::lifetime::Act;
use crate::record::{self, End};
use crate::spool::SpoolWriter;
use anyhow::{Context, Result};
use std::io::{ErrorKind, PipeReader, Read};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};
use vivarium_protocol::{Exit, StepCommand};

/// How often the job is looked at after the main process has ended, until it is empty.
const JOB_PAUSE: Duration = Duration::from_millis(10);

#[derive(Debug)]
enum Event {
    Output(Vec<u8>),
    OutputEnded,
    MainEnded(Exit),
    Call(Call),
}

#[derive(Debug)]
pub(crate) struct Supervisor {
    keeper: Keeper,
    job: Job,
    /// Asks the reader for so many bytes at most; `None` at the output's end.
    ask: Option<Sender<usize>>,
    /// Whether the reader reads now.
    is_asked: bool,
    events: Receiver<Event>,
    clients: Vec<Client>,
    /// Until nobody is left on it.
    terminal: Option<Terminal>,
    script: PathBuf,
}

impl Supervisor {
    /// Runs the command of the execution in `here`.
    pub(crate) fn start(here: &Path, command: &StepCommand) -> Result<Self> {
        let (tell, events) = channel();
        let callers = tell.clone();
        control::listen(here, move |call| callers.send(Event::Call(call)).is_ok())?;
        let spool =
            SpoolWriter::create(here, command.spool_bytes).context("cannot create the spool")?;
        let job = Job::create().context("cannot create a job object")?;
        let Started {
            process,
            output,
            terminal,
        } = spawn(command, &job, here)?;
        let waiter = tell.clone();
        let wait = move || {
            let exit = process.wait().map_or(Exit::Lost, exit_of);
            waiter.send(Event::MainEnded(exit)).ok();
        };
        let (ask, asked) = channel();
        let threads = std::thread::Builder::new()
            .name("waiter".into())
            .spawn(wait);
        threads
            .and_then(|_| {
                let reader = std::thread::Builder::new().name("reader".into());
                reader.spawn(move || read(output, &asked, &tell))
            })
            .context("cannot start a thread")?;
        Ok(Self {
            keeper: Keeper::new(spool),
            job,
            ask: Some(ask),
            is_asked: false,
            events,
            clients: Vec::new(),
            terminal,
            script: here.join(record::SCRIPT),
        })
    }

    /// Goes on to the command's end, which is to be recorded.
    pub(crate) fn run(mut self) -> Result<End> {
        loop {
            let now = Instant::now();
            if self.keeper.retry_at().is_some_and(|at| now >= at) {
                self.keeper.retry();
                self.wake_clients();
            }
            self.look_at_job(now);
            self.ask_for_output();
            let wake = match self.keeper.life.next(now) {
                Act::Wait(until) => until,
                Act::Terminate => {
                    let asked = match &mut self.terminal {
                        Some(terminal) => terminal.ask_to_end(),
                        None => sys::ask_to_end(),
                    };
                    if let Err(error) = asked {
                        complain(format_args!("cannot press Ctrl-Break: {error}"));
                        // Nobody was asked, so nobody is waited for.
                        self.keeper.life.stop(Duration::ZERO, now);
                    }
                    continue;
                }
                Act::Kill => {
                    if let Err(error) = self.job.terminate() {
                        complain(format_args!("cannot end the job: {error}"));
                    }
                    continue;
                }
                Act::AbandonOutput => {
                    self.ask = None;
                    self.keeper.abandon_output(now);
                    continue;
                }
                Act::Finish => {
                    // It may hold secrets, and the shell needs it no more.
                    std::fs::remove_file(&self.script).ok();
                    return Ok(self.keeper.end());
                }
            };
            self.take_event(wake, now);
        }
    }

    fn look_at_job(&mut self, now: Instant) {
        let life = &mut self.keeper.life;
        if life.exit().is_some() && !life.is_tree_empty() {
            match self.job.is_empty() {
                Ok(true) => {
                    life.tree_emptied(now);
                    if let Some(terminal) = self.terminal.take() {
                        // What it still shows has to be read meanwhile.
                        std::thread::spawn(move || drop(terminal));
                    }
                }
                Ok(false) => {}
                Err(error) => complain(format_args!("cannot look at the job: {error}")),
            }
        }
    }

    fn ask_for_output(&mut self) {
        let wanted = self.keeper.wanted();
        if let Some(ask) = &self.ask
            && !self.is_asked
            && wanted > 0
        {
            self.is_asked = ask.send(wanted).is_ok();
        }
    }

    /// Waits for one event, until `wake` at most.
    fn take_event(&mut self, wake: Option<Instant>, now: Instant) {
        let life = &self.keeper.life;
        let look = (life.exit().is_some() && !life.is_tree_empty()).then(|| now + JOB_PAUSE);
        let wake = [wake, self.keeper.retry_at(), look]
            .into_iter()
            .flatten()
            .min();
        let event = match wake {
            None => self
                .events
                .recv()
                .map_err(|_| RecvTimeoutError::Disconnected),
            Some(wake) => self
                .events
                .recv_timeout(wake.saturating_duration_since(now) + Duration::from_millis(1)),
        };
        match event {
            Ok(Event::Output(bytes)) => {
                self.is_asked = false;
                // What comes after the output was given up is nobody's.
                if self.ask.is_some() {
                    self.keeper.take(&bytes);
                    self.wake_clients();
                }
            }
            Ok(Event::OutputEnded) => {
                if self.ask.take().is_some() {
                    self.keeper.life.output_ended(Instant::now());
                }
            }
            Ok(Event::MainEnded(exit)) => {
                let now = Instant::now();
                self.keeper.life.main_ended(exit, now);
                // Ctrl-Break reaches who shares the console; who has none could not be asked.
                self.keeper.life.rest_is_deaf(now);
            }
            Ok(Event::Call(Call::Begun(client))) => {
                // What was spooled before rang no bell for it.
                client.wake();
                self.clients.push(client);
            }
            Ok(Event::Call(Call::Order(order))) => self.keeper.obey(&order),
            Ok(Event::Call(Call::Ended(number))) => {
                self.clients.retain(|client| client.number != number);
            }
            // The listener's thread holds a sender for ever.
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
        }
    }

    fn wake_clients(&mut self) {
        self.clients.retain(Client::wake);
    }
}

/// Reads the command's output, each time as much as is asked for, to its end.
fn read(mut output: PipeReader, asked: &Receiver<usize>, tell: &Sender<Event>) {
    while let Ok(most) = asked.recv() {
        let mut bytes = vec![0; most];
        let event = loop {
            match output.read(&mut bytes) {
                Ok(0) => break Event::OutputEnded,
                Ok(count) => {
                    bytes.truncate(count);
                    break Event::Output(bytes);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    complain(format_args!("cannot read the command's output: {error}"));
                    break Event::OutputEnded;
                }
            }
        };
        let is_end = matches!(event, Event::OutputEnded);
        if tell.send(event).is_err() || is_end {
            return;
        }
    }
}
