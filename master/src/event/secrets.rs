//! The webhook's secrets, from their files; read again when these change, so that a rotation needs no restart.

use crate::config::{Reread, Watched};
use secrecy::SecretString;
use std::path::PathBuf;
use std::sync::Arc;

/// A file with a webhook secret cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("cannot read the webhook secret {path}: {source}")]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error(
        "the webhook secret {path} is empty, so anybody could sign with it\nhint: `openssl rand -hex 32 > {path}`, and the same text as the webhook's secret on GitHub"
    )]
    Empty { path: PathBuf },
}

/// The secrets that deliveries may be signed with; clones share them.
#[derive(Debug, Clone)]
pub struct Secrets {
    files: Arc<[Watched<SecretString>]>,
}

impl Secrets {
    /// Reads the files; each must hold a secret now.
    pub fn read(paths: &[PathBuf]) -> Result<Secrets, SecretError> {
        let files: Vec<Watched<SecretString>> =
            paths.iter().map(|path| Watched::new(path)).collect();
        for file in &files {
            secret(file)?;
        }
        Ok(Secrets {
            files: files.into(),
        })
    }

    /// What the files hold now. A file that became unreadable keeps its last secret.
    pub(super) fn current(&self) -> Vec<SecretString> {
        self.files
            .iter()
            .filter_map(|file| {
                let is_news = file.has_changed();
                match secret(file) {
                    Ok(secret) => {
                        if is_news {
                            tracing::info!(path = %file.path().display(), "the webhook secret was read again");
                        }
                        Some(secret)
                    }
                    Err(error) => {
                        if is_news {
                            tracing::warn!(%error, "the secret that was read before stays valid");
                        }
                        file.last()
                    }
                }
            })
            .collect()
    }
}

/// The secret in a file, without the newline that editors add.
fn secret(file: &Watched<SecretString>) -> Result<SecretString, SecretError> {
    file.get(Reread::IfChanged, |text| {
        let path = || file.path().to_owned();
        let text = text.map_err(|source| SecretError::Read {
            path: path(),
            source,
        })?;
        let secret = text.strip_suffix('\n').unwrap_or(&text);
        let secret = secret.strip_suffix('\r').unwrap_or(secret);
        match secret.is_empty() {
            true => Err(SecretError::Empty { path: path() }),
            false => Ok(SecretString::from(secret)),
        }
    })
}
