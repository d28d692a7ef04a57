//! `platform.toml`: what stands beside an image, turned into a [`Platform`] with its paths resolved.
//!
//! ```text
//! text ──[file]──► as written ──[checks]──► makes sense ──[resolve]──► Platform
//!           └────[schema]──► what `vivarium platform schema` prints
//! ```
//!
//! The comments in [`file`] are the manual: there is no other list of keys.

mod checks;
mod file;
mod resolve;
mod schema;
mod shell;

pub(super) use shell::Shell;

pub use schema::{platform_manual, platform_schema};

use super::error::{self, ConfigError};
use crate::model::Platform;
use file::PlatformFile;
use std::path::Path;

/// Parses the text of the `platform.toml` in `folder`. An image that is to be fetched has a path below the master's
/// data folder, relative to that.
pub fn parse_platform(folder: &Path, text: &str) -> Result<Platform, ConfigError> {
    let path = folder.join("platform.toml");
    let wrong = |message: String| ConfigError::meaning(&path, message);
    let name = folder
        .file_name()
        .and_then(|name| name.to_str())
        .filter(|name| is_platform_name(name))
        .ok_or_else(|| {
            wrong("the folder's name is the platform's: letters, digits, `.`, `_`, `-`".into())
        })?;
    let file: PlatformFile = error::parse(&path, text)?;
    checks::check(name, &file).map_err(wrong)?;
    resolve::resolve(folder, name, file).map_err(wrong)
}

/// Whether a folder of this name can be a platform.
pub fn is_platform_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 64
        && !name.starts_with('.')
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

#[cfg(test)]
mod tests;
