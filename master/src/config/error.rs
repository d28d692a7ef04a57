//! Errors of configuration files: which file, which line, which key, and the nearest key that exists.

use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};

/// A file could not be used. Prints as `path:line:column: what is wrong`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("{}: cannot be read: {why}", .path.display())]
    Read { path: PathBuf, why: String },
    #[error("{}:{line}:{column}: {message}", .path.display())]
    Syntax {
        path: PathBuf,
        line: usize,
        column: usize,
        message: String,
    },
    #[error("{}: {message}", .path.display())]
    Meaning { path: PathBuf, message: String },
}

impl ConfigError {
    pub(crate) fn meaning(path: &Path, message: impl Into<String>) -> Self {
        ConfigError::Meaning {
            path: path.to_path_buf(),
            message: message.into(),
        }
    }
}

/// Parses TOML text; `path` is for the message only.
pub(crate) fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|error| {
        let offset = error.span().map_or(0, |span| span.start);
        let (line, column) = line_and_column(text, offset);
        ConfigError::Syntax {
            path: path.to_path_buf(),
            line,
            column,
            message: with_nearest_key(error.message()),
        }
    })
}

/// Reads and parses a TOML file.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|error| ConfigError::Read {
        path: path.to_path_buf(),
        why: error.to_string(),
    })?;
    parse(path, &text)
}

/// Line and column, counted from 1, of a byte offset.
fn line_and_column(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before
        .rsplit('\n')
        .next()
        .map_or(1, |last| last.chars().count() + 1);
    (line, column)
}

/// serde says "unknown field `x`, expected one of `a`, `b`": shorten that to the key and the nearest known one.
fn with_nearest_key(message: &str) -> String {
    let message = message.trim();
    for (start, noun) in [("unknown field `", "key"), ("unknown variant `", "value")] {
        let Some(rest) = message.strip_prefix(start) else {
            continue;
        };
        let mut quoted = rest.split('`').step_by(2);
        let Some(unknown) = quoted.next() else {
            continue;
        };
        let known: Vec<&str> = rest.split('`').skip(2).step_by(2).collect();
        return match nearest(unknown, known.iter().copied()) {
            Some(near) => format!("unknown {noun} `{unknown}`: did you mean `{near}`?"),
            None => format!("unknown {noun} `{unknown}`: known are {}", known.join(", ")),
        };
    }
    message.replace('\n', " ")
}

/// The known word that is most like `word`, if any is like it at all.
pub(crate) fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    /// Below this likeness a hint would only puzzle.
    const LIKE_ENOUGH: f64 = 0.7;
    known
        .map(|candidate| (strsim::jaro_winkler(word, candidate), candidate))
        .filter(|(likeness, _)| *likeness >= LIKE_ENOUGH)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        #[expect(dead_code, reason = "only parsed")]
        memory_mib: u64,
        #[expect(dead_code, reason = "only parsed")]
        vcpus: u64,
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line_and_the_nearest_known_key() {
        let text = "vcpus = 1\n\nmemory_mb = 5\n";
        let error = parse::<Sample>(Path::new("platform.toml"), text).unwrap_err();
        assert_eq!(
            error.to_string(),
            "platform.toml:3:1: unknown key `memory_mb`: did you mean `memory_mib`?"
        );
    }

    #[test]
    fn a_wrong_type_is_told_with_its_place() {
        let error = parse::<Sample>(Path::new("p.toml"), "vcpus = \"two\"\n").unwrap_err();
        assert!(error.to_string().starts_with("p.toml:1:9: "), "{error}");
    }
}
