//! One connection: frames in from stdin, answers and output out through the [`outbox`].
//!
//! ```text
//!   stdin ──> decoder ──> this loop ──┬──> Start, Attach: a follower thread (one at a time)
//!                                     ├──> Unpack, Write: a receiver thread, fed with the data frames
//!                                     ├──> Collect: a collector thread
//!                                     └──> Ping, Acknowledge, Stop, SetClock: done here
//! ```
//!
//! The loop owns what belongs to the connection; executions belong to their supervisors and do not notice its end.

use crate::clock;
use crate::collect::{self, Wish};
use crate::execution::{Executions, Start};
use crate::follow::{self, Follower, Subject};
use crate::outbox::{self, Closed, Outbox};
use crate::platform;
use crate::receive::{Purpose, Reception};
use anyhow::{Context, Result, anyhow};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use vivarium_protocol::{
    Decoder, Execution, ExecutionState, Frame, Hello, PREAMBLE, PROTOCOL_VERSION, StepCommand,
    ToAgent, ToMaster,
};

/// How much is read from the connection at once.
const READ_BYTES: usize = 256 * 1024;

/// Serves one connection on stdin and stdout, to its end.
pub(crate) fn run(nonce: &str, state: &Path) -> Result<()> {
    platform::prepare_connection();
    platform::create_private_dir(state)
        .with_context(|| format!("cannot create {}", state.display()))?;
    let state =
        platform::resolve(state).with_context(|| format!("cannot find {}", state.display()))?;
    let home = std::env::current_dir().context("cannot tell the current folder")?;
    let executions = Executions::open(&platform::enter(&state)?)?;

    let mut stdout = std::io::stdout();
    // The line feed before it ends whatever a login script has left on the line.
    writeln!(stdout, "\n{PREAMBLE}{nonce}")
        .and_then(|()| stdout.flush())
        .context("cannot write to the connection")?;
    let (outbox, writer) = outbox::open(raw_stdout()?)?;
    outbox.send(&ToMaster::Hello(Hello {
        protocol: PROTOCOL_VERSION,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        os: std::env::consts::OS.to_owned(),
        arch: std::env::consts::ARCH.to_owned(),
        pid: std::process::id(),
        unix_ms: clock::unix_ms(),
    }))?;

    let mut connection = Connection {
        home,
        state,
        executions,
        outbox: outbox.clone(),
        follower: None,
        reception: None,
        collector: None,
    };
    // What a closed connection leaves undone is undone: there is nobody to tell.
    connection.serve(std::io::stdin()).ok();
    outbox::leave_soon();
    connection.close();
    writer.finish(outbox);
    Ok(())
}

/// Standard output without the line buffer in front of it.
fn raw_stdout() -> Result<impl Write + Send + 'static> {
    platform::raw_stdout().context("cannot duplicate the connection's output")
}

struct Connection {
    /// Relative paths are relative to this: where the connection's shell started.
    home: PathBuf,
    state: PathBuf,
    executions: Executions,
    outbox: Outbox,
    follower: Option<Follower>,
    reception: Option<Reception>,
    collector: Option<JoinHandle<()>>,
}

impl Connection {
    fn serve(&mut self, mut input: impl Read) -> Result<(), Closed> {
        let mut decoder = Decoder::new();
        let mut buffer = vec![0; READ_BYTES];
        loop {
            let count = match input.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => break,
            };
            decoder.push(buffer.get(..count).unwrap_or_default());
            loop {
                match decoder.next_frame() {
                    Ok(Some(frame)) => self.take_frame(frame)?,
                    Ok(None) => break,
                    // The stream cannot be trusted any more. A new connection starts anew.
                    Err(error) => return self.outbox.refuse("frame", error),
                }
            }
        }
        Ok(())
    }

    /// Ends what was going on for this connection, and waits for that.
    fn close(mut self) {
        if let Some(reception) = self.reception.take() {
            reception.abort();
        }
    }

    fn take_frame(&mut self, frame: Frame) -> Result<(), Closed> {
        match frame {
            Frame::Control(json) => match Frame::parse::<ToAgent>(&json) {
                Ok(message) => self.take_message(message),
                Err(error) => self.outbox.refuse("message", error),
            },
            Frame::Data(data) => match &self.reception {
                Some(reception) => {
                    reception.take(data);
                    Ok(())
                }
                None => {
                    self.outbox
                        .refuse("data", "data came that no request announced")?;
                    Err(Closed)
                }
            },
            Frame::Output { .. } => {
                self.outbox
                    .refuse("output", "output flows from the agent to the master only")?;
                Err(Closed)
            }
        }
    }

    fn take_message(&mut self, message: ToAgent) -> Result<(), Closed> {
        match message {
            ToAgent::Ping { sequence } => self.outbox.send(&ToMaster::Pong { sequence }),
            ToAgent::Unpack { dir } => {
                let kept = [Some(self.state.clone()), std::env::current_exe().ok()];
                let dir = self.home.join(dir);
                let kept = kept.into_iter().flatten().collect();
                self.receive("unpack", Purpose::Unpack { dir, kept })
            }
            ToAgent::Write { path, executable } => {
                let path = self.home.join(path);
                self.receive("write", Purpose::Write { path, executable })
            }
            ToAgent::EndOfData => match self.reception.take() {
                Some(reception) => {
                    reception.finish();
                    Ok(())
                }
                None => self.outbox.refuse("end_of_data", "no data was announced"),
            },
            ToAgent::Start { execution, command } => self.start(execution, command),
            ToAgent::Attach { execution, from } => match self.executions.find(&execution) {
                Ok(Some(dir)) => {
                    self.follow("attach", execution, dir, from, ExecutionState::Attached)
                }
                Ok(None) => self.outbox.send(&ToMaster::Unknown { execution }),
                Err(error) => self.outbox.refuse("attach", format_args!("{error:#}")),
            },
            ToAgent::Acknowledge { execution, until } => match self.executions.find(&execution) {
                Ok(Some(dir)) => {
                    let follower = self.follower.as_mut().filter(|f| f.follows(&execution));
                    let link = follower.and_then(|f| f.note_acknowledged(until));
                    let result = Executions::acknowledge(&dir, link, until);
                    self.answer_failure("acknowledge", result)
                }
                Ok(None) => self.outbox.send(&ToMaster::Unknown { execution }),
                Err(error) => self.outbox.refuse("acknowledge", format_args!("{error:#}")),
            },
            ToAgent::Stop {
                execution,
                grace_ms,
            } => match self.executions.find(&execution) {
                Ok(Some(dir)) => self.answer_failure("stop", Executions::stop(&dir, grace_ms)),
                Ok(None) => self.outbox.send(&ToMaster::Unknown { execution }),
                Err(error) => self.outbox.refuse("stop", format_args!("{error:#}")),
            },
            ToAgent::Collect {
                dir,
                globs,
                max_files,
                max_bytes,
            } => self.collect(Wish {
                dir: self.home.join(dir),
                globs,
                max_files,
                max_bytes,
            }),
            ToAgent::SetClock { unix_ms } => match clock::set(unix_ms) {
                Ok(stepped_ms) => self.outbox.send(&ToMaster::ClockSet { stepped_ms }),
                Err(error) => self.outbox.refuse("set_clock", format_args!("{error:#}")),
            },
        }
    }

    fn answer_failure(&self, request: &str, result: Result<()>) -> Result<(), Closed> {
        match result {
            Ok(()) => Ok(()),
            Err(error) => self.outbox.refuse(request, format_args!("{error:#}")),
        }
    }

    fn receive(&mut self, request: &str, purpose: Purpose) -> Result<(), Closed> {
        if let Some(unfinished) = self.reception.take() {
            unfinished.abort();
        }
        match Reception::start(purpose, self.outbox.clone()) {
            Ok(reception) => {
                self.reception = Some(reception);
                Ok(())
            }
            Err(error) => {
                self.outbox.refuse(request, format_args!("{error:#}"))?;
                Err(Closed)
            }
        }
    }

    fn start(&mut self, execution: Execution, mut command: StepCommand) -> Result<(), Closed> {
        let Some(dir) = self.home.join(&command.dir).to_str().map(str::to_owned) else {
            return self
                .outbox
                .refuse("start", "the folder's name is not UTF-8");
        };
        command.dir = dir;
        let started = self
            .executions
            .start(&execution, &command)
            .and_then(|start| {
                let dir = self.executions.find(&execution)?;
                Ok((start, dir.ok_or_else(|| anyhow!("its folder vanished"))?))
            });
        match started {
            Ok((Start::New, dir)) => self.follow("start", execution, dir, 0, ExecutionState::New),
            Ok((Start::Existed, dir)) => {
                self.follow("start", execution, dir, 0, ExecutionState::Attached)
            }
            Err(error) => self
                .outbox
                .refuse("start", format_args!("{execution}: {error:#}")),
        }
    }

    /// Follows this execution instead of the one followed before.
    fn follow(
        &mut self,
        request: &'static str,
        execution: Execution,
        dir: PathBuf,
        from: u64,
        state: ExecutionState,
    ) -> Result<(), Closed> {
        self.follower = None;
        let subject = Subject {
            execution,
            dir,
            from,
            request,
            state,
        };
        match follow::follow(subject, self.outbox.clone()) {
            Ok(follower) => {
                self.follower = Some(follower);
                Ok(())
            }
            Err(error) => self.outbox.refuse(request, format_args!("{error:#}")),
        }
    }

    fn collect(&mut self, wish: Wish) -> Result<(), Closed> {
        let outbox = self.outbox.clone();
        let earlier = self.collector.take();
        let thread = std::thread::Builder::new().name("collector".into());
        let work = move || {
            // One list after the other: their frames must not mix.
            earlier.map(JoinHandle::join);
            collect::collect(&wish, &outbox).unwrap_or_default();
        };
        match thread.spawn(work) {
            Ok(collector) => {
                self.collector = Some(collector);
                Ok(())
            }
            Err(error) => self
                .outbox
                .refuse("collect", format_args!("cannot start a thread: {error}")),
        }
    }
}
