//! Speaks to a running master.

use super::Remote;
use crate::fetch::is_here;
use crate::model::{AfterDrain, BuildId, JobId};
#[cfg(doc)]
use crate::web::LOG_LENGTH;
use crate::web::{ApiToken, BuildView, DrainRequest, DrainView, JobView, TokenView};
use anyhow::{Context, bail};
use bytes::Bytes;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::time::Duration;
use tokio::time::Instant;
use url::Url;

/// A master that does not answer in this time is not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A master that was there and is not is waited for: it may be restarted, and its jobs go on meanwhile.
const RESTART_PATIENCE: Duration = Duration::from_secs(120);
const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// A master somewhere.
#[derive(Debug)]
pub(super) struct Client {
    http: reqwest::Client,
    url: Url,
    remote: Remote,
}

/// Nobody took the request, or the answer broke off.
#[derive(Debug, thiserror::Error)]
#[error("no master answers at {url}: {why}\nhint: start one with `vivarium serve`, or give --url")]
struct NoMaster {
    url: Url,
    why: String,
}

impl Client {
    pub(super) fn new(remote: &Remote) -> anyhow::Result<Client> {
        let mut http = reqwest::Client::builder().connect_timeout(CONNECT_TIMEOUT);
        let mut url = remote.url.clone();
        // Paths are joined to it: without the slash its last part would go.
        if !url.path().ends_with('/') {
            let path = format!("{}/", url.path());
            url.set_path(&path);
        }
        if is_here(&url) {
            http = http.no_proxy();
        }
        Ok(Client {
            http: http.build().context("cannot set up HTTP")?,
            url,
            remote: remote.clone(),
        })
    }

    pub(super) async fn builds(&self, repository: Option<&str>) -> anyhow::Result<Vec<BuildView>> {
        let request = self.request(Method::GET, "api/builds")?;
        let query: Vec<(&str, &str)> = repository
            .map(|name| ("repository", name))
            .into_iter()
            .collect();
        self.json(request.query(&query)).await
    }

    pub(super) async fn build(&self, id: BuildId) -> anyhow::Result<BuildView> {
        self.json(self.request(Method::GET, &format!("api/builds/{}", id.0))?)
            .await
    }

    pub(super) async fn job(&self, id: JobId) -> anyhow::Result<JobView> {
        self.json(self.request(Method::GET, &format!("api/jobs/{}", id.0))?)
            .await
    }

    /// All platforms by whether they take work.
    pub(super) async fn platforms(&self) -> anyhow::Result<serde_json::Value> {
        self.json(self.request(Method::GET, "api/platforms")?).await
    }

    /// The log from a byte on: its bytes as they come. The header [`LOG_LENGTH`] says where they end.
    pub(super) async fn log(&self, id: JobId, from: u64) -> anyhow::Result<Response> {
        let request = self.request(Method::GET, &format!("api/jobs/{}/log", id.0))?;
        self.send(request.query(&[("from", from)])).await
    }

    /// Whether the master takes jobs, and what runs.
    pub(super) async fn drain(&self) -> anyhow::Result<DrainView> {
        self.json(self.request(Method::GET, "api/drain")?).await
    }

    pub(super) async fn begin_drain(&self, then: AfterDrain) -> anyhow::Result<DrainView> {
        self.act("api/drain", &DrainRequest { then }).await
    }

    pub(super) async fn resume(&self) -> anyhow::Result<DrainView> {
        self.act("api/resume", &serde_json::json!({})).await
    }

    pub(super) async fn next_chunk(
        &self,
        response: &mut Response,
    ) -> anyhow::Result<Option<Bytes>> {
        let chunk = response.chunk().await;
        Ok(chunk.map_err(|error| self.no_master(error))?)
    }

    pub(super) async fn tokens(&self) -> anyhow::Result<Vec<TokenView>> {
        self.json(self.request(Method::GET, "api/tokens")?).await
    }

    /// A POST that changes something.
    pub(super) async fn act<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> anyhow::Result<T> {
        self.change(Method::POST, path, body).await
    }

    /// A request that changes something.
    pub(super) async fn change<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &B,
    ) -> anyhow::Result<T> {
        let request = self.request(method, path)?;
        let request = request.bearer_auth(self.token()?.expose()).json(body);
        self.parsed(self.checked(self.answer(request).await?).await?)
            .await
    }

    fn token(&self) -> anyhow::Result<ApiToken> {
        ApiToken::read(&self.remote.token_file).context(
            "this needs a token\nhint: give --token-file; on the master's machine it is the file `api-token` in its data folder",
        )
    }

    /// Asks again and again while no master answers, for a bounded time.
    pub(super) async fn patiently<T>(
        &self,
        mut ask: impl AsyncFnMut(&Client) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let until = Instant::now() + RESTART_PATIENCE;
        loop {
            match ask(self).await {
                Err(error) if error.is::<NoMaster>() && Instant::now() < until => {
                    tokio::time::sleep(RESTART_PAUSE).await;
                }
                answer => return answer,
            }
        }
    }

    fn request(&self, method: Method, path: &str) -> anyhow::Result<RequestBuilder> {
        let url = self
            .url
            .join(path)
            .with_context(|| format!("`{}` is no address of a master", self.remote.url))?;
        Ok(self.http.request(method, url))
    }

    /// A request that only reads: the token goes along where the master asks for it, and not otherwise.
    async fn send(&self, request: RequestBuilder) -> anyhow::Result<Response> {
        let again = request.try_clone();
        let response = self.answer(request).await?;
        let response = match again {
            Some(again) if response.status() == StatusCode::UNAUTHORIZED => {
                self.answer(again.bearer_auth(self.token()?.expose()))
                    .await?
            }
            Some(_) | None => response,
        };
        self.checked(response).await
    }

    async fn answer(&self, request: RequestBuilder) -> anyhow::Result<Response> {
        let answer = request.send().await;
        Ok(answer.map_err(|error| self.no_master(error))?)
    }

    /// The first cause alone says it.
    fn no_master(&self, error: reqwest::Error) -> NoMaster {
        NoMaster {
            url: self.url.clone(),
            why: anyhow::Error::from(error).root_cause().to_string(),
        }
    }

    async fn json<T: DeserializeOwned>(&self, request: RequestBuilder) -> anyhow::Result<T> {
        self.parsed(self.send(request).await?).await
    }

    /// The answer, if it is a good one; else what the master said.
    async fn checked(&self, response: Response) -> anyhow::Result<Response> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body: serde_json::Value = response.json().await.unwrap_or_default();
        match body.get("error").and_then(|error| error.as_str()) {
            Some(error) if status == StatusCode::UNAUTHORIZED => bail!(
                "{error}: {}\nhint: give --token-file with a token that the master knows",
                self.remote.token_file.display()
            ),
            Some(error) => bail!("{error}"),
            None => bail!(
                "{} answered {status}\nhint: is that a Vivarium master? Give its address with --url",
                self.url
            ),
        }
    }

    async fn parsed<T: DeserializeOwned>(&self, response: Response) -> anyhow::Result<T> {
        let body = response.bytes().await;
        let body = body.map_err(|error| self.no_master(error))?;
        serde_json::from_slice(&body).with_context(|| {
            format!(
                "the answer of {} is not understood\nhint: is that a Vivarium master of this version?",
                self.url
            )
        })
    }
}
