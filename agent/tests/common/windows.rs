//! Windows in small: Wine, with the agent and the programs of the tests in it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// The folder of what was built for Windows.
fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/windows/build");
        let output = Command::new(script)
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "tests/windows/build: {}",
            output.status
        );
        String::from_utf8(output.stdout).unwrap().trim().into()
    })
}

/// A Windows program among those that were built, under Wine, without its arguments.
pub fn program(name: &str) -> Command {
    let mut command = Command::new(folder().join("wine"));
    command.arg(folder().join(name));
    command
}

/// Its name in the guest: Wine shows the root of the file system as drive Z.
pub fn path(name: &str) -> String {
    let path = folder().join(name);
    format!("Z:{}", path.to_str().unwrap().replace('/', "\\"))
}

/// Whether the process with this command line is a program of ours, at work. When a process is ended while Wine still makes
/// it, its loader waits for ever, in no job and with nothing to run, and so does the console that was made for it.
pub fn is_running(line: &str) -> bool {
    !line.starts_with("/usr/lib/wine/wine64 ") && !line.contains("/system32/conhost.exe ")
}
