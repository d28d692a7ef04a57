//! One master for a data folder: a lock on a file in it, which the kernel gives back however the process ends.
//!
//! The file names who holds the lock, for the sentence of the master that comes second.

use anyhow::{Context, bail};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::time::Duration;
use url::Url;

const FILE: &str = "master.lock";
/// A master that ends gives its lock back a moment later; `vivarium doctor` looks at it for an instant.
const TRIES: u32 = 10;
const PAUSE: Duration = Duration::from_millis(100);

/// The right to be the master of a data folder, as long as this lives.
#[derive(Debug)]
pub(in crate::cli) struct DataLock {
    file: File,
}

impl DataLock {
    /// Takes the lock, or says who has it.
    pub(in crate::cli) async fn take(data: &Path) -> anyhow::Result<DataLock> {
        let mut file = open(data)?;
        for number in 1..=TRIES {
            match file.try_lock() {
                Ok(()) => return DataLock { file }.named(""),
                Err(TryLockError::WouldBlock) if number < TRIES => tokio::time::sleep(PAUSE).await,
                Err(TryLockError::WouldBlock) => break,
                Err(TryLockError::Error(error)) => {
                    return Err(error).context(format!("cannot lock {FILE} in {}", data.display()));
                }
            }
        }
        bail!(
            "{} works in {} already, and one data folder has one master\nhint: stop it, or set another data_dir",
            holder_named_in(&mut file),
            data.display()
        )
    }

    /// Writes down where this master listens.
    pub(in crate::cli) fn listens_on(self, url: &Url) -> anyhow::Result<DataLock> {
        self.named(url.as_str())
    }

    fn named(mut self, address: &str) -> anyhow::Result<DataLock> {
        let text = format!("process {} {address}", std::process::id());
        let mut write = || {
            self.file.set_len(0)?;
            self.file.rewind()?;
            writeln!(self.file, "{}", text.trim_end())
        };
        write().with_context(|| format!("cannot write {FILE}"))?;
        Ok(self)
    }
}

/// The master that works in the data folder now, as it is told: `the master of process 4711 at http://…`.
pub(in crate::cli) fn holder(data: &Path) -> anyhow::Result<Option<String>> {
    let mut file = open(data)?;
    match file.try_lock_shared() {
        Ok(()) => Ok(None),
        Err(TryLockError::WouldBlock) => Ok(Some(holder_named_in(&mut file))),
        Err(TryLockError::Error(error)) => {
            Err(error).context(format!("cannot look at {FILE} in {}", data.display()))
        }
    }
}

fn open(data: &Path) -> anyhow::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(data.join(FILE))
        .with_context(|| format!("cannot open {FILE} in {}", data.display()))
}

fn holder_named_in(file: &mut File) -> String {
    let mut text = String::new();
    if file.rewind().is_err() || file.read_to_string(&mut text).is_err() {
        text.clear();
    }
    match text.trim().rsplit_once(' ') {
        Some((process, address)) if address.starts_with("http") => {
            format!("the master of {process} at {address}")
        }
        _ => "another master, which just starts or stops,".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_second_master_is_told_who_is_the_first() {
        let data = tempfile::tempdir().unwrap();
        assert_eq!(holder(data.path()).unwrap(), None);
        let url = Url::parse("http://127.0.0.1:8090").unwrap();
        let lock = DataLock::take(data.path()).await.unwrap();
        let lock = lock.listens_on(&url).unwrap();
        let named = format!(
            "the master of process {} at http://127.0.0.1:8090/",
            std::process::id()
        );
        assert_eq!(holder(data.path()).unwrap(), Some(named.clone()));
        let refused = DataLock::take(data.path()).await.unwrap_err().to_string();
        assert!(refused.starts_with(&named), "{refused}");
        drop(lock);
        DataLock::take(data.path()).await.unwrap();
    }
}
