//! Long lists in pages, and answers that have not changed.

use super::Call;
use axum::response::Response;
use http::{HeaderValue, Method, StatusCode, header};
use sha2::{Digest, Sha256};

const PER_PAGE: usize = 30;
const PER_PAGE_LIMIT: usize = 100;

pub(super) struct Page {
    pub(super) number: usize,
    pub(super) size: usize,
}

impl Page {
    pub(super) fn skip(&self) -> usize {
        (self.number - 1) * self.size
    }
}

impl Call<'_> {
    pub(super) fn page(&self) -> Page {
        let number = |name: &str, default: usize| {
            self.query
                .get(name)
                .and_then(|text| text.parse().ok())
                .unwrap_or(default)
        };
        Page {
            number: number("page", 1).max(1),
            size: number("per_page", PER_PAGE).clamp(1, PER_PAGE_LIMIT),
        }
    }

    /// The `Link` header of a page, with absolute addresses.
    pub(super) fn with_links(&self, mut response: Response, page: &Page, count: usize) -> Response {
        let last = count.div_ceil(page.size).max(1);
        let path = self.parts.uri.path();
        let link = |number: usize, relation: &str| {
            let mut query: Vec<String> = self
                .query
                .iter()
                .filter(|(name, _)| *name != "page" && *name != "per_page")
                .map(|(name, value)| format!("{name}={value}"))
                .collect();
            query.sort();
            query.push(format!("per_page={}", page.size));
            query.push(format!("page={number}"));
            format!(
                "<{}{path}?{}>; rel=\"{relation}\"",
                self.github.url(),
                query.join("&")
            )
        };
        let mut links = Vec::new();
        if page.number > 1 {
            links.push(link(page.number - 1, "prev"));
        }
        if page.number < last {
            links.push(link(page.number + 1, "next"));
            links.push(link(last, "last"));
        }
        if page.number > 1 {
            links.push(link(1, "first"));
        }
        if let (false, Ok(value)) = (links.is_empty(), HeaderValue::from_str(&links.join(", "))) {
            response.headers_mut().insert(header::LINK, value);
        }
        response
    }

    /// Adds an `ETag` to what was read, and says 304 to whom has it already. Such an answer costs nothing.
    pub(super) async fn if_changed(&self, response: Response) -> Response {
        if self.parts.method != Method::GET || response.status() != StatusCode::OK {
            return response;
        }
        let (mut parts, body) = response.into_parts();
        let bytes = axum::body::to_bytes(body, usize::MAX)
            .await
            .unwrap_or_default();
        let tag = format!("W/\"{}\"", hex::encode(Sha256::digest(&bytes)));
        if let Ok(value) = HeaderValue::from_str(&tag) {
            parts.headers.insert(header::ETAG, value);
        }
        let known = self
            .parts
            .headers
            .get(header::IF_NONE_MATCH)
            .is_some_and(|value| value.as_bytes() == tag.as_bytes());
        if !known {
            return Response::from_parts(parts, bytes.into());
        }
        if let Some(token) = &self.token
            && let Some(holder) = self.github.state().tokens.get_mut(token)
        {
            holder.used = holder.used.saturating_sub(1);
        }
        parts.status = StatusCode::NOT_MODIFIED;
        parts.headers.remove(header::CONTENT_TYPE);
        Response::from_parts(parts, axum::body::Body::empty())
    }
}
