//! A web server with one file on a loopback port, for images that are fetched. It can hold back what it sends.

use anyhow::{Context, Result};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header::{CONTENT_RANGE, RANGE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// What becomes of the next answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sending {
    All,
    /// The connection breaks after so many bytes of the file, counted from its beginning.
    UpTo(usize),
}

/// The server; dropped, it is gone.
#[derive(Debug)]
pub struct FileServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    serving: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    content: Bytes,
    sending: Mutex<Sending>,
    asked: Mutex<Vec<usize>>,
}

impl Drop for FileServer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl FileServer {
    pub async fn with(content: Vec<u8>) -> Result<FileServer> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            content: content.into(),
            sending: Mutex::new(Sending::All),
            asked: Mutex::default(),
        });
        let app = Router::new()
            .fallback(answer)
            .with_state(Arc::clone(&shared));
        let serving = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, app).await {
                eprintln!("the file server ended: {error}");
            }
        });
        Ok(FileServer {
            address,
            shared,
            serving,
        })
    }

    /// The file under some name.
    pub fn url(&self, name: &str) -> String {
        format!("http://{}/{name}", self.address)
    }

    pub fn send(&self, sending: Sending) {
        *self
            .shared
            .sending
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = sending;
    }

    /// The first byte that each request asked for.
    pub fn asked(&self) -> Vec<usize> {
        let asked = self.shared.asked.lock();
        asked.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn answer(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    match answer_to(&shared, &headers) {
        Ok(response) => response,
        Err(error) => (StatusCode::BAD_REQUEST, format!("{error:#}")).into_response(),
    }
}

fn answer_to(shared: &Shared, headers: &HeaderMap) -> Result<Response> {
    let from: usize = match headers.get(RANGE) {
        Some(range) => {
            let range = range.to_str()?.strip_prefix("bytes=");
            let from = range.and_then(|range| range.strip_suffix('-'));
            from.context("a range of another form")?.parse()?
        }
        None => 0,
    };
    let length = shared.content.len();
    anyhow::ensure!(from < length, "beyond the end");
    let mut asked = shared.asked.lock().unwrap_or_else(PoisonError::into_inner);
    asked.push(from);
    let sending = *shared
        .sending
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    let rest = shared.content.slice(from..);
    let body = match sending {
        Sending::All => Body::from(rest),
        Sending::UpTo(end) => {
            let sent = rest.slice(..end.saturating_sub(from).min(rest.len()));
            let broken = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
            Body::from_stream(futures::stream::iter([Ok(sent), Err(broken)]))
        }
    };
    let mut response = Response::builder().header("content-length", length - from);
    if from > 0 {
        let range = format!("bytes {from}-{}/{length}", length - 1);
        response = response
            .status(StatusCode::PARTIAL_CONTENT)
            .header(CONTENT_RANGE, range);
    }
    Ok(response.body(body)?)
}
