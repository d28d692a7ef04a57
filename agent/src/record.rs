//! What an execution leaves on disk, shared by the connection's side and the supervisor's side.
//!
//! ```text
//!   STATE/exec/<id>/command.json   the command; removed by the supervisor once it has read it
//!                   lock           locked for as long as the supervisor lives (on Windows: STATE/exec/<id>.lock)
//!                   control        the supervisor's socket (on Windows: where it listens)
//!                   out-<offset>   segments of the output, named by the offset of their first byte
//!                   end.json       how it ended; appears by rename, after the last byte is in the segments
//!                   supervisor.log what the supervisor had to complain about
//! ```

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use vivarium_protocol::Exit;

pub(crate) const COMMAND: &str = "command.json";
/// What a shell that reads one line only is given as a file, on Windows.
#[cfg(windows)]
pub(crate) const SCRIPT: &str = "script.cmd";
#[cfg(unix)]
pub(crate) const LOCK: &str = "lock";
pub(crate) const CONTROL: &str = "control";
pub(crate) const LOG: &str = "supervisor.log";
const END: &str = "end.json";
const RESERVED: &str = "end.reserved";

/// The size of the end's file, written at the start so that a full disk cannot keep the end from being recorded.
const END_BYTES: usize = 8 * 1024;
/// The longest sentence kept in it, in bytes; its JSON form may take six times as much.
const MAX_SENTENCE: usize = 1024;

/// How an execution ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "end", rename_all = "snake_case")]
pub(crate) enum End {
    Exited {
        exit: Exit,
        output_bytes: u64,
    },
    /// The command did not start, or its output could not be kept: the sentence says what happened.
    Failed {
        message: String,
        output_bytes: u64,
    },
}

/// The file whose blocks the end will take.
#[derive(Debug)]
pub(crate) struct Reserve {
    file: File,
    dir: PathBuf,
}

impl Reserve {
    pub(crate) fn create(dir: &Path) -> Result<Self> {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .open(dir.join(RESERVED))
            .context("cannot create the record of the end")?;
        file.write_all(&[b' '; END_BYTES])
            .context("cannot reserve room for the record of the end")?;
        Ok(Self {
            file,
            dir: dir.to_owned(),
        })
    }

    /// Writes the end over the reserved blocks and gives it its name.
    pub(crate) fn record(mut self, mut end: End) -> Result<()> {
        use std::io::Seek;
        if let End::Failed { message, .. } = &mut end {
            *message = message.chars().take(MAX_SENTENCE).collect();
        }
        let mut bytes = serde_json::to_vec(&end)?;
        bytes.resize(END_BYTES.max(bytes.len()), b' ');
        self.file.rewind()?;
        self.file
            .write_all(&bytes)
            .context("cannot write the record of the end")?;
        drop(self.file);
        crate::platform::rename(&self.dir.join(RESERVED), &self.dir.join(END))
            .context("cannot name the record of the end")
    }
}

/// The end, if it was recorded. One that does not parse (the guest lost power while it was written) counts as missing.
pub(crate) fn read_end(dir: &Path) -> Result<Option<End>> {
    match std::fs::read(dir.join(END)) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context("cannot read how the execution ended"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_comes_back_as_it_was_recorded() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read_end(dir.path()).unwrap(), None);
        let end = End::Exited {
            exit: Exit::Signal { signal: 9 },
            output_bytes: 12,
        };
        Reserve::create(dir.path())
            .unwrap()
            .record(end.clone())
            .unwrap();
        assert_eq!(read_end(dir.path()).unwrap(), Some(end));
    }

    #[test]
    fn a_long_sentence_fits_into_the_reserved_blocks() {
        let dir = tempfile::tempdir().unwrap();
        let message = "\u{1}".repeat(100_000);
        Reserve::create(dir.path())
            .unwrap()
            .record(End::Failed {
                message,
                output_bytes: 0,
            })
            .unwrap();
        let length = std::fs::metadata(dir.path().join(END)).unwrap().len();
        assert_eq!(length, END_BYTES as u64);
        assert!(matches!(
            read_end(dir.path()).unwrap(),
            Some(End::Failed { .. })
        ));
    }
}
