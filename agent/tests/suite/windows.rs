//! What only Windows knows: `cmd` and its quoting, line ends, names without case, files in use.

use super::files::{archive, collect, entry, unpack};
use super::terminals::on_terminal;
use super::{AGENT, guest};
use crate::common::{Guest, id, kill, wait_for};
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use tar::EntryType;
use vivarium_protocol::{Exit, ToAgent, ToMaster};

fn text(output: Vec<u8>) -> String {
    String::from_utf8(output).unwrap()
}

#[test]
fn a_command_gets_its_folder_its_environment_and_no_input() {
    let guest = guest();
    let mut connection = guest.connect();
    let mut command = connection.command("cd & %TOOL% value NAME & %TOOL% input");
    command.env.insert("NAME".into(), "two words %PATH% & more".into());
    connection.start_command("env", command);
    let finished = connection.finish("env", 0);
    let work = guest.work().display().to_string().replace('/', "\\");
    assert_eq!(
        text(finished.output),
        format!("Z:{work}\r\ntwo words %PATH% & more\n0 bytes\n")
    );
    assert_eq!(finished.exit, Exit::Code { code: 0 });
    assert!(
        !guest.execution_dir("env").join("command.json").exists(),
        "it may hold secrets"
    );
}

/// The agent has a `PATH` already, and `Path` is the same variable.
#[test]
fn names_in_the_environment_have_no_case() {
    let guest = guest();
    let mut connection = guest.connect();
    let mut command = connection.command("%TOOL% value PATH & %TOOL% value other");
    command.env.insert("pAtH".into(), "C:\\nowhere".into());
    command.env.insert("Other".into(), "1".into());
    connection.start_command("case", command);
    assert_eq!(text(connection.finish("case", 0).output), "C:\\nowhere\n1\n");
}

#[test]
fn cmd_gets_quotation_marks_and_backslashes_as_they_were_written() {
    let guest = guest();
    let mut connection = guest.connect();
    let script = r#"%TOOL% arguments "a b" c "d\\" & if 1==1 (echo "x y"& exit 7)"#;
    let finished = connection.run("quotes", script);
    let expected = "[\"a b\", \"c\", \"d\\\\\"]\n\"x y\"\r\n";
    assert_eq!(text(finished.output), expected);
    assert_eq!(finished.exit, Exit::Code { code: 7 });
}

#[test]
fn a_folder_with_a_space_is_a_folder() {
    let guest = guest();
    let dir = guest.work().join("with space");
    std::fs::create_dir(&dir).unwrap();
    let mut connection = guest.connect();
    let mut command = connection.command("echo here>\"a b.txt\"& type \"a b.txt\"");
    command.dir = dir.to_str().unwrap().into();
    connection.start_command("space", command);
    assert_eq!(text(connection.finish("space", 0).output), "here\r\n");
    assert!(dir.join("a b.txt").is_file());
}

#[test]
fn a_script_of_several_lines_runs_line_by_line_and_its_code_is_the_last_ones() {
    let guest = guest();
    let mut connection = guest.connect();
    let script = "%TOOL% say one\nset X=two\r\nif not \"%X%\"==\"\" %TOOL% say %X%\nexit /b 9\n%TOOL% say three\n";
    let finished = connection.run("lines", script);
    assert_eq!(text(finished.output), "one\ntwo\n");
    assert_eq!(finished.exit, Exit::Code { code: 9 });
    assert!(
        !guest.execution_dir("lines").join("script.cmd").exists(),
        "it may hold secrets"
    );
    let finished = connection.run("last", "%TOOL% say one\n%TOOL% exit 11\n");
    assert_eq!(finished.exit, Exit::Code { code: 11 });
}

#[test]
fn exit_codes_are_the_systems_own() {
    let guest = guest();
    let mut connection = guest.connect();
    for (name, code) in [("small", 1), ("large", 70_000), ("negative", -2)] {
        let finished = connection.run(name, &format!("%TOOL% exit {code}"));
        assert_eq!(finished.exit, Exit::Code { code }, "{name}");
    }
}

#[test]
fn line_ends_and_bytes_of_any_code_page_stay_as_they_are() {
    let guest = guest();
    let bytes = b"a\r\nb\nc\r\x00\x80\x84\xff\x1a\r\n";
    std::fs::write(guest.work().join("bytes"), bytes).unwrap();
    let finished = guest.connect().run("bytes", "%TOOL% cat bytes & echo d");
    assert_eq!(finished.output, [&bytes[..], b"d\r\n"].concat());
}

/// What a job object with kill-on-close is for: no walk over a list of processes could do it.
#[test]
fn the_command_ends_with_its_supervisor_however_that_ends() {
    let guest = guest();
    let mut connection = guest.connect();
    // Ready is who says it: Wine misses a process that is being started at that moment.
    connection.start("tree", "%TOOL% daemon & %TOOL% stubborn");
    connection.read_output(0, 6);
    let running = |guest: &Guest, word: &str| {
        let processes = guest.processes();
        processes.into_iter().find(|(_, line)| line.contains(word))
    };
    let supervisor = running(&guest, " supervise ").unwrap().0;
    for word in [" sleep 601", " stubborn"] {
        assert!(running(&guest, word).is_some(), "{word} runs");
    }
    kill(supervisor, "KILL");
    assert_eq!(connection.finish("tree", 6).exit, Exit::Lost);
    for word in [" sleep 601", " stubborn"] {
        wait_for("the command's processes to end", || {
            running(&guest, word).is_none()
        });
    }
}

#[test]
fn unpacking_empties_the_folder_first_read_only_files_included() {
    let guest = guest();
    let dir = guest.work().join("tree");
    std::fs::create_dir_all(dir.join("locked/inner")).unwrap();
    let file = dir.join("locked/inner/file");
    std::fs::write(&file, "old").unwrap();
    std::fs::set_permissions(&file, Permissions::from_mode(0o444)).unwrap();
    let mut connection = guest.connect();
    let bytes = archive(&[
        entry(b"ro/", EntryType::Directory, "", b"", 0o555),
        entry(b"ro/file", EntryType::Regular, "", b"new", 0o444),
    ]);
    for _ in 0..2 {
        let answer = unpack(&mut connection, &dir, &bytes);
        assert_eq!(answer, ToMaster::Unpacked { entries: 2 });
        assert_eq!(std::fs::read(dir.join("ro/file")).unwrap(), b"new");
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1);
    }
}

#[test]
fn a_file_in_use_is_waited_for_and_then_named() {
    let guest = guest();
    let dir = guest.work().join("tree");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("held"), "old").unwrap();
    let mut connection = guest.connect();
    connection.start("holder", "%TOOL% hold tree\\held");
    connection.read_output(0, 5);
    let bytes = archive(&[entry(b"new", EntryType::Regular, "", b"new", 0o644)]);
    let answer = unpack(&mut connection, &dir, &bytes);
    assert!(
        matches!(&answer, ToMaster::Failed { message, .. } if message.contains("held")),
        "{answer:?}"
    );
    std::fs::write(guest.work().join("release"), "").unwrap();
    assert_eq!(connection.finish("holder", 5).exit, Exit::Code { code: 0 });
    let answer = unpack(&mut connection, &dir, &bytes);
    assert_eq!(answer, ToMaster::Unpacked { entries: 1 });
    assert!(!dir.join("held").exists());
}

/// By `write`, for Wine cannot tell the full name of so long a path, which unpacking asks for.
#[test]
fn paths_longer_than_260_characters_make_the_round_trip_and_are_removed() {
    let guest = guest();
    let dir = guest.work().join("tree");
    let folder = "f".repeat(90);
    let path = format!("{folder}/{folder}/{folder}/{folder}/file");
    let mut connection = guest.connect();
    for _ in 0..2 {
        connection.send(&ToAgent::Write {
            path: format!("tree/{path}"),
            executable: false,
        });
        connection.send_data(b"deep");
        assert_eq!(connection.message(), ToMaster::Written { bytes: 4 });
        let collected = collect(&mut connection, &dir, &["**"], 10, 1000);
        assert_eq!(collected.files[&path].1, b"deep");
        let answer = unpack(&mut connection, &dir, &archive(&[]));
        assert_eq!(answer, ToMaster::Unpacked { entries: 0 });
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
    }
}

#[test]
fn names_that_windows_would_take_for_something_else_are_refused() {
    let guest = guest();
    let mut connection = guest.connect();
    let dir = guest.work().join("tree");
    for name in [&b"file:stream"[..], b"C:x", b"a\\..\\..\\x", b"\\\\host\\share"] {
        let bytes = archive(&[entry(name, EntryType::Regular, "", b"evil", 0o644)]);
        let answer = unpack(&mut connection, &dir, &bytes);
        assert!(matches!(answer, ToMaster::Failed { .. }), "{answer:?}");
    }
    assert_eq!(std::fs::read_dir(guest.work()).unwrap().count(), 1);
    assert_eq!(std::fs::read_dir(dir).unwrap().count(), 0);
}

/// Between two connections that start one name there is a moment in which it is not named yet.
#[test]
fn two_connections_that_start_one_name_at_once_run_it_once() {
    let guest = guest();
    let mut connections = [guest.connect(), guest.connect(), guest.connect()];
    for connection in &mut connections {
        let command = connection.command("%TOOL% say ran >>ran & %TOOL% say out");
        connection.send(&ToAgent::Start {
            execution: id("once"),
            command,
        });
    }
    for connection in &mut connections {
        assert!(matches!(connection.message(), ToMaster::Started { .. }));
        assert_eq!(connection.finish("once", 0).output, b"out\n");
    }
    assert_eq!(std::fs::read(guest.work().join("ran")).unwrap(), b"ran\n");
}

#[test]
fn an_agent_that_is_not_what_was_sent_does_not_start() {
    let guest = guest();
    let output = AGENT
        .command()
        .args(["serve", "nonce-1", "--state"])
        .arg(guest.state())
        .args(["--sha256", &"0".repeat(64)])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(output.stdout, b"");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("is not the agent that was sent"), "{said}");
}

/// What a pseudo-console shows comes as a drawing; these are its letters, without the escape codes.
fn letters(output: &[u8]) -> String {
    let (mut letters, mut rest) = (String::new(), String::from_utf8_lossy(output).into_owned());
    while let Some(escape) = rest.find('\u{1b}') {
        letters.push_str(&rest[..escape]);
        let code = &rest[escape + 1..];
        // `ESC ] … BEL` sets a title, `ESC [ … letter` anything else.
        let is_end: fn(char) -> bool = match code.starts_with(']') {
            true => |c| c == '\u{7}',
            false => |c| c.is_ascii_alphabetic(),
        };
        let end = code.find(is_end).map_or(code.len(), |end| end + 1);
        rest = code[end..].to_owned();
    }
    letters + &rest
}

#[test]
fn a_step_on_a_pseudo_console_sees_a_terminal_and_has_no_input() {
    let guest = guest();
    let mut connection = guest.connect();
    let script = "%TOOL% terminal & %TOOL% input & %TOOL% value NAME & exit 7";
    let mut command = on_terminal(&connection, script);
    command.env.insert("NAME".into(), "from the step".into());
    connection.start_command("seen", command);
    let finished = connection.finish("seen", 0);
    let shown = letters(&finished.output);
    for line in ["120x40 true Ok(\"xterm-256color\")", "0 bytes", "from the step"] {
        assert!(shown.contains(line), "{shown}");
    }
    assert_eq!(finished.exit, Exit::Code { code: 7 });
    drop(connection);
    guest.wait_until_quiet();
}

#[test]
fn long_output_of_a_pseudo_console_arrives_to_its_end() {
    let guest = guest();
    let mut connection = guest.connect();
    let script = "for /l %i in (1,1,300) do @%TOOL% say line %i\n";
    connection.start_command("long", on_terminal(&connection, script));
    let finished = connection.finish("long", 0);
    let shown = letters(&finished.output);
    assert!(shown.contains("line 1") && shown.contains("line 300"), "{shown}");
    assert_eq!(finished.exit, Exit::Code { code: 0 });
}

#[test]
fn stop_reaches_a_step_on_a_pseudo_console() {
    let guest = guest();
    let mut connection = guest.connect();
    let mut command = on_terminal(&connection, "polite");
    command.shell = vec![crate::common::windows::path("tool.exe")];
    connection.start_command("polite", command);
    let mut output = connection.read_output(0, 1);
    while !letters(&output).contains("ready") {
        let from = output.len() as u64;
        output.extend(connection.read_output(from, from + 1));
    }
    connection.stop("polite", 600_000);
    let finished = connection.finish("polite", output.len() as u64);
    let shown = letters(&finished.output);
    assert!(shown.contains("cleaned"), "{shown}");
    assert_eq!(finished.exit, Exit::Code { code: 7 }, "{shown}");
}

#[test]
fn what_is_left_on_a_pseudo_console_ends_with_the_step() {
    let guest = guest();
    let mut connection = guest.connect();
    let command = on_terminal(&connection, "%TOOL% orphan & %TOOL% daemon & %TOOL% say done");
    connection.start_command("left", command);
    let finished = connection.finish("left", 0);
    assert!(letters(&finished.output).contains("done"));
    assert_eq!(finished.exit, Exit::Code { code: 0 });
    drop(connection);
    guest.wait_until_quiet();
}
