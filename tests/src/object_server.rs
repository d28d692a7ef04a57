//! A server that speaks S3 over HTTP on a loopback port, its buckets being folders.

use anyhow::{Context, Result};
use axum::Router;
use axum::error_handling::HandleError;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use std::sync::{Arc, Mutex};
use tokio::task::JoinHandle;
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
    endpoint: String,
    stored: Arc<Mutex<Vec<String>>>,
    serving: JoinHandle<()>,
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
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let serving = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, app).await {
                eprintln!("the object server broke off: {error}");
            }
        });
        Ok(ObjectServer {
            folder,
            endpoint,
            stored,
            serving,
        })
    }

    /// What `[storage] url` says.
    pub fn url(&self) -> String {
        format!("s3://{BUCKET}/{PREFIX}")
    }

    /// What `[storage.options]` says.
    pub fn options(&self) -> Value {
        let options = [
            ("aws_endpoint", self.endpoint.as_str()),
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
        self.serving.abort();
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
