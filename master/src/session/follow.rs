//! Following an execution: its output in order, then how it ended.

use super::SessionError;
use super::gate::Charged;
use super::route::Router;
use bytes::Bytes;
use std::sync::Arc;
use tokio::sync::mpsc;
use vivarium_protocol::{Execution, ExecutionState, Exit};

/// What comes out of the router: an event, or the agent's sentence about why there are no more.
pub(super) type Events = mpsc::UnboundedReceiver<Charged<Result<FollowEvent, String>>>;

/// What happens in an execution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FollowEvent {
    /// `offset` is the place of the first of the bytes; events follow each other without gap or overlap.
    Output { offset: u64, bytes: Bytes },
    /// The last event: all the output, `output_bytes` in all, has been given out.
    Exited { exit: Exit, output_bytes: u64 },
}

/// An execution's events, from an offset on.
///
/// A connection follows one execution at a time: starting or attaching to another one ends this following. Dropping it
/// stops nothing in the guest. Output that is not taken makes the guest wait, once eight MiB of it are here.
pub struct Following {
    execution: Execution,
    state: ExecutionState,
    events: Events,
    exited: bool,
    router: Arc<Router>,
}

impl std::fmt::Debug for Following {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Following")
            .field("vm", &self.router.name())
            .field("execution", &self.execution)
            .finish_non_exhaustive()
    }
}

impl Following {
    pub(super) fn new(
        execution: Execution,
        state: ExecutionState,
        events: Events,
        router: Arc<Router>,
    ) -> Self {
        Self {
            execution,
            state,
            events,
            exited: false,
            router,
        }
    }

    pub fn execution(&self) -> &Execution {
        &self.execution
    }

    /// Whether the request started it or found it there.
    pub fn state(&self) -> &ExecutionState {
        &self.state
    }

    /// The next event. May be cancelled and called again. After [`FollowEvent::Exited`] there is none: an error.
    ///
    /// What had arrived before the connection was lost is given out before the loss is told.
    pub async fn next(&mut self) -> Result<FollowEvent, SessionError> {
        let router = &self.router;
        match self.events.recv().await.map(Charged::take) {
            Some(Ok(event)) => {
                self.exited |= matches!(event, FollowEvent::Exited { .. });
                Ok(event)
            }
            Some(Err(message)) => {
                self.exited = true;
                Err(router.refused("follow", &message))
            }
            None if self.exited => {
                Err(router.refused("follow", &format!("{} has ended", self.execution)))
            }
            None if router.is_open() => Err(router.refused(
                "follow",
                &format!(
                    "another execution is followed instead of {}",
                    self.execution
                ),
            )),
            None => Err(router.lost()),
        }
    }
}
