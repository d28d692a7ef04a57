//! A listener whose connections can be reset, and which can go away and come back on the same port.

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Accepts connections until `all` is cancelled, which also resets those that are open.
#[derive(Debug)]
pub(super) struct ResettableListener {
    listener: TcpListener,
    all: CancellationToken,
}

/// Lets a handler reset the connection it answers on.
#[derive(Debug, Clone)]
pub(super) struct ConnectionHandle(CancellationToken);

impl ConnectionHandle {
    /// From now on nothing more is read or written; the client sees a reset.
    pub(super) fn reset(&self) {
        self.0.cancel();
    }
}

impl Connected<IncomingStream<'_, ResettableListener>> for ConnectionHandle {
    fn connect_info(stream: IncomingStream<'_, ResettableListener>) -> Self {
        stream.remote_addr().clone()
    }
}

impl ResettableListener {
    pub(super) async fn bind(address: SocketAddr, all: CancellationToken) -> io::Result<Self> {
        Ok(ResettableListener {
            listener: TcpListener::bind(address).await?,
            all,
        })
    }

    pub(super) fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

impl Listener for ResettableListener {
    type Io = Connection;
    type Addr = ConnectionHandle;

    async fn accept(&mut self) -> (Connection, ConnectionHandle) {
        let (stream, _) = Listener::accept(&mut self.listener).await;
        let token = self.all.child_token();
        let connection = Connection {
            stream,
            reset: Box::pin(token.clone().cancelled_owned()),
            token: token.clone(),
        };
        (connection, ConnectionHandle(token))
    }

    fn local_addr(&self) -> io::Result<ConnectionHandle> {
        Ok(ConnectionHandle(self.all.clone()))
    }
}

pub(super) struct Connection {
    stream: TcpStream,
    reset: Pin<Box<WaitForCancellationFutureOwned>>,
    token: CancellationToken,
}

impl Connection {
    fn poll_reset(&mut self, context: &mut Context<'_>) -> Option<io::Error> {
        if !self.token.is_cancelled() && self.reset.as_mut().poll(context).is_pending() {
            return None;
        }
        // Dropping the socket then sends RST instead of an orderly end.
        if let Err(error) = self.stream.set_zero_linger() {
            tracing::debug!(%error, "a connection ends by FIN instead of RST");
        }
        Some(io::ErrorKind::ConnectionReset.into())
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.poll_reset(context) {
            Some(error) => Poll::Ready(Err(error)),
            None => Pin::new(&mut self.stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.poll_reset(context) {
            Some(error) => Poll::Ready(Err(error)),
            None => Pin::new(&mut self.stream).poll_write(context, buffer),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
