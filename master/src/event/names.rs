//! Text of strangers, checked before it goes on to Git, into an address or onto a page.

/// Titles and names are cut to this many characters.
const LONGEST_TEXT: usize = 200;
/// Git's file systems take no longer names.
const LONGEST_BRANCH: usize = 250;

/// The event is not what GitHub documents; trying again does not help.
#[derive(Debug, thiserror::Error)]
pub enum InterpretError {
    #[error("the `{event}` event does not parse: {source}")]
    Form {
        event: String,
        source: serde_json::Error,
    },
    #[error("the event's {what} is not one: `{value}`")]
    Value { what: &'static str, value: String },
}

impl InterpretError {
    pub(super) fn value(what: &'static str, value: &str) -> Self {
        InterpretError::Value {
            what,
            value: one_line(value),
        }
    }
}

/// The forms that GitHub Actions knows, in the message of the commit that was pushed last.
pub(crate) fn asks_to_skip(message: &str) -> bool {
    const MARKS: [&str; 5] = [
        "[skip ci]",
        "[ci skip]",
        "[no ci]",
        "[skip actions]",
        "[actions skip]",
    ];
    let message = message.to_ascii_lowercase();
    MARKS.iter().any(|mark| message.contains(mark))
        || message.lines().any(|line| {
            line.trim()
                .split_once(':')
                .is_some_and(|(key, value)| key == "skip-checks" && value.trim() == "true")
        })
}

pub(super) fn is_zero(sha: &str) -> bool {
    !sha.is_empty() && sha.bytes().all(|b| b == b'0')
}

/// A whole commit id of SHA-1 or SHA-256, in lower case.
pub(super) fn sha(what: &'static str, text: &str) -> Result<String, InterpretError> {
    if matches!(text.len(), 40 | 64)
        && text.bytes().all(|b| b.is_ascii_hexdigit())
        && !is_zero(text)
    {
        Ok(text.to_ascii_lowercase())
    } else {
        Err(InterpretError::value(what, text))
    }
}

/// A name that Git itself would take for a branch (`git check-ref-format --branch`).
pub(super) fn branch(what: &'static str, name: &str) -> Result<String, InterpretError> {
    let is_good = (1..=LONGEST_BRANCH).contains(&name.len())
        && !name.starts_with('-')
        && name != "@"
        && !name.ends_with('.')
        && !name.contains("..")
        && !name.contains("@{")
        && !name
            .chars()
            .any(|c| c.is_control() || " ~^:?*[\\".contains(c))
        && name
            .split('/')
            .all(|part| !part.is_empty() && !part.starts_with('.') && !part.ends_with(".lock"));
    if is_good {
        Ok(name.to_owned())
    } else {
        Err(InterpretError::value(what, name))
    }
}

/// Text of strangers: one line, of bounded length.
pub(super) fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(LONGEST_TEXT)
        .collect::<String>()
        .trim()
        .to_owned()
}
