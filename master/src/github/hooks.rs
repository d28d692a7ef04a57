//! What GitHub has delivered to our webhooks, and what it could not deliver. It keeps its log for three days, an
//! Enterprise server for seven.

use super::auth::Whom;
use super::read::{Listed, Pages};
use super::transport::Call;
use super::{GitHub, GitHubError};
use http::StatusCode;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

/// GitHub's own cap on an event, and what is around it in the answer.
const MOST_DELIVERY_BYTES: usize = 32 << 20;
const PER_PAGE: usize = 100;
/// Pages of a log that are read at once: eight thousand deliveries.
const MOST_PAGES: usize = 80;

/// Whose deliveries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeliveryLog {
    /// Of the App's own hook.
    App,
    Repository {
        repository: String,
        hook: i64,
    },
}

/// A hook of a repository.
#[derive(Debug, Clone, Deserialize)]
pub struct Hook {
    pub id: i64,
    #[serde(default)]
    pub config: HookConfig,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub struct HookConfig {
    #[serde(default)]
    pub url: Option<String>,
}

/// One attempt to deliver an event. Attempts of the same event share its GUID.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct LoggedDelivery {
    pub id: i64,
    pub guid: String,
    pub delivered_at: Timestamp,
    /// Of the answer; 0 without one.
    pub status_code: i64,
    pub event: String,
}

#[derive(Debug, Deserialize)]
struct Detail {
    request: DetailRequest,
}

#[derive(Debug, Deserialize)]
struct DetailRequest {
    #[serde(default)]
    payload: Value,
}

impl DeliveryLog {
    /// A name to remember it by.
    pub fn name(&self) -> String {
        match self {
            DeliveryLog::App => "app".to_owned(),
            DeliveryLog::Repository { repository, hook } => format!("{repository} hook {hook}"),
        }
    }

    fn path(&self) -> String {
        match self {
            DeliveryLog::App => "/app/hook/deliveries".to_owned(),
            DeliveryLog::Repository { repository, hook } => {
                format!("/repos/{repository}/hooks/{hook}/deliveries")
            }
        }
    }

    fn whom(&self) -> Whom<'_> {
        match self {
            DeliveryLog::App => Whom::App,
            DeliveryLog::Repository { repository, .. } => Whom::Repository(repository),
        }
    }
}

impl GitHub {
    /// The hooks of a repository; `None` where we may not see them.
    pub async fn hooks(
        &self,
        repository: &str,
        pages: &mut Pages<Hook>,
    ) -> Result<Option<Listed<Hook>>, GitHubError> {
        let path = format!("/repos/{repository}/hooks?per_page={PER_PAGE}");
        match self.list(Whom::Repository(repository), path, pages).await {
            Ok(listed) => Ok(Some(listed)),
            Err(GitHubError::Answer {
                status: StatusCode::NOT_FOUND | StatusCode::FORBIDDEN,
                ..
            }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What was delivered since then, newest first. Not whole when there was more than is read; none for an App
    /// without a hook.
    pub async fn deliveries(
        &self,
        log: &DeliveryLog,
        since: Timestamp,
    ) -> Result<Listed<LoggedDelivery>, GitHubError> {
        let mut path = format!("{}?per_page={PER_PAGE}", log.path());
        let mut items: Vec<LoggedDelivery> = Vec::new();
        for _ in 0..MOST_PAGES {
            let call = Call::get(&path).at_most(MOST_DELIVERY_BYTES);
            let reply = match self.ask(log.whom(), &call).await {
                Err(GitHubError::Answer {
                    status: StatusCode::NOT_FOUND,
                    ..
                }) if *log == DeliveryLog::App => break,
                reply => reply?,
            };
            let page: Vec<LoggedDelivery> = reply.parsed(&path)?;
            let is_old_enough = page.iter().any(|delivery| delivery.delivered_at < since);
            items.extend(page.into_iter().filter(|known| known.delivered_at >= since));
            match self.next_of(&reply).filter(|_| !is_old_enough) {
                Some(next) => path = next,
                None => {
                    return Ok(Listed {
                        items,
                        is_whole: true,
                    });
                }
            }
        }
        Ok(Listed {
            is_whole: items.is_empty(),
            items,
        })
    }

    /// The event itself; `None` once GitHub has forgotten it.
    pub async fn delivered_event(
        &self,
        log: &DeliveryLog,
        id: i64,
    ) -> Result<Option<Value>, GitHubError> {
        let path = format!("{}/{id}", log.path());
        let call = Call::get(&path).at_most(MOST_DELIVERY_BYTES);
        match self.ask(log.whom(), &call).await {
            Ok(reply) => Ok(Some(reply.parsed::<Detail>(&path)?.request.payload)),
            Err(GitHubError::Answer {
                status: StatusCode::NOT_FOUND,
                ..
            }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub fn is_app(&self) -> bool {
        self.auth.is_app()
    }
}
