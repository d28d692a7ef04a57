//! The token, from its file; read again when the file changes, so that rotating it needs no restart.

use super::error::GitHubError;
use crate::config::{Reread, Watched};
use http::HeaderValue;
use secrecy::{ExposeSecret, SecretString};
use std::path::Path;

/// The token in a file.
#[derive(Debug)]
pub(super) struct TokenFile {
    file: Watched<SecretString>,
}

impl TokenFile {
    pub(super) fn new(path: &Path) -> TokenFile {
        TokenFile {
            file: Watched::new(path),
        }
    }

    pub(super) fn path(&self) -> &Path {
        self.file.path()
    }

    /// Whether the file holds something else than what was read last.
    pub(super) fn has_changed(&self) -> bool {
        self.file.has_changed()
    }

    pub(super) fn token(&self, reread: Reread) -> Result<SecretString, GitHubError> {
        self.file.get(reread, |text| {
            let text = text.map_err(|source| GitHubError::TokenFile {
                path: self.path().to_owned(),
                source,
            })?;
            let token = text.trim();
            match !token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic()) {
                true => Ok(SecretString::from(token)),
                false => Err(GitHubError::NoToken {
                    path: self.path().to_owned(),
                }),
            }
        })
    }
}

/// The `Authorization` header of a token or JWT, marked sensitive: its `Debug` says so and nothing else. `None` for
/// what cannot be in a header.
pub(super) fn bearer(token: &SecretString) -> Option<HeaderValue> {
    let mut header = HeaderValue::from_str(&format!("Bearer {}", token.expose_secret())).ok()?;
    header.set_sensitive(true);
    Some(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_never_printed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let file = TokenFile::new(&path);
        assert!(file.token(Reread::IfChanged).is_err());
        std::fs::write(&path, "ghp_secret\n").unwrap();
        let token = file.token(Reread::IfChanged).unwrap();
        let header = bearer(&token).unwrap();
        assert_eq!(header.to_str().unwrap(), "Bearer ghp_secret");
        assert!(!format!("{file:?} {token:?} {header:?}").contains("ghp_"));
        std::fs::write(&path, "two words secret").unwrap();
        let error = file.token(Reread::Always).unwrap_err();
        assert!(!format!("{error:?} {error}").contains("words"));
    }

    #[test]
    fn a_rotated_token_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        std::fs::write(&path, "first").unwrap();
        let file = TokenFile::new(&path);
        file.token(Reread::IfChanged).unwrap();
        assert!(!file.has_changed());
        std::fs::write(&path, "the-second").unwrap();
        assert!(file.has_changed());
        let token = file.token(Reread::IfChanged).unwrap();
        assert_eq!(token.expose_secret(), "the-second");
        assert!(!file.has_changed());
    }
}
