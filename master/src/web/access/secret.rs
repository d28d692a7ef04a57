//! Secrets that the master makes, and their digests.

use anyhow::Context;
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// The name of the token that the command line on the master's own machine uses.
pub const LOCAL_TOKEN: &str = "local";
/// Shorter ones in a file were not made by a random generator.
const SHORTEST: usize = 32;

/// A secret of 256 random bits, in plain: to be shown or sent once.
pub(super) fn random() -> String {
    hex::encode(rand::random::<[u8; 32]>())
}

/// What the database has of a secret. The secrets are random and long, so that a plain hash cannot be turned back.
pub(super) fn digest(secret: &str) -> String {
    hex::encode(Sha256::digest(secret.as_bytes()))
}

/// A token in plain, as it lies in the file of whoever uses it; its `Debug` hides it.
#[derive(Debug)]
pub struct ApiToken(SecretString);

impl ApiToken {
    /// A new one. The prefix tells people and scanners what they have found.
    pub(super) fn make() -> ApiToken {
        ApiToken(format!("viv_{}", random()).into())
    }

    /// Reads the file, making it with a new token, for its owner alone, if it is not there.
    pub(super) fn read_or_make(path: &Path) -> anyhow::Result<ApiToken> {
        if !path.exists() {
            let mut file = std::fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(path)
                .with_context(|| format!("cannot make the token file {}", path.display()))?;
            writeln!(file, "{}", ApiToken::make().expose())
                .with_context(|| format!("cannot write the token file {}", path.display()))?;
        }
        ApiToken::read(path)
    }

    pub fn read(path: &Path) -> anyhow::Result<ApiToken> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the token file {}", path.display()))?;
        let token = text.trim();
        anyhow::ensure!(
            token.len() >= SHORTEST,
            "the token file {} holds fewer than {SHORTEST} characters\nhint: remove it and restart the master to have one made",
            path.display()
        );
        Ok(ApiToken(token.into()))
    }

    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}
