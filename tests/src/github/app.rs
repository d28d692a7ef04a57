//! GitHub Apps: who signs for itself with a key, is installed by owners, and hears of their repositories by one hook.

use super::GitHub;
use super::hook::{Hook, HookOf};
use super::state::{AccountKind, Token};
use anyhow::{Context, Result, bail};
use jiff::{SignedDuration, Timestamp};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};

/// GitHub takes no JWT that is valid for longer,
const LONGEST_JWT: i64 = 600;
/// nor one that was issued later than this by its own clock.
const CLOCK_SKEW: i64 = 60;
/// An installation's token.
const TOKEN_LIFE: SignedDuration = SignedDuration::from_hours(1);

/// An App as GitHub knows it. One installation is enough here.
#[derive(Debug, Clone)]
pub(super) struct AppRecord {
    pub(super) id: u64,
    pub(super) slug: String,
    pub(super) owner: String,
    pub(super) installation: u64,
    pub(super) repositories: BTreeSet<String>,
    /// PEM, in PKCS#1.
    public_key: String,
}

/// What the App's owner has of it.
#[derive(Debug, Clone)]
pub struct App {
    pub id: u64,
    pub installation: u64,
    /// PEM, in PKCS#1 as GitHub gives it out.
    pub private_key: String,
}

#[derive(Debug, Deserialize)]
struct Claims {
    /// A number or its text.
    iss: Value,
    iat: i64,
    exp: i64,
}

impl GitHub {
    /// Registers an App and installs it on these repositories of one owner.
    pub fn create_app(&self, slug: &str, repositories: &[&str]) -> Result<App> {
        let (private_key, public_key) = key_pair(self.repositories_folder())?;
        let owner = repositories
            .first()
            .and_then(|name| name.split('/').next())
            .context("an App is installed on a repository at least")?
            .to_owned();
        let mut state = self.state();
        state.account(&format!("{slug}[bot]"), AccountKind::Bot);
        let id = state.next_id().unsigned_abs();
        let installation = state.next_id().unsigned_abs();
        state.apps.push(AppRecord {
            id,
            slug: slug.to_owned(),
            owner,
            installation,
            repositories: repositories.iter().map(|&name| name.to_owned()).collect(),
            public_key,
        });
        Ok(App {
            id,
            installation,
            private_key,
        })
    }

    /// Gives the App its webhook, which hears of all repositories that it is installed on.
    pub async fn add_app_hook(&self, app: &App, url: &str, secret: &str) -> Result<i64> {
        let (hook, repository) = {
            let mut state = self.state();
            let record = state.app(app.id).context("no such App")?;
            let repository = record.repositories.first().cloned().unwrap_or_default();
            let hook = Hook {
                id: state.next_id(),
                of: HookOf::App(app.id),
                url: url.to_owned(),
                secret: secret.to_owned(),
                events: ["push", "pull_request", "merge_group"]
                    .map(str::to_owned)
                    .to_vec(),
                active: true,
                created_at: Timestamp::now(),
            };
            state.hooks.push(hook.clone());
            (hook, repository)
        };
        self.ping(&hook, &repository).await;
        Ok(hook.id)
    }

    /// Every token that was given to an installation ends now.
    pub fn expire_installation_tokens(&self) {
        let now = Timestamp::now();
        for token in self.state().tokens.values_mut() {
            if token.expires_at.is_some() {
                token.expires_at = Some(now);
            }
        }
    }

    /// The App that signed this, or GitHub's words about what is wrong with it.
    pub(super) fn app_of_jwt(&self, jwt: &str) -> std::result::Result<u64, &'static str> {
        let undecodable = "A JSON web token could not be decoded";
        let state = self.state();
        let mut validation = Validation::new(Algorithm::RS256);
        // GitHub's own rules on times are stricter, and checked below.
        validation.validate_exp = false;
        validation.required_spec_claims.clear();
        let decoded = state.apps.iter().find_map(|app| {
            let key = DecodingKey::from_rsa_pem(app.public_key.as_bytes()).ok()?;
            let claims = jsonwebtoken::decode::<Claims>(jwt, &key, &validation).ok()?;
            Some((app.id, claims.claims))
        });
        let (id, claims) = decoded.ok_or(undecodable)?;
        let issuer = match &claims.iss {
            Value::String(text) => text.parse().ok(),
            other => other.as_u64(),
        };
        let now = Timestamp::now().as_second();
        if issuer != Some(id) {
            Err("'Issuer' claim ('iss') must be an Integer or String")
        } else if claims.iat > now + CLOCK_SKEW {
            Err(
                "'Issued at' claim ('iat') must be an Integer representing the time that the assertion was issued",
            )
        } else if claims.exp <= now {
            Err(
                "'Expiration time' claim ('exp') must be a numeric value representing the future time at which the assertion expires",
            )
        } else if claims.exp - now > LONGEST_JWT {
            Err("'Expiration time' claim ('exp') is too far in the future")
        } else {
            Ok(id)
        }
    }

    /// A token of an hour for an installation; the token and its end.
    pub(super) fn issue_installation_token(&self, app: &AppRecord) -> (String, Timestamp) {
        let token = format!("ghs_{}", super::guid().replace('-', ""));
        let expires_at = Timestamp::now() + TOKEN_LIFE;
        self.state().tokens.insert(
            token.clone(),
            Token {
                login: format!("{}[bot]", app.slug),
                repositories: app.repositories.clone(),
                writes: true,
                sees_hooks: false,
                expires_at: Some(expires_at),
                used: 0,
            },
        );
        (token, expires_at)
    }
}

/// An RSA key in the form in which GitHub gives it out, and its public half.
fn key_pair(folder: &Path) -> Result<(String, String)> {
    let file = folder.join(format!("app-key-{}", super::guid()));
    let run = |arguments: &[&str]| -> Result<String> {
        let output = Command::new("ssh-keygen")
            .args(arguments)
            .arg("-f")
            .arg(&file)
            .stdin(Stdio::null())
            .output()
            .context("cannot run ssh-keygen")?;
        if !output.status.success() {
            bail!("ssh-keygen ended with {}", output.status);
        }
        Ok(String::from_utf8(output.stdout)?)
    };
    run(&["-q", "-t", "rsa", "-b", "2048", "-m", "PEM", "-N", ""])?;
    let public = run(&["-e", "-m", "PEM"])?;
    let private = std::fs::read_to_string(&file)?;
    std::fs::remove_file(&file)?;
    Ok((private, public))
}
