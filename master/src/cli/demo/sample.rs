//! The sample project: a shell script with its tests, which builds a tarball.

use anyhow::{Context, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The project's files, by the names they have in it.
const FILES: [(&str, &str); 3] = [
    (".vivarium.toml", include_str!("sample/vivarium.toml")),
    ("greet", include_str!("sample/greet")),
    ("run-tests", include_str!("sample/run-tests")),
];
const TOPIC: &str = "topic-greeting";

/// The repository that the master polls, and the work tree that is pushed to it.
#[derive(Debug)]
pub(super) struct Sample {
    pub(super) bare: PathBuf,
    work: PathBuf,
}

impl Sample {
    pub(super) fn make(dir: &Path) -> anyhow::Result<Sample> {
        let sample = Sample {
            bare: dir.join("sample.git"),
            work: dir.join("work"),
        };
        std::fs::create_dir_all(&sample.work)?;
        let bare = sample.bare.display().to_string();
        sample.git(&["init", "-q", "-b", "main", "."])?;
        sample.git(&["init", "-q", "--bare", "-b", "main", &bare])?;
        sample.git(&["remote", "add", "origin", &bare])?;
        Ok(sample)
    }

    /// Commits the project on a topic branch and pushes it; the commit.
    pub(super) fn push_topic(&self) -> anyhow::Result<String> {
        self.git(&["checkout", "-q", "-b", TOPIC])?;
        for (name, text) in FILES {
            std::fs::write(self.work.join(name), text)?;
        }
        self.git(&["add", "."])?;
        self.git(&["commit", "-q", "-m", "Greet by name"])?;
        self.git(&["push", "-q", "origin", TOPIC])?;
        self.git(&["rev-parse", "HEAD"])
    }

    /// Brings the branch onto main with a commit of its own, as a merge does; that commit.
    pub(super) fn merge(&self) -> anyhow::Result<String> {
        let message = format!("Merge branch '{TOPIC}'");
        self.git(&["checkout", "-q", "-b", "main"])?;
        self.git(&["commit", "-q", "--allow-empty", "-m", &message])?;
        self.git(&["push", "-q", "origin", "main"])?;
        self.git(&["rev-parse", "HEAD"])
    }

    fn git(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let settings = [
            "user.name=Demo",
            "user.email=demo@example.org",
            "commit.gpgsign=false",
        ];
        let output = Command::new("git")
            .current_dir(&self.work)
            .args(settings.iter().flat_map(|setting| ["-c", setting]))
            .args(arguments)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .stdin(Stdio::null())
            .output()
            .context("git cannot be run\nhint: install the package git")?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("git {}: {}", arguments.join(" "), said.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::FILES;
    use crate::config::RepositoryFile;

    #[test]
    fn the_sample_project_has_a_file_that_the_master_reads() {
        let (name, text) = FILES[0];
        assert_eq!(name, crate::config::REPOSITORY_FILE);
        RepositoryFile::parse(text).unwrap();
    }
}
