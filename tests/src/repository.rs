//! Sample repositories: a `.vivarium.toml` and something to run.

use crate::git::{BareRepository, Commit};
use anyhow::Result;
use std::path::Path;
use toml::{Table, Value};

/// The file that tells Vivarium what to run.
pub const FILE: &str = ".vivarium.toml";

/// A `.vivarium.toml`, built up.
#[derive(Debug, Clone, Default)]
pub struct Suites {
    table: Table,
}

impl Suites {
    /// One suite `test` on these platforms; steps are added to it.
    pub fn test_on(platforms: &[&str]) -> Suites {
        Suites::default().suite("test", platforms)
    }

    /// Adds another suite.
    pub fn suite(mut self, name: &str, platforms: &[&str]) -> Suites {
        let mut suite = Table::new();
        suite.insert("platforms".to_owned(), strings(platforms));
        table(&mut self.table, "suite").insert(name.to_owned(), suite.into());
        self
    }

    /// Adds a step to the suite `test`.
    pub fn step(self, name: &str, run: &str) -> Suites {
        self.step_of("test", name, run)
    }

    pub fn step_of(mut self, suite: &str, name: &str, run: &str) -> Suites {
        let suite = table(table(&mut self.table, "suite"), suite);
        push(suite, "step", step(name, run));
        self
    }

    /// Sets any key of the suite's last step.
    pub fn set_step(mut self, suite: &str, key: &str, value: impl Into<Value>) -> Suites {
        let steps = table(table(&mut self.table, "suite"), suite).get_mut("step");
        let last = steps
            .and_then(Value::as_array_mut)
            .and_then(|steps| steps.last_mut())
            .and_then(Value::as_table_mut);
        if let Some(step) = last {
            step.insert(key.to_owned(), value.into());
        }
        self
    }

    /// Sets any key of a suite.
    pub fn set(mut self, suite: &str, key: &str, value: impl Into<Value>) -> Suites {
        table(table(&mut self.table, "suite"), suite).insert(key.to_owned(), value.into());
        self
    }

    /// What is built and kept after a merge.
    pub fn artifacts(mut self, name: &str, run: &str, files: &[&str]) -> Suites {
        let artifacts = table(&mut self.table, "artifacts");
        push(artifacts, "step", step(name, run));
        artifacts.insert("files".to_owned(), strings(files));
        self
    }

    /// The text of the file.
    pub fn to_toml(&self) -> String {
        toml::to_string(&self.table)
            .unwrap_or_else(|error| unreachable!("a table is no TOML: {error}"))
    }
}

fn strings(list: &[&str]) -> Value {
    Value::Array(list.iter().map(|&item| item.into()).collect())
}

fn step(name: &str, run: &str) -> Value {
    let mut step = Table::new();
    step.insert("name".to_owned(), name.into());
    step.insert("run".to_owned(), run.into());
    step.into()
}

/// The table of that name, made if it is not there.
#[expect(
    clippy::panic,
    reason = "a builder used wrongly is a mistake in the test"
)]
fn table<'a>(parent: &'a mut Table, name: &str) -> &'a mut Table {
    match parent
        .entry(name)
        .or_insert_with(|| Value::Table(Table::new()))
    {
        Value::Table(table) => table,
        other => panic!("`{name}` is no table but {other}"),
    }
}

fn push(parent: &mut Table, name: &str, item: Value) {
    let list = parent
        .entry(name)
        .or_insert_with(|| Value::Array(Vec::new()));
    if let Value::Array(items) = list {
        items.push(item);
    }
}

/// A repository of no forge, in a folder, as one polls it.
#[derive(Debug)]
pub struct LocalRepository {
    folder: tempfile::TempDir,
    git: BareRepository,
}

impl LocalRepository {
    /// With a first commit of the suites on `main`; returns its SHA too.
    pub async fn create(suites: &Suites) -> Result<(LocalRepository, String)> {
        let folder = tempfile::Builder::new()
            .prefix("vivarium-repository-")
            .tempdir()?;
        let git = BareRepository::init(&folder.path().join("local.git")).await?;
        let repository = LocalRepository { folder, git };
        let first = Commit::on("main")
            .message("First commit")
            .file(FILE, suites.to_toml());
        let sha = repository.commit(&first).await?;
        Ok((repository, sha))
    }

    pub fn path(&self) -> &Path {
        self.git.path()
    }

    /// The folder around it, for what belongs to the same test.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub async fn commit(&self, commit: &Commit) -> Result<String> {
        self.git.commit(commit).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_sample_file_is_one_the_master_reads() {
        let suites = Suites::test_on(&["tiny-linux", "debian-12"])
            .step("hello", "echo hello from $VIVARIUM_PLATFORM")
            .step("twice", "echo \"again\"\necho 'and again'")
            .set("test", "timeout_secs", 60)
            .artifacts("build", "mkdir dist\ndate >dist/program", &["dist/*"]);
        vivarium::config::RepositoryFile::parse(&suites.to_toml()).unwrap();
        let (repository, sha) = LocalRepository::create(&suites).await.unwrap();
        let git = BareRepository::init(repository.path()).await.unwrap();
        assert_eq!(git.head_of("main").await, Some(sha.clone()));
        assert_eq!(
            git.file(&sha, FILE).await.unwrap(),
            suites.to_toml().into_bytes()
        );
    }
}
