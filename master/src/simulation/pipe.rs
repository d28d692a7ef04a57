//! The cable between the master's session and a simulated agent: bytes in order, until one side is gone.

use crate::session::Opened;
use crate::session::transport::{Connection, FromGuest, ToGuest};
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use std::sync::Arc;
use tokio::sync::mpsc;
use vivarium_protocol::{Decoder, Hello};

struct Incoming(mpsc::Receiver<Bytes>);
struct Outgoing(mpsc::Sender<Vec<u8>>);
struct Closed;

pub(super) fn opened(
    hello: Hello,
    from_agent: mpsc::Receiver<Bytes>,
    to_agent: mpsc::Sender<Vec<u8>>,
) -> Opened {
    Opened {
        hello,
        decoder: Decoder::new(),
        incoming: Box::new(Incoming(from_agent)),
        outgoing: Box::new(Outgoing(to_agent)),
        gate: Arc::default(),
        connection: Box::new(Closed),
    }
}

impl FromGuest for Incoming {
    fn next(&mut self) -> BoxFuture<'_, Result<Bytes, String>> {
        async {
            let bytes = self.0.recv().await;
            bytes.ok_or_else(|| "the connection was reset".to_owned())
        }
        .boxed()
    }
}

impl ToGuest for Outgoing {
    fn send(&mut self, frame: Vec<u8>) -> BoxFuture<'_, bool> {
        async { self.0.send(frame).await.is_ok() }.boxed()
    }
}

impl Connection for Closed {
    fn disconnect(&self) -> BoxFuture<'_, ()> {
        std::future::ready(()).boxed()
    }
}
