//! The control messages, in the order in which a job uses them.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// From the master to the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToAgent {
    /// Asks for life; answered by [`ToMaster::Pong`] with the same number.
    Ping { sequence: u64 },
    /// Empties `dir` (creating it if need be) and unpacks the tar stream that follows as data frames into it.
    /// Answered by [`ToMaster::Unpacked`] or [`ToMaster::Failed`].
    Unpack { dir: String },
    /// Writes the data frames that follow to one file, creating its folders, replacing what is there.
    /// Answered by [`ToMaster::Written`] or [`ToMaster::Failed`].
    Write { path: String, executable: bool },
    /// Ends the data frames of [`ToAgent::Unpack`] or [`ToAgent::Write`].
    EndOfData,
    /// Starts a command, detached from this connection. Starting an id that exists attaches to it, from byte 0, instead.
    /// [`ToMaster::Started`] answers, the output follows as output frames, and [`ToMaster::Exited`] ends it.
    Start {
        execution: Execution,
        command: StepCommand,
    },
    /// Follows an execution started earlier, from byte `from` of its output on.
    /// Answered by [`ToMaster::Unknown`] when this guest never heard of it.
    Attach { execution: Execution, from: u64 },
    /// The master has stored the output before `until`: the agent may forget it.
    /// Output that was not acknowledged is kept, and a command that has written more than the spool's bound
    /// beyond the last acknowledgement waits in its write.
    Acknowledge { execution: Execution, until: u64 },
    /// Ends the command and all its descendants: TERM, then KILL after `grace_ms`.
    Stop { execution: Execution, grace_ms: u64 },
    /// Asks for the files below `dir` that match one of `globs` (`**` crosses folders), each sent as
    /// [`ToMaster::File`], its data frames and [`ToMaster::EndOfFile`]; [`ToMaster::Collected`] ends the list.
    Collect {
        dir: String,
        globs: Vec<String>,
        max_files: u64,
        max_bytes: u64,
    },
    /// Sets the guest's clock (milliseconds since 1970-01-01 UTC) if it is more than a second off.
    SetClock { unix_ms: u64 },
}

/// Names one run of one command in a guest: letters, digits, `-` and `_`, at most 64.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Execution(pub String);

impl Execution {
    /// Whether the name can stand as a file name on every system.
    pub fn is_valid(&self) -> bool {
        !self.0.is_empty()
            && self.0.len() <= 64
            && self
                .0
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    }
}

impl std::fmt::Display for Execution {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// A command as the guest's shell gets it.
///
/// `Debug` shows the names of the environment alone: secrets are among the values.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepCommand {
    /// The shell's program and its arguments before the script, e.g. `["sh", "-e", "-c"]`.
    pub shell: Vec<String>,
    /// The script, the shell's last argument.
    pub script: String,
    /// Where it runs; it must exist.
    pub dir: String,
    /// Added to the agent's own environment.
    pub env: BTreeMap<String, String>,
    /// How many bytes of output may wait unacknowledged before the command's writes block.
    pub spool_bytes: u64,
    /// Output and errors go to a terminal instead of a pipe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pty: Option<Pty>,
}

/// The size of a pseudo-terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pty {
    pub columns: u16,
    pub rows: u16,
}

impl std::fmt::Debug for StepCommand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&String> = self.env.keys().collect();
        f.debug_struct("StepCommand")
            .field("shell", &self.shell)
            .field("script", &self.script)
            .field("dir", &self.dir)
            .field("env", &names)
            .field("spool_bytes", &self.spool_bytes)
            .field("pty", &self.pty)
            .finish()
    }
}

/// From the agent to the master.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToMaster {
    /// The first frame after the preamble.
    Hello(Hello),
    Pong {
        sequence: u64,
    },
    Unpacked {
        entries: u64,
    },
    Written {
        bytes: u64,
    },
    /// The command runs (or ran already: attached).
    Started {
        execution: Execution,
        state: ExecutionState,
    },
    /// This guest has no such execution.
    Unknown {
        execution: Execution,
    },
    /// The command has ended and every byte of its output before `output_bytes` has been sent.
    Exited {
        execution: Execution,
        exit: Exit,
        output_bytes: u64,
    },
    /// The header of a collected file; data frames and [`ToMaster::EndOfFile`] follow.
    File(CollectedFile),
    /// Ends a file, with the hash of what was sent. Fewer bytes than the header's `size` mean that the file shrank or
    /// could not be read to its end: the master discards it, and it stands among the skipped.
    EndOfFile {
        sha256: String,
    },
    Collected {
        files: u64,
        bytes: u64,
        skipped: Vec<Skipped>,
    },
    ClockSet {
        stepped_ms: i64,
    },
    /// A request could not be met; the sentence says what and why.
    Failed {
        request: String,
        message: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub protocol: u32,
    pub agent_version: String,
    pub os: String,
    pub arch: String,
    /// The agent's process id, for the log.
    pub pid: u32,
    /// The guest's clock, milliseconds since 1970-01-01 UTC.
    pub unix_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum ExecutionState {
    /// It was started by this very request.
    New,
    /// It was there already; it may have ended.
    Attached,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "how", rename_all = "snake_case")]
pub enum Exit {
    Code {
        code: i32,
    },
    Signal {
        signal: i32,
    },
    /// The supervisor of the command vanished: nobody knows how the command ended.
    Lost,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectedFile {
    /// Relative to the collected folder, with `/` between its parts.
    pub path: String,
    pub size: u64,
    pub executable: bool,
}

/// A file that matched and was not sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    pub path: String,
    pub why: String,
}
