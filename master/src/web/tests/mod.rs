//! The routes on a real database, real logs and a folder as the object store; no guest is needed to ask.

mod access;
mod bounds;
mod strangers;

use super::*;
use crate::certify::Register;
use crate::clock::Clock;
use crate::config::Config;
use crate::event::webhook::Secrets;
use crate::model::JobId;
use crate::pipeline::backlog::SharedBacklog;
use crate::pipeline::signals::Signals;
use crate::result::objects::Objects;
use crate::source::Sources;
use crate::store::Store;
use crate::store::results::ArtifactRow;
use axum::body::{Body, to_bytes};
use axum::extract::ConnectInfo;
use axum::http::{HeaderMap, Request, StatusCode, Uri};
use axum::response::Response;
use jiff::{Timestamp, ToSpan};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use tempfile::TempDir;
use tower::ServiceExt;

const HOST: &str = "127.0.0.1:8090";

/// A master's web side, and its data folder.
struct Site {
    dir: TempDir,
    /// Hours by which the master's clock is ahead.
    passed: Arc<AtomicI64>,
    store: Store,
    logs: Logs,
    objects: Objects,
    routes: Router,
}

/// What was answered.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }
}

impl Site {
    async fn public() -> Site {
        Site::with("").await
    }

    async fn private() -> Site {
        Site::with("public = false").await
    }

    /// With these lines in the section `[server]` of the configuration.
    async fn with(server: &str) -> Site {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let config = Config::parse(&path("vivarium.toml"), &format!("[server]\n{server}")).unwrap();
        let config = Arc::new(config);
        let server = config.server.clone();
        let store = Store::open(&path("vivarium.sqlite")).await.unwrap();
        let objects = Objects::open(&path("objects").display().to_string(), &Default::default());
        let objects = objects.unwrap();
        let logs = Logs::open(path("logs"), 1 << 20, store.clone(), objects.clone()).unwrap();
        let public_url = config.server.public_url.clone();
        let public_url = public_url.unwrap_or(format!("http://{HOST}/").parse().unwrap());
        let signals = Signals::default();
        let passed = Arc::new(AtomicI64::new(0));
        let hours = passed.clone();
        let clock = Clock::of(move || Timestamp::now() + hours.load(Ordering::SeqCst).hours());
        let pauses = Pauses::of(&config, store.clone(), SharedBacklog::default());
        let artifacts = Artifacts::open(path("artifacts"), store.clone(), objects.clone()).unwrap();
        let ledger = Ledger::new(
            store.clone(),
            signals.clone(),
            config.clone(),
            public_url.clone(),
            clock.clone(),
        );
        let token_file = path("api-token");
        let access = Access::open(&server, &token_file, &public_url, store.clone(), clock);
        let app = App {
            ledger: ledger.clone(),
            intake: Intake {
                ledger,
                sources: Arc::new(Sources::new(path("mirrors"), None)),
                config,
            },
            logs: logs.clone(),
            artifacts,
            platforms: Platforms::load(path("platforms")),
            certificates: Register::default(),
            access: access.await.unwrap(),
            bounds: Bounds::new(&server),
            pauses,
            pulses: signals.pulses,
        };
        let webhooks = Webhooks::new(
            store.clone(),
            Secrets::read(&[]).unwrap(),
            signals.deliveries,
        );
        Site {
            routes: routes(app, webhooks),
            dir,
            passed,
            store,
            logs,
            objects,
        }
    }

    fn local_token(&self) -> String {
        let text = std::fs::read_to_string(self.dir.path().join("api-token")).unwrap();
        text.trim().to_owned()
    }

    /// A job with a line of output and an artefact.
    async fn job(&self) -> JobId {
        let job = self.store.insert_bare_job().await;
        let mut log = self.logs.writer(job).await.unwrap();
        log.append(b"a line\n").await.unwrap();
        log.sync().await.unwrap();
        let bytes = bytes::Bytes::from_static(b"artefact");
        self.objects.put("artifacts/x", bytes).await.unwrap();
        self.record_artifact(job, "dist/a file.html").await;
        job
    }

    async fn record_artifact(&self, job: JobId, path: &str) {
        let row = ArtifactRow {
            path: path.to_owned(),
            size: 8,
            sha256: "00".to_owned(),
            object: "artifacts/x".to_owned(),
        };
        self.store.record_artifacts(job, &[row]).await.unwrap();
    }

    /// The answer as it begins, to a request from somewhere.
    async fn begin(&self, from: &str, mut request: Request<Body>) -> Response {
        let peer = SocketAddr::new(from.parse().unwrap(), 4711);
        request.extensions_mut().insert(ConnectInfo(peer));
        self.routes.clone().oneshot(request).await.unwrap()
    }

    async fn ask(&self, request: Request<Body>) -> Answer {
        let response = self.begin("127.0.0.1", request).await;
        let (parts, body) = response.into_parts();
        Answer {
            status: parts.status,
            headers: parts.headers,
            body: to_bytes(body, usize::MAX).await.unwrap().to_vec(),
        }
    }

    async fn get(&self, path: &str) -> Answer {
        self.get_with(path, &[]).await
    }

    async fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.ask(request("GET", path, headers, "")).await
    }

    async fn post(&self, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        self.ask(request("POST", path, headers, body)).await
    }
}

fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Request<Body> {
    let mut request = Request::builder()
        .method(method)
        .uri(path.parse::<Uri>().unwrap())
        .header("host", HOST);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Body::from(body.to_owned())).unwrap()
}
