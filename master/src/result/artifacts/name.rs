//! Names of artefacts: from what a guest says to a path that is safe everywhere.
//!
//! ```text
//!  "target/release/tool.exe" ─► ArtifactName        "../../etc/passwd", "C:\\x", "nul.txt", "a//b" ─► NameError
//! ```
//!
//! Safe means: below the upload's own folder on any system, one file for one name even where case is ignored, and
//! nothing in it that a terminal or a page would obey.

use std::collections::HashSet;
use std::fmt;

/// Longest part between two `/`, in bytes, as file systems have it; also after the object store's own escaping.
const MOST_PART: usize = 255;
/// Longest name, in bytes.
const MOST_NAME: usize = 1024;
/// Written by us, beside the artefacts.
pub(super) const MANIFEST: &str = "manifest.json";

/// The path of an artefact, relative, with `/`. Exists only checked.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ArtifactName(String);

/// Why a name is refused. The job's fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("the name of an artefact is empty")]
    Empty,
    #[error(
        "the name of an artefact is longer than {MOST_NAME} bytes, or a part of it than {MOST_PART}: {0}"
    )]
    TooLong(String),
    #[error("the artefact {0} has an absolute name: expected a path below the work directory")]
    Absolute(String),
    #[error("the artefact {0} has an empty part, `.` or `..` in its name")]
    Part(String),
    #[error("the artefact {name} has the character U+{code:04X} in its name")]
    Character { name: String, code: u32 },
    #[error("the artefact {0} has a name that Windows cannot store")]
    Windows(String),
    #[error("the artefact {0} has the name of the manifest")]
    Manifest(String),
    #[error(
        "the artefact {0} has the name of another, or of a folder, but for upper and lower case"
    )]
    Taken(String),
}

impl ArtifactName {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn parts(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }
}

impl fmt::Display for ArtifactName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Checks the name that a guest gave a file.
pub fn check_name(name: &str) -> Result<ArtifactName, NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > MOST_NAME {
        return Err(NameError::TooLong(shown(name)));
    }
    if let Some(bad) = name.chars().find(|c| is_refused(*c)) {
        return Err(NameError::Character {
            name: shown(name),
            code: bad.into(),
        });
    }
    if name.starts_with('/') || has_drive(name) {
        return Err(NameError::Absolute(shown(name)));
    }
    for part in name.split('/') {
        if matches!(part, "" | "." | "..") {
            return Err(NameError::Part(shown(name)));
        }
        if object_store::path::PathPart::from(part).as_ref().len() > MOST_PART {
            return Err(NameError::TooLong(shown(name)));
        }
        if part.ends_with(['.', ' ']) || is_device(part) {
            return Err(NameError::Windows(shown(name)));
        }
    }
    let first = name.split('/').next().unwrap_or(name);
    if first.eq_ignore_ascii_case(MANIFEST) {
        return Err(NameError::Manifest(shown(name)));
    }
    Ok(ArtifactName(name.to_string()))
}

/// Control characters; those that turn the direction of writing, which make a name look like another; the backslash,
/// which is a separator on Windows.
fn is_refused(c: char) -> bool {
    c.is_control()
        || c == '\\'
        || matches!(c, '\u{200E}' | '\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}')
}

/// `C:` and the like at the beginning.
fn has_drive(name: &str) -> bool {
    let mut chars = name.chars();
    chars.next().is_some_and(|c| c.is_ascii_alphabetic()) && chars.next() == Some(':')
}

/// Names of devices on Windows, whatever follows the first dot or colon.
fn is_device(part: &str) -> bool {
    let stem = part.split(['.', ':']).next().unwrap_or(part).trim_end();
    let stem = stem.to_ascii_uppercase();
    if matches!(
        stem.as_str(),
        "CON" | "PRN" | "AUX" | "NUL" | "CONIN$" | "CONOUT$" | "CLOCK$"
    ) {
        return true;
    }
    let number = stem.strip_prefix("COM").or(stem.strip_prefix("LPT"));
    let mut digits = number.unwrap_or_default().chars();
    matches!(
        (digits.next(), digits.next()),
        (Some('0'..='9' | '¹' | '²' | '³'), None)
    )
}

/// The name as it may stand in a sentence: escaped and cut.
fn shown(name: &str) -> String {
    let mut text: String = name
        .chars()
        .take(100)
        .flat_map(char::escape_debug)
        .collect();
    if name.chars().nth(100).is_some() {
        text.push('…');
    }
    format!("`{text}`")
}

/// The names of one upload: no two are one file where case is ignored, and no file is another's folder.
#[derive(Debug, Default)]
pub(super) struct Names {
    files: HashSet<String>,
    folders: HashSet<String>,
}

impl Names {
    pub(super) fn len(&self) -> usize {
        self.files.len()
    }

    pub(super) fn claim(&mut self, name: &ArtifactName) -> Result<(), NameError> {
        let folded = fold(name);
        let folders = || {
            folded
                .match_indices('/')
                .map(|(at, _)| folded.split_at(at).0)
        };
        let taken = self.files.contains(&folded)
            || self.folders.contains(&folded)
            || folders().any(|folder| self.files.contains(folder));
        if taken {
            return Err(NameError::Taken(shown(name.as_str())));
        }
        self.folders.extend(folders().map(str::to_string));
        self.files.insert(folded);
        Ok(())
    }

    /// Gives back the name of a file that was not stored.
    pub(super) fn release(&mut self, name: &ArtifactName) {
        self.files.remove(&fold(name));
    }
}

/// Upper case first: `ß`, `ẞ` and `SS`, or the two small sigmas, then are one.
fn fold(name: &ArtifactName) -> String {
    name.as_str().to_uppercase().to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::path::{Component, Path};

    #[test]
    fn ordinary_names_pass() {
        for name in [
            "a",
            "tool.exe",
            "target/release/tool",
            ".hidden/.x",
            "Foo::Bar.3pm",
            "with space/ü/日本.tar.gz",
            "...a",
            "#1",
            "100%",
            "console.log",
            "com10",
            "sub/manifest.json",
            "a~1",
        ] {
            assert_eq!(check_name(name).map(|n| n.0), Ok(name.to_string()));
        }
    }

    #[test]
    fn names_that_would_lead_elsewhere_are_refused() {
        for name in [
            "",
            "/",
            "/etc/passwd",
            "..",
            ".",
            "a/../b",
            "a/..",
            "./a",
            "a//b",
            "a/",
            "C:/x",
            "c:x",
            "a\\b",
            "..\\x",
            "a\0b",
            "a\nb",
            "\u{1b}[31m",
            "a\u{7f}",
            "a\u{85}",
            "\u{202e}txt.exe",
            "a.",
            "a /b",
            "x/ ",
            "con",
            "NUL.txt",
            "a/Com1.tar.gz",
            "lpt¹",
            "aux .x",
            "conin$",
            "manifest.json",
            "Manifest.JSON",
            "manifest.json/x",
        ] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
        assert!(check_name(&"a".repeat(255)).is_ok());
        assert!(check_name(&"a".repeat(256)).is_err());
        assert!(check_name(&"ab/".repeat(341)[..1022]).is_ok());
        assert!(check_name(&"ab/".repeat(400)).is_err());
        // What the store writes for it would be too long for a file system.
        assert!(check_name(&"#".repeat(100)).is_err());
    }

    #[test]
    fn one_file_for_one_name_where_case_is_ignored() {
        let mut names = Names::default();
        let claim = |names: &mut Names, name: &str| names.claim(&check_name(name).unwrap());
        assert!(claim(&mut names, "dist/README").is_ok());
        assert!(claim(&mut names, "dist/readme").is_err());
        assert!(claim(&mut names, "DIST/other").is_ok());
        assert!(claim(&mut names, "Dist").is_err(), "a folder is no file");
        assert!(
            claim(&mut names, "dist/readme/x").is_err(),
            "a file is no folder"
        );
        assert!(claim(&mut names, "Straße").is_ok());
        assert!(claim(&mut names, "STRASSE").is_err());
        names.release(&check_name("dist/README").unwrap());
        assert!(claim(&mut names, "dist/readme").is_ok());
    }

    proptest! {
        #[test]
        fn a_name_that_passes_stays_below_its_folder(name in "\\PC{0,40}|[a-cC:./\\\\ \u{0}-\u{1f}]{0,20}|(\\.{0,3}/?){0,6}") {
            if let Ok(name) = check_name(&name) {
                let path = Path::new(name.as_str());
                prop_assert!(path.components().all(|c| matches!(c, Component::Normal(_))));
                prop_assert_eq!(path.components().count(), name.parts().count());
                prop_assert!(!name.as_str().contains(|c: char| c.is_control() || c == '\\'));
                let key = object_store::path::Path::from_iter(name.parts());
                prop_assert_eq!(key.parts().count(), name.parts().count());
                prop_assert!(object_store::path::Path::parse(key.as_ref()).is_ok());
            }
        }

        #[test]
        fn a_refusal_is_a_sentence_without_control_characters(name in any::<String>()) {
            if let Err(error) = check_name(&name) {
                let text = error.to_string();
                prop_assert!(!text.chars().any(char::is_control), "{}", text);
            }
        }

        #[test]
        fn claimed_names_never_meet(names in prop::collection::vec("[aA]{1,2}(/[bB]){0,2}", 0..12)) {
            let mut claimed = Names::default();
            let mut kept: Vec<String> = Vec::new();
            for name in names {
                if claimed.claim(&check_name(&name).unwrap()).is_ok() {
                    kept.push(name.to_lowercase());
                }
            }
            for (i, a) in kept.iter().enumerate() {
                for b in kept.iter().skip(i + 1) {
                    let (a_folder, b_folder) = (format!("{a}/"), format!("{b}/"));
                    prop_assert!(a != b && !a.starts_with(&b_folder) && !b.starts_with(&a_folder));
                }
            }
        }
    }
}
