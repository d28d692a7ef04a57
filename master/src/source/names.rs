//! Names from outside, checked before git sees them: refs, commits, paths, and the folder of a mirror.
//!
//! Every name that passes here is plain: no option, no revision expression (`main~3`, `a..b`, `x@{1}`), no pattern.

use super::SourceError;
use crate::config::RepositoryConfig;
use sha2::{Digest, Sha256};

/// The longest ref name that is looked up.
const MAX_NAME: usize = 400;

/// Something that names a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Name {
    /// A full object id.
    Sha(String),
    /// Begins with `refs/`.
    Ref(String),
    /// A branch, a tag, or the beginning of an object id, in this order.
    Short(String),
}

impl Name {
    pub(super) fn parse(repository: &RepositoryConfig, text: &str) -> Result<Name, SourceError> {
        if is_sha(text) {
            return Ok(Name::Sha(text.to_ascii_lowercase()));
        }
        match fault_of_ref(text) {
            Some(why) => Err(SourceError::BadName {
                repository: repository.name.clone(),
                name: text
                    .chars()
                    .take(80)
                    .collect::<String>()
                    .escape_debug()
                    .to_string(),
                why,
            }),
            None if text.starts_with("refs/") => Ok(Name::Ref(text.into())),
            None => Ok(Name::Short(text.into())),
        }
    }

    pub(super) fn as_str(&self) -> &str {
        match self {
            Name::Sha(text) | Name::Ref(text) | Name::Short(text) => text,
        }
    }

    /// What git may know it as, the first that exists wins.
    pub(super) fn candidates(&self) -> Vec<String> {
        match self {
            Name::Sha(name) | Name::Ref(name) => vec![name.clone()],
            Name::Short(name) => {
                let mut names = vec![format!("refs/heads/{name}"), format!("refs/tags/{name}")];
                if name.len() >= 4 && name.bytes().all(|b| b.is_ascii_hexdigit()) {
                    names.push(name.clone());
                }
                names
            }
        }
    }
}

/// A full object id, SHA-1 or SHA-256.
pub(super) fn is_sha(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Why the text is no ref name: the rules of `git check-ref-format`.
fn fault_of_ref(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        Some("it is empty")
    } else if name.len() > MAX_NAME {
        Some("it is too long")
    } else if name.starts_with('-') {
        Some("a name does not begin with `-`")
    } else if name
        .chars()
        .any(|c| c.is_control() || matches!(c, ' ' | '~' | '^' | ':' | '?' | '*' | '[' | '\\'))
    {
        Some(
            "a name of a branch, tag or commit has no spaces, control characters or any of ~^:?*[\\",
        )
    } else if name.contains("..")
        || name.contains("@{")
        || name.ends_with('.')
        || name == "@"
        || name
            .split('/')
            .any(|part| part.is_empty() || part.starts_with('.') || part.ends_with(".lock"))
    {
        Some("it is no name of a branch, tag or commit")
    } else {
        None
    }
}

/// Why the text is no path of a file inside a tree.
pub(super) fn fault_of_path(path: &str) -> Option<&'static str> {
    if path.is_empty() || path.contains(['\0', '\n']) {
        Some("it is no path")
    } else if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        Some("a path is given from the top of the tree, without `.` and `..`")
    } else {
        None
    }
}

/// The folder of a repository's mirror: one per name whatever its letters' case, never outside, never inside another.
pub(super) fn folder_of(name: &str) -> String {
    // File systems end a name at 255 bytes.
    const MAX_STEM: usize = 220;
    let mut stem = String::new();
    for byte in name.bytes() {
        match byte.to_ascii_lowercase() {
            b'/' => stem.push('+'),
            b'.' if stem.is_empty() => stem.push_str("%2e"),
            byte if byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-') => {
                stem.push(char::from(byte));
            }
            byte => stem.push_str(&format!("%{byte:02x}")),
        }
    }
    if stem.is_empty() {
        stem.push('%');
    }
    if stem.len() > MAX_STEM {
        let digest = hex::encode(Sha256::digest(stem.as_bytes()));
        stem.truncate(MAX_STEM - digest.len() - 1);
        stem = format!("{stem}-{digest}");
    }
    format!("{stem}.git")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn folders_stay_where_they_belong() {
        assert_eq!(folder_of("Owner/Name"), "owner+name.git");
        assert_eq!(folder_of("../../etc"), "%2e.+..+etc.git");
        assert_eq!(folder_of(""), "%.git");
        assert_eq!(folder_of("a+b"), "a%2bb.git");
        assert_ne!(folder_of("a/b"), folder_of("a+b"));
        assert!(folder_of(&"x/".repeat(400)).len() <= 255);
    }

    #[test]
    fn expressions_and_options_are_no_names() {
        for hostile in [
            "",
            "-x",
            "--upload-pack=touch /tmp/x",
            "a b",
            "a..b",
            "main~1",
            "main^{tree}",
            "x@{1}",
            "a\nb",
            "a\0b",
            ":/text",
            "HEAD:file",
            "refs/heads/*",
            "a//b",
            ".a",
            "a/.b",
            "a.lock",
            "@",
            "a\\b",
        ] {
            assert!(fault_of_ref(hostile).is_some(), "{hostile:?}");
        }
        for fine in [
            "main",
            "feature/x",
            "v1.0",
            "refs/pull/7/head",
            "ünï",
            "a@b",
            "a-b",
        ] {
            assert_eq!(fault_of_ref(fine), None, "{fine:?}");
        }
    }

    proptest! {
        #[test]
        fn a_folder_is_one_plain_name(name in ".*") {
            let folder = folder_of(&name);
            prop_assert!(!folder.contains('/') && !folder.starts_with('.') && folder.len() <= 255);
        }
    }
}
