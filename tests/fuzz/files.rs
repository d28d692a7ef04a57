//! TOML that people write: the repository's file, which is a stranger's, and a platform's.

use std::path::Path;
use vivarium::config::{Limits, RefusedPlatform, RepositoryFile, parse_platform, resolve_jobs};

/// Many suites on many platforms are an error, never an endless list.
const MOST_JOBS: usize = 1000;

pub(crate) fn repository_file(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    match RepositoryFile::parse(text) {
        Ok(file) => {
            let refused = ["tiny-linux", "debian-12"].map(|name| RefusedPlatform {
                name: name.to_owned(),
                why: String::new(),
                platform: None,
            });
            let jobs = resolve_jobs(&file, &[], &refused, &[], true, &Limits::default());
            assert!(jobs.is_ok_and(|jobs| jobs.len() <= MOST_JOBS) || text.contains("suite"));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

pub(crate) fn platform_file(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let folder = Path::new("/nowhere/platforms/tiny-linux");
    match parse_platform(folder, text) {
        Ok(platform) => assert_eq!(platform.name, "tiny-linux"),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
