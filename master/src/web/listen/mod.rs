//! Connections: accepted within bounds, by TLS where it is configured, each read and written within deadlines.
//!
//! ```text
//!  accept ─► room for one more? ─► TLS handshake ─► HTTP/1.1: header, request, answer; again ─► the routes
//!            (all, this address)   (a deadline)     (a deadline for the header, one for each write)
//! ```
//!
//! A client that sends its header byte by byte, or takes its answer so, holds one connection for a bounded time and
//! nothing else. What a request may take after its header is the routes' matter.

mod tls;

pub use tls::Tls;

use super::asker::Proxies;
use super::slots::{Slot, Slots};
use crate::config::ServerConfig;
use axum::Router;
use axum::extract::{ConnectInfo, Request};
use axum::http::HeaderValue;
use axum::http::header::STRICT_TRANSPORT_SECURITY;
use axum::middleware::map_response;
use axum::response::Response;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_io_timeout::TimeoutStream;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

/// After an error of `accept`, such as too many open files: others may close theirs meanwhile.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Longest header of a request, in bytes, and what is buffered of an answer.
const MOST_HEADER: usize = 32 << 10;
const BUFFER: usize = 64 << 10;
/// Browsers that were told come by HTTPS alone for half a year.
const STRICT_TRANSPORT: HeaderValue = HeaderValue::from_static("max-age=15552000");

/// How long a client may take.
#[derive(Debug, Clone, Copy)]
struct Deadlines {
    /// For the TLS handshake, and for the header of each request; an idle connection is closed after it too.
    header: Duration,
    /// For taking anything of an answer that waits.
    write: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Deadlines {
            header: Duration::from_secs(15),
            write: Duration::from_secs(60),
        }
    }
}

/// Serves routes on a socket.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    tls: Option<Tls>,
    proxies: Proxies,
    /// All connections: further ones wait in the socket's queue.
    room: Arc<Semaphore>,
    /// Those of one address: further ones are closed.
    slots: Slots,
    deadlines: Deadlines,
}

/// What a connection holds until it ends.
struct Held {
    _room: OwnedSemaphorePermit,
    _slot: Slot,
}

impl Server {
    pub fn new(listener: TcpListener, config: &ServerConfig, tls: Option<Tls>) -> Server {
        let limits = config.limits;
        Server {
            listener,
            tls,
            proxies: Proxies::new(&config.trusted_proxies),
            room: Arc::new(Semaphore::new(limits.connections as usize)),
            slots: Slots::new(limits.connections, limits.connections_per_address),
            deadlines: Deadlines::default(),
        }
    }

    /// Serves until `stopping`, then lets requests under way end. Dropping the future ends all connections.
    pub async fn run(self, routes: Router, stopping: CancellationToken) {
        let routes = match self.tls {
            Some(_) => routes.layer(map_response(only_by_https)),
            None => routes,
        };
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = stopping.cancelled() => break,
                accepted = self.accept() => accepted,
            };
            while connections.try_join_next().is_some() {}
            if let Some((stream, peer, held)) = accepted {
                let connection = Connection {
                    routes: routes.clone(),
                    peer,
                    deadlines: self.deadlines,
                    stopping: stopping.clone(),
                };
                let tls = self.tls.as_ref().map(Tls::acceptor);
                connections.spawn(async move {
                    connection.serve_stream(stream, tls).await;
                    drop(held);
                });
            }
        }
        while connections.join_next().await.is_some() {}
    }

    /// The next connection for which there is room.
    async fn accept(&self) -> Option<(TcpStream, SocketAddr, Held)> {
        // Fails only once the semaphore is closed, which nobody does.
        let room = self.room.clone().acquire_owned().await.ok()?;
        match self.listener.accept().await {
            Ok((stream, peer)) => {
                let asker = self.proxies.asker_of_connection(peer.ip());
                let slot = self.slots.take(asker)?;
                let held = Held {
                    _room: room,
                    _slot: slot,
                };
                Some((stream, peer, held))
            }
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                None
            }
        }
    }
}

/// One client's connection.
struct Connection {
    routes: Router,
    peer: SocketAddr,
    deadlines: Deadlines,
    stopping: CancellationToken,
}

impl Connection {
    async fn serve_stream(self, stream: TcpStream, tls: Option<tokio_rustls::TlsAcceptor>) {
        // Live output comes in small pieces.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection keeps its delay");
        }
        let Some(tls) = tls else {
            return self.serve(stream).await;
        };
        match tokio::time::timeout(self.deadlines.header, tls.accept(stream)).await {
            Ok(Ok(stream)) => self.serve(stream).await,
            Ok(Err(error)) => {
                tracing::debug!(peer = %self.peer, %error, "no TLS connection came about");
            }
            Err(_) => tracing::debug!(peer = %self.peer, "a TLS handshake took too long"),
        }
    }

    async fn serve(self, stream: impl AsyncRead + AsyncWrite) {
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(self.deadlines.write));
        let peer = self.peer;
        let service = self.routes.map_request(move |mut request: Request<_>| {
            request.extensions_mut().insert(ConnectInfo(peer));
            request
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.deadlines.header)
            .max_header_size(MOST_HEADER)
            .max_buf_size(BUFFER)
            .serve_connection(
                TokioIo::new(Box::pin(stream)),
                TowerToHyperService::new(service),
            );
        let mut connection = pin!(connection);
        let ended = tokio::select! {
            ended = &mut connection => ended,
            () = self.stopping.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%peer, %error, "a connection broke off");
        }
    }
}

async fn only_by_https(mut response: Response) -> Response {
    response
        .headers_mut()
        .insert(STRICT_TRANSPORT_SECURITY, STRICT_TRANSPORT);
    response
}

#[cfg(test)]
mod tests;
