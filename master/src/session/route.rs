//! Who gets an incoming frame: one table of what is awaited, owned here, moved by each frame.
//!
//! ```text
//!   started, unknown, failed ──> the start or attach that waits      (one at a time)
//!   output, exited           ──> the execution followed              (offsets checked here)
//!   unpacked, written        ──> the upload that waits               (one at a time)
//!   file, data, end of file, collected ──> the collection            (one at a time)
//! ```
//!
//! The agent answers in order within each line, not across them. A request whose caller has gone keeps its place until
//! its answer has come, so that answers cannot be mistaken for another's. No I/O and no waiting here.

use super::SessionError;
use super::collect::CollectItem;
use super::follow::FollowEvent;
use super::gate::{Charged, Gate};
use bytes::Bytes;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{OwnedMutexGuard, mpsc, oneshot, watch};
use vivarium_protocol::{Execution, ExecutionState, Frame, ToMaster};

/// Requests that nobody waits for may be refused so many times on one connection. Each refusal is a line in our log, and
/// there are a few at most after a machine was busy.
const MOST_COMPLAINTS: u32 = 100;

/// The right to have a request of one kind under way.
pub(super) type Turn = OwnedMutexGuard<()>;
pub(super) type FollowQueue = mpsc::UnboundedSender<Charged<Result<FollowEvent, String>>>;
pub(super) type CollectQueue = mpsc::UnboundedSender<Charged<CollectItem>>;

/// How a connection ended.
#[derive(Debug, Clone)]
pub(super) enum Ending {
    /// It broke, or fell silent, or was closed.
    Lost(String),
    /// The agent said what it must not say.
    Protocol(String),
}

/// A start or an attach without an answer yet.
pub(super) struct FollowRequest {
    pub(super) execution: Execution,
    /// The offset of the first byte that is to come.
    pub(super) from: u64,
    pub(super) answer: oneshot::Sender<Result<Option<ExecutionState>, String>>,
    pub(super) queue: FollowQueue,
    pub(super) turn: Turn,
}

struct Following {
    execution: Execution,
    next: u64,
    queue: FollowQueue,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Upload {
    Unpack,
    Write,
}

impl Upload {
    pub(super) fn request(self) -> &'static str {
        match self {
            Upload::Unpack => "unpack",
            Upload::Write => "write",
        }
    }
}

struct UploadRequest {
    upload: Upload,
    answer: oneshot::Sender<Result<u64, String>>,
}

struct Collecting {
    queue: CollectQueue,
    in_file: bool,
    _turn: Turn,
}

#[derive(Default)]
struct State {
    request: Option<FollowRequest>,
    following: Option<Following>,
    upload: Option<UploadRequest>,
    collecting: Option<Collecting>,
    clock: Option<oneshot::Sender<Result<i64, String>>>,
    complaints: u32,
    ended: bool,
}

impl State {
    fn count_complaint(&mut self) -> Result<(), String> {
        self.complaints += 1;
        match self.complaints <= MOST_COMPLAINTS {
            true => Ok(()),
            false => Err("it complains and complains of requests that nobody waits for".to_owned()),
        }
    }
}

pub(super) struct Router {
    name: String,
    gate: Arc<Gate>,
    state: Mutex<State>,
    ending: watch::Sender<Option<Ending>>,
}

impl Router {
    pub(super) fn new(name: &str, gate: Arc<Gate>) -> Self {
        Self {
            name: name.to_owned(),
            gate,
            state: Mutex::default(),
            ending: watch::Sender::new(None),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn is_open(&self) -> bool {
        !self.state().ended
    }

    /// Ends everything that waits; the first reason stands.
    pub(super) fn end(&self, ending: Ending) {
        self.ending.send_if_modified(|current| {
            let first = current.is_none();
            if first {
                *current = Some(ending);
            }
            first
        });
        let mut state = self.state();
        *state = State {
            ended: true,
            ..State::default()
        };
        drop(state);
        self.gate.close();
    }

    /// Resolves when the connection has ended.
    pub(super) async fn closed(&self) -> String {
        let mut ending = self.ending.subscribe();
        let ended = ending.wait_for(Option::is_some).await;
        match ended.as_deref() {
            Ok(Some(Ending::Lost(why) | Ending::Protocol(why))) => why.clone(),
            Ok(None) | Err(_) => String::new(),
        }
    }

    /// The error for whoever finds the connection ended.
    pub(super) fn lost(&self) -> SessionError {
        let name = self.name.clone();
        match &*self.ending.borrow() {
            Some(Ending::Lost(why)) => SessionError::Lost {
                name,
                why: why.clone(),
            },
            Some(Ending::Protocol(why)) => SessionError::Protocol {
                name,
                why: why.clone(),
            },
            None => SessionError::Lost {
                name,
                why: "it is being closed".to_owned(),
            },
        }
    }

    pub(super) fn refused(&self, request: &str, message: &str) -> SessionError {
        SessionError::Refused {
            name: self.name.clone(),
            request: request.to_owned(),
            message: message.to_owned(),
        }
    }

    /// Whether the agent is taking an upload, so that its answers wait behind the guest's disk.
    pub(super) fn is_receiving(&self) -> bool {
        self.state().upload.is_some()
    }

    pub(super) fn await_follow(&self, request: FollowRequest) -> Result<(), SessionError> {
        let mut state = self.open_state()?;
        // What was followed before ends here: its frames may still come and are discarded.
        state.following = None;
        state.request = Some(request);
        Ok(())
    }

    pub(super) fn await_upload(
        &self,
        upload: Upload,
        answer: oneshot::Sender<Result<u64, String>>,
    ) -> Result<(), SessionError> {
        self.open_state()?.upload = Some(UploadRequest { upload, answer });
        Ok(())
    }

    pub(super) fn await_files(&self, queue: CollectQueue, turn: Turn) -> Result<(), SessionError> {
        self.open_state()?.collecting = Some(Collecting {
            queue,
            in_file: false,
            _turn: turn,
        });
        Ok(())
    }

    pub(super) fn await_clock(
        &self,
        answer: oneshot::Sender<Result<i64, String>>,
    ) -> Result<(), SessionError> {
        self.open_state()?.clock = Some(answer);
        Ok(())
    }

    fn open_state(&self) -> Result<MutexGuard<'_, State>, SessionError> {
        let state = self.state();
        if state.ended {
            drop(state);
            return Err(self.lost());
        }
        Ok(state)
    }

    /// Takes one frame from the agent. An error says what was wrong with it.
    pub(super) fn take(&self, frame: Frame) -> Result<(), String> {
        let mut state = self.state();
        match frame {
            Frame::Output { offset, bytes } => self.take_output(&mut state, offset, bytes),
            Frame::Data(bytes) => {
                let length = bytes.len();
                match &state.collecting {
                    Some(collecting) if collecting.in_file => {
                        self.hand(collecting, CollectItem::Data(Bytes::from(bytes)), length);
                        Ok(())
                    }
                    Some(_) | None => Err("data came without a file".to_owned()),
                }
            }
            Frame::Control(json) => {
                let message = Frame::parse::<ToMaster>(&json).map_err(|error| error.to_string())?;
                self.take_message(&mut state, message, json.len())
            }
        }
    }

    fn take_output(&self, state: &mut State, offset: u64, bytes: Vec<u8>) -> Result<(), String> {
        // Output of an execution that is not followed any more.
        let Some(following) = &mut state.following else {
            return Ok(());
        };
        if offset != following.next {
            return Err(format!(
                "the output of {} goes on at byte {offset}, it was at {}",
                following.execution, following.next
            ));
        }
        let length = bytes.len();
        following.next = offset
            .checked_add(length as u64)
            .ok_or("the output is longer than 64 bits can count")?;
        let event = FollowEvent::Output {
            offset,
            bytes: Bytes::from(bytes),
        };
        self.tell(following, Ok(event), length);
        Ok(())
    }

    fn take_message(
        &self,
        state: &mut State,
        message: ToMaster,
        length: usize,
    ) -> Result<(), String> {
        match message {
            ToMaster::Hello(_) => Err("it says hello twice".to_owned()),
            ToMaster::Pong { .. } => Ok(()),
            ToMaster::Unpacked { entries } => answer_upload(state, Upload::Unpack, Ok(entries)),
            ToMaster::Written { bytes } => answer_upload(state, Upload::Write, Ok(bytes)),
            ToMaster::Started {
                execution,
                state: execution_state,
            } => {
                let request = state
                    .request
                    .take_if(|request| request.execution == execution);
                let Some(request) = request else {
                    return Err(format!(
                        "it starts {}, which nobody asked for",
                        shown(&execution)
                    ));
                };
                state.following = Some(Following {
                    execution,
                    next: request.from,
                    queue: request.queue,
                });
                answer(request.answer, Ok(Some(execution_state)));
                drop(request.turn);
                Ok(())
            }
            ToMaster::Unknown { execution } => {
                match state
                    .request
                    .take_if(|request| request.execution == execution)
                {
                    Some(request) => {
                        answer(request.answer, Ok(None));
                        drop(request.turn);
                    }
                    // An acknowledgement or a stop for an execution that this guest has not.
                    None => {
                        state.count_complaint()?;
                        tracing::warn!(vm = self.name, execution = %shown(&execution), "the guest does not know it")
                    }
                }
                Ok(())
            }
            ToMaster::Exited {
                execution,
                exit,
                output_bytes,
            } => {
                let Some(following) = state
                    .following
                    .take_if(|following| following.execution == execution)
                else {
                    return Ok(());
                };
                if output_bytes != following.next {
                    return Err(format!(
                        "{} has {output_bytes} bytes of output, {} came",
                        following.execution, following.next
                    ));
                }
                self.tell(
                    &following,
                    Ok(FollowEvent::Exited { exit, output_bytes }),
                    0,
                );
                Ok(())
            }
            ToMaster::File(file) => match &mut state.collecting {
                Some(collecting) if !collecting.in_file => {
                    collecting.in_file = true;
                    self.hand(collecting, CollectItem::File(file), length);
                    Ok(())
                }
                Some(_) => Err("a file begins inside another".to_owned()),
                None => Err("it sends a file that nobody asked for".to_owned()),
            },
            ToMaster::EndOfFile { sha256 } => match &mut state.collecting {
                Some(collecting) if collecting.in_file => {
                    collecting.in_file = false;
                    self.hand(collecting, CollectItem::EndOfFile { sha256 }, length);
                    Ok(())
                }
                Some(_) | None => Err("a file ends that had not begun".to_owned()),
            },
            ToMaster::Collected { skipped, .. } => match state.collecting.take() {
                Some(collecting) if !collecting.in_file => {
                    self.hand(&collecting, CollectItem::Collected { skipped }, length);
                    Ok(())
                }
                Some(_) => Err("the collection ends inside a file".to_owned()),
                None => Err("it ends a collection that nobody asked for".to_owned()),
            },
            ToMaster::ClockSet { stepped_ms } => {
                if let Some(clock) = state.clock.take() {
                    answer(clock, Ok(stepped_ms));
                }
                Ok(())
            }
            ToMaster::Failed { request, message } => self.take_refusal(state, &request, &message),
        }
    }

    /// A refusal goes to the request that it names.
    fn take_refusal(&self, state: &mut State, request: &str, message: &str) -> Result<(), String> {
        let message = super::error::one_line(message.as_bytes());
        match request {
            "start" | "attach" => {
                if let Some(request) = state.request.take() {
                    answer(request.answer, Err(message));
                    drop(request.turn);
                } else if let Some(following) = state.following.take() {
                    self.tell(&following, Err(message), 0);
                }
                Ok(())
            }
            "unpack" => answer_upload(state, Upload::Unpack, Err(message)),
            "write" => answer_upload(state, Upload::Write, Err(message)),
            "collect" => {
                if let Some(collecting) = state.collecting.take() {
                    self.hand(&collecting, CollectItem::Refused { message }, 0);
                }
                Ok(())
            }
            "set_clock" => {
                if let Some(clock) = state.clock.take() {
                    answer(clock, Err(message));
                }
                Ok(())
            }
            // Nobody waits for an answer to these.
            "acknowledge" | "stop" => {
                state.count_complaint()?;
                tracing::warn!(vm = self.name, request, message, "the agent refuses");
                Ok(())
            }
            other => Err(format!(
                "it refuses our {}: {message}",
                super::error::one_line(other.as_bytes())
            )),
        }
    }

    // A consumer that has gone wants nothing more; what was for it is dropped and releases its bytes.
    fn tell(&self, following: &Following, event: Result<FollowEvent, String>, length: usize) {
        following
            .queue
            .send(Charged::new(&self.gate, event, length))
            .ok();
    }

    fn hand(&self, collecting: &Collecting, item: CollectItem, length: usize) {
        collecting
            .queue
            .send(Charged::new(&self.gate, item, length))
            .ok();
    }
}

fn answer_upload(
    state: &mut State,
    upload: Upload,
    result: Result<u64, String>,
) -> Result<(), String> {
    match state.upload.take_if(|request| request.upload == upload) {
        Some(request) => {
            answer(request.answer, result);
            Ok(())
        }
        None => Err(format!(
            "it answers an {} that nobody asked for",
            upload.request()
        )),
    }
}

/// Answers a request; its caller may have gone.
fn answer<T>(caller: oneshot::Sender<T>, value: T) {
    caller.send(value).ok();
}

/// A name that a guest sent, for a sentence.
fn shown(execution: &Execution) -> String {
    super::error::one_line(execution.0.as_bytes())
}

#[cfg(test)]
mod tests;
