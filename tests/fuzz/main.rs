//! Fuzzers: libFuzzer feeds each target with bytes that it mutates towards code not yet reached.
//!
//! One program for all targets; `FUZZ_TARGET` chooses. `make fuzz` builds it instrumented (see `rustc` beside this
//! file) and runs each target from its kept corpus. A target asserts what must hold for any bytes at all.
#![no_main]

mod files;
mod guest;
mod hook;
mod logs;

use std::sync::LazyLock;

type Target = fn(&[u8]);

const TARGETS: [(&str, Target); 7] = [
    ("webhook", hook::webhook),
    ("frames", guest::frames),
    ("artifact_name", guest::artifact_name),
    ("junit", guest::junit),
    ("repository_file", files::repository_file),
    ("platform_file", files::platform_file),
    ("log_files", logs::log_files),
];

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let wanted = std::env::var("FUZZ_TARGET").unwrap_or_default();
    let found = TARGETS.iter().find(|(name, _)| *name == wanted);
    let known: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
    found
        .unwrap_or_else(|| panic!("FUZZ_TARGET is `{wanted}`; it must be one of {known:?}"))
        .1
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| TARGET(data));

/// What is shown to people must not be obeyed by their terminals.
fn assert_plain(sentence: &str) {
    assert!(
        !sentence.chars().any(|c| c.is_control() && c != '\n'),
        "control characters in {sentence:?}"
    );
}
