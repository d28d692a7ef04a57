//! What can go wrong between the master and a guest, one variant per thing that a caller does differently.

use super::Credential;
use crate::model::{Architecture, OsFamily};
use std::path::{Path, PathBuf};

/// None of these is a failure of the job: all are ours, and an attempt that ends with one is tried again.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// A key file of ours is missing or broken; trying again does not help.
    #[error(
        "cannot use the key file {path}: {why}\nhint: the platform's `key` is a private key without a passphrase and `host_key` a public key, both as ssh-keygen writes them; `password_file` holds one line"
    )]
    KeyFile { path: PathBuf, why: String },
    #[error(
        "there is no agent for {os}/{arch}, so nothing can be run in {name}\nhint: `vivarium doctor` lists what there is; put one into agents_dir as `{os}-{arch}`; a Unix can have the one in sh: leave `agent` out of its platform.toml",
        os = .os.as_str(), arch = .arch.as_str()
    )]
    NoAgent {
        name: String,
        os: OsFamily,
        arch: Architecture,
    },
    /// Only when the caller's patience is known: [`super::Agent::connect_within`].
    #[error(
        "cannot reach {name} at {address}: {why}\nhint: see the guest's console; its sshd may not be up, or the forwarded port may be another"
    )]
    Unreachable {
        name: String,
        address: String,
        why: String,
    },
    #[error("{name} at {address} is not the machine it should be: {why}; the key is pinned by {}\nhint: put the guest's public host key there, or make the image with the key that belongs to it", .pinned.display())]
    HostKey {
        name: String,
        address: String,
        pinned: PathBuf,
        why: String,
    },
    #[error("{name} does not let the user {user} in with {credential}: {why}\nhint: {}", entry_hint(.credential))]
    Authentication {
        name: String,
        user: String,
        credential: Credential,
        why: String,
    },
    /// The agent could not be started, or does not answer.
    #[error("the agent in {name} {why}")]
    Agent { name: String, why: String },
    /// It is none of ours: what it says on a connection that SSH vouches for is not the protocol, and on another one it
    /// would say the same.
    #[error("the agent in {name} does not speak the protocol: {why}")]
    Protocol { name: String, why: String },
    /// The connection was there and is gone; an execution in the guest goes on, attach to it over a new connection.
    #[error("the connection to {name} is lost: {why}")]
    Lost { name: String, why: String },
    /// The agent understood and could not do it.
    #[error("{name} cannot {request}: {message}")]
    Refused {
        name: String,
        /// The message's type as it stands on the wire: `start`, `unpack`, …
        request: String,
        message: String,
    },
    /// What was to be sent could not be read on our side. The connection is closed: half of it had been sent.
    #[error("cannot read what was to be sent to {name}")]
    Source {
        name: String,
        source: std::io::Error,
    },
    /// One collected file did not come whole; the collection goes on with the next one.
    #[error("{path} did not arrive whole from {name}: {why}")]
    Incomplete {
        name: String,
        path: String,
        why: String,
    },
}

fn entry_hint(credential: &Credential) -> &'static str {
    match credential {
        Credential::Key(_) => {
            "the public half belongs into that user's authorized_keys in the image"
        }
        Credential::Password(_) => {
            "the image's sshd must allow passwords (PasswordAuthentication yes), and the user have this one"
        }
    }
}

impl SessionError {
    /// The connection cannot be used any more: make a new one, or give the guest up.
    pub fn is_fatal(&self) -> bool {
        match self {
            SessionError::Refused { .. } | SessionError::Incomplete { .. } => false,
            SessionError::KeyFile { .. }
            | SessionError::NoAgent { .. }
            | SessionError::Unreachable { .. }
            | SessionError::HostKey { .. }
            | SessionError::Authentication { .. }
            | SessionError::Agent { .. }
            | SessionError::Protocol { .. }
            | SessionError::Lost { .. }
            | SessionError::Source { .. } => true,
        }
    }

    /// The platform's files do not fit its machine: another machine of it would say the same.
    pub(crate) fn is_platforms(&self) -> bool {
        match self {
            SessionError::KeyFile { .. }
            | SessionError::NoAgent { .. }
            | SessionError::HostKey { .. }
            | SessionError::Authentication { .. } => true,
            SessionError::Unreachable { .. }
            | SessionError::Agent { .. }
            | SessionError::Protocol { .. }
            | SessionError::Lost { .. }
            | SessionError::Refused { .. }
            | SessionError::Source { .. }
            | SessionError::Incomplete { .. } => false,
        }
    }

    pub(super) fn key_file(path: &Path, why: impl std::fmt::Display) -> Self {
        SessionError::KeyFile {
            path: path.to_owned(),
            why: why.to_string(),
        }
    }
}

/// Text from a guest, made fit for one line of ours: no control characters, and not long.
pub(super) fn one_line(text: &[u8]) -> String {
    const LONGEST: usize = 500;
    let text = String::from_utf8_lossy(text);
    let mut line: String = text
        .trim()
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(LONGEST)
        .collect();
    if text.trim().chars().nth(LONGEST).is_some() {
        line.push('…');
    }
    line
}
