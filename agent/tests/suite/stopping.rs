//! Stopping: after an execution's end nothing of it is left running.

use super::guest;
use crate::common::{Guest, wait_for};
use vivarium_protocol::Exit;

/// Starts a grandchild that is a daemon: in a session of its own, orphaned, its output elsewhere.
const DAEMON: &str =
    "setsid sh -c 'sh -c \"echo \\$\\$ > daemon.pid; exec sleep 600\" >/dev/null 2>&1 & exit 0' &
while [ ! -s daemon.pid ]; do sleep 0.02; done; ";

fn daemon_is_gone(guest: &Guest) -> bool {
    let pid = std::fs::read_to_string(guest.work().join("daemon.pid")).unwrap();
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
    stat.is_err() || stat.is_ok_and(|stat| stat.contains(") Z "))
}

#[test]
fn stop_ends_the_whole_tree_with_its_daemons() {
    let guest = guest();
    let mut connection = guest.connect();
    connection.start(
        "tree",
        &format!("{DAEMON} echo ready; sleep 600 & sleep 600"),
    );
    assert_eq!(connection.read_output(0, 6), b"ready\n");
    connection.stop("tree", 60_000);
    let finished = connection.finish("tree", 6);
    assert_eq!(finished.exit, Exit::Signal { signal: 15 });
    assert!(daemon_is_gone(&guest));
    drop(connection);
    guest.wait_until_quiet();
}

#[test]
fn a_later_connection_can_stop_what_an_earlier_one_started() {
    let guest = guest();
    let mut first = guest.connect();
    first.start("early", "echo ready; sleep 600");
    first.read_output(0, 6);
    first.cut();
    let mut second = guest.connect();
    second.stop("early", 60_000);
    second.attach("early", 6);
    assert_eq!(second.finish("early", 6).exit, Exit::Signal { signal: 15 });
    // Stopping what has ended changes nothing.
    second.stop("early", 0);
    second.ping(1);
}

#[test]
fn stop_gives_the_command_its_grace_to_clean_up() {
    let guest = guest();
    let mut connection = guest.connect();
    connection.start(
        "polite",
        "trap 'echo cleaned; exit 7' TERM; echo ready; while :; do sleep 0.05; done",
    );
    connection.read_output(0, 6);
    connection.stop("polite", 600_000);
    let finished = connection.finish("polite", 6);
    assert!(finished.output.ends_with(b"cleaned\n"), "{finished:?}");
    assert_eq!(finished.exit, Exit::Code { code: 7 });
}

#[test]
fn what_ignores_term_is_killed_after_the_grace() {
    let guest = guest();
    let mut connection = guest.connect();
    connection.start(
        "stubborn",
        "trap '' TERM; echo ready; while :; do sleep 0.05; done",
    );
    connection.read_output(0, 6);
    connection.stop("stubborn", 100);
    assert_eq!(
        connection.finish("stubborn", 6).exit,
        Exit::Signal { signal: 9 }
    );
    drop(connection);
    guest.wait_until_quiet();
}

#[test]
fn a_stopped_process_is_woken_to_end() {
    let guest = guest();
    let mut connection = guest.connect();
    connection.start("frozen", "echo ready; kill -STOP $$");
    connection.read_output(0, 6);
    connection.stop("frozen", 600_000);
    assert_eq!(
        connection.finish("frozen", 6).exit,
        Exit::Signal { signal: 15 }
    );
}

#[test]
fn a_command_that_waits_for_a_full_spool_can_be_stopped() {
    let guest = guest();
    let mut connection = guest.connect();
    let mut command = connection.command("cat /dev/zero");
    command.spool_bytes = 100_000;
    connection.start_command("blocked", command);
    connection.read_output(0, 100_000);
    connection.stop("blocked", 60_000);
    let finished = connection.finish("blocked", 100_000);
    assert_eq!(finished.exit, Exit::Signal { signal: 15 });
}

#[test]
fn processes_that_keep_forking_die() {
    let guest = guest();
    let mut connection = guest.connect();
    // Each of these replaces itself again and again, deaf to TERM and in groups of their own; bounded in number.
    let script = "trap '' TERM; echo ready; i=0
        while [ $i -lt 20 ]; do i=$((i+1)); setsid sh -c 'while :; do sh -c : ; sh -c \"sleep 1\" & sh -c :; wait; done' & done; wait";
    connection.start("bomb", script);
    connection.read_output(0, 6);
    connection.stop("bomb", 200);
    assert_eq!(
        connection.finish("bomb", 6).exit,
        Exit::Signal { signal: 9 }
    );
    drop(connection);
    guest.wait_until_quiet();
}

#[test]
fn an_orphan_that_holds_the_output_does_not_hang_the_run() {
    let guest = guest();
    let mut connection = guest.connect();
    let finished = connection.run(
        "orphan",
        "echo out; (trap '' TERM; while :; do sleep 600; done) & exit 5",
    );
    assert_eq!(finished.output, b"out\n");
    assert_eq!(finished.exit, Exit::Code { code: 5 });
    drop(connection);
    guest.wait_until_quiet();
}

#[test]
fn a_daemon_that_does_not_hold_the_output_is_ended_too() {
    let guest = guest();
    let mut connection = guest.connect();
    let finished = connection.run("daemon", &format!("{DAEMON} echo out; exit 0"));
    assert_eq!(finished.output, b"out\n");
    assert_eq!(finished.exit, Exit::Code { code: 0 });
    assert!(daemon_is_gone(&guest));
}

#[test]
fn what_an_orphan_still_writes_in_time_is_part_of_the_output() {
    let guest = guest();
    let finished = guest
        .connect()
        .run("late", "(sleep 0.2; echo late) & echo early");
    assert_eq!(finished.output, b"early\nlate\n");
}

#[test]
fn no_zombie_of_a_supervisor_is_left_behind() {
    let guest = guest();
    let mut connection = guest.connect();
    connection.run("short", "true");
    let parent = connection.pid();
    wait_for("the supervisor to be reaped", || {
        // A shell looks at its children when it has something to do.
        connection.ping(1);
        std::fs::read_dir("/proc").unwrap().flatten().all(|entry| {
            let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            !stat.contains(&format!(") Z {parent} "))
        })
    });
}
