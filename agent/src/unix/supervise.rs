//! The supervisor: one process per command, apart from every connection.
//!
//! ```text
//!   command's stdout and stderr ──pipe──┐
//!   reaper thread (who ended) ──────────┼──> one poll loop ──> spool, end.json
//!   connections ("ack", "stop") ────────┘         └──> a byte to each connection: "look again"
//! ```
//!
//! The loop's thread owns everything: the spool's writing end, the command's [`Lifetime`], the connections. It does not
//! read the pipe while the spool is at its bound or the disk is full, and so the command waits in its own write.

use super::child::{Ended, reap, spawn};
use super::launch::RUNNING;
use super::orders::{Client, Order};
use super::tree;
use crate::lifetime::{Act, Lifetime};
use crate::record::{self, End, Reserve};
use crate::spool::SpoolWriter;
use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::SigSet;
use nix::unistd::setsid;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};
use vivarium_protocol::StepCommand;

/// How much is read from the pipe at once.
const READ_BYTES: usize = 256 * 1024;
/// The pause before a write that failed (the disk is full) is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// How many connections may follow at once; further ones are turned away.
const MAX_CLIENTS: usize = 32;
/// How often the process table is looked at where no reaper tells that the tree is empty.
const TREE_PAUSE: Duration = Duration::from_millis(100);

/// Runs the command of the execution in `dir` to its recorded end. What goes wrong before the command runs is recorded
/// as the end too, and said on stdout to whoever launched this process.
pub(crate) fn supervise(dir: &Path) -> Result<()> {
    // Not the leader of a group yet, unless a person started this by hand: then it stays in that person's session.
    setsid().ok();
    SigSet::empty()
        .thread_set_mask()
        .context("cannot unblock the signals")?;
    std::env::set_current_dir(dir).with_context(|| format!("cannot enter {}", dir.display()))?;
    let here = Path::new(".");
    let reserve = match Reserve::create(here) {
        Ok(reserve) => reserve,
        Err(error) => return say(&format!("{error:#}")),
    };
    match Supervisor::start(here) {
        Ok(supervisor) => {
            // The launcher may have gone already: that is no reason to stop.
            say(RUNNING).ok();
            reserve.record(supervisor.run()?)
        }
        Err(error) => {
            let message = format!("{error:#}").replace('\n', " ");
            reserve.record(End::Failed {
                message: message.clone(),
                output_bytes: 0,
            })?;
            say(&message)
        }
    }
}

fn say(line: &str) -> Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{line}").and_then(|()| out.flush())?;
    Ok(())
}

/// Writes to the log, unless its disk is full: that is no reason to end (as `eprintln` would).
fn complain(what: std::fmt::Arguments<'_>) {
    writeln!(std::io::stderr(), "{what}").ok();
}

#[derive(Debug)]
struct Supervisor {
    life: Lifetime,
    main_group: i32,
    spool: SpoolWriter,
    output: Option<File>,
    /// Read from the pipe and not in the spool yet.
    unwritten: Vec<u8>,
    buffer: Vec<u8>,
    retry_at: Option<Instant>,
    /// Why the output was given up.
    failure: Option<String>,
    listener: UnixListener,
    clients: Vec<Client>,
    ended: Receiver<Ended>,
    bell: UnixStream,
    /// Held so that the bell does not read as closed, and so as always ready, after the reaper has ended.
    _ringer: UnixStream,
}

/// What of the polled things is ready.
struct Ready {
    output: bool,
    listener: bool,
    clients: Vec<bool>,
}

impl Supervisor {
    fn start(dir: &Path) -> Result<Self> {
        tree::adopt_orphans().context("cannot adopt orphaned processes")?;
        let path = dir.join(record::COMMAND);
        let json = std::fs::read(&path).context("cannot read the command")?;
        // It may hold secrets, and nobody needs it again.
        std::fs::remove_file(&path).context("cannot remove the command's file")?;
        let command: StepCommand =
            serde_json::from_slice(&json).context("the command does not parse")?;
        let listener = UnixListener::bind(dir.join(record::CONTROL))
            .context("cannot open the control socket")?;
        listener.set_nonblocking(true)?;
        let (bell, ringer) = UnixStream::pair().context("cannot create a socket pair")?;
        bell.set_nonblocking(true)?;
        let spool =
            SpoolWriter::create(dir, command.spool_bytes).context("cannot create the spool")?;
        let (pid, output) = spawn(&command)?;
        let (tell, ended) = channel();
        let reapers = ringer.try_clone().context("cannot duplicate a socket")?;
        std::thread::Builder::new()
            .name("reaper".into())
            .spawn(move || reap(pid, &tell, &reapers))
            .context("cannot start a thread")?;
        Ok(Self {
            life: Lifetime::new(),
            main_group: pid.as_raw(),
            spool,
            output: Some(output),
            unwritten: Vec::new(),
            buffer: vec![0; READ_BYTES],
            retry_at: None,
            failure: None,
            listener,
            clients: Vec::new(),
            ended,
            bell,
            _ringer: ringer,
        })
    }

    fn run(mut self) -> Result<End> {
        loop {
            self.take_ended();
            let now = Instant::now();
            if self.retry_at.is_some_and(|at| now >= at) {
                self.write_spool();
            }
            let wake = match self.life.next(now) {
                Act::Wait(until) => until,
                Act::Terminate => {
                    tree::terminate(self.main_group);
                    continue;
                }
                Act::Kill => {
                    tree::kill_all(self.main_group);
                    continue;
                }
                Act::AbandonOutput => {
                    self.abandon_output(now);
                    continue;
                }
                Act::Finish => return Ok(self.end()),
            };
            let ready = self.poll(wake, now)?;
            if ready.listener {
                self.accept();
            }
            self.hear(&ready.clients);
            if ready.output {
                self.read_output();
            }
        }
    }

    fn end(&self) -> End {
        let output_bytes = self.spool.end();
        match (&self.failure, self.life.exit()) {
            (Some(message), _) => End::Failed {
                message: message.clone(),
                output_bytes,
            },
            (None, Some(exit)) => End::Exited { exit, output_bytes },
            (None, None) => End::Failed {
                message: "the command could not be ended: it survived KILL".to_owned(),
                output_bytes,
            },
        }
    }

    /// Waits until something is ready or `wake` has come.
    fn poll(&self, wake: Option<Instant>, now: Instant) -> Result<Ready> {
        let look = (!tree::is_exact() && self.life.exit().is_some()).then(|| now + TREE_PAUSE);
        let wake = [wake, self.retry_at, look].into_iter().flatten().min();
        // One millisecond more, so that the instant has come when the wait is over.
        let timeout = wake.map_or(PollTimeout::NONE, |wake| {
            let wait = wake.saturating_duration_since(now) + Duration::from_millis(1);
            PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX)
        });
        let output = self.output.as_ref().filter(|_| self.wanted() > 0);
        let mut fds = vec![
            PollFd::new(self.bell.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.listener.as_fd(), PollFlags::POLLIN),
        ];
        fds.extend(
            self.clients
                .iter()
                .map(|c| PollFd::new(c.as_fd(), PollFlags::POLLIN)),
        );
        // Left out when nothing is wanted: a pipe whose writers have gone is always ready.
        fds.extend(output.map(|o| PollFd::new(o.as_fd(), PollFlags::POLLIN)));
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error).context("cannot wait for the command"),
        }
        let mut ready = fds.iter().map(|fd| fd.any().unwrap_or(true)).skip(1);
        Ok(Ready {
            listener: ready.next().unwrap_or_default(),
            clients: ready.by_ref().take(self.clients.len()).collect(),
            output: ready.next().unwrap_or_default(),
        })
    }

    fn take_ended(&mut self) {
        // Rung after each message; what is rung later is seen by the next poll.
        let mut ring = [0];
        while (&self.bell).read_exact(&mut ring).is_ok() {}
        let now = Instant::now();
        while let Ok(ended) = self.ended.try_recv() {
            match ended {
                Ended::Main(exit) => self.life.main_ended(exit, now),
                Ended::Tree => self.life.tree_emptied(now),
            }
        }
        if !tree::is_exact()
            && self.life.exit().is_some()
            && !self.life.is_tree_empty()
            && tree::is_empty(self.main_group)
        {
            self.life.tree_emptied(now);
        }
    }

    /// How much may be read from the pipe now.
    fn wanted(&self) -> usize {
        if !self.unwritten.is_empty() {
            return 0;
        }
        if self.life.is_tree_empty() {
            // What is left in the pipe is all there will ever be, and the end waits for it.
            return READ_BYTES;
        }
        usize::try_from(self.spool.room())
            .unwrap_or(READ_BYTES)
            .min(READ_BYTES)
    }

    fn read_output(&mut self) {
        let wanted = self.wanted();
        let (Some(output), Some(buffer)) = (&mut self.output, self.buffer.get_mut(..wanted)) else {
            return;
        };
        match output.read(buffer) {
            Ok(0) => {
                self.output = None;
                self.life.output_ended(Instant::now());
            }
            Ok(count) => self.spool_read(count),
            Err(error)
                if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {}
            Err(error) => {
                // Linux says so of a terminal that nobody has open any more.
                if error.raw_os_error() != Some(nix::Error::EIO as i32) {
                    complain(format_args!("cannot read the command's output: {error}"));
                }
                self.output = None;
                self.life.output_ended(Instant::now());
            }
        }
    }

    /// Spools what stands at the start of the buffer, and keeps aside what the disk does not take.
    fn spool_read(&mut self, count: usize) {
        let mut rest = self.buffer.get(..count).unwrap_or_default();
        while !rest.is_empty() {
            match self.spool.append(rest) {
                Ok(written) => rest = rest.get(written..).unwrap_or_default(),
                Err(_) => break,
            }
        }
        self.unwritten.extend_from_slice(rest);
        if self.unwritten.is_empty() {
            self.life.output_read(Instant::now());
        } else {
            self.write_spool();
        }
        self.wake_clients();
    }

    /// Tries again what the disk did not take.
    fn write_spool(&mut self) {
        while !self.unwritten.is_empty() {
            match self.spool.append(&self.unwritten) {
                Ok(written) => drop(self.unwritten.drain(..written)),
                Err(error) => {
                    let now = Instant::now();
                    if self.retry_at.is_none() {
                        complain(format_args!(
                            "cannot spool the command's output at byte {}: {error}",
                            self.spool.end()
                        ));
                    }
                    self.life.disk_full(now);
                    self.retry_at = Some(now + RETRY_PAUSE);
                    // A follower may be what holds the blocks of a deleted segment: it moves on when it looks again.
                    self.wake_clients();
                    return;
                }
            }
        }
        self.retry_at = None;
        self.life.output_read(Instant::now());
        self.wake_clients();
    }

    fn abandon_output(&mut self, now: Instant) {
        self.failure = Some(format!(
            "the output could not be kept: the disk of the agent's state folder stayed full; {} bytes of it were kept, and the command was ended",
            self.spool.end()
        ));
        self.unwritten.clear();
        self.retry_at = None;
        self.output = None;
        self.life.output_ended(now);
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            if self.clients.len() >= MAX_CLIENTS {
                continue;
            }
            let Ok(client) = Client::new(stream) else {
                continue;
            };
            // What was spooled before the connection was accepted rang no bell for it.
            client.wake();
            self.clients.push(client);
        }
    }

    fn wake_clients(&self) {
        self.clients.iter().for_each(Client::wake);
    }

    fn hear(&mut self, ready: &[bool]) {
        let mut ready = ready.iter();
        let (life, spool) = (&mut self.life, &mut self.spool);
        self.clients.retain_mut(|client| {
            // A connection accepted after the poll has no entry and is left for the next one.
            let Some(true) = ready.next() else {
                return true;
            };
            client.hear(|order| match order {
                Order::Acknowledge(until) => spool.acknowledge(until),
                Order::Stop(grace) => life.stop(grace, Instant::now()),
            })
        });
    }
}
