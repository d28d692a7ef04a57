//! Stopping: after an execution's end nothing of it is left running.

use super::{AGENT, guest};
use crate::common::{Agent, Guest};
use vivarium_protocol::Exit;

/// Starts a grandchild that is a daemon: in a session of its own, orphaned, its output elsewhere; on Windows, without a console
/// and in a process group of its own.
fn daemon() -> &'static str {
    AGENT.says(
        "setsid sh -c 'sh -c \"echo \\$\\$ > daemon.pid; exec sleep 600\" >/dev/null 2>&1 & exit 0' &
while [ ! -s daemon.pid ]; do sleep 0.02; done; ",
        "%TOOL% daemon & ",
    )
}

fn daemon_is_gone(guest: &Guest) -> bool {
    if AGENT == Agent::Windows {
        return guest
            .processes()
            .iter()
            .all(|(_, line)| !line.contains("sleep 601"));
    }
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
        &format!(
            "{}{}",
            daemon(),
            AGENT.says(
                "echo ready; sleep 600 & sleep 600",
                "%TOOL% say ready & %TOOL% sleep 600"
            )
        ),
    );
    assert_eq!(connection.read_output(0, 6), b"ready\n");
    connection.stop("tree", 60_000);
    let finished = connection.finish("tree", 6);
    assert!(AGENT.was_asked_to_end(finished.exit));
    assert!(daemon_is_gone(&guest));
    drop(connection);
    guest.wait_until_quiet();
}

#[test]
fn a_later_connection_can_stop_what_an_earlier_one_started() {
    let guest = guest();
    let mut first = guest.connect();
    first.start("early", AGENT.says("echo ready; sleep 600", "%TOOL% say ready & %TOOL% sleep 600"));
    first.read_output(0, 6);
    first.cut();
    let mut second = guest.connect();
    second.stop("early", 60_000);
    second.attach("early", 6);
    assert!(AGENT.was_asked_to_end(second.finish("early", 6).exit));
    // Stopping what has ended changes nothing.
    second.stop("early", 0);
    second.ping(1);
}

#[test]
fn stop_gives_the_command_its_grace_to_clean_up() {
    let guest = guest();
    let mut connection = guest.connect();
    let command = AGENT.listening_step(
        "trap 'echo cleaned; exit 7' TERM; echo ready; while :; do sleep 0.05; done",
        "polite",
        &guest.work(),
    );
    connection.start_command("polite", command);
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
    let command = AGENT.listening_step(
        "trap '' TERM; echo ready; while :; do sleep 0.05; done",
        "stubborn",
        &guest.work(),
    );
    connection.start_command("stubborn", command);
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
fn a_command_that_waits_for_a_full_spool_can_be_stopped() {
    let guest = guest();
    let mut connection = guest.connect();
    let mut command = connection.command(AGENT.says("cat /dev/zero", "%TOOL% zeros"));
    command.spool_bytes = 100_000;
    connection.start_command("blocked", command);
    connection.read_output(0, 100_000);
    connection.stop("blocked", 60_000);
    let finished = connection.finish("blocked", 100_000);
    assert!(AGENT.was_asked_to_end(finished.exit));
}

#[test]
fn processes_that_keep_forking_die() {
    let guest = guest();
    let mut connection = guest.connect();
    // Each of these replaces itself again and again, deaf to TERM and in groups of their own; bounded in number.
    let script = "trap '' TERM; echo ready; i=0
        while [ $i -lt 20 ]; do i=$((i+1)); setsid sh -c 'while :; do sh -c : ; sh -c \"sleep 1\" & sh -c :; wait; done' & done; wait";
    let command = AGENT.listening_step(script, "bomb", &guest.work());
    connection.start_command("bomb", command);
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
        AGENT.says(
            "echo out; (trap '' TERM; while :; do sleep 600; done) & exit 5",
            "%TOOL% say out & %TOOL% orphan & exit 5",
        ),
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
    let script = AGENT.says("echo out; exit 0", "%TOOL% say out & exit 0");
    let finished = connection.run("daemon", &format!("{}{script}", daemon()));
    assert_eq!(finished.output, b"out\n");
    assert_eq!(finished.exit, Exit::Code { code: 0 });
    assert!(daemon_is_gone(&guest));
}

#[test]
fn what_an_orphan_still_writes_in_time_is_part_of_the_output() {
    let guest = guest();
    let script = AGENT.says(
        "(sleep 0.2; echo late) & echo early",
        "%TOOL% say early & %TOOL% later 0.2 late",
    );
    let finished = guest.connect().run("late", script);
    assert_eq!(finished.output, b"early\nlate\n");
}

