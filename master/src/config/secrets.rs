//! `[secrets.NAME]`: values that suites get in their environment, and who may have them.
//!
//! ```text
//!  [secrets.NAME] file │ env │ credential ──read when a job starts──► SecretString ──► the step's environment
//! ```
//!
//! Only names are configured and stored; a value is read anew for each job, so it is rotated by writing the file.

use super::master::{Config, RepositoryConfig, glob_set};
use crate::model::{Build, Trigger};
use secrecy::SecretString;
use serde::Deserialize;
use std::path::PathBuf;

/// A shorter value would be found, and masked, all over the output.
const LEAST_BYTES: usize = 6;
/// An environment is no place for more.
const MOST_BYTES: usize = 64 << 10;
/// Where systemd puts what `LoadCredential=` names.
const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";

/// One secret: where its value is, in exactly one of three places, and which repositories may use it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SecretConfig {
    /// File with the value; a newline at its end does not belong to it.
    pub file: Option<PathBuf>,
    /// Environment variable of the master with the value.
    pub env: Option<String>,
    /// Name of a systemd credential (`LoadCredential=`) with the value.
    pub credential: Option<String>,
    /// Repositories that may use it, as globs over their names. Required.
    pub repositories: Vec<String>,
}

/// A secret's value cannot be had; the value itself is in none of these.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("the secret {name} cannot be read from {place}: {why}")]
    Unreadable {
        name: String,
        place: String,
        why: String,
    },
    #[error(
        "the secret {name} from {place} has {length} bytes, and must have {LEAST_BYTES} to {MOST_BYTES}: a shorter one \
         could not be masked in the output"
    )]
    Length {
        name: String,
        place: String,
        length: usize,
    },
    #[error("the secret {name} is not configured any more")]
    Unknown { name: String },
}

impl SecretConfig {
    pub(super) fn check(&self, name: &str) -> Result<(), String> {
        let is_variable = !name.starts_with(|c: char| c.is_ascii_digit())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if name.is_empty() || !is_variable {
            return Err(format!(
                "secret `{name}`: its name is that of an environment variable, of letters, digits and `_`"
            ));
        }
        if name == "CI" || name.starts_with("VIVARIUM") {
            return Err(format!(
                "secret `{name}`: Vivarium sets this variable itself"
            ));
        }
        let places = [
            self.file.is_some(),
            self.env.is_some(),
            self.credential.is_some(),
        ];
        if places.iter().filter(|is_given| **is_given).count() != 1 {
            return Err(format!(
                "secret `{name}`: say where its value is by exactly one of `file`, `env` and `credential`"
            ));
        }
        if self.repositories.is_empty() {
            return Err(format!(
                "secret `{name}`: `repositories` must list who may use it"
            ));
        }
        glob_set(&self.repositories).map_err(|error| format!("secret `{name}`: {error}"))?;
        Ok(())
    }

    fn is_for(&self, repository: &str) -> bool {
        let lower = |text: &String| text.to_lowercase();
        let globs: Vec<String> = self.repositories.iter().map(lower).collect();
        glob_set(&globs).is_ok_and(|globs| globs.is_match(repository.to_lowercase()))
    }

    /// The value as it is now.
    fn read(&self, name: &str) -> Result<SecretString, SecretError> {
        let (place, value) = self.look();
        let value = value.map_err(|why| SecretError::Unreadable {
            name: name.to_owned(),
            place: place.clone(),
            why,
        })?;
        let value = value.strip_suffix('\n').unwrap_or(&value);
        let value = value.strip_suffix('\r').unwrap_or(value);
        if !(LEAST_BYTES..=MOST_BYTES).contains(&value.len()) || value.contains('\0') {
            return Err(SecretError::Length {
                name: name.to_owned(),
                place,
                length: value.len(),
            });
        }
        Ok(SecretString::from(value))
    }

    /// The place in words, and what is there.
    fn look(&self) -> (String, Result<String, String>) {
        let read = |path: PathBuf| std::fs::read_to_string(path).map_err(|error| error.to_string());
        let variable = |name: &str| std::env::var(name).map_err(|error| error.to_string());
        match (&self.file, &self.env, &self.credential) {
            (Some(path), _, _) => (path.display().to_string(), read(path.clone())),
            (None, Some(name), _) => (format!("the variable {name}"), variable(name)),
            (None, None, credential) => {
                let credential = credential.clone().unwrap_or_default();
                let value = variable(CREDENTIALS)
                    .map_err(|_| "systemd gave this process no credentials".to_owned())
                    .and_then(|folder| read(PathBuf::from(folder).join(&credential)));
                (format!("the credential {credential}"), value)
            }
        }
    }
}

impl Config {
    /// Refuses names that no secret of this repository has; a sentence for the commit's author.
    pub fn check_secrets<'a>(
        &self,
        repository: &RepositoryConfig,
        names: impl IntoIterator<Item = &'a String>,
    ) -> Result<(), String> {
        for name in names {
            // Whether another repository has such a secret is nothing to tell.
            if !self
                .secrets
                .get(name)
                .is_some_and(|secret| secret.is_for(&repository.name))
            {
                return Err(format!(
                    "the secret `{name}` is not there for `{}`: the master's configuration must name both",
                    repository.name
                ));
            }
        }
        Ok(())
    }

    /// The values of these secrets now.
    pub fn read_secrets<'a>(
        &self,
        repository: &str,
        names: impl IntoIterator<Item = &'a String>,
    ) -> Result<Vec<(String, SecretString)>, SecretError> {
        names
            .into_iter()
            .map(|name| {
                let secret = self
                    .secrets
                    .get(name)
                    .filter(|secret| secret.is_for(repository));
                let secret = secret.ok_or_else(|| SecretError::Unknown { name: name.clone() })?;
                Ok((name.clone(), secret.read(name)?))
            })
            .collect()
    }
}

/// Whether the commit was put there by somebody who may write to the repository: only such jobs get secrets.
///
/// A commit that a person names by hand may be anybody's: through GitHub's forks every commit can be fetched by its
/// hash or by `refs/pull`. Branches and tags are the repository's own.
pub fn may_have_secrets(build: &Build) -> bool {
    let new = &build.new;
    match new.trigger {
        Trigger::PullRequest => !new.from_fork,
        // Only who may write puts a pull request into a merge queue.
        Trigger::Merge | Trigger::MergeGroup | Trigger::Push | Trigger::Poll => true,
        Trigger::Manual => {
            new.reference.starts_with("refs/heads/") || new.reference.starts_with("refs/tags/")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::ExposeSecret;
    use std::path::Path;

    fn config(text: &str) -> Result<Config, String> {
        let text = format!("{text}\n[[repository]]\nname = 'Acme/Widget'\nurl = '/x'\n");
        Config::parse(Path::new("/etc/vivarium/vivarium.toml"), &text).map_err(|e| e.to_string())
    }

    #[test]
    fn a_secret_has_one_place_and_those_who_may_use_it() {
        for (text, expected) in [
            ("[secrets.A]\nrepositories = ['*']", "exactly one of"),
            (
                "[secrets.A]\nfile = 'a'\nenv = 'B'\nrepositories = ['*']",
                "exactly one of",
            ),
            ("[secrets.A]\nfile = 'a'", "`repositories` must list"),
            (
                "[secrets.A-B]\nfile = 'a'\nrepositories = ['*']",
                "environment variable",
            ),
            (
                "[secrets.VIVARIUM_SHA]\nfile = 'a'\nrepositories = ['*']",
                "sets this variable itself",
            ),
            (
                "[secrets.A]\nflie = 'a'",
                "unknown key `flie`: did you mean `file`?",
            ),
        ] {
            let error = config(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn a_value_is_read_anew_and_shown_to_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let text = format!("[secrets.TOKEN]\nfile = {path:?}\nrepositories = ['acme/*']");
        let config = config(&text).unwrap();
        let names = ["TOKEN".to_owned()];
        let missing = config.read_secrets("acme/widget", &names).unwrap_err();
        assert!(
            missing.to_string().contains("token: No such file"),
            "{missing}"
        );
        for value in ["first-value", "second-value"] {
            std::fs::write(&path, format!("{value}\n")).unwrap();
            let values = config.read_secrets("acme/widget", &names).unwrap();
            assert_eq!(values[0].1.expose_secret(), value);
            assert!(!format!("{values:?}").contains(value));
        }
        std::fs::write(&path, "abc\n").unwrap();
        let short = config.read_secrets("acme/widget", &names).unwrap_err();
        assert!(short.to_string().contains("has 3 bytes"), "{short}");
        assert!(config.read_secrets("other/widget", &names).is_err());
        let repository = config.repository("acme/widget").unwrap();
        assert!(config.check_secrets(repository, &names).is_ok());
        assert!(
            config
                .check_secrets(repository, &["TOKENS".to_owned()])
                .is_err()
        );
    }
}
