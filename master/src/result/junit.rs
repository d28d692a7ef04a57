//! Test reports: JUnit XML, as pytest, cargo-nextest, surefire, gtest, ctest and others write it, to counts.
//!
//! ```text
//!  XML ─► events, one at a time ─► testcase: failure or error │ skipped │ neither ─► TestCounts
//! ```
//!
//! There is no schema that all tools keep to, so little is asked of a file: well-formed elements, a root called
//! `testsuites`, `testsuite` or `testrun`, and `testcase`s somewhere below. The counts that a file states about itself
//! are not believed. It is a stranger's: nothing is held but the counts and a few names, depth is a number and no stack,
//! and entities that a file defines are never expanded.

use crate::model::TestCounts;
use quick_xml::Reader;
use quick_xml::errors::Error as XmlError;
use quick_xml::events::{BytesStart, Event};
use std::borrow::Cow;

/// Largest report that is read.
pub const MOST_REPORT_BYTES: usize = 32 << 20;
/// Names of failing cases that are kept, of one report or of several merged.
const MOST_FAILING: usize = 50;
/// Longest of these names, in characters.
const MOST_NAME: usize = 200;

/// A report that cannot be counted.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    #[error("the report has {bytes} bytes, more than {MOST_REPORT_BYTES}")]
    TooLarge { bytes: u64 },
    #[error("the report is no well-formed XML, at byte {at}: {source}")]
    Xml { at: u64, source: XmlError },
    #[error("the report ends in the middle")]
    Truncated,
    #[error(
        "the report is no JUnit XML: its root is `{root}`, expected `testsuites` or `testsuite`"
    )]
    NotJunit { root: String },
    #[error("the report has no elements")]
    Empty,
}

/// Counts the test cases of one report.
pub fn parse(xml: &[u8]) -> Result<TestCounts, ReportError> {
    if xml.len() > MOST_REPORT_BYTES {
        let bytes = xml.len() as u64;
        return Err(ReportError::TooLarge { bytes });
    }
    let text = as_utf8(xml);
    let mut reader = Reader::from_reader(text.as_ref());
    let mut count = Count::default();
    loop {
        let event = reader.read_event().map_err(|source| ReportError::Xml {
            at: reader.error_position(),
            source,
        })?;
        match event {
            Event::Start(start) => count.open(&start)?,
            Event::Empty(start) => {
                count.open(&start)?;
                count.close();
            }
            Event::End(_) => count.close(),
            Event::Eof => break,
            Event::Text(_)
            | Event::CData(_)
            | Event::Comment(_)
            | Event::Decl(_)
            | Event::PI(_)
            | Event::DocType(_)
            | Event::GeneralRef(_) => {}
        }
    }
    match (count.depth, count.seen_root) {
        (0, true) => Ok(count.counts),
        (0, false) => Err(ReportError::Empty),
        (1.., _) => Err(ReportError::Truncated),
    }
}

/// Adds up the counts of several reports.
pub fn merge(reports: impl IntoIterator<Item = TestCounts>) -> TestCounts {
    let mut sum = TestCounts::default();
    for report in reports {
        sum.passed = sum.passed.saturating_add(report.passed);
        sum.failed = sum.failed.saturating_add(report.failed);
        sum.skipped = sum.skipped.saturating_add(report.skipped);
        let room = MOST_FAILING.saturating_sub(sum.failing.len());
        sum.failing.extend(report.failing.into_iter().take(room));
    }
    sum
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    Passed,
    Skipped,
    Failed,
}

/// A test case whose end has not come.
#[derive(Debug)]
struct Case {
    /// How many elements are open with it.
    depth: usize,
    outcome: Outcome,
    name: String,
}

impl Case {
    fn open(start: &BytesStart<'_>, depth: usize) -> Case {
        let name = attribute(start, b"name");
        let class = attribute(start, b"classname");
        // gtest and ctest say so of what they did not run; ctest has the name in both places.
        let left_out = matches!(
            attribute(start, b"status").as_str(),
            "notrun" | "disabled" | "skipped"
        ) || matches!(
            attribute(start, b"result").as_str(),
            "suppressed" | "skipped"
        );
        Case {
            depth,
            outcome: if left_out {
                Outcome::Skipped
            } else {
                Outcome::Passed
            },
            name: if class.is_empty() || class == name {
                name
            } else {
                format!("{class}::{name}")
            },
        }
    }
}

#[derive(Debug, Default)]
struct Count {
    counts: TestCounts,
    seen_root: bool,
    /// Elements that are open.
    depth: usize,
    case: Option<Case>,
    /// The suite around, for one that fails as a whole.
    suite: String,
}

impl Count {
    fn open(&mut self, start: &BytesStart<'_>) -> Result<(), ReportError> {
        let name = start.local_name();
        let element = name.as_ref();
        if self.depth == 0 {
            if !matches!(element, b"testsuites" | b"testsuite" | b"testrun") {
                let root: String = String::from_utf8_lossy(element).chars().take(40).collect();
                return Err(ReportError::NotJunit { root });
            }
            self.seen_root = true;
        }
        self.depth += 1;
        match (&mut self.case, element) {
            // Only what stands directly in the case: `rerunFailure`, or a `failure` printed into `system-out`, is not it.
            (Some(case), _) if self.depth != case.depth + 1 => {}
            (Some(case), b"failure" | b"error") => case.outcome = Outcome::Failed,
            (Some(case), b"skipped") => case.outcome = case.outcome.max(Outcome::Skipped),
            (Some(_), _) => {}
            (None, b"testcase") => self.case = Some(Case::open(start, self.depth)),
            (None, b"testsuite") => self.suite = attribute(start, b"name"),
            (None, b"error" | b"failure") => {
                // A suite that could not be set up, or torn down: its cases say nothing of it.
                let name = format!("{} (suite)", self.suite);
                self.end(Outcome::Failed, &name);
            }
            (None, _) => {}
        }
        Ok(())
    }

    fn close(&mut self) {
        if let Some(case) = self.case.take_if(|case| case.depth == self.depth) {
            self.end(case.outcome, &case.name);
        }
        self.depth = self.depth.saturating_sub(1);
    }

    fn end(&mut self, outcome: Outcome, name: &str) {
        match outcome {
            Outcome::Passed => self.counts.passed += 1,
            Outcome::Skipped => self.counts.skipped += 1,
            Outcome::Failed => {
                self.counts.failed += 1;
                if self.counts.failing.len() < MOST_FAILING {
                    self.counts.failing.push(shortened(name));
                }
            }
        }
    }
}

/// The value of an attribute, no longer than a name may be; empty where there is none.
fn attribute(start: &BytesStart<'_>, name: &[u8]) -> String {
    let mut attributes = start.attributes();
    // Whether one stands there twice is looked up for each: too slow for an element with a million of them.
    let found = attributes
        .with_checks(false)
        .flatten()
        .find(|a| a.key.as_ref() == name);
    let Some(found) = found else {
        return String::new();
    };
    let text = String::from_utf8_lossy(&found.value);
    // An entity that is not one of the five of XML is shown as it is written.
    let value = quick_xml::escape::unescape(&text).unwrap_or(Cow::Borrowed(text.as_ref()));
    shortened(&value)
}

/// One line of bounded length.
fn shortened(name: &str) -> String {
    let mut chars = name.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut text: String = chars.by_ref().take(MOST_NAME).collect();
    if chars.next().is_some() {
        text.pop();
        text.push('…');
    }
    text
}

/// UTF-16, as Windows tools write it, in UTF-8. Anything else stays: what matters is ASCII in all other encodings.
fn as_utf8(xml: &[u8]) -> Cow<'_, [u8]> {
    let (decode, body): (fn([u8; 2]) -> u16, _) = match xml {
        [0xFF, 0xFE, body @ ..] => (u16::from_le_bytes, body),
        [0xFE, 0xFF, body @ ..] => (u16::from_be_bytes, body),
        _ => return Cow::Borrowed(xml),
    };
    let (units, _) = body.as_chunks::<2>();
    let text: String = char::decode_utf16(units.iter().map(|unit| decode(*unit)))
        .map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect();
    Cow::Owned(text.into_bytes())
}

#[cfg(test)]
mod tests;
