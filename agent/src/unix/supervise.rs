//! The supervisor: one process per command, apart from every connection.
//!
//! ```text
//!   command's stdout and stderr ──pipe──┐
//!   reaper thread (who ended) ──────────┼──> one poll loop ──> keeper: spool, lifetime
//!   connections ("ack", "stop") ────────┘         └──> a byte to each connection: "look again"
//! ```
//!
//! The loop's thread owns everything: the [`Keeper`], the pipe, the connections. It does not read the pipe while the spool is
//! at its bound or the disk is full, and so the command waits in its own write.

use super::child::{Ended, reap, spawn};
use super::orders::Client;
use super::tree;
use crate::keeper::{Keeper, READ_BYTES, complain};
use crate::lifetime::Act;
use crate::record::{self, End};
use crate::spool::SpoolWriter;
use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};
use vivarium_protocol::StepCommand;

/// How many connections may follow at once; further ones are turned away.
const MAX_CLIENTS: usize = 32;
/// How often the process table is looked at where no reaper tells that the tree is empty.
const TREE_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(crate) struct Supervisor {
    keeper: Keeper,
    main_group: i32,
    output: Option<File>,
    buffer: Vec<u8>,
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
    /// Runs the command of the execution in `dir`.
    pub(crate) fn start(dir: &Path, command: &StepCommand) -> Result<Self> {
        tree::adopt_orphans().context("cannot adopt orphaned processes")?;
        let listener = UnixListener::bind(dir.join(record::CONTROL))
            .context("cannot open the control socket")?;
        listener.set_nonblocking(true)?;
        let (bell, ringer) = UnixStream::pair().context("cannot create a socket pair")?;
        bell.set_nonblocking(true)?;
        let spool =
            SpoolWriter::create(dir, command.spool_bytes).context("cannot create the spool")?;
        let (pid, output) = spawn(command)?;
        let (tell, ended) = channel();
        let reapers = ringer.try_clone().context("cannot duplicate a socket")?;
        std::thread::Builder::new()
            .name("reaper".into())
            .spawn(move || reap(pid, &tell, &reapers))
            .context("cannot start a thread")?;
        Ok(Self {
            keeper: Keeper::new(spool),
            main_group: pid.as_raw(),
            output: Some(output),
            buffer: vec![0; READ_BYTES],
            listener,
            clients: Vec::new(),
            ended,
            bell,
            _ringer: ringer,
        })
    }

    /// Goes on to the command's end, which is to be recorded.
    pub(crate) fn run(mut self) -> Result<End> {
        loop {
            self.take_ended();
            let now = Instant::now();
            if self.keeper.retry_at().is_some_and(|at| now >= at) {
                self.keeper.retry();
                self.wake_clients();
            }
            let wake = match self.keeper.life.next(now) {
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
                    self.output = None;
                    self.keeper.abandon_output(now);
                    continue;
                }
                Act::Finish => return Ok(self.keeper.end()),
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

    /// Waits until something is ready or `wake` has come.
    fn poll(&self, wake: Option<Instant>, now: Instant) -> Result<Ready> {
        let look =
            (!tree::is_exact() && self.keeper.life.exit().is_some()).then(|| now + TREE_PAUSE);
        let wake = [wake, self.keeper.retry_at(), look]
            .into_iter()
            .flatten()
            .min();
        // One millisecond more, so that the instant has come when the wait is over.
        let timeout = wake.map_or(PollTimeout::NONE, |wake| {
            let wait = wake.saturating_duration_since(now) + Duration::from_millis(1);
            PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX)
        });
        let output = self.output.as_ref().filter(|_| self.keeper.wanted() > 0);
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
                Ended::Main(exit) => self.keeper.life.main_ended(exit, now),
                Ended::Tree => self.keeper.life.tree_emptied(now),
            }
        }
        let life = &mut self.keeper.life;
        if !tree::is_exact()
            && life.exit().is_some()
            && !life.is_tree_empty()
            && tree::is_empty(self.main_group)
        {
            life.tree_emptied(now);
        }
    }

    fn read_output(&mut self) {
        let wanted = self.keeper.wanted();
        let (Some(output), Some(buffer)) = (&mut self.output, self.buffer.get_mut(..wanted)) else {
            return;
        };
        match output.read(buffer) {
            Ok(0) => self.end_output(),
            Ok(count) => {
                self.keeper.take(buffer.get(..count).unwrap_or_default());
                self.wake_clients();
            }
            Err(error)
                if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {}
            Err(error) => {
                // Linux says so of a terminal that nobody has open any more.
                if error.raw_os_error() != Some(nix::Error::EIO as i32) {
                    complain(format_args!("cannot read the command's output: {error}"));
                }
                self.end_output();
            }
        }
    }

    fn end_output(&mut self) {
        self.output = None;
        self.keeper.life.output_ended(Instant::now());
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
        let keeper = &mut self.keeper;
        self.clients.retain_mut(|client| {
            // A connection accepted after the poll has no entry and is left for the next one.
            let Some(true) = ready.next() else {
                return true;
            };
            client.hear(|order| keeper.obey(&order))
        });
    }
}
