//! A wire between the master and a machine, which can be cut in every way.
//!
//! ```text
//!   master ──► near side ═══ proxy ═══ far side ──► sshd
//!              open: bytes pass     frozen: they wait     half open: the far side is gone, nobody says so
//! ```

use anyhow::{Context, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

/// What the wire does just now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wire {
    Open,
    /// Nothing passes and nothing is lost; new connections are taken and hear nothing.
    Frozen,
    /// Each piece passes this much later.
    Slow(Duration),
}

/// What happens to the connections that are open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Cut,
    Reset,
    HalfOpen,
}

/// A proxy on a loopback port. Dropped, it closes its connections.
#[derive(Debug)]
pub struct Proxy {
    pub port: u16,
    shared: Arc<Shared>,
    _end: DropGuard,
}

#[derive(Debug)]
struct Shared {
    wire: watch::Sender<Wire>,
    /// Counts the ends; each concerns the connections that were open then.
    ends: watch::Sender<(u64, End)>,
    connections: AtomicU32,
    open: AtomicU32,
}

impl Proxy {
    /// Leads to another loopback port.
    pub async fn start(target: u16) -> Result<Proxy> {
        let listener = TcpListener::bind(("127.0.0.1", 0))
            .await
            .context("cannot listen for a proxy")?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared {
            wire: watch::Sender::new(Wire::Open),
            ends: watch::Sender::new((0, End::Cut)),
            connections: AtomicU32::new(0),
            open: AtomicU32::new(0),
        });
        let stop = CancellationToken::new();
        let (accepting, stopped) = (Arc::clone(&shared), stop.clone());
        tokio::spawn(async move {
            loop {
                let accepted = tokio::select! {
                    accepted = listener.accept() => accepted,
                    () = stopped.cancelled() => return,
                };
                if let Ok((near, _)) = accepted {
                    let connection = connect(near, target, Arc::clone(&accepting));
                    let stopped = stopped.clone();
                    tokio::spawn(async move {
                        tokio::select! {
                            () = connection => {}
                            () = stopped.cancelled() => {}
                        }
                    });
                }
            }
        });
        Ok(Proxy {
            port,
            shared,
            _end: stop.drop_guard(),
        })
    }

    /// Connections made so far.
    pub fn connections(&self) -> u32 {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Connections that are open just now.
    pub fn open_connections(&self) -> u32 {
        self.shared.open.load(Ordering::SeqCst)
    }

    /// Closes the open connections at both sides, orderly.
    pub fn cut(&self) {
        self.end(End::Cut);
    }

    /// Resets the open connections at both sides.
    pub fn reset(&self) {
        self.end(End::Reset);
    }

    /// Closes the far sides of the open connections; the near sides stay open, and nothing ever comes again.
    pub fn half_open(&self) {
        self.end(End::HalfOpen);
    }

    fn end(&self, how: End) {
        self.shared
            .ends
            .send_modify(|(count, end)| (*count, *end) = (*count + 1, how));
    }

    pub fn freeze(&self) {
        self.shared.wire.send_replace(Wire::Frozen);
    }

    pub fn slow(&self, delay: Duration) {
        self.shared.wire.send_replace(Wire::Slow(delay));
    }

    /// Everything passes again.
    pub fn thaw(&self) {
        self.shared.wire.send_replace(Wire::Open);
    }
}

/// Counts a connection for as long as it lives.
struct Counted(Arc<Shared>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn connect(mut near: TcpStream, target: u16, shared: Arc<Shared>) {
    shared.connections.fetch_add(1, Ordering::SeqCst);
    shared.open.fetch_add(1, Ordering::SeqCst);
    let _counted = Counted(Arc::clone(&shared));
    let mut ends = shared.ends.subscribe();
    let Ok(mut far) = TcpStream::connect(("127.0.0.1", target)).await else {
        return;
    };
    let end = {
        let (near_read, near_write) = near.split();
        let (far_read, far_write) = far.split();
        let there = pump(near_read, far_write, shared.wire.subscribe());
        let back = pump(far_read, near_write, shared.wire.subscribe());
        tokio::select! {
            _ = async { tokio::join!(there, back) } => return,
            changed = ends.changed() => match changed {
                Ok(()) => ends.borrow().1,
                Err(_) => return,
            },
        }
    };
    match end {
        End::Cut => {}
        End::Reset => {
            for stream in [&near, &far] {
                if let Err(error) = stream.set_zero_linger() {
                    tracing::debug!(%error, "a connection ends by FIN instead of RST");
                }
            }
        }
        End::HalfOpen => {
            drop(far);
            std::future::pending::<()>().await;
        }
    }
}

/// Carries bytes in one direction, as the wire lets them.
async fn pump(mut from: ReadHalf<'_>, mut to: WriteHalf<'_>, mut wire: watch::Receiver<Wire>) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let count = match from.read(&mut buffer).await {
            Ok(count) => count,
            Err(_) => return,
        };
        let now = *wire.borrow();
        if let Wire::Slow(delay) = now {
            tokio::time::sleep(delay).await;
        }
        if wire.wait_for(|wire| *wire != Wire::Frozen).await.is_err() {
            return;
        }
        let passed = match count {
            0 => to.shutdown().await,
            count => to.write_all(&buffer[..count]).await,
        };
        if count == 0 || passed.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::ErrorKind;

    /// A server that sends back what it gets.
    async fn echo() -> u16 {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    tokio::io::copy(&mut read, &mut write).await.ok();
                });
            }
        });
        port
    }

    async fn ask(stream: &mut TcpStream) -> std::io::Result<u8> {
        stream.write_all(b"x").await?;
        stream.read_u8().await
    }

    #[tokio::test]
    async fn a_wire_is_cut_in_every_way() {
        let proxy = Proxy::start(echo().await).await.unwrap();
        let connect = || TcpStream::connect(("127.0.0.1", proxy.port));
        let patience = Duration::from_millis(200);

        let mut stream = connect().await.unwrap();
        assert_eq!(ask(&mut stream).await.unwrap(), b'x');
        proxy.freeze();
        stream.write_all(b"y").await.unwrap();
        let silence = tokio::time::timeout(patience, stream.read_u8()).await;
        assert!(silence.is_err());
        proxy.thaw();
        assert_eq!(stream.read_u8().await.unwrap(), b'y', "nothing is lost");
        proxy.cut();
        assert!(ask(&mut stream).await.is_err());

        let mut stream = connect().await.unwrap();
        ask(&mut stream).await.unwrap();
        proxy.reset();
        let error = stream.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);

        let mut stream = connect().await.unwrap();
        ask(&mut stream).await.unwrap();
        proxy.half_open();
        let silence = tokio::time::timeout(patience, ask(&mut stream)).await;
        assert!(silence.is_err());
        assert_eq!(ask(&mut connect().await.unwrap()).await.unwrap(), b'x');
        assert_eq!(proxy.connections(), 4);
    }
}
