//! Agents that lie beside the master, for the systems that this build has none for.
//!
//! ```text
//!   agents_dir, or else                          ┌─> <os>-<arch>, if it is what SHA256SUMS says ──> programs
//!   <the master's folder>/../lib/vivarium/agents ┤
//!   or else /usr/lib/vivarium/agents             └─> what is wrong with one ──> refused, a sentence each
//! ```

use super::programs::{Native, Origin, Program};
use crate::model::{AgentKind, Architecture, OsFamily};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Below the folder that the master's own folder is in.
const BESIDE: &str = "lib/vivarium/agents";
/// What a package of a distribution would bring.
const SYSTEM: &str = "/usr/lib/vivarium/agents";
/// The sums of all files of the folder, as sha256sum prints them.
const SUMS: &str = "SHA256SUMS";
/// An agent has a few hundred KiB; what is so large is something else.
const MOST_BYTES: u64 = 64 << 20;

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Beside {
    pub(super) folder: Option<PathBuf>,
    pub(super) programs: Vec<Native>,
    /// What could not be used and why, each a sentence.
    pub(super) refused: Vec<String>,
}

/// Looks into the configured folder or, without one, into the usual ones.
pub(super) fn look(configured: Option<&Path>) -> Beside {
    let own = std::env::current_exe().ok();
    let above = own.as_deref().and_then(Path::parent).and_then(Path::parent);
    let usual = above
        .map(|folder| folder.join(BESIDE))
        .into_iter()
        .chain([PathBuf::from(SYSTEM)]);
    let folder = match configured {
        Some(folder) => Some(folder.to_owned()),
        None => usual.into_iter().find(|folder| folder.is_dir()),
    };
    folder.map(read).unwrap_or_default()
}

fn read(folder: PathBuf) -> Beside {
    let mut found = Beside::default();
    let text = match std::fs::read_to_string(folder.join(SUMS)) {
        Ok(text) => text,
        Err(error) => {
            found.refused.push(format!(
                "no agent is taken from {0}: its {SUMS} cannot be read: {error}\n\
                 hint: (cd {0} && sha256sum *-* >{SUMS})",
                folder.display()
            ));
            found.folder = Some(folder);
            return found;
        }
    };
    let sums = sums_in(&text);
    for os in OsFamily::ALL {
        for arch in Architecture::ALL {
            let name = format!("{}-{}", os.as_str(), arch.as_str());
            let path = folder.join(&name);
            match program(&path, sums.get(name.as_str()).copied()) {
                Ok(None) => {}
                Ok(Some(program)) => found.programs.push(Native { os, arch, program }),
                Err(why) => found.refused.push(format!(
                    "the agent {} is not used: {why}\nhint: build it anew, and {SUMS} after it",
                    path.display()
                )),
            }
        }
    }
    found.folder = Some(folder);
    found
}

/// The lines `SHA256  NAME`.
fn sums_in(text: &str) -> HashMap<&str, &str> {
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    lines
        .map(|(sum, name)| (name.trim_start_matches([' ', '*']), sum))
        .collect()
}

/// The program in this file; `None` if there is none.
fn program(path: &Path, sum: Option<&str>) -> Result<Option<Program>, String> {
    let told = |error: std::io::Error| error.to_string();
    match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return match sum {
                Some(_) => Err(format!("{SUMS} names it and it is not there")),
                None => Ok(None),
            };
        }
        Err(error) => return Err(told(error)),
        Ok(meta) if meta.len() > MOST_BYTES => {
            return Err(format!("it has {} bytes", meta.len()));
        }
        Ok(_) => {}
    }
    let bytes = std::fs::read(path).map_err(told)?;
    let sha256 = hex::encode(Sha256::digest(&bytes));
    match sum {
        Some(sum) if sum == sha256 => {}
        Some(_) => return Err(format!("its SHA-256 is not the one in {SUMS}")),
        None => return Err(format!("{SUMS} does not name it")),
    }
    let origin = Origin::File(path.to_owned());
    Ok(Some(Program::plain(
        AgentKind::Native,
        bytes,
        sha256,
        origin,
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    fn sum(text: &str) -> String {
        hex::encode(Sha256::digest(text))
    }

    #[test]
    fn agents_are_taken_from_the_folder_by_their_names() {
        let sums = format!(
            "{}  freebsd-x86_64\n{} *netbsd-aarch64\n",
            sum("f"),
            sum("n")
        );
        let files = [
            ("freebsd-x86_64", "f"),
            ("netbsd-aarch64", "n"),
            ("README", "r"),
            (SUMS, &sums),
        ];
        let folder = folder(&files);
        let found = look(Some(folder.path()));
        assert_eq!(found.refused, [""; 0]);
        let of: Vec<_> = found.programs.iter().map(|n| (n.os, n.arch)).collect();
        assert_eq!(
            of,
            [
                (OsFamily::Freebsd, Architecture::X86_64),
                (OsFamily::Netbsd, Architecture::Aarch64)
            ]
        );
        assert_eq!(&*found.programs[0].program.unpacked().unwrap(), b"f");
    }

    #[test]
    fn one_that_is_not_what_its_sum_says_is_left_out_and_the_others_are_not() {
        let sums = format!(
            "{}  freebsd-x86_64\n{}  openbsd-x86_64\n{}  netbsd-x86_64\n",
            sum("other"),
            sum("o"),
            sum("gone")
        );
        let files = [
            ("freebsd-x86_64", "f"),
            ("openbsd-x86_64", "o"),
            ("windows-x86_64", "w"),
            (SUMS, &sums),
        ];
        let folder = folder(&files);
        let found = look(Some(folder.path()));
        assert_eq!(found.programs.len(), 1);
        assert_eq!(found.programs[0].os, OsFamily::Openbsd);
        for (name, why) in [
            ("freebsd-x86_64", "is not the one in SHA256SUMS"),
            ("netbsd-x86_64", "names it and it is not there"),
            ("windows-x86_64", "SHA256SUMS does not name it"),
        ] {
            let mut refused = found.refused.iter();
            assert!(
                refused.any(|said| said.contains(name) && said.contains(why)),
                "{name}: {:?}",
                found.refused
            );
        }
    }

    #[test]
    fn a_configured_folder_that_is_not_there_is_told() {
        let found = look(Some(Path::new("/no/such/folder")));
        assert!(found.programs.is_empty());
        assert!(
            found.refused[0].contains("no agent is taken from /no/such/folder"),
            "{:?}",
            found.refused
        );
    }
}
