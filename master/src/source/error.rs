//! What can go wrong with a source, each as one sentence, and how git's own words are told apart.

use std::path::PathBuf;
use std::time::Duration;

/// Why a source could not be fetched or read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// The repository did not answer, or refused us.
    #[error("cannot fetch {repository}: {why}; hint: {hint}")]
    Unreachable {
        repository: String,
        why: String,
        hint: &'static str,
    },
    /// The repository answered, and has no such commit or ref.
    #[error("{repository} has no `{what}`: it was deleted, or replaced by a force push")]
    NotFound { repository: String, what: String },
    /// Text that cannot name a branch, tag, ref, commit or file.
    #[error("`{name}` cannot be looked up in {repository}: {why}")]
    BadName {
        repository: String,
        name: String,
        why: &'static str,
    },
    /// The two have no commit in common.
    #[error(
        "{head} cannot be merged into {base} of {repository}: they have no history in common; \
         hint: rebase the branch onto its base"
    )]
    Unrelated {
        repository: String,
        base: String,
        head: String,
    },
    /// A file that is there, but not read.
    #[error("`{path}` of {repository} is not read: {why}")]
    Unreadable {
        repository: String,
        path: String,
        why: String,
    },
    /// The mirror is broken; the next fetch makes a new one.
    #[error(
        "cannot {what} {repository}: its mirror is damaged ({why}); hint: the next fetch makes a new one"
    )]
    Damaged {
        repository: String,
        what: &'static str,
        why: String,
    },
    #[error("cannot {what} {repository}: no space left below {}; hint: free some, mirrors can be removed while the master is stopped", dir.display())]
    DiskFull {
        repository: String,
        what: &'static str,
        dir: PathBuf,
    },
    #[error("cannot {what} {repository}: git did not finish within {} s", after.as_secs())]
    Timeout {
        repository: String,
        what: &'static str,
        after: Duration,
    },
    /// Anything else that git, or the file system under it, reports.
    #[error("cannot {what} {repository}: {why}")]
    Git {
        repository: String,
        what: &'static str,
        why: String,
    },
}

impl SourceError {
    /// Whether trying again cannot help: the fault is in what was asked for.
    pub fn is_final(&self) -> bool {
        match self {
            SourceError::NotFound { .. }
            | SourceError::BadName { .. }
            | SourceError::Unrelated { .. }
            | SourceError::Unreadable { .. } => true,
            SourceError::Unreachable { .. }
            | SourceError::Damaged { .. }
            | SourceError::DiskFull { .. }
            | SourceError::Timeout { .. }
            | SourceError::Git { .. } => false,
        }
    }
}

/// What git's messages on stderr mean to us. Git has one exit status for all of them, so the words decide; they are in
/// English since git runs with `LC_ALL=C`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Complaint {
    Unreachable { hint: &'static str },
    NoSuchRef,
    NotOurRef,
    Locked,
    Damaged,
    DiskFull,
    Other,
}

const CHECK_URL: &str = "check the repository's `url` and the network";
const CHECK_TOKEN: &str = "check the repository's name, and that the token may read its contents";
const CHECK_PATH: &str =
    "check that the repository's `url` is a git repository that the master's user may read";

/// The first words that occur decide.
const COMPLAINTS: &[(Complaint, &[&str])] = &[
    (Complaint::NoSuchRef, &[NO_SUCH_REF]),
    (
        Complaint::DiskFull,
        &["No space left on device", "Disk quota exceeded"],
    ),
    (
        Complaint::NotOurRef,
        &["not our ref", "unadvertised object"],
    ),
    (Complaint::Locked, &[".lock': File exists"]),
    (
        Complaint::Unreachable { hint: CHECK_TOKEN },
        &[
            "could not read Password",
            "could not read Username",
            "Authentication failed",
            "Repository not found",
            "' not found",
            "Permission denied (",
            "The requested URL returned error: 40",
        ],
    ),
    (
        Complaint::Unreachable { hint: CHECK_PATH },
        &["does not appear to be a git repository", "does not exist"],
    ),
    (
        Complaint::Unreachable { hint: CHECK_URL },
        &[
            "unable to access",
            "not allowed",
            "Could not read from remote repository",
            "unable to connect",
            "unable to look up",
            "hung up",
            "early EOF",
            "RPC failed",
        ],
    ),
    (
        Complaint::Damaged,
        &[
            "not a git repository",
            "bad object",
            "did not send all necessary objects",
            "does not point to a valid object",
            "object file",
            "unable to read",
            "could not read",
            "could not parse",
            "unable to parse",
            "cannot be accessed",
            "corrupt",
            "packfile",
            "inflate",
            "missing blob",
            "missing tree",
            "bad tree object",
            "not a tree object",
            "bad config",
            "unable to resolve reference",
            "pack has",
            "index file",
            "is too small",
        ],
    ),
];

impl Complaint {
    pub(super) fn read(stderr: &str) -> Complaint {
        COMPLAINTS
            .iter()
            .find(|(_, words)| words.iter().any(|words| stderr.contains(words)))
            .map_or(Complaint::Other, |(complaint, _)| *complaint)
    }
}

const NO_SUCH_REF: &str = "couldn't find remote ref ";

/// The ref that [`Complaint::NoSuchRef`] is about.
pub(super) fn missing_ref(stderr: &str) -> Option<&str> {
    let (_, rest) = stderr.split_once(NO_SUCH_REF)?;
    rest.lines().next()
}

/// The last lines of git's messages in one line: what a person needs, not the whole of it.
pub(super) fn tail_of(stderr: &str) -> String {
    const MAX_LINES: usize = 6;
    const MAX_CHARS: usize = 600;
    let lines: Vec<&str> = stderr
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with("hint:"))
        .collect();
    let text = lines[lines.len().saturating_sub(MAX_LINES)..].join("; ");
    let start = text
        .char_indices()
        .rev()
        .nth(MAX_CHARS)
        .map_or(0, |(index, _)| index);
    match text[start..].trim() {
        "" => "git gave no reason".into(),
        text => text.chars().filter(|c| !c.is_control()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn git_s_words_are_told_apart() {
        for (stderr, expected) in [
            (
                "fatal: couldn't find remote ref refs/pull/7/head\n",
                Complaint::NoSuchRef,
            ),
            (
                "fatal: remote error: upload-pack: not our ref 1234\n",
                Complaint::NotOurRef,
            ),
            (
                "fatal: Unable to create '/m/packed-refs.lock': File exists.\n",
                Complaint::Locked,
            ),
            (
                "fatal: '/x' does not appear to be a git repository\nfatal: Could not read from remote repository.\n",
                Complaint::Unreachable { hint: CHECK_PATH },
            ),
            (
                "fatal: unable to access 'https://h/x/': Could not resolve host: h\n",
                Complaint::Unreachable { hint: CHECK_URL },
            ),
            (
                "error: unable to write file: No space left on device\nfatal: early EOF\n",
                Complaint::DiskFull,
            ),
            ("fatal: not a git repository: '/m'\n", Complaint::Damaged),
            ("usage: git fetch\n", Complaint::Other),
        ] {
            assert_eq!(Complaint::read(stderr), expected, "{stderr}");
        }
    }

    #[test]
    fn the_tail_is_one_bounded_line() {
        assert_eq!(tail_of("a\n\nhint: b\n c\x1b[0m\n"), "a; c[0m");
        assert_eq!(tail_of(""), "git gave no reason");
        assert!(tail_of(&"é".repeat(5000)).chars().count() <= 601);
    }
}
