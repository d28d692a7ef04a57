//! The token, from its file; read again when the file changes, so that rotating it needs no restart.

use super::github::GitHubError;
use http::HeaderValue;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

/// Whether the file is read even though it looks the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reread {
    IfChanged,
    Always,
}

/// The `Authorization` header that the file's token makes.
#[derive(Debug)]
pub(super) struct TokenFile {
    path: PathBuf,
    known: Mutex<Option<Known>>,
}

#[derive(Debug, Clone)]
struct Known {
    stamp: Option<(SystemTime, u64)>,
    /// Marked sensitive: its `Debug` says so and nothing else.
    header: HeaderValue,
}

impl TokenFile {
    pub(super) fn new(path: &Path) -> TokenFile {
        TokenFile {
            path: path.to_owned(),
            known: Mutex::new(None),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The header to send. Its file is a few bytes and local, so it is read here and now.
    pub(super) fn header(&self, reread: Reread) -> Result<HeaderValue, GitHubError> {
        let stamp = std::fs::metadata(&self.path)
            .and_then(|metadata| Ok((metadata.modified()?, metadata.len())))
            .ok();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Reread::IfChanged, Some(known)) = (reread, &*known)
            && known.stamp == stamp
        {
            return Ok(known.header.clone());
        }
        let text =
            std::fs::read_to_string(&self.path).map_err(|source| GitHubError::TokenFile {
                path: self.path.clone(),
                source,
            })?;
        let token = text.trim();
        let is_good = !token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic());
        let mut header = HeaderValue::from_str(&format!("Bearer {token}"))
            .ok()
            .filter(|_| is_good)
            .ok_or_else(|| GitHubError::NoToken {
                path: self.path.clone(),
            })?;
        header.set_sensitive(true);
        *known = Some(Known {
            stamp,
            header: header.clone(),
        });
        Ok(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_never_printed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let token = TokenFile::new(&path);
        assert!(token.header(Reread::IfChanged).is_err());
        std::fs::write(&path, "ghp_secret\n").unwrap();
        let header = token.header(Reread::IfChanged).unwrap();
        assert_eq!(header.to_str().unwrap(), "Bearer ghp_secret");
        assert!(!format!("{token:?} {header:?}").contains("ghp_"));
        std::fs::write(&path, "two words secret").unwrap();
        let error = token.header(Reread::Always).unwrap_err();
        assert!(!format!("{error:?} {error}").contains("words"));
    }

    #[test]
    fn a_rotated_token_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        std::fs::write(&path, "first").unwrap();
        let token = TokenFile::new(&path);
        token.header(Reread::IfChanged).unwrap();
        std::fs::write(&path, "the-second").unwrap();
        let header = token.header(Reread::IfChanged).unwrap();
        assert_eq!(header.to_str().unwrap(), "Bearer the-second");
    }
}
