//! A server that speaks S3 over HTTP on a loopback port, its buckets being folders. It can be switched off and on.

use anyhow::{Context, Result};
use axum::Router;
use axum::error_handling::HandleError;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};
use toml::{Table, Value};

const KEY_ID: &str = "AKIAVIVARIUM";
/// The secret half of the only key that is let in.
pub const SECRET_KEY: &str = "a-secret-that-nobody-should-see";
const BUCKET: &str = "bucket";
/// Below it the master keeps everything.
const PREFIX: &str = "team/ci";

/// The server; dropped, it is gone with all it has.
#[derive(Debug)]
pub struct ObjectServer {
    folder: tempfile::TempDir,
    app: Router,
    address: SocketAddr,
    stored: Arc<Mutex<Vec<String>>>,
    /// While it is on.
    serving: Option<JoinHandle<()>>,
}

impl ObjectServer {
    pub async fn start() -> Result<ObjectServer> {
        let folder = tempfile::tempdir()?;
        std::fs::create_dir_all(folder.path().join("buckets").join(BUCKET))?;
        std::fs::write(
            folder.path().join("secrets.toml"),
            format!("aws_secret_access_key = \"{SECRET_KEY}\"\n"),
        )?;
        let files = s3s_fs::FileSystem::new(folder.path().join("buckets"))
            .map_err(|error| anyhow::anyhow!("cannot serve a folder: {error:?}"))?;
        let mut service = S3ServiceBuilder::new(files);
        service.set_auth(SimpleAuth::from_single(KEY_ID, SECRET_KEY));
        let service = HandleError::new(service.build(), async |error| {
            (StatusCode::BAD_REQUEST, format!("{error:?}"))
        });
        let stored = Arc::default();
        let app = Router::new()
            .fallback_service(service)
            .layer(from_fn_with_state(Arc::clone(&stored), note_stored));
        let mut server = ObjectServer {
            folder,
            app,
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            stored,
            serving: None,
        };
        server.switch_on().await?;
        Ok(server)
    }

    /// Answers again, at the same address.
    pub async fn switch_on(&mut self) -> Result<()> {
        let listener = TcpListener::bind(self.address)
            .await
            .with_context(|| format!("cannot listen on {}", self.address))?;
        self.address = listener.local_addr()?;
        self.serving = Some(tokio::spawn(serve(listener, self.app.clone())));
        Ok(())
    }

    /// Hangs up on everybody, in the middle of a request too, and refuses connections.
    pub async fn switch_off(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.abort();
            // With it go its connections.
            serving.await.ok();
        }
    }

    /// Keys below the prefix that can be seen now, sorted.
    pub fn keys(&self) -> Result<Vec<String>> {
        let top = self.folder.path().join("buckets").join(BUCKET).join(PREFIX);
        let mut keys = Vec::new();
        let mut folders: Vec<PathBuf> = top.is_dir().then(|| top.clone()).into_iter().collect();
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder)? {
                let path = entry?.path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                // Of the server's own: what it writes down of objects, and what is not whole yet.
                let is_object = path
                    .file_name()
                    .is_some_and(|name| !name.to_string_lossy().starts_with('.'));
                let key = path.strip_prefix(&top)?.to_string_lossy().into_owned();
                keys.extend(is_object.then_some(key));
            }
        }
        keys.sort();
        Ok(keys)
    }

    /// What `[storage] url` says.
    pub fn url(&self) -> String {
        format!("s3://{BUCKET}/{PREFIX}")
    }

    /// What `[storage.options]` says.
    pub fn options(&self) -> Value {
        let endpoint = format!("http://{}", self.address);
        let options = [
            ("aws_endpoint", endpoint.as_str()),
            ("aws_access_key_id", KEY_ID),
            ("aws_region", "us-east-1"),
            ("allow_http", "true"),
        ];
        let options = options.map(|(key, value)| (key.to_owned(), value.into()));
        Value::Table(Table::from_iter(options))
    }

    /// What `[storage] secrets_file` says.
    pub fn secrets_file(&self) -> String {
        self.folder
            .path()
            .join("secrets.toml")
            .display()
            .to_string()
    }

    /// Keys below the prefix, in the order in which they were completed.
    pub fn stored(&self) -> Vec<String> {
        self.stored
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone()
    }

    /// The content of an object, by its key below the prefix.
    pub fn content(&self, key: &str) -> Result<Vec<u8>> {
        let bucket = self.folder.path().join("buckets").join(BUCKET);
        let path = bucket.join(PREFIX).join(key);
        std::fs::read(&path).with_context(|| format!("the bucket has no {key}"))
    }
}

impl Drop for ObjectServer {
    fn drop(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.abort();
        }
    }
}

async fn serve(listener: TcpListener, app: Router) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((socket, _)) = accepted else { return };
                let service = TowerToHyperService::new(app.clone());
                let connection = http1::Builder::new().serve_connection(TokioIo::new(socket), service);
                // A client that hangs up is no concern of the server.
                connections.spawn(async move { drop(connection.await) });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Keeps the key of an object that came to be: by a PUT of all of it, or by the POST that ends one in parts.
async fn note_stored(
    State(stored): State<Arc<Mutex<Vec<String>>>>,
    request: Request,
    next: Next,
) -> Response {
    let query = request.uri().query().unwrap_or_default().to_owned();
    let completes = match *request.method() {
        Method::PUT => !query.contains("partNumber="),
        Method::POST => query.contains("uploadId="),
        _ => false,
    };
    let key = request
        .uri()
        .path()
        .strip_prefix(&format!("/{BUCKET}/{PREFIX}/"))
        .map(str::to_owned);
    let response = next.run(request).await;
    if let Some(key) = key.filter(|_| completes && response.status().is_success()) {
        stored
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .push(key);
    }
    response
}
