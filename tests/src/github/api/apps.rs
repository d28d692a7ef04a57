//! What an App may ask as itself, with a JWT: who it is, where it is installed, tokens, the log of its hook.

use super::refusal::{message, not_found};
use super::{Call, Reply};
use crate::github::app::AppRecord;
use crate::github::server::json_reply;
use crate::github::shape;
use axum::response::Response;
use http::Method;
use serde_json::{Value, json};

/// What the fake's Apps may do, as their pages would say.
fn permissions() -> Value {
    json!({ "metadata": "read", "contents": "read", "pull_requests": "read", "statuses": "write", "merge_queues": "read" })
}

impl Call<'_> {
    /// Paths that only an App may ask for.
    pub(super) fn is_for_apps(segments: &[&str]) -> bool {
        matches!(segments, ["app", ..] | ["repos", _, _, "installation"])
    }

    pub(super) fn route_app(&self, segments: &[&str]) -> Reply {
        let id = self
            .app
            .ok_or_else(|| message(401, "A JSON web token could not be decoded"))?;
        let app = self.github.state().app(id).ok_or_else(not_found)?;
        match (&self.parts.method, segments) {
            (&Method::GET, ["app"]) => Ok(self.describe_app(&app)),
            (&Method::GET, ["app", "installations"]) => {
                Ok(json_reply(200, &json!([self.installation(&app)])))
            }
            (&Method::GET, ["repos", owner, name, "installation"]) => {
                let name = format!("{owner}/{name}");
                let is_installed = app
                    .repositories
                    .iter()
                    .any(|known| known.eq_ignore_ascii_case(&name));
                match is_installed {
                    true => Ok(json_reply(200, &self.installation(&app))),
                    false => Err(not_found()),
                }
            }
            (&Method::POST, ["app", "installations", installation, "access_tokens"]) => {
                if *installation != app.installation.to_string() {
                    return Err(not_found());
                }
                let (token, expires_at) = self.github.issue_installation_token(&app);
                Ok(json_reply(
                    201,
                    &json!({
                        "token": token,
                        "expires_at": shape::time(expires_at),
                        "permissions": permissions(),
                        "repository_selection": "selected",
                    }),
                ))
            }
            (&Method::GET, ["app", "hook", "deliveries"]) => {
                self.list_deliveries(&self.app_log(id)?)
            }
            (&Method::GET, ["app", "hook", "deliveries", delivery]) => {
                self.get_delivery(&self.app_log(id)?, delivery)
            }
            (&Method::POST, ["app", "hook", "deliveries", delivery, "attempts"]) => {
                self.redeliver(&self.app_log(id)?, delivery)
            }
            _ => Err(not_found()),
        }
    }

    fn describe_app(&self, app: &AppRecord) -> Response {
        let state = self.github.state();
        json_reply(
            200,
            &json!({
                "id": app.id,
                "slug": app.slug,
                "client_id": format!("Iv1.{:016x}", app.id),
                "node_id": "",
                "owner": self.github.shapes().account(&state.known_account(&app.owner)),
                "name": app.slug,
                "description": "",
                "external_url": "https://ci.example.org",
                "html_url": format!("{}/apps/{}", self.github.url(), app.slug),
                "created_at": "2026-01-01T00:00:00Z",
                "updated_at": "2026-01-01T00:00:00Z",
                "permissions": permissions(),
                "events": ["push", "pull_request", "merge_group"],
            }),
        )
    }

    fn installation(&self, app: &AppRecord) -> Value {
        let state = self.github.state();
        let base = self.github.api_url();
        let owner = state.known_account(&app.owner);
        json!({
            "id": app.installation,
            "account": self.github.shapes().account(&owner),
            "repository_selection": "selected",
            "access_tokens_url": format!("{base}/app/installations/{}/access_tokens", app.installation),
            "repositories_url": format!("{base}/installation/repositories"),
            "html_url": format!("{}/settings/installations/{}", self.github.url(), app.installation),
            "app_id": app.id,
            "target_id": owner.id,
            "target_type": owner.kind.as_str(),
            "permissions": permissions(),
            "events": ["push", "pull_request", "merge_group"],
            "created_at": "2026-01-01T00:00:00Z",
            "updated_at": "2026-01-01T00:00:00Z",
            "single_file_name": null,
            "app_slug": app.slug,
            "suspended_by": null,
            "suspended_at": null,
        })
    }
}
