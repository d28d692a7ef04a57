//! The descendants of this process: finding them and sending them signals.
//!
//! The supervisor is a sub-reaper on Linux: whatever a command starts, daemons included, stays below it, so that a
//! walk over the process table finds everything and "no child is left" means "no descendant is left". Elsewhere a
//! daemon that has left both its parent and the command's process group is not found; the VM's end ends it.

use anyhow::Result;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{Pid, getpgrp, getpid};
use std::collections::{BTreeSet, HashMap, HashSet};

/// How often the tree is looked at again for processes that appeared meanwhile, before it is asked to end.
const FREEZE_ROUNDS: usize = 50;

/// One line of the process table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Process {
    pid: i32,
    parent: i32,
    group: i32,
}

/// Makes orphaned descendants children of this process instead of init's.
pub(super) fn adopt_orphans() -> Result<()> {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    nix::sys::prctl::set_child_subreaper(true)?;
    Ok(())
}

/// Whether every descendant is below this process, so that "no child" means "no descendant".
pub(super) fn is_exact() -> bool {
    cfg!(any(target_os = "linux", target_os = "android"))
}

/// Asks every descendant to end; stopped ones are woken to hear it.
///
/// All are stopped first: else a process that its parent forks while the list is being read would not be asked, and
/// would have the whole grace for itself.
pub(super) fn terminate(main_group: i32) {
    let mut stopped = BTreeSet::new();
    for _ in 0..FREEZE_ROUNDS {
        let mut fresh = descendants(main_group);
        fresh.retain(|process| stopped.insert(process.pid));
        if fresh.is_empty() {
            break;
        }
        for process in fresh {
            kill(Pid::from_raw(process.pid), Signal::SIGSTOP).ok();
        }
    }
    for signal in [Signal::SIGTERM, Signal::SIGCONT] {
        for pid in &stopped {
            kill(Pid::from_raw(*pid), signal).ok();
        }
    }
}

/// Kills every descendant there is now. By group first, because that also reaches, in one step, processes that are
/// forking at this moment; then one by one. The caller repeats it until none is left.
pub(super) fn kill_all(main_group: i32) {
    let processes = descendants(main_group);
    let ours = getpgrp().as_raw();
    let groups: BTreeSet<i32> = processes.iter().map(|p| p.group).collect();
    for group in groups
        .into_iter()
        .filter(|group| *group > 1 && *group != ours)
    {
        killpg(Pid::from_raw(group), Signal::SIGKILL).ok();
    }
    for process in processes {
        kill(Pid::from_raw(process.pid), Signal::SIGKILL).ok();
    }
}

/// Whether a descendant is left, where the reaper cannot tell.
pub(super) fn is_empty(main_group: i32) -> bool {
    descendants(main_group).is_empty()
}

fn descendants(main_group: i32) -> Vec<Process> {
    // A group's number may pass to a stranger once the group is empty, so it counts only where it is needed.
    let group = (!is_exact()).then_some(main_group);
    select(&snapshot(), getpid().as_raw(), group)
}

/// The descendants of `root`, and the members of `group`.
fn select(processes: &[Process], root: i32, group: Option<i32>) -> Vec<Process> {
    let mut children: HashMap<i32, Vec<Process>> = HashMap::new();
    for process in processes {
        children.entry(process.parent).or_default().push(*process);
    }
    let mut found: Vec<Process> = Vec::new();
    let mut seen: HashSet<i32> = HashSet::from([root, 0, 1]);
    let mut waiting: Vec<Process> = children.get(&root).cloned().unwrap_or_default();
    waiting.extend(processes.iter().filter(|p| Some(p.group) == group));
    while let Some(process) = waiting.pop() {
        if seen.insert(process.pid) {
            found.push(process);
            waiting.extend(children.get(&process.pid).into_iter().flatten().copied());
        }
    }
    found
}

/// The process table; what cannot be read (a process that has just ended) is left out.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn snapshot() -> Vec<Process> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter(|entry| {
            entry
                .file_name()
                .as_encoded_bytes()
                .first()
                .is_some_and(u8::is_ascii_digit)
        })
        .filter_map(|entry| std::fs::read(entry.path().join("stat")).ok())
        .filter_map(|stat| parse_stat(&String::from_utf8_lossy(&stat)))
        .collect()
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn snapshot() -> Vec<Process> {
    let ps = std::process::Command::new("ps").args(PS).output();
    let table = ps.map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&table)
        .lines()
        .filter_map(parse_ps)
        .collect()
}

/// What `ps` is asked for, in words that all systems know.
#[cfg_attr(
    any(target_os = "linux", target_os = "android"),
    cfg_attr(
        not(test),
        expect(dead_code, reason = "the process table is read in another way here")
    )
)]
const PS: [&str; 9] = [
    "-A", "-o", "pid=", "-o", "ppid=", "-o", "pgid=", "-o", "stat=",
];

/// `pid (name) state parent group …`; the name may hold anything, parentheses and spaces too. Zombies are left out.
#[cfg_attr(
    not(any(target_os = "linux", target_os = "android")),
    expect(dead_code, reason = "the process table is read in another way here")
)]
fn parse_stat(stat: &str) -> Option<Process> {
    let (pid, rest) = stat.split_once(" (")?;
    let (_name, rest) = rest.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    Some(Process {
        pid: pid.parse().ok()?,
        parent: fields.next()?.parse().ok()?,
        group: fields.next()?.parse().ok()?,
    })
}

#[cfg_attr(
    any(target_os = "linux", target_os = "android"),
    cfg_attr(
        not(test),
        expect(dead_code, reason = "the process table is read in another way here")
    )
)]
fn parse_ps(line: &str) -> Option<Process> {
    let mut fields = line.split_whitespace();
    let process = Process {
        pid: fields.next()?.parse().ok()?,
        parent: fields.next()?.parse().ok()?,
        group: fields.next()?.parse().ok()?,
    };
    // Such as `Z+`: one that has ended and whose parent has not asked yet.
    (!fields.next()?.starts_with('Z')).then_some(process)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::unistd::getppid;

    fn process(pid: i32, parent: i32, group: i32) -> Process {
        Process { pid, parent, group }
    }

    #[test]
    fn a_process_may_have_any_name() {
        assert_eq!(
            parse_stat("12 (a) S (b) c) S 3 4 5 0"),
            Some(process(12, 3, 4))
        );
        assert_eq!(parse_stat("12 (sh) Z 3 4 5 0"), None);
        assert_eq!(parse_stat("12 (sh"), None);
        assert_eq!(parse_ps("  12   3 4 Ss+"), Some(process(12, 3, 4)));
        assert_eq!(parse_ps("  12   x 4 Ss+"), None);
        assert_eq!(parse_ps("  12   3 4 Z+"), None);
    }

    #[test]
    fn what_ps_prints_is_read() {
        let own = getpid().as_raw();
        let output = std::process::Command::new("ps").args(PS).output().unwrap();
        let table = String::from_utf8(output.stdout).unwrap();
        let found: Vec<Process> = table.lines().filter_map(parse_ps).collect();
        let here = process(own, getppid().as_raw(), getpgrp().as_raw());
        assert!(found.contains(&here), "{table}");
        assert!(found.iter().any(|process| process.pid == 1), "{table}");
    }

    #[test]
    fn descendants_and_the_commands_group_are_found_and_nothing_else() {
        let table = [
            process(1, 0, 1),
            process(50, 1, 50),
            process(10, 1, 10),
            process(11, 10, 11),
            process(12, 11, 11),
            process(13, 12, 13),
            process(14, 1, 11),
        ];
        let mut pids: Vec<i32> = select(&table, 10, Some(11)).iter().map(|p| p.pid).collect();
        pids.sort_unstable();
        assert_eq!(pids, [11, 12, 13, 14]);
    }
}
