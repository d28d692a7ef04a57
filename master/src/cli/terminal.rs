//! What a person sees: errors as sentences with the hint last, words in colour where a terminal shows them, and no noise
//! when whoever read the output is gone.

use anyhow::Context;
use owo_colors::{OwoColorize, Stream};
use std::io::{ErrorKind, Write};

/// Where a hint begins in the text of an error.
pub(super) const HINT: &str = "\nhint: ";

/// An error with its causes on one line, and below it what to do.
pub(super) fn told(error: &anyhow::Error) -> String {
    let mut sentence = String::new();
    let mut hints = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        let (what, hint) = match text.split_once(HINT) {
            Some((what, hint)) => (what, Some(hint)),
            None => (text.as_str(), None),
        };
        // Some errors have their cause in their own text.
        if !sentence.ends_with(what) {
            if !sentence.is_empty() {
                sentence.push_str(": ");
            }
            sentence.push_str(what);
        }
        if let Some(hint) = hint {
            hints.push_str(HINT);
            hints.push_str(hint);
        }
    }
    sentence + &hints
}

/// Not `print!`, which ends the program with a panic when the reader is gone.
pub(super) fn print(text: &str) -> anyhow::Result<()> {
    write(text.as_bytes())
}

pub(super) fn write(bytes: &[u8]) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes)
        .and_then(|()| out.flush())
        .context("the output cannot be written")
}

pub(super) fn print_json<T: serde::Serialize>(value: &T) -> anyhow::Result<()> {
    print(&(serde_json::to_string_pretty(value)? + "\n"))
}

/// Whether it is only that nobody reads the output any more, as in `vivarium logs job-1 | head`.
pub(super) fn is_reader_gone(error: &anyhow::Error) -> bool {
    error
        .root_cause()
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

/// The word for a result, coloured on a terminal and filled up to `width`.
pub(super) fn colour(result: &str, width: usize) -> String {
    // Filled up first: the codes of a colour have no width.
    let word = format!("{:<width$}", result.replace('_', " "));
    match result {
        "success" => word
            .if_supports_color(Stream::Stdout, |w| w.green())
            .to_string(),
        "failure" | "timed_out" => word
            .if_supports_color(Stream::Stdout, |w| w.red())
            .to_string(),
        "infrastructure_error" => word
            .if_supports_color(Stream::Stdout, |w| w.yellow())
            .to_string(),
        _ => word,
    }
}

/// The word for how a check came out, filled up to `width`.
pub(super) fn colour_verdict(word: &str, width: usize) -> String {
    let filled = format!("{word:<width$}");
    match word {
        "passed" => filled
            .if_supports_color(Stream::Stdout, |w| w.green())
            .to_string(),
        "failed" => filled
            .if_supports_color(Stream::Stdout, |w| w.red())
            .to_string(),
        _ => filled
            .if_supports_color(Stream::Stdout, |w| w.yellow())
            .to_string(),
    }
}

/// The word for whether a platform takes work.
pub(super) fn colour_standing(state: &str) -> String {
    let word = format!("{state:<7}");
    match state {
        "ready" => word
            .if_supports_color(Stream::Stdout, |w| w.green())
            .to_string(),
        "refused" | "OUT" => word
            .if_supports_color(Stream::Stdout, |w| w.red())
            .to_string(),
        _ => word
            .if_supports_color(Stream::Stdout, |w| w.yellow())
            .to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;

    #[test]
    fn the_hint_comes_after_all_causes() {
        let error = anyhow!("address in use").context("cannot listen\nhint: take another port");
        assert_eq!(
            told(&error),
            "cannot listen: address in use\nhint: take another port"
        );
    }

    #[test]
    fn a_cause_that_was_told_is_not_told_again() {
        let error = anyhow!("no space").context("cannot write: no space");
        assert_eq!(told(&error), "cannot write: no space");
    }
}
