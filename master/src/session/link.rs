//! The frames of one connection: a reader, a writer and a heartbeat around the [`Router`].
//!
//! ```text
//!   Agent's methods ──frames, bounded──> writer ──> transport ──> agent
//!                                          ^ ping
//!                                      heartbeat <── signs of life ─┐
//!   requests, Following, Collection <── Router <── reader <── transport
//! ```
//!
//! The reader never waits for a consumer (the [gate](super::gate) holds the socket instead), so an answer is at most
//! behind the output that our own consumers have not read yet, and a request is behind no output at all.

use super::gate::Gate;
use super::route::Router;
use super::transport::{Connection, FromGuest, Opened, ToGuest};
use super::{Endpoint, SessionError};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};
use vivarium_protocol::{Decoder, Frame, MAX_CONTROL, ToAgent};

/// So many beats in a row without any byte from the agent, and it is dead. A beat is three quarters of the heartbeat
/// that is configured, and the silence may begin just after one: it is over within three heartbeats.
const MISSED: u32 = 3;
/// While it takes an archive its answers wait behind the guest's disk, and emptying a large folder comes first: with
/// the default heartbeat 2 minutes.
const MISSED_WHILE_RECEIVING: u32 = 32;
/// Frames on their way to the writer. Each has at most 256 KiB, so that a stop is behind 2 MiB of an upload at most.
const OUTGOING: usize = 8;
/// How long saying goodbye may take.
const GOODBYE: Duration = Duration::from_secs(2);

/// A live connection. Dropped, it is closed.
pub(super) struct Link {
    connection: Box<dyn Connection>,
    outgoing: mpsc::Sender<Vec<u8>>,
    pub(super) router: Arc<Router>,
    life: Life,
    tasks: JoinSet<()>,
}

/// Room for one frame.
pub(super) struct Place<'a>(mpsc::Permit<'a, Vec<u8>>);

impl Place<'_> {
    pub(super) fn send(self, frame: Frame) {
        self.0.send(frame.into_bytes());
    }
}

/// Set by whoever sees that the other side lives, cleared at each beat.
type Life = Arc<AtomicBool>;

impl Link {
    pub(super) fn start(endpoint: &Endpoint, opened: Opened) -> Self {
        let gate = opened.gate;
        let router = Arc::new(Router::new(&endpoint.name, Arc::clone(&gate)));
        let (outgoing, frames) = mpsc::channel(OUTGOING);
        let life = Life::default();
        let mut tasks = JoinSet::new();
        let incoming = Incoming {
            from_guest: opened.incoming,
            decoder: opened.decoder,
            router: Arc::clone(&router),
            life: Arc::clone(&life),
        };
        tasks.spawn(incoming.run());
        tasks.spawn(write(opened.outgoing, frames, Arc::clone(&router)));
        tasks.spawn(beat(
            endpoint.heartbeat * 3 / 4,
            outgoing.clone(),
            Arc::clone(&router),
            gate,
            Arc::clone(&life),
        ));
        Self {
            connection: opened.connection,
            outgoing,
            router,
            life,
            tasks,
        }
    }

    /// The frame of a request. Made before the request is registered with the router: it may be too large to send.
    pub(super) fn frame(&self, what: &str, request: &ToAgent) -> Result<Frame, SessionError> {
        let frame = Frame::to_agent(request);
        match &frame {
            Frame::Control(json) if json.len() > MAX_CONTROL => Err(self.router.refused(
                what,
                &format!("the request has more than {MAX_CONTROL} bytes"),
            )),
            Frame::Control(_) | Frame::Output { .. } | Frame::Data(_) => Ok(frame),
        }
    }

    pub(super) async fn send(&self, frame: Frame) -> Result<(), SessionError> {
        let sent = self.outgoing.send(frame.into_bytes()).await;
        sent.map_err(|_| self.router.lost())
    }

    /// Sends a piece of an upload.
    pub(super) async fn send_data(&self, data: Vec<u8>) -> Result<(), SessionError> {
        self.send(Frame::Data(data)).await?;
        // Its answers wait behind what it takes, but it takes: a dead guest stops doing so when its window is full.
        self.life.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// A place in the queue, to be had before a request is registered: from then on nothing may come in between.
    pub(super) async fn reserve(&self) -> Result<Place<'_>, SessionError> {
        let permit = self.outgoing.reserve().await;
        permit.map(Place).map_err(|_| self.router.lost())
    }

    pub(super) async fn disconnect(mut self) {
        let goodbye = async {
            self.connection.disconnect().await;
            // The reader ends when the connection does.
            self.router.closed().await;
        };
        if timeout(GOODBYE, goodbye).await.is_err() {
            tracing::debug!("the guest did not answer the goodbye");
        }
        self.tasks.shutdown().await;
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.router
            .end(super::route::Ending::Lost("it was closed by us".to_owned()));
    }
}

/// The reader's side.
struct Incoming {
    from_guest: Box<dyn FromGuest>,
    decoder: Decoder,
    router: Arc<Router>,
    life: Life,
}

impl Incoming {
    async fn run(mut self) {
        let ending = self.read().await;
        self.router.end(ending);
    }

    async fn read(&mut self) -> super::route::Ending {
        use super::route::Ending;
        loop {
            loop {
                match self.decoder.next_frame() {
                    Ok(Some(frame)) => {
                        if let Err(why) = self.router.take(frame) {
                            return Ending::Protocol(why);
                        }
                    }
                    Ok(None) => break,
                    Err(error) => return Ending::Protocol(error.to_string()),
                }
            }
            match self.from_guest.next().await {
                Ok(data) => {
                    self.life.store(true, Ordering::Relaxed);
                    self.decoder.push(&data);
                }
                Err(why) => return Ending::Lost(why),
            }
        }
    }
}

async fn write(
    mut to_guest: Box<dyn ToGuest>,
    mut frames: mpsc::Receiver<Vec<u8>>,
    router: Arc<Router>,
) {
    let sending = async {
        while let Some(frame) = frames.recv().await {
            if !to_guest.send(frame).await {
                // The reader tells why.
                return;
            }
        }
    };
    tokio::select! {
        biased;
        () = sending => {}
        // russh would wait on for a window that nobody opens any more, and whoever sends for room in the queue.
        _ = router.closed() => {}
    }
}

async fn beat(
    pause: Duration,
    outgoing: mpsc::Sender<Vec<u8>>,
    router: Arc<Router>,
    gate: Arc<Gate>,
    life: Life,
) {
    let mut beats = interval(pause);
    // A master that was suspended asks first before it calls anybody dead.
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut missed, mut sequence) = (0, 0);
    loop {
        beats.tick().await;
        let alive = life.swap(false, Ordering::Relaxed);
        // With the gate shut it is us who do not listen.
        missed = if alive || gate.is_shut() || sequence == 0 {
            0
        } else {
            missed + 1
        };
        let allowed = if router.is_receiving() {
            MISSED_WHILE_RECEIVING
        } else {
            MISSED
        };
        if missed >= allowed {
            let silent = pause.as_secs_f64() * f64::from(missed);
            router.end(super::route::Ending::Lost(format!(
                "the agent has not answered for {silent:.0} s"
            )));
            gate.close();
            return;
        }
        sequence += 1;
        let ping = Frame::to_agent(&ToAgent::Ping { sequence }).into_bytes();
        // A full queue means that an upload is being sent; that it moves is a sign of life itself.
        if let Err(mpsc::error::TrySendError::Closed(_)) = outgoing.try_send(ping) {
            return;
        }
    }
}
