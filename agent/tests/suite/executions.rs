//! Executions over real connections: output byte by byte, exits, loss of the connection, back-pressure.

use crate::common::{Agent, Guest, id, kill, noise, wait_for};
use super::{AGENT, guest};
use std::time::Duration;
use vivarium_protocol::{Exit, Frame, PROTOCOL_VERSION, ToAgent, ToMaster};

#[test]
fn the_agent_introduces_itself_and_leaves_when_the_connection_ends() {
    let guest = guest();
    let mut connection = guest.connect();
    assert_eq!(connection.hello.protocol, PROTOCOL_VERSION);
    assert!(
        connection
            .hello
            .agent_version
            .starts_with(env!("CARGO_PKG_VERSION"))
    );
    assert_eq!(connection.hello.os, AGENT.os());
    // Wine numbers its processes itself.
    if AGENT != Agent::Windows {
        assert_eq!(connection.hello.pid as i32, connection.pid());
    }
    connection.ping(7);
    assert_eq!(connection.close(), []);
}

#[test]
fn the_agent_leaves_even_if_nobody_reads_what_it_says() {
    let guest = guest();
    let mut connection = guest.connect();
    connection.start("flood", zeros());
    connection.read_output(0, 1);
    connection.wait_until_left_unread();
    let mut connection = guest.connect();
    connection.stop("flood", 5_000);
    connection.attach("flood", 0);
    assert!(AGENT.was_asked_to_end(connection.finish("flood", 0).exit));
}

/// A command whose output has no end.
fn zeros() -> &'static str {
    AGENT.says("cat /dev/zero", "%TOOL% zeros")
}

#[test]
fn a_long_state_folder_and_a_long_name_are_no_problem() {
    let guest = Guest::in_folder(AGENT, &"x".repeat(150));
    let name = "n".repeat(64);
    let mut connection = guest.connect();
    assert_eq!(connection.run(&name, AGENT.says("echo out", "%TOOL% say out")).output, b"out\n");
    connection.attach(&name, 4);
    assert_eq!(connection.finish(&name, 4).exit, Exit::Code { code: 0 });
}

#[test]
fn output_and_exit_code_arrive_byte_by_byte() {
    let guest = guest();
    let expected = noise(20_000_000, 5);
    std::fs::write(guest.work().join("noise"), &expected).unwrap();
    let mut connection = guest.connect();
    let finished = connection.run("step-1", AGENT.says("cat noise; exit 42", "%TOOL% cat noise & exit 42"));
    assert_eq!(finished.exit, Exit::Code { code: 42 });
    assert!(finished.output == expected, "the output differs");
    guest_forgets_all_output(&guest, "step-1");
}

fn guest_forgets_all_output(guest: &Guest, name: &str) {
    let dir = guest.execution_dir(name);
    wait_for("the acknowledged output to be deleted", || {
        std::fs::read_dir(&dir)
            .unwrap()
            .flatten()
            .all(|e| !e.file_name().to_str().unwrap().starts_with("out-"))
    });
}

#[test]
fn both_streams_arrive_in_the_order_in_which_they_were_written() {
    let guest = guest();
    let script = AGENT.says(
        "for i in 1 2 3 4 5 6 7 8; do echo out $i; echo err $i >&2; done",
        "%TOOL% order",
    );
    let finished = guest.connect().run("order", script);
    let expected: String = (1..=8).map(|i| format!("out {i}\nerr {i}\n")).collect();
    assert_eq!(String::from_utf8(finished.output).unwrap(), expected);
}

#[test]
fn a_lost_connection_costs_no_byte() {
    let guest = guest();
    let expected = noise(6_000_000, 9);
    std::fs::write(guest.work().join("noise"), &expected).unwrap();
    let mut first = guest.connect();
    first.start(
        "long",
        AGENT.says(
            "head -c 3000000 noise; while [ ! -e go ]; do sleep 0.02; done; tail -c 3000000 noise",
            "%TOOL% head 3000000 noise & %TOOL% until go & %TOOL% tail 3000000 noise",
        ),
    );
    let mut output = first.read_output(0, 1_000_000);
    first.cut();

    let mut second = guest.connect();
    second.attach("long", output.len() as u64);
    let more = second.read_output(output.len() as u64, 3_000_000);
    output.extend(more);
    second.cut();

    std::fs::write(guest.work().join("go"), "").unwrap();
    let mut third = guest.connect();
    third.attach("long", output.len() as u64);
    let finished = third.finish("long", output.len() as u64);
    output.extend(finished.output);
    assert!(output == expected, "the output differs");
    assert_eq!(finished.exit, Exit::Code { code: 0 });
    drop(third);
    guest.wait_until_quiet();
}

#[test]
fn a_command_that_ended_while_nobody_listened_is_told_later() {
    let guest = guest();
    let mut connection = guest.connect();
    connection.start(
        "alone",
        AGENT.says(
            "while [ ! -e go ]; do sleep 0.02; done; echo done; exit 3",
            "%TOOL% until go & %TOOL% say done & exit 3",
        ),
    );
    connection.cut();
    std::fs::write(guest.work().join("go"), "").unwrap();
    guest.wait_until_quiet();
    let mut connection = guest.connect();
    connection.attach("alone", 0);
    let finished = connection.finish("alone", 0);
    assert_eq!(finished.output, b"done\n");
    assert_eq!(finished.exit, Exit::Code { code: 3 });
}

#[test]
fn starting_a_name_twice_runs_the_command_once() {
    let guest = guest();
    let mut connection = guest.connect();
    let script = AGENT.says(
        "echo ran >> ran; echo out",
        "%TOOL% say ran >>ran & %TOOL% say out",
    );
    assert_eq!(connection.run("once", script).output, b"out\n");
    connection.send(&ToAgent::Start {
        execution: id("once"),
        command: connection.command(script),
    });
    assert!(matches!(
        connection.message(),
        ToMaster::Started { .. } | ToMaster::Failed { .. }
    ));
    assert_eq!(
        std::fs::read_to_string(guest.work().join("ran")).unwrap(),
        "ran\n"
    );
}

#[test]
fn two_connections_may_follow_the_same_execution() {
    let guest = guest();
    let mut first = guest.connect();
    first.start(
        "shared",
        AGENT.says(
            "echo a; while [ ! -e go ]; do sleep 0.02; done; echo b",
            "%TOOL% say a & %TOOL% until go & %TOOL% say b",
        ),
    );
    let mut second = guest.connect();
    second.attach("shared", 0);
    assert_eq!(second.read_output(0, 2), b"a\n");
    assert_eq!(first.read_output(0, 2), b"a\n");
    std::fs::write(guest.work().join("go"), "").unwrap();
    // What one of them acknowledges may be forgotten before the other has it, so both read first.
    assert_eq!(first.read_output(2, 4), b"b\n");
    assert_eq!(second.read_output(2, 4), b"b\n");
    assert_eq!(first.finish("shared", 4).output, b"");
    assert_eq!(second.finish("shared", 4).output, b"");
}

#[test]
fn a_full_spool_makes_the_command_wait_until_it_is_acknowledged() {
    let guest = guest();
    let expected = noise(8_000_000, 3);
    std::fs::write(guest.work().join("noise"), &expected).unwrap();
    let mut connection = guest.connect();
    let mut command = connection.command(AGENT.says("cat noise; touch written", "%TOOL% cat noise & echo.>written"));
    command.spool_bytes = 300_000;
    connection.start_command("bounded", command);
    let mut output = connection.read_output(0, 300_000);
    assert_eq!(
        output.len(),
        300_000,
        "exactly the bound comes without an acknowledgement"
    );
    assert!(
        connection
            .frame_within(Duration::from_millis(300))
            .is_none()
    );
    assert!(!guest.work().join("written").exists(), "the command waits");
    // The bound is the guest's disk, so a new connection finds the same.
    drop(connection);
    let mut connection = guest.connect();
    connection.attach("bounded", 0);
    assert_eq!(connection.read_output(0, 300_000), output);
    connection.acknowledge("bounded", 200_000);
    output.extend(connection.read_output(300_000, 500_000));
    assert_eq!(output.len(), 500_000);
    connection.acknowledge("bounded", 500_000);
    let finished = connection.finish("bounded", 500_000);
    output.extend(finished.output);
    assert!(output == expected, "the output differs");
}

#[test]
fn a_command_that_ends_with_a_full_spool_is_recorded_without_an_acknowledgement() {
    let guest = guest();
    let mut connection = guest.connect();
    let mut command = connection.command(AGENT.says("head -c 100000 /dev/zero", "%TOOL% zeros 100000"));
    command.spool_bytes = 1;
    connection.start_command("full", command);
    connection.cut();
    guest.wait_until_quiet();
    let mut connection = guest.connect();
    connection.attach("full", 0);
    assert_eq!(connection.finish("full", 0).output.len(), 100_000);
}

#[test]
fn deleted_output_is_refused_and_what_is_kept_is_sent() {
    let guest = guest();
    let mut connection = guest.connect();
    let mut command = connection.command(AGENT.says("head -c 1000000 /dev/zero", "%TOOL% zeros 1000000"));
    command.spool_bytes = 2_000_000;
    connection.start_command("gone", command);
    let output = connection.read_output(0, 1_000_000);
    assert!(matches!(connection.message(), ToMaster::Exited { .. }));
    connection.acknowledge("gone", output.len() as u64 - 1);
    connection.send(&ToAgent::Attach {
        execution: id("gone"),
        from: 10,
    });
    let message = connection.refusal("attach");
    assert!(message.contains("acknowledged and deleted"), "{message}");
    connection.attach("gone", 999_999);
    assert_eq!(connection.finish("gone", 999_999).output.len(), 1);
    connection.attach("gone", 1_000_000);
    assert_eq!(connection.finish("gone", 1_000_000).output.len(), 0);
    connection.send(&ToAgent::Attach {
        execution: id("gone"),
        from: 1_000_001,
    });
    let message = connection.refusal("attach");
    assert!(message.contains("beyond the output's end"), "{message}");
}

#[test]
fn a_killed_supervisor_makes_the_execution_lost_and_keeps_its_output() {
    let guest = guest();
    let mut connection = guest.connect();
    connection.start("lost", AGENT.says("echo kept; sleep 600", "%TOOL% say kept & %TOOL% sleep 600"));
    assert_eq!(connection.read_output(0, 5), b"kept\n");
    let supervisor = guest
        .processes()
        .into_iter()
        .find(|(_, line)| line.contains(" supervise "));
    kill(supervisor.unwrap().0, "KILL");
    assert_eq!(connection.finish("lost", 5).exit, Exit::Lost);
    connection.attach("lost", 0);
    let finished = connection.finish("lost", 0);
    assert_eq!(finished.output, b"kept\n");
    assert_eq!(finished.exit, Exit::Lost);
}

#[test]
fn a_command_that_cannot_start_is_refused_with_the_reason() {
    let guest = guest();
    let mut connection = guest.connect();
    let mut command = connection.command("true");
    command.shell = vec!["no-such-shell-here".into()];
    connection.send(&ToAgent::Start {
        execution: id("shell"),
        command,
    });
    let message = connection.refusal("start");
    assert!(
        message.contains("cannot start no-such-shell-here"),
        "{message}"
    );
    // The reason is kept: whoever asks later is told the same.
    connection.attach("shell", 0);
    let message = connection.refusal("attach");
    assert!(
        message.contains("cannot start no-such-shell-here"),
        "{message}"
    );

    let mut command = connection.command("true");
    command.dir = "nowhere".into();
    connection.send(&ToAgent::Start {
        execution: id("dir"),
        command,
    });
    let message = connection.refusal("start");
    assert!(message.contains("there is no such folder"), "{message}");

    let mut command = connection.command("true");
    command.env.insert("A=B".into(), String::new());
    connection.send(&ToAgent::Start {
        execution: id("env"),
        command,
    });
    connection.refusal("start");
    let mut command = connection.command("true");
    command.shell.clear();
    connection.send(&ToAgent::Start {
        execution: id("none"),
        command,
    });
    connection.refusal("start");
    connection.ping(1);
}

#[test]
fn unknown_executions_and_invalid_names_are_told_apart() {
    let guest = guest();
    let mut connection = guest.connect();
    connection.send(&ToAgent::Attach {
        execution: id("nobody"),
        from: 0,
    });
    assert_eq!(
        connection.message(),
        ToMaster::Unknown {
            execution: id("nobody")
        }
    );
    connection.stop("nobody", 1);
    assert_eq!(
        connection.message(),
        ToMaster::Unknown {
            execution: id("nobody")
        }
    );
    connection.acknowledge("nobody", 1);
    assert_eq!(
        connection.message(),
        ToMaster::Unknown {
            execution: id("nobody")
        }
    );
    let long = "x".repeat(65);
    for name in ["", ".", "..", "../x", "a/b", "a b", "ä", "a\0b", &long] {
        connection.send(&ToAgent::Attach {
            execution: id(name),
            from: 0,
        });
        connection.refusal("attach");
        connection.send(&ToAgent::Start {
            execution: id(name),
            command: connection.command("true"),
        });
        connection.refusal("start");
        connection.stop(name, 0);
        connection.refusal("stop");
        connection.acknowledge(name, 0);
        connection.refusal("acknowledge");
    }
    assert_eq!(
        std::fs::read_dir(guest.state().join("exec"))
            .unwrap()
            .count(),
        0
    );
}

#[test]
fn pings_are_answered_while_output_flows() {
    let guest = guest();
    let mut connection = guest.connect();
    connection.start("flow", zeros());
    connection.read_output(0, 1_000_000);
    connection.send(&ToAgent::Ping { sequence: 9 });
    loop {
        match connection.frame() {
            Frame::Output { bytes, offset } => {
                connection.acknowledge("flow", offset + bytes.len() as u64)
            }
            Frame::Control(json) => {
                assert_eq!(
                    Frame::parse::<ToMaster>(&json).unwrap(),
                    ToMaster::Pong { sequence: 9 }
                );
                break;
            }
            Frame::Data(_) => panic!("data among the output"),
        }
    }
    drop(connection);
    let mut connection = guest.connect();
    connection.stop("flow", 0);
    guest_has_no_commands(&guest);
}

fn guest_has_no_commands(guest: &Guest) {
    wait_for("the command to end", || {
        guest
            .processes()
            .iter()
            .all(|(_, line)| !line.contains(" supervise ") && !line.contains(zeros()))
    });
}

#[test]
fn following_another_execution_ends_the_following_and_not_the_execution() {
    let guest = guest();
    let mut connection = guest.connect();
    connection.start(
        "one",
        AGENT.says(
            "echo 1; while [ ! -e go ]; do sleep 0.02; done; echo 11",
            "%TOOL% say 1 & %TOOL% until go & %TOOL% say 11",
        ),
    );
    assert_eq!(connection.read_output(0, 2), b"1\n");
    assert_eq!(connection.run("two", AGENT.says("echo 2", "%TOOL% say 2")).output, b"2\n");
    std::fs::write(guest.work().join("go"), "").unwrap();
    connection.attach("one", 2);
    assert_eq!(connection.finish("one", 2).output, b"11\n");
}

#[test]
fn nonsense_on_the_connection_ends_it_and_leaves_executions_alone() {
    let guest = guest();
    let mut connection = guest.connect();
    connection.start(
        "survivor",
        AGENT.says("while [ ! -e go ]; do sleep 0.02; done", "%TOOL% until go"),
    );
    connection.send_bytes(&Frame::Control(b"{\"type\":\"dance\"}".to_vec()).into_bytes());
    connection.refusal("message");
    connection.ping(1);
    connection.send_bytes(&[0xff; 64]);
    connection.refusal("frame");
    assert_eq!(connection.close(), []);
    let mut connection = guest.connect();
    connection.send_bytes(&Frame::Data(vec![1]).into_bytes());
    connection.refusal("data");
    let mut connection = guest.connect();
    std::fs::write(guest.work().join("go"), "").unwrap();
    connection.attach("survivor", 0);
    assert_eq!(
        connection.finish("survivor", 0).exit,
        Exit::Code { code: 0 }
    );
}

#[test]
fn a_wrong_command_line_is_refused() {
    for arguments in [
        &[][..],
        &["serve"],
        &["serve", "a b", "--state", "x"],
        &["serve", "a", "--state", ""],
    ] {
        let output = AGENT.command()
            .args(arguments)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    }
}
