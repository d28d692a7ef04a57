//! Speaks to a running master.

use super::Remote;
use crate::model::AfterDrain;
#[cfg(doc)]
use crate::web::LOG_LENGTH;
use crate::web::{ApiToken, BuildView, DrainRequest, DrainView, JobView, TokenView};
use anyhow::{Context, bail};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::time::Duration;

/// A master that does not answer in this time is not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A master somewhere.
#[derive(Debug)]
pub(super) struct Client {
    http: reqwest::Client,
    remote: Remote,
}

impl Client {
    pub(super) fn new(remote: &Remote) -> anyhow::Result<Client> {
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .build()
            .context("cannot set up HTTP")?;
        Ok(Client {
            http,
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

    pub(super) async fn build(&self, id: &str) -> anyhow::Result<BuildView> {
        self.json(self.request(Method::GET, &format!("api/builds/{id}"))?)
            .await
    }

    pub(super) async fn job(&self, id: &str) -> anyhow::Result<JobView> {
        self.json(self.request(Method::GET, &format!("api/jobs/{id}"))?)
            .await
    }

    /// The log from a byte on: its bytes as they come. The header [`LOG_LENGTH`] says where they end.
    pub(super) async fn log(&self, id: &str, from: u64) -> anyhow::Result<Response> {
        let request = self.request(Method::GET, &format!("api/jobs/{id}/log"))?;
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
        parsed(checked(self.answer(request).await?).await?).await
    }

    fn token(&self) -> anyhow::Result<ApiToken> {
        ApiToken::read(&self.remote.token_file).context(
            "this needs a token\nhint: give --token-file; on the master's machine it is the file `api-token` in its data folder",
        )
    }

    fn request(&self, method: Method, path: &str) -> anyhow::Result<RequestBuilder> {
        let url = self
            .remote
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
        checked(response).await
    }

    async fn answer(&self, request: RequestBuilder) -> anyhow::Result<Response> {
        request.send().await.with_context(|| {
            format!(
                "no master answers at {}\nhint: start one with `vivarium serve`, or give --url",
                self.remote.url
            )
        })
    }

    async fn json<T: DeserializeOwned>(&self, request: RequestBuilder) -> anyhow::Result<T> {
        parsed(self.send(request).await?).await
    }
}

/// The answer, if it is a good one; else what the master said.
async fn checked(response: Response) -> anyhow::Result<Response> {
    if response.status().is_success() {
        return Ok(response);
    }
    let status = response.status();
    let body: serde_json::Value = response.json().await.unwrap_or_default();
    match body.get("error").and_then(|error| error.as_str()) {
        Some(error) => bail!("{error}"),
        None => bail!("the master answered {status}"),
    }
}

async fn parsed<T: DeserializeOwned>(response: Response) -> anyhow::Result<T> {
    response
        .json()
        .await
        .context("the master's answer is not understood")
}
