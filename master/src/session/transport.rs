//! What carries the frames between us and an agent: SSH, or what a simulation has in its place.

use super::gate::Gate;
use super::{Endpoint, GuestSpec, SessionError};
use crate::model::{AgentKind, Witness};
use bytes::Bytes;
use futures::future::BoxFuture;
use std::sync::Arc;
use vivarium_protocol::{Decoder, Hello};

/// The way into guests.
pub trait Transport: std::fmt::Debug + Send + Sync {
    /// One try to reach the guest and to have its agent started and greeted. Ends within a bounded time. `witness` is
    /// told how far it comes.
    fn open<'a>(
        &'a self,
        endpoint: &'a Endpoint,
        guest: &'a GuestSpec,
        witness: &'a dyn Witness,
    ) -> BoxFuture<'a, Result<Opened, Failed>>;

    /// The kind of agent that this guest gets, or `None` where there is none for it.
    fn agent_kind(&self, guest: &GuestSpec) -> Option<AgentKind>;
}

/// Why a try failed, and whether the next one may do better.
#[derive(Debug)]
pub enum Failed {
    /// Nobody there yet: refused, reset, closed early, silent.
    NotYet(String),
    ForGood(SessionError),
}

/// An agent that has said hello: what follows is frames.
pub struct Opened {
    pub(crate) hello: Hello,
    /// With what came behind the hello.
    pub(crate) decoder: Decoder,
    pub(crate) incoming: Box<dyn FromGuest>,
    pub(crate) outgoing: Box<dyn ToGuest>,
    /// Shut while too much of what arrived waits for our own consumers.
    pub(crate) gate: Arc<Gate>,
    pub(crate) connection: Box<dyn Connection>,
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opened")
            .field("hello", &self.hello)
            .finish_non_exhaustive()
    }
}

pub(crate) trait FromGuest: Send {
    /// The agent's next bytes, or a clause about how the connection ended.
    fn next(&mut self) -> BoxFuture<'_, Result<Bytes, String>>;
}

pub(crate) trait ToGuest: Send {
    /// False when the connection has ended; [`FromGuest::next`] tells why.
    fn send(&mut self, frame: Vec<u8>) -> BoxFuture<'_, bool>;
}

/// Held as long as the connection is wanted; dropped, it closes.
pub(crate) trait Connection: Send + Sync {
    fn disconnect(&self) -> BoxFuture<'_, ()>;
}
