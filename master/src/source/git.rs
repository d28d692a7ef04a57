//! How git is run: its environment and its settings, with nothing of the machine's or the user's own.

use super::call::Call;
use crate::config::RepositoryConfig;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::process::Command;

/// Settings that git's child processes need too (for a local path `git upload-pack` runs with a cleared environment), so
/// they are in a file.
///
/// - `safe.directory`: repositories on this machine may belong to another user; nothing in them is executed.
/// - `fetch.unpackLimit`: what is fetched becomes visible as one pack, so a commit never is there without its files
///   although a fetch was killed half-way.
/// - `transfer.fsckObjects` stays off: it refuses repositories with harmless flaws of old, and what it protects
///   against happens on checkout, which is never done here. Each object's hash is verified nonetheless.
/// - `gc.auto`: the mirror is packed beside fetches, not in them.
/// - `http.lowSpeed*`: a connection that stalls for a minute is given up.
/// - `tar.umask`: modes as a checkout has them, 755 and 644.
const SETTINGS: &str = "\
[safe]
	directory = *
[core]
	hooksPath = /dev/null
	fsmonitor = false
[protocol]
	version = 2
[fetch]
	unpackLimit = 1
	recurseSubmodules = false
[transfer]
	fsckObjects = false
	bundleURI = false
[gc]
	auto = 0
	cruftPacks = true
[maintenance]
	auto = false
[http]
	lowSpeedLimit = 1000
	lowSpeedTime = 60
[tar]
	umask = 0022
[init]
	defaultBranch = main
[advice]
	fetchShowForcedUpdates = false
";

/// What git may take from the master's own environment: how to reach the network, nothing that changes what it does.
const INHERITED: [&str; 14] = [
    "PATH",
    "TMPDIR",
    "SSH_AUTH_SOCK",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "GIT_SSL_CAINFO",
    "http_proxy",
    "https_proxy",
    "HTTPS_PROXY",
    "all_proxy",
    "ALL_PROXY",
    "no_proxy",
    "NO_PROXY",
    "LD_LIBRARY_PATH",
];

/// How git is run for the mirrors of one folder.
pub(super) struct Git {
    dir: PathBuf,
    environment: Vec<(OsString, OsString)>,
}

impl Git {
    pub(super) fn new(dir: &Path) -> Git {
        let set = |name: &str, value: &OsStr| (name.into(), value.to_owned());
        let mut environment: Vec<(OsString, OsString)> = INHERITED
            .into_iter()
            .filter_map(|name| Some(set(name, &std::env::var_os(name)?)))
            .collect();
        environment.push(set("HOME", dir.as_os_str()));
        environment.push(set("GIT_CONFIG_GLOBAL", settings_file(dir).as_os_str()));
        for (name, value) in [
            ("LC_ALL", "C"),
            ("GIT_CONFIG_NOSYSTEM", "1"),
            ("GIT_ATTR_NOSYSTEM", "1"),
            ("GIT_TERMINAL_PROMPT", "0"),
            ("GIT_ALLOW_PROTOCOL", "file:http:https:ssh:git"),
            ("GIT_LITERAL_PATHSPECS", "1"),
            ("GIT_NO_REPLACE_OBJECTS", "1"),
            ("GIT_NO_LAZY_FETCH", "1"),
            (
                "GIT_SSH_COMMAND",
                "ssh -o BatchMode=yes -o ConnectTimeout=20 -o ServerAliveInterval=15",
            ),
        ] {
            environment.push(set(name, OsStr::new(value)));
        }
        Git {
            dir: dir.to_owned(),
            environment,
        }
    }

    /// Writes the settings; whole or not at all, since another process may be reading them.
    pub(super) fn write_settings(&self) -> io::Result<()> {
        let path = settings_file(&self.dir);
        if std::fs::read(&path).is_ok_and(|text| text == SETTINGS.as_bytes()) {
            return Ok(());
        }
        let mut file = tempfile::NamedTempFile::new_in(&self.dir)?;
        io::Write::write_all(&mut file, SETTINGS.as_bytes())?;
        file.persist(path)?;
        Ok(())
    }

    /// A command on the bare repository at `git_dir`; `what` completes "cannot …" in its errors.
    pub(super) fn call(
        &self,
        repository: &RepositoryConfig,
        git_dir: &Path,
        what: &'static str,
    ) -> Call {
        let mut command = Command::new("git");
        command
            .env_clear()
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .env("GIT_DIR", git_dir)
            .current_dir(&self.dir)
            .process_group(0)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Call::new(command, repository, &self.dir, what)
    }
}

fn settings_file(dir: &Path) -> PathBuf {
    dir.join("gitconfig")
}
