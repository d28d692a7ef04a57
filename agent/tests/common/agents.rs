//! The agents under test.

use super::windows;
use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use vivarium_protocol::{Exit, StepCommand};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Agent {
    Native,
    /// The `sh` agent with Debian's /bin/sh and GNU's utilities.
    Dash,
    /// With BusyBox alone: no other program is in its guest.
    Busybox,
    /// With ksh93u+m, and GNU's utilities.
    Ksh,
    /// The native one for Windows, under Wine.
    Windows,
}

impl Agent {
    /// The command that runs the agent, without its arguments.
    pub fn command(self) -> Command {
        match self {
            Agent::Native => Command::new(env!("CARGO_BIN_EXE_vivarium-agent")),
            Agent::Dash | Agent::Busybox | Agent::Ksh => {
                // Looked up in this guest's path, and so is everything that the agent and its commands run.
                let mut command = self.shell();
                command.arg(script());
                command
            }
            Agent::Windows => windows::program("vivarium-agent.exe"),
        }
    }

    /// The system that the agent says it runs on.
    pub fn os(self) -> &'static str {
        match self {
            Agent::Windows => "windows",
            Agent::Native | Agent::Dash | Agent::Busybox | Agent::Ksh => std::env::consts::OS,
        }
    }

    /// The script in this guest's language: `sh`, or `cmd` with the tests' own programs behind `%TOOL%`.
    pub fn says<'a>(self, sh: &'a str, cmd: &'a str) -> &'a str {
        if self == Agent::Windows { cmd } else { sh }
    }

    /// Whether this is the exit of a shell that was asked to end: by TERM, or by Ctrl-Break.
    pub fn was_asked_to_end(self, exit: Exit) -> bool {
        match exit {
            // `cmd` of Windows, and that of Wine.
            Exit::Code { code } if self == Agent::Windows => {
                [0xC000_013A_u32.cast_signed(), 0].contains(&code)
            }
            Exit::Signal { signal } if self != Agent::Windows => signal == 15,
            Exit::Code { .. } | Exit::Signal { .. } | Exit::Lost => false,
        }
    }

    /// A command of this guest, which runs in `dir`.
    pub fn step(self, script: &str, dir: &Path) -> StepCommand {
        let mut env = BTreeMap::new();
        let shell: &[&str] = if self == Agent::Windows {
            env.insert("TOOL".to_owned(), windows::path("tool.exe"));
            &["cmd", "/d", "/s", "/c"]
        } else {
            &["sh", "-c"]
        };
        StepCommand {
            shell: shell.iter().map(|word| (*word).to_owned()).collect(),
            script: script.to_owned(),
            dir: dir.to_str().unwrap().to_owned(),
            env,
            spool_bytes: 64 * 1024 * 1024,
            pty: None,
        }
    }

    /// A command that hears itself how it is asked to end: a script with a trap, or one of the tests' programs.
    pub fn listening_step(self, sh: &str, tool: &str, dir: &Path) -> StepCommand {
        let mut command = self.step(self.says(sh, tool), dir);
        if self == Agent::Windows {
            command.shell = vec![windows::path("tool.exe")];
        }
        command
    }

    /// The shell of this agent's guest.
    pub fn shell(self) -> Command {
        let mut command = Command::new("sh");
        command.env("PATH", self.path());
        command
    }

    /// The folders in which a guest of this agent has its programs.
    fn path(self) -> String {
        let inherited = std::env::var("PATH").unwrap();
        let (programs, others): (PathBuf, _) = match self {
            Agent::Native | Agent::Windows => return inherited,
            Agent::Dash => (shell("dash", "dash"), Some(inherited)),
            Agent::Ksh => (shell("ksh", "ksh93"), Some(inherited)),
            Agent::Busybox => (busybox(), None),
        };
        let programs = programs.to_str().unwrap().to_owned();
        others.map_or(programs.clone(), |others| format!("{programs}:{others}"))
    }
}

/// The parts of the `sh` agent, joined as the master joins them, once for this run of the tests.
fn script() -> &'static Path {
    static SCRIPT: OnceLock<PathBuf> = OnceLock::new();
    SCRIPT.get_or_init(|| {
        let mut parts: Vec<PathBuf> =
            std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("sh"))
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .collect();
        parts.sort();
        let joined = parts.iter().flat_map(|part| std::fs::read(part).unwrap());
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let mut file = tempfile::NamedTempFile::new_in(folder).unwrap();
        file.write_all(&joined.collect::<Vec<u8>>()).unwrap();
        let path = folder.join("vivarium-agent.sh");
        file.persist(&path).unwrap();
        path
    })
}

/// A folder in which `sh` is this shell.
fn shell(name: &str, program: &str) -> PathBuf {
    made(name, |folder| {
        std::fs::create_dir(folder).unwrap();
        symlink(find(program), folder.join("sh")).unwrap();
    })
}

/// A folder with BusyBox under each of its names.
fn busybox() -> PathBuf {
    made("busybox", |folder| {
        std::fs::create_dir(folder).unwrap();
        let status = Command::new(find("busybox"))
            .args(["--install", "-s"])
            .arg(folder)
            .status()
            .unwrap();
        assert!(status.success(), "busybox --install: {status}");
    })
}

fn find(program: &str) -> PathBuf {
    std::env::var("PATH")
        .unwrap()
        .split(':')
        .map(|folder| Path::new(folder).join(program))
        .find(|path| path.is_file())
        .unwrap_or_else(|| {
            panic!("there is no {program} here\nhint: config/prepare-host --test installs it")
        })
}

/// Makes what several tests share, beside its name first, for they run at the same time.
fn made(name: &str, make: impl FnOnce(&Path)) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("agents");
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join(name);
    if !path.exists() {
        let beside = tempfile::tempdir_in(&folder).unwrap();
        make(&beside.path().join(name));
        // Another test may have been quicker.
        std::fs::rename(beside.path().join(name), &path).ok();
    }
    path
}
