//! What the doctor finds out about GitHub: whether it answers, knows us, and lets us write.

use super::super::terminal::told;
use super::{Finding, fault, good, note};
use crate::config::Config;
use crate::github::{AppCheck, GitHub, GitHubCheck, GitHubError, RepositoryCheck};

const WHAT: &str = "GitHub";
const APP_PERMISSIONS: [(&str, &str); 3] = [
    ("statuses", "write"),
    ("contents", "read"),
    ("pull_requests", "read"),
];

pub(super) async fn look(config: &Config, findings: &mut Vec<Finding>) {
    if !config.github.has_credentials() {
        findings.push(note(
            WHAT,
            "no token is configured: repositories are polled, no status is reported",
        ));
        return;
    }
    if config.github.webhook_secret_files.is_empty() {
        findings.push(note(
            WHAT,
            "no webhook secret is configured: every delivery is refused",
        ));
    }
    let github = match GitHub::new(&config.github) {
        Ok(github) => github,
        Err(error) => return findings.push(fault(WHAT, told(&error.into()))),
    };
    let check = match github.check().await {
        Ok(check) => check,
        Err(error) => return findings.push(fault(WHAT, told(&error.into()))),
    };
    findings.push(good(WHAT, answered(&check)));
    if let GitHubCheck::App(app) = &check {
        findings.extend(missing_permissions(app));
    }
    for repository in config.repositories.iter().filter(|r| r.is_github()) {
        let found = github.check_repository(&repository.name).await;
        findings.push(repository_finding(&repository.name, &check, found));
    }
}

/// What an App needs for its work, and has not been given.
fn missing_permissions(app: &AppCheck) -> Option<Finding> {
    let missing: Vec<String> = APP_PERMISSIONS
        .into_iter()
        .filter(|(name, level)| {
            let has = app.permissions.get(*name).map(String::as_str);
            has != Some("write") && has != Some(*level)
        })
        .map(|(name, level)| format!("{name}: {level}"))
        .collect();
    let hint = "give them on the App's page, and accept them where it is installed";
    (!missing.is_empty()).then(|| {
        fault(
            WHAT,
            format!(
                "the App lacks permissions: {}\nhint: {hint}",
                missing.join(", ")
            ),
        )
    })
}

fn repository_finding(
    name: &str,
    we_are: &GitHubCheck,
    found: Result<RepositoryCheck, GitHubError>,
) -> Finding {
    let found = match found {
        Ok(found) => found,
        Err(error) => return fault(WHAT, format!("{name}: {}", told(&error.into()))),
    };
    // What an App may do is in its own permissions.
    let is_token = matches!(we_are, GitHubCheck::Token(_));
    if is_token && found.may_write == Some(false) {
        let said = "the token's owner may not write there, so no status can be reported";
        let hint = "give that account write access, or use a token of one that has it";
        return fault(WHAT, format!("{name}: {said}\nhint: {hint}"));
    }
    if found.full_name != name {
        let hint = "use that name in the configuration";
        return note(
            WHAT,
            format!("{name} is now called {}\nhint: {hint}", found.full_name),
        );
    }
    good(WHAT, format!("{name} can be read"))
}

/// What GitHub said of us, as a sentence.
fn answered(check: &GitHubCheck) -> String {
    let mut parts = Vec::new();
    match check {
        GitHubCheck::Token(token) => {
            parts.push("answers and knows the token".to_owned());
            if let Some(scopes) = &token.scopes {
                parts.push(format!("its scopes: {}", scopes.join(", ")));
            }
            if let Some(end) = &token.token_expires {
                parts.push(format!("it ends {end}"));
            }
            if let (Some(limit), Some(remaining)) = (token.limit, token.remaining) {
                parts.push(format!("{remaining} of {limit} requests left this hour"));
            }
        }
        GitHubCheck::App(app) => {
            parts.push(format!("answers and knows the App {}", app.slug));
            let permissions = app.permissions.iter();
            let permissions: Vec<String> = permissions.map(|(k, v)| format!("{k}: {v}")).collect();
            parts.push(format!("its permissions: {}", permissions.join(", ")));
            parts.push(format!("its events: {}", app.events.join(", ")));
        }
    }
    parts.join("; ")
}
