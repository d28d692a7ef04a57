//! The agents that this master has, and which of them a guest gets.
//!
//! ```text
//!   embedded in this build ──┐
//!   beside it (agents_dir) ──┼──> Agents ──(system, architecture, what platform.toml wants)──> Program ──> push
//!   agent/sh, embedded too ──┘
//! ```
//!
//! In this order: what is embedded belongs to this very build. For a Unix that neither has a native one for there is the
//! one in `sh`.

use super::{GuestSpec, SessionError, beside};
use crate::model::{AgentKind, Architecture, OsFamily};
use flate2::Compression;
use flate2::read::{GzDecoder, GzEncoder};
use std::borrow::Cow;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use vivarium_protocol::Hello;

/// What the version of the agent in `sh` ends with.
const SH_VERSION: &str = "-sh";

include!(concat!(env!("OUT_DIR"), "/agents.rs"));

/// An agent's program.
#[derive(Debug, Clone)]
pub struct Program {
    pub kind: AgentKind,
    /// In bytes.
    pub size: usize,
    pub origin: Origin,
    /// Hexadecimal.
    pub(super) sha256: Cow<'static, str>,
    content: Content,
}

/// Where a program comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    Build,
    File(PathBuf),
}

/// Travels by gzip; packed when a guest first asks for it, or by the build.
#[derive(Debug, Clone)]
enum Content {
    Packed(&'static [u8]),
    Plain {
        bytes: Vec<u8>,
        packed: OnceLock<Vec<u8>>,
    },
}

impl Program {
    const fn embedded(
        kind: AgentKind,
        size: usize,
        sha256: &'static str,
        packed: &'static [u8],
    ) -> Program {
        Program {
            kind,
            size,
            origin: Origin::Build,
            sha256: Cow::Borrowed(sha256),
            content: Content::Packed(packed),
        }
    }

    pub(super) fn plain(
        kind: AgentKind,
        bytes: Vec<u8>,
        sha256: String,
        origin: Origin,
    ) -> Program {
        Program {
            kind,
            size: bytes.len(),
            origin,
            sha256: Cow::Owned(sha256),
            content: Content::Plain {
                bytes,
                packed: OnceLock::new(),
            },
        }
    }

    /// What its bytes hash to, in hexadecimal digits.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// As it travels.
    pub(super) fn packed(&self) -> &[u8] {
        match &self.content {
            Content::Packed(packed) => packed,
            Content::Plain { bytes, packed } => packed.get_or_init(|| {
                let mut packed = Vec::new();
                let read =
                    GzEncoder::new(&**bytes, Compression::default()).read_to_end(&mut packed);
                read.map(|_| packed).unwrap_or_default()
            }),
        }
    }

    /// As it is to be in the guest.
    pub(super) fn unpacked(&self) -> std::io::Result<Cow<'_, [u8]>> {
        match &self.content {
            Content::Packed(packed) => {
                let mut plain = Vec::with_capacity(self.size);
                GzDecoder::new(*packed).read_to_end(&mut plain)?;
                Ok(Cow::Owned(plain))
            }
            Content::Plain { bytes, .. } => Ok(Cow::Borrowed(bytes)),
        }
    }
}

/// A native agent and the guests it is for.
#[derive(Debug, Clone)]
pub(super) struct Native {
    pub(super) os: OsFamily,
    pub(super) arch: Architecture,
    pub(super) program: Program,
}

/// What this master can push.
#[derive(Debug, Clone)]
pub struct Agents {
    native: Arc<[Native]>,
}

/// What of the agents beside the master is worth a word.
#[derive(Debug)]
pub struct BesideReport {
    /// Where they were looked for and found; `None` where none of the usual folders is there.
    pub folder: Option<PathBuf>,
    /// What is not used there and why, each a sentence with a hint.
    pub refused: Vec<String>,
}

impl Default for Agents {
    /// Those in this build.
    fn default() -> Self {
        Agents {
            native: NATIVE.as_slice().into(),
        }
    }
}

impl Agents {
    /// Those in this build, then those in this folder or, without one, in the usual folder.
    pub fn open(agents_dir: Option<&Path>) -> (Agents, BesideReport) {
        let found = beside::look(agents_dir);
        let native = NATIVE.iter().cloned().chain(found.programs).collect();
        let report = BesideReport {
            folder: found.folder,
            refused: found.refused,
        };
        (Agents { native }, report)
    }

    /// The native ones, those that come first for their system before others.
    pub fn native(&self) -> impl Iterator<Item = (OsFamily, Architecture, &Program)> {
        let all = self.native.iter();
        all.map(|native| (native.os, native.arch, &native.program))
    }

    /// The agent for such a guest, if there is one.
    pub fn choose(
        &self,
        os: OsFamily,
        arch: Architecture,
        wish: Option<AgentKind>,
    ) -> Option<&Program> {
        let native = || {
            let mut all = self.native();
            all.find(|(its_os, its_arch, _)| (*its_os, *its_arch) == (os, arch))
                .map(|(_, _, program)| program)
        };
        let sh = || os.is_unix().then_some(&SH);
        match wish {
            Some(AgentKind::Native) => native(),
            Some(AgentKind::Sh) => sh(),
            None => native().or_else(sh),
        }
    }

    /// The one in `sh`, for a guest in which the native one does not start and may be done without.
    pub(super) fn stand_in(&self, guest: &GuestSpec) -> Option<&Program> {
        (guest.agent.is_none() && guest.os.is_unix()).then_some(&SH)
    }

    /// The one that has greeted from this guest: where the native one does not start it is the one in `sh`.
    pub fn greeted(&self, guest: &GuestSpec, hello: &Hello) -> Option<&Program> {
        match hello.agent_version.ends_with(SH_VERSION) {
            true => Some(&SH),
            false => self.choose(guest.os, guest.arch, Some(AgentKind::Native)),
        }
    }

    /// The agent for this guest.
    pub(super) fn find(&self, name: &str, guest: &GuestSpec) -> Result<&Program, SessionError> {
        let chosen = self.choose(guest.os, guest.arch, guest.agent);
        chosen.ok_or_else(|| SessionError::NoAgent {
            name: name.to_owned(),
            os: guest.os,
            arch: guest.arch,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};

    const HERE: (OsFamily, Architecture) = (OsFamily::Linux, Architecture::X86_64);

    fn kind((os, arch): (OsFamily, Architecture), wish: Option<AgentKind>) -> Option<AgentKind> {
        let agents = Agents::default();
        agents.choose(os, arch, wish).map(|program| program.kind)
    }

    #[test]
    fn an_agent_for_this_machine_is_embedded() {
        assert!(Agents::default().native().any(|(os, arch, program)| {
            (os.as_str(), arch.as_str()) == (std::env::consts::OS, std::env::consts::ARCH)
                && program.size > 100_000
        }));
    }

    #[test]
    fn the_native_agent_comes_first_and_any_unix_has_the_one_in_sh() {
        let (native, sh) = (Some(AgentKind::Native), Some(AgentKind::Sh));
        let rare = (OsFamily::Dragonfly, Architecture::Aarch64);
        let windows = (OsFamily::Windows, Architecture::Aarch64);
        assert_eq!(kind(HERE, None), native);
        assert_eq!(kind(HERE, sh), sh);
        assert_eq!(kind(rare, None), sh);
        assert_eq!(kind(rare, native), None);
        assert_eq!(kind(windows, None), None);
        assert_eq!(kind(windows, sh), None);
    }

    #[test]
    fn a_guest_without_an_agent_is_named() {
        let guest = GuestSpec {
            os: OsFamily::Windows,
            arch: Architecture::Aarch64,
            agent: None,
            state_dir: "x".to_owned(),
        };
        let error = Agents::default().find("vm-7", &guest).unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains("no agent for windows/aarch64") && error.contains("vm-7"),
            "{error}"
        );
    }

    #[test]
    fn an_agent_unpacks_to_what_its_hash_says() {
        let agents = Agents::default();
        for program in agents.native().map(|(_, _, program)| program).chain([&SH]) {
            let plain = program.unpacked().unwrap();
            assert_eq!(plain.len(), program.size);
            assert!(program.packed().len() < program.size);
            assert_eq!(hex::encode(Sha256::digest(&plain)), program.sha256);
        }
        let script = SH.unpacked().unwrap();
        assert!(script.starts_with(b"#!/bin/sh\n") && script.ends_with(b"esac\n"));
    }
}
