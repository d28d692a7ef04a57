//! Steps on a terminal of a Unix: what they see of it, and that all other promises hold there too.

use super::{AGENT, guest};
use crate::common::{Agent, Connection, id, noise};
use vivarium_protocol::{Exit, Pty, StepCommand, ToAgent};

const SIZE: Pty = Pty {
    columns: 120,
    rows: 40,
};

pub(super) fn on_terminal(connection: &Connection, script: &str) -> StepCommand {
    StepCommand {
        pty: Some(SIZE),
        ..connection.command(script)
    }
}

/// Starts the command on a terminal. An agent that has none to give says so, and the test is over; what Windows gives
/// draws a screen instead of passing bytes on, and has tests of its own.
fn starts(connection: &mut Connection, name: &str, script: &str) -> bool {
    let command = on_terminal(connection, script);
    match AGENT {
        Agent::Native => {
            connection.start_command(name, command);
            true
        }
        Agent::Windows => false,
        Agent::Dash | Agent::Busybox | Agent::Ksh => {
            connection.send(&ToAgent::Start {
                execution: id(name),
                command,
            });
            let message = connection.refusal("start");
            assert!(message.contains("has none to give"), "{message}");
            connection.ping(1);
            false
        }
    }
}

#[test]
fn a_step_on_a_terminal_sees_one_and_its_output_passes_as_it_is() {
    let guest = guest();
    let mut connection = guest.connect();
    let script = "test -t 1 && test -t 2 && echo terminal\n\
                  stty size </dev/tty; echo $TERM\n\
                  read line || echo no input\n\
                  printf 'a\\nb\\tc'; exit 7";
    if !starts(&mut connection, "seen", script) {
        return;
    }
    let finished = connection.finish("seen", 0);
    assert_eq!(finished.exit, Exit::Code { code: 7 });
    assert_eq!(
        String::from_utf8_lossy(&finished.output),
        "terminal\n40 120\nxterm-256color\nno input\na\nb\tc"
    );
}

#[test]
fn a_step_may_name_the_kind_of_its_terminal() {
    let guest = guest();
    let mut connection = guest.connect();
    if AGENT != Agent::Native {
        return;
    }
    let mut command = on_terminal(&connection, "echo $TERM");
    command.env.insert("TERM".into(), "dumb".into());
    connection.start_command("kind", command);
    assert_eq!(connection.finish("kind", 0).output, b"dumb\n");
}

#[test]
fn a_terminal_passes_every_byte() {
    let guest = guest();
    let expected = noise(3_000_000, 9);
    std::fs::write(guest.work().join("noise"), &expected).unwrap();
    let mut connection = guest.connect();
    if !starts(&mut connection, "bytes", "cat noise") {
        return;
    }
    let finished = connection.finish("bytes", 0);
    assert_eq!(finished.exit, Exit::Code { code: 0 });
    assert!(finished.output == expected, "the output differs");
}

#[test]
fn what_is_left_on_a_terminal_ends_with_the_step() {
    let guest = guest();
    let mut connection = guest.connect();
    // Deaf to the hang-up that comes when the leader of a terminal's session ends.
    let script = "(trap '' HUP; exec sleep 600) & echo done";
    if !starts(&mut connection, "left", script) {
        return;
    }
    let finished = connection.finish("left", 0);
    assert_eq!(finished.output, b"done\n");
    assert_eq!(finished.exit, Exit::Code { code: 0 });
    drop(connection);
    guest.wait_until_quiet();
}

#[test]
fn stop_ends_a_tree_on_a_terminal() {
    let guest = guest();
    let mut connection = guest.connect();
    let script = "(trap '' HUP TERM; while :; do sleep 1; done) & echo ready; exec sleep 600";
    if !starts(&mut connection, "tree", script) {
        return;
    }
    connection.read_output(0, 6);
    connection.stop("tree", 1_000);
    let finished = connection.finish("tree", 6);
    assert_eq!(finished.exit, Exit::Signal { signal: 15 });
    drop(connection);
    guest.wait_until_quiet();
}

#[test]
fn a_step_on_a_terminal_outlives_its_connection() {
    let guest = guest();
    let mut connection = guest.connect();
    let script = "echo one; while [ ! -e go ]; do sleep 0.05; done; echo two";
    if !starts(&mut connection, "on", script) {
        return;
    }
    connection.read_output(0, 4);
    connection.cut();
    std::fs::write(guest.work().join("go"), "").unwrap();
    let mut connection = guest.connect();
    connection.attach("on", 4);
    let finished = connection.finish("on", 4);
    assert_eq!(finished.output, b"two\n");
    assert_eq!(finished.exit, Exit::Code { code: 0 });
}

#[test]
fn a_command_that_cannot_start_on_a_terminal_is_refused_with_the_reason() {
    let guest = guest();
    let mut connection = guest.connect();
    let mut command = on_terminal(&connection, "true");
    command.shell = vec!["no-such-shell-here".into()];
    connection.send(&ToAgent::Start {
        execution: id("shell"),
        command,
    });
    let message = connection.refusal("start");
    if [Agent::Native, Agent::Windows].contains(&AGENT) {
        assert!(
            message.contains("cannot start no-such-shell-here"),
            "{message}"
        );
        connection.attach("shell", 0);
        connection.refusal("attach");
    }
}
