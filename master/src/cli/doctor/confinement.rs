//! What the doctor finds out about the walls around QEMU: its user, its sandbox, and the bounds on what it takes.

use super::{Finding, good, note};
use crate::vm::QemuUser;
use nix::unistd::{Uid, User};
use std::path::Path;
use std::process::{Command, Stdio};

const WHAT: &str = "confinement";
/// Where the system's libvirt has its settings for QEMU; for root alone to read.
const SETTINGS: &str = "/etc/libvirt/qemu.conf";

pub(super) fn look(user: QemuUser, findings: &mut Vec<Finding>) {
    findings.push(qemu_user(user));
    findings.push(sandbox());
    findings.push(bounds(user, Path::new("/sys/fs/cgroup")));
}

fn qemu_user(user: QemuUser) -> Finding {
    match user {
        QemuUser::Libvirts(number) => {
            let name = User::from_uid(Uid::from_raw(number)).ok().flatten();
            let name = name.map_or(number.to_string(), |user| user.name);
            good(WHAT, format!("QEMU runs as {name}, a user of its own"))
        }
        QemuUser::Ours => note(
            WHAT,
            "QEMU runs as the master's own user, and a guest that breaks out of it has the master's rights\n\
             hint: under qemu:///system QEMU has a user of its own",
        ),
        QemuUser::Root => note(
            WHAT,
            format!(
                "QEMU runs as root, and so does a guest that breaks out of it\n\
                 hint: take `user` and `group` out of {SETTINGS}, and restart libvirtd"
            ),
        ),
    }
}

/// libvirt switches the sandbox on where QEMU has one, unless it is told not to.
fn sandbox() -> Finding {
    let tried = Command::new("qemu-system-x86_64")
        .args(["-sandbox", "on", "-version"])
        .stdin(Stdio::null())
        .output();
    if !tried.is_ok_and(|output| output.status.success()) {
        return note(
            WHAT,
            "this QEMU has no sandbox: one that a guest got the better of may make any system call",
        );
    }
    let settings = std::fs::read_to_string(SETTINGS).unwrap_or_default();
    match is_switched_off(&settings) {
        true => note(
            WHAT,
            format!(
                "QEMU's sandbox is switched off\nhint: take `seccomp_sandbox` out of {SETTINGS}, and restart libvirtd"
            ),
        ),
        false => good(WHAT, "QEMU's sandbox (seccomp) is on"),
    }
}

fn is_switched_off(settings: &str) -> bool {
    let mut lines = settings.lines().map(|line| line.split('=').map(str::trim));
    lines.any(|mut line| line.next() == Some("seccomp_sandbox") && line.next() == Some("0"))
}

/// libvirt uses the controllers where they are, and not for machines of an ordinary user's session.
fn bounds(user: QemuUser, cgroups: &Path) -> Finding {
    let has_controllers = || {
        let unified = std::fs::read_to_string(cgroups.join("cgroup.controllers"));
        let controllers = unified.unwrap_or_default();
        let mut wanted = ["memory", "cpu"].into_iter();
        wanted.all(|wanted| {
            controllers.split_whitespace().any(|name| name == wanted)
                || cgroups.join(wanted).is_dir()
        })
    };
    match user {
        QemuUser::Libvirts(_) | QemuUser::Root if has_controllers() => {
            good(WHAT, "cgroups bound each QEMU's memory and processor time")
        }
        QemuUser::Libvirts(_) | QemuUser::Root => note(
            WHAT,
            "this host has no cgroups with `memory` and `cpu`: nothing but QEMU itself bounds what it takes",
        ),
        QemuUser::Ours => note(
            WHAT,
            "an ordinary user's QEMU is bounded by no cgroup\nhint: qemu:///system bounds its memory and processor time",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::Verdict;

    #[test]
    fn a_sandbox_is_off_when_the_settings_say_so() {
        assert!(is_switched_off("user = \"x\"\nseccomp_sandbox = 0\n"));
        for on in [
            "",
            "#seccomp_sandbox = 0\n",
            "seccomp_sandbox = 1",
            "seccomp_sandbox=-1",
        ] {
            assert!(!is_switched_off(on), "{on}");
        }
    }

    #[test]
    fn controllers_are_found_in_both_kinds_of_cgroups() {
        let folder = tempfile::tempdir().expect("a folder");
        let verdict = |user| bounds(user, folder.path()).verdict;
        let own = QemuUser::Libvirts(64055);
        assert_eq!(verdict(own), Verdict::Note);
        std::fs::create_dir(folder.path().join("memory")).expect("made");
        std::fs::create_dir(folder.path().join("cpu")).expect("made");
        assert_eq!(verdict(own), Verdict::Good);
        assert_eq!(verdict(QemuUser::Ours), Verdict::Note);
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("cgroup.controllers");
        std::fs::write(file, "cpuset cpu io memory pids\n").expect("written");
        assert_eq!(bounds(own, folder.path()).verdict, Verdict::Good);
    }
}
