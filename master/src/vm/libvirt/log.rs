//! QEMU's own log, which libvirt keeps per domain: how a guest ended, and QEMU's last words.

use std::fs;
use std::path::{Path, PathBuf};

/// The end of the log is all that is asked of it, but a start writes several KiB of arguments.
const LOG_BYTES: u64 = 64 * 1024;
/// What is shown of it to people: the arguments, and what came after them.
const SHOWN_BYTES: u64 = 16 * 1024;
/// Last words longer than this tell a person nothing more.
const LAST_LINES: usize = 5;

/// Where libvirt keeps the log of a domain, by the connection's URI.
pub(super) fn paths(uri: &str, domain: &str) -> Vec<PathBuf> {
    let file = format!("{domain}.log");
    if let Some(root) = uri.split_once("root=").map(|(_, root)| root) {
        let root = root.split('&').next().unwrap_or(root);
        return vec![Path::new(root).join("log/qemu").join(file)];
    }
    let system = Path::new("/var/log/libvirt/qemu").join(&file);
    if uri.ends_with("/system") {
        return vec![system];
    }
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache")));
    // For root a session is the system's own daemon.
    cache
        .map(|cache| cache.join("libvirt/qemu/log").join(file))
        .into_iter()
        .chain([system])
        .collect()
}

/// A sentence about how the domain ended.
pub(super) fn how_it_ended(paths: &[PathBuf]) -> String {
    for path in paths {
        match read_end(path, LOG_BYTES) {
            Ok(log) => return describe(&log),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                return format!(
                    "it does not run any more; QEMU's log {} would tell why: {error}",
                    path.display()
                );
            }
        }
    }
    "it does not run any more, and libvirt has no log of it".into()
}

/// The end of the log, or a sentence why it cannot be read; empty where there is none.
pub(super) fn shown(paths: &[PathBuf]) -> String {
    for path in paths {
        match read_end(path, SHOWN_BYTES) {
            Ok(log) => return log,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                let path = path.display();
                return format!(
                    "QEMU's log {path} could not be read: {error}\nhint: let the master's user read that folder, or use \
                     qemu:///session"
                );
            }
        }
    }
    String::new()
}

/// The log goes with its domain. libvirt never removes one; where it is not ours to remove it stays.
pub(super) fn remove(paths: &[PathBuf]) {
    for path in paths {
        if let Err(error) = fs::remove_file(path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::debug!(path = %path.display(), %error, "QEMU's log stays");
        }
    }
}

fn read_end(path: &Path, most: u64) -> std::io::Result<String> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = fs::File::open(path)?;
    let start = file.metadata()?.len().saturating_sub(most);
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// libvirt's last line says `shutting down, reason=…`; what QEMU said stands between it and the arguments.
fn describe(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    // The arguments end with the last line that is continued, plus one.
    let after_arguments = lines
        .iter()
        .rposition(|line| line.ends_with('\\'))
        .map_or(0, |index| index + 2);
    let said: Vec<&str> = lines
        .get(after_arguments..)
        .unwrap_or_default()
        .iter()
        .copied()
        .filter(|line| {
            !line.trim().is_empty()
                && !line.contains(" is tainted: ")
                && !line.contains("shutting down, reason=")
                && !is_libvirts_signal(line)
        })
        .collect();
    let reason = lines
        .last()
        .and_then(|line| line.rsplit_once("shutting down, reason="))
        .map(|(_, reason)| reason.trim());
    let by_signal = said
        .iter()
        .any(|line| line.contains("terminating on signal"));
    let sentence = match reason {
        Some("shutdown") if by_signal => "QEMU was ended by a signal".to_owned(),
        Some("shutdown") => "the guest powered off or rebooted".to_owned(),
        Some("crashed") => "QEMU died".to_owned(),
        Some("destroyed") => "it was destroyed through libvirt".to_owned(),
        Some("failed") => "QEMU did not start".to_owned(),
        Some(other) => format!("libvirt gives `{other}` as the reason"),
        None => "it does not run any more".to_owned(),
    };
    let last = said.get(said.len().saturating_sub(LAST_LINES)..);
    match last.unwrap_or_default() {
        [] => sentence,
        last => format!("{sentence}; QEMU said: {}", last.join(" / ")),
    }
}

/// A guest that powers off leaves QEMU standing, and libvirt ends it by a signal: no news to anybody.
fn is_libvirts_signal(line: &str) -> bool {
    // With the driver inside the process, libvirt is us.
    let ourselves = format!(" from pid {} ", std::process::id());
    line.contains("terminating on signal")
        && (line.ends_with("libvirtd)")
            || line.ends_with("virtqemud)")
            || line.contains(&ourselves))
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: &str = "2026-01-01 10:00:00.000+0000: starting up libvirt version: 9.0.0\n\
        LC_ALL=C \\\n/usr/bin/qemu-system-x86_64 \\\n-name guest=x \\\n-msg timestamp=on\n\
        2026-01-01 10:00:00.100+0000: Domain id=1 is tainted: custom-argv\n";

    fn after_start(rest: &str) -> String {
        describe(&format!("{START}{rest}"))
    }

    #[test]
    fn each_way_to_end_has_its_sentence() {
        let end =
            |reason| format!("2026-01-01 10:01:00.000+0000: shutting down, reason={reason}\n");
        assert_eq!(
            after_start(&end("shutdown")),
            "the guest powered off or rebooted"
        );
        assert_eq!(after_start(&end("crashed")), "QEMU died");
        assert_eq!(after_start(""), "it does not run any more");
        let libvirts = "2026-01-01T10:00:59Z qemu-system-x86_64: terminating on signal 15 from pid 7 (/usr/sbin/libvirtd)\n";
        assert_eq!(
            after_start(&format!("{libvirts}{}", end("shutdown"))),
            "the guest powered off or rebooted"
        );
        let signal =
            "2026-01-01T10:00:59Z qemu-system-x86_64: terminating on signal 15 from pid 7\n";
        assert!(
            after_start(&format!("{signal}{}", end("shutdown")))
                .starts_with("QEMU was ended by a signal; QEMU said: ")
        );
    }

    #[test]
    fn what_an_earlier_run_said_is_not_repeated() {
        let log = format!("{START}old words\n{START}new words\n");
        assert_eq!(
            describe(&log),
            "it does not run any more; QEMU said: new words"
        );
    }

    #[test]
    fn the_log_is_where_the_driver_keeps_it() {
        assert_eq!(
            paths("qemu:///embed?root=/tmp/r", "d"),
            [Path::new("/tmp/r/log/qemu/d.log")]
        );
        assert_eq!(
            paths("qemu:///system", "d"),
            [Path::new("/var/log/libvirt/qemu/d.log")]
        );
    }
}
