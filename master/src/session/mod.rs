//! One SSH connection to a guest and the agent at its other end.
//!
//! ```text
//!   Endpoint ──> ssh: handshake, pinned host key, login ──> push: agent there? started, nonce echoed ──> Agent
//!                (patient: tries again while nobody is there yet)
//!
//!   Agent ──start, attach──> Following ──> output by offset, exit
//!         ──unpack, write──> files into the guest
//!         ──collect────────> Collection ──> files out of it
//! ```
//!
//! In comes an address, out come byte streams and how commands ended. What runs in the guest belongs to the guest: a
//! lost connection or a restarted master connects again and attaches where it was. State here lasts as long as one
//! connection and is owned by its `route::Router`. Everything that comes from the guest is a stranger's: bounded by
//! the protocol's lengths and by the `gate`, never indexed, its paths checked.
//!
//! Output that nobody reads makes the guest wait, never our memory grow. Requests go out all the same; answers come
//! in the order of the wire, so a start, an upload or a collection waits behind output that is not read:
//! read a [`Following`] or drop it.

#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic
    )
)]

mod beside;
mod channel;
mod collect;
mod connect;
mod error;
mod follow;
mod gate;
mod keys;
mod link;
mod programs;
mod push;
mod route;
mod sftp;
mod ssh;
mod transfer;
pub(crate) mod transport;

pub use channel::Ssh;
pub use collect::{Collection, IncomingFile};
pub use error::SessionError;
pub use follow::{FollowEvent, Following};
pub use programs::{Agents, BesideReport, Origin, Program};
pub use transport::{Failed, Opened, Transport};

use crate::model::{AgentKind, Architecture, OsFamily};
use link::Link;
use route::{FollowRequest, Upload};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncRead;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::timeout;
use vivarium_protocol::{Execution, ExecutionState, Frame, Hello, StepCommand, ToAgent};

/// How long the agent may take to start a command or to find one: it answers at once, from an emulated guest's disk.
const ANSWER: Duration = Duration::from_secs(60);
/// What proves to a guest that it is us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    /// Our private key in OpenSSH's format, without a passphrase: Ed25519, ECDSA or RSA.
    Key(PathBuf),
    /// A file with the user's password; a newline at its end does not belong to it.
    Password(PathBuf),
}

impl std::fmt::Display for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Credential::Key(path) => write!(f, "the key {}", path.display()),
            Credential::Password(path) => write!(f, "the password in {}", path.display()),
        }
    }
}

/// Where a guest's sshd is, and the keys of both sides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub host: String,
    pub port: u16,
    pub user: String,
    pub credential: Credential,
    /// The public host key that the guest must show, one in each line.
    pub host_key: PathBuf,
    /// For messages, e.g. `vm-17`.
    pub name: String,
    /// An agent that is silent for three of these is dead, and the connection to it lost.
    pub heartbeat: Duration,
}

impl Endpoint {
    fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

/// What has to be known of a guest to put an agent into it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestSpec {
    pub os: OsFamily,
    pub arch: Architecture,
    /// `None`: whichever there is, the native one first.
    pub agent: Option<AgentKind>,
    /// Folder in the guest for the agent and its spools.
    pub state_dir: String,
}

/// A live connection to the agent in a guest. Dropped, the connection closes; what runs in the guest goes on.
///
/// All methods may be called from several tasks; requests of one kind wait for each other.
pub struct Agent {
    link: Link,
    hello: Hello,
    follow_turn: Arc<Mutex<()>>,
    upload_turn: Arc<Mutex<()>>,
    collect_turn: Arc<Mutex<()>>,
}

impl std::fmt::Debug for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agent")
            .field("vm", &self.link.router.name())
            .field("hello", &self.hello)
            .finish_non_exhaustive()
    }
}

impl Agent {
    /// What the agent said of itself.
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// Empties the folder `dir`, creating it if need be, and unpacks a tar archive into it; returns its entries.
    ///
    /// Cancelled in the middle, or with a reader that fails, it ends the connection: half an archive is in the guest.
    pub async fn unpack<R: AsyncRead + Unpin + Send>(
        &self,
        dir: &str,
        tar: R,
    ) -> Result<u64, SessionError> {
        let request = ToAgent::Unpack {
            dir: dir.to_owned(),
        };
        transfer::upload(&self.link, &self.upload_turn, Upload::Unpack, &request, tar).await
    }

    /// Writes a file, creating its folders, replacing what is there; returns its bytes. Cancelled as [`Agent::unpack`] is.
    pub async fn write<R: AsyncRead + Unpin + Send>(
        &self,
        path: &str,
        content: R,
        executable: bool,
    ) -> Result<u64, SessionError> {
        let request = ToAgent::Write {
            path: path.to_owned(),
            executable,
        };
        transfer::upload(
            &self.link,
            &self.upload_turn,
            Upload::Write,
            &request,
            content,
        )
        .await
    }

    /// Starts an execution and follows it from its first byte; one with this id that is there already is attached to.
    pub async fn start(
        &self,
        execution: &Execution,
        command: StepCommand,
    ) -> Result<Following, SessionError> {
        let request = ToAgent::Start {
            execution: execution.clone(),
            command,
        };
        match self.follow("start", execution, 0, &request).await? {
            Some(following) => Ok(following),
            None => Err(self
                .link
                .router
                .refused("start", "it does not know what it was to start")),
        }
    }

    /// Follows an execution started earlier from byte `from` of its output on; `None` if this guest does not know it.
    pub async fn attach(
        &self,
        execution: &Execution,
        from: u64,
    ) -> Result<Option<Following>, SessionError> {
        let request = ToAgent::Attach {
            execution: execution.clone(),
            from,
        };
        self.follow("attach", execution, from, &request).await
    }

    async fn follow(
        &self,
        what: &str,
        execution: &Execution,
        from: u64,
        request: &ToAgent,
    ) -> Result<Option<Following>, SessionError> {
        let router = &self.link.router;
        if !execution.is_valid() {
            return Err(router.refused(what, &format!("{execution:?} is no name for an execution")));
        }
        let request = self.link.frame(what, request)?;
        let asked = async {
            let turn = Arc::clone(&self.follow_turn).lock_owned().await;
            let (answer, answered) = oneshot::channel();
            let (queue, events) = mpsc::unbounded_channel();
            let place = self.link.reserve().await?;
            router.await_follow(FollowRequest {
                execution: execution.clone(),
                from,
                answer,
                queue,
                turn,
            })?;
            place.send(request);
            let state: Option<ExecutionState> = answered
                .await
                .map_err(|_| router.lost())?
                .map_err(|message| router.refused(what, &message))?;
            Ok(state
                .map(|state| Following::new(execution.clone(), state, events, Arc::clone(router))))
        };
        timeout(ANSWER, asked)
            .await
            .unwrap_or_else(|_| Err(self.silent(what)))
    }

    /// Tells the agent that output before `until` is stored here, so that it may forget it. Returns when it is on its way.
    pub async fn acknowledge(&self, execution: &Execution, until: u64) -> Result<(), SessionError> {
        let execution = execution.clone();
        self.link
            .send(Frame::to_agent(&ToAgent::Acknowledge { execution, until }))
            .await
    }

    /// Asks for the end of the command and its descendants: TERM, then KILL after `grace`. Returns when the request is on
    /// its way, also while output is unread; [`FollowEvent::Exited`] tells the end.
    pub async fn stop(&self, execution: &Execution, grace: Duration) -> Result<(), SessionError> {
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        let execution = execution.clone();
        self.link
            .send(Frame::to_agent(&ToAgent::Stop {
                execution,
                grace_ms,
            }))
            .await
    }

    /// Asks for the files below `dir` that match one of `globs`. A refusal comes with the first [`Collection::next_file`].
    pub async fn collect(
        &self,
        dir: &str,
        globs: &[String],
        max_files: u64,
        max_bytes: u64,
    ) -> Result<Collection, SessionError> {
        let router = &self.link.router;
        let request = ToAgent::Collect {
            dir: dir.to_owned(),
            globs: globs.to_vec(),
            max_files,
            max_bytes,
        };
        let request = self.link.frame("collect", &request)?;
        let turn = Arc::clone(&self.collect_turn).lock_owned().await;
        let (queue, items) = mpsc::unbounded_channel();
        let place = self.link.reserve().await?;
        router.await_files(queue, turn)?;
        place.send(request);
        Ok(Collection::new(
            items,
            Arc::clone(router),
            max_files,
            max_bytes,
        ))
    }

    /// Resolves with the reason when the connection is lost: closed, reset, or the agent silent for three heartbeats.
    pub async fn closed(&self) -> String {
        self.link.router.closed().await
    }

    /// Says goodbye and closes. What runs in the guest goes on.
    pub async fn disconnect(self) {
        self.link.disconnect().await;
    }

    fn silent(&self, what: &str) -> SessionError {
        SessionError::Agent {
            name: self.link.router.name().to_owned(),
            why: format!("did not {what} within {} s", ANSWER.as_secs()),
        }
    }
}
