//! Refusals in GitHub's own words.

use super::Refusal;
use crate::github::server::json_reply;
use serde_json::json;

pub(in crate::github) fn message(status: u16, text: &str) -> Refusal {
    Box::new(json_reply(
        status,
        &json!({
            "message": text,
            "documentation_url": "https://docs.github.com/rest",
            "status": status.to_string(),
        }),
    ))
}

pub(in crate::github) fn not_found() -> Refusal {
    message(404, "Not Found")
}

pub(in crate::github) fn bad_credentials() -> Refusal {
    message(401, "Bad credentials")
}

pub(in crate::github) fn rate_limit_exceeded() -> Refusal {
    message(
        403,
        "API rate limit exceeded. (But here's the good news: Authenticated requests get a higher rate limit. Check out the documentation for more details.)",
    )
}

pub(in crate::github) fn no_commit(sha: &str) -> Refusal {
    message(422, &format!("No commit found for SHA: {sha}"))
}
