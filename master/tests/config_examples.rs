//! The annotated examples in `config/` are what they say: files that can be used.

use std::path::Path;
use vivarium::config::{Config, RepositoryFile};

fn folder() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../config"))
}

#[test]
fn the_example_configuration_is_read() {
    Config::load(&folder().join("vivarium.toml")).unwrap();
}

/// Lines that are commented out are settings too: they must be known, each in its table.
#[test]
fn what_is_commented_out_in_the_example_is_known() {
    let text = std::fs::read_to_string(folder().join("vivarium.toml")).unwrap();
    let uncommented: String = text
        .lines()
        .map(|line| {
            let bare = line
                .strip_prefix("# ")
                .or(line.strip_prefix('#'))
                .unwrap_or(line);
            let is_setting = bare.starts_with('[')
                || bare.split_once(" = ").is_some_and(|(key, _)| {
                    !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
                });
            format!("{}\n", if is_setting { bare } else { line })
        })
        .collect();
    if let Err(error) = Config::parse(Path::new("/etc/vivarium/vivarium.toml"), &uncommented) {
        let said = error.to_string();
        assert!(!said.contains("unknown"), "{said}\n{uncommented}");
    }
}

#[test]
fn the_sample_repository_file_is_read() {
    let text = std::fs::read_to_string(folder().join("sample.vivarium.toml")).unwrap();
    RepositoryFile::parse(&text).unwrap();
}
