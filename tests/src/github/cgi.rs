//! Git's smart HTTP by `git http-backend`: one process a request, bodies streamed both ways.

use super::server::{Incoming, text_reply};
use anyhow::{Context, Result};
use axum::body::Body;
use axum::response::Response;
use futures::StreamExt;
use http::{HeaderName, HeaderValue, StatusCode};
use std::path::Path;
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio_util::io::ReaderStream;

/// Serves `/<owner>/<name>.git/<rest>` from the folder of repositories.
pub(super) async fn serve(root: &Path, path: &str, incoming: Incoming) -> Response {
    match run(root, path, incoming).await {
        Ok(response) => response,
        Err(error) => {
            tracing::error!("git http-backend: {error:#}");
            text_reply(StatusCode::INTERNAL_SERVER_ERROR, "git http-backend failed")
        }
    }
}

async fn run(root: &Path, path: &str, incoming: Incoming) -> Result<Response> {
    let header = |name: &str| {
        incoming
            .parts
            .headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
            .to_owned()
    };
    let mut command = crate::git::command();
    command
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("PATH_INFO", path)
        .env("REQUEST_METHOD", incoming.parts.method.as_str())
        .env(
            "QUERY_STRING",
            incoming.parts.uri.query().unwrap_or_default(),
        )
        .env("CONTENT_TYPE", header("content-type"))
        .env("HTTP_CONTENT_ENCODING", header("content-encoding"))
        .env("GIT_PROTOCOL", header("git-protocol"))
        .env("REMOTE_ADDR", "127.0.0.1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit());
    let length = header("content-length");
    if !length.is_empty() {
        command.env("CONTENT_LENGTH", length);
    }
    let mut child = command.spawn().context("cannot run git http-backend")?;
    let mut stdin = child.stdin.take().context("no stdin")?;
    let stdout = child.stdout.take().context("no stdout")?;

    let mut request_body = incoming.body.into_data_stream();
    tokio::spawn(async move {
        while let Some(Ok(chunk)) = request_body.next().await {
            // git closes its stdin once it has read all it wants.
            if stdin.write_all(&chunk).await.is_err() {
                break;
            }
        }
    });

    let mut reader = BufReader::new(stdout);
    let mut response = Response::new(Body::empty());
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).await?;
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').context("not a CGI header")?;
        let value = value.trim();
        if name.eq_ignore_ascii_case("status") {
            let code = value.split(' ').next().unwrap_or_default();
            *response.status_mut() = StatusCode::from_bytes(code.as_bytes())?;
        } else {
            response.headers_mut().append(
                HeaderName::from_bytes(name.as_bytes())?,
                HeaderValue::from_str(value)?,
            );
        }
    }
    // The process lives as long as its output is read: dropping the stream kills it.
    let output = ReaderStream::new(reader).map(move |chunk| {
        let _keep = &child;
        chunk
    });
    *response.body_mut() = Body::from_stream(output);
    Ok(response)
}
