//! What only Unix knows: signals, sessions, modes, links, file systems of one's own.

use super::files::{archive, collect, entry, unpack};
use super::{AGENT, guest};
use crate::common::{noise, wait_for};
use std::fs::Permissions;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use tar::EntryType;
use vivarium_protocol::{Exit, Frame, ToMaster};

#[test]
fn a_command_gets_its_folder_its_environment_and_no_input() {
    let guest = guest();
    let mut connection = guest.connect();
    let mut command = connection.command("pwd; echo \"$NAME\"; cat; echo $?; trap");
    command.env.insert("NAME".into(), "two words $HOME".into());
    connection.start_command("env", command);
    let finished = connection.finish("env", 0);
    let work = guest.work().canonicalize().unwrap();
    let expected = format!("{}\ntwo words $HOME\n0\n", work.display());
    assert_eq!(String::from_utf8(finished.output).unwrap(), expected);
    assert_eq!(finished.exit, Exit::Code { code: 0 });
    assert!(
        !guest.execution_dir("env").join("command.json").exists(),
        "it may hold secrets"
    );
}

#[test]
fn a_command_hears_the_signals_that_the_agent_blocks() {
    let guest = guest();
    let script = "grep -E '^Sig(Blk|Ign)' /proc/self/status";
    let finished = guest.connect().run("signals", script);
    let status = String::from_utf8(finished.output).unwrap();
    assert_eq!(signals(&status, "SigBlk") & CHECKED, 0, "{status}");
    // A program started by `nohup` or in a shell's background is born deaf to some, and so are its children; BusyBox's
    // shell runs a simple command deaf to SIGQUIT, whoever started it. So: what it is without the agent.
    let without = AGENT.shell().args(["-c", script]).output().unwrap();
    let without = String::from_utf8(without.stdout).unwrap();
    let ignored = signals(&status, "SigIgn") & !signals(&without, "SigIgn");
    assert_eq!(ignored & CHECKED, 0, "{status}");
}

/// All but the real-time signals: the C library's own may be set by whoever runs this test.
const CHECKED: u64 = 0x7fff_ffff;

/// A set of signals in a process's status, SIGHUP in the lowest bit.
fn signals(status: &str, set: &str) -> u64 {
    let line = status.lines().find(|line| line.starts_with(set)).unwrap();
    u64::from_str_radix(line.rsplit('\t').next().unwrap(), 16).unwrap()
}

/// Where the guest's memory runs out, Linux ends who has the highest score.
#[cfg(target_os = "linux")]
#[test]
fn a_command_is_ended_for_want_of_memory_before_its_supervisor() {
    let guest = guest();
    let own = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap();
    let script = "cat /proc/self/oom_score_adj; while cmp -s /proc/self/oom_score_adj /proc/$PPID/oom_score_adj; do \
                  sleep 0.02; done; cat /proc/$PPID/oom_score_adj";
    let finished = guest.connect().run("scores", script);
    let own: i32 = own.trim().parse().unwrap();
    let output = String::from_utf8(finished.output).unwrap();
    assert_eq!(output, format!("{}\n{own}\n", own.max(500)));
}

#[test]
fn an_end_by_a_signal_is_told_as_one() {
    let guest = guest();
    let finished = guest.connect().run("signal", "echo before; kill -SEGV $$");
    assert_eq!(finished.exit, Exit::Signal { signal: 11 });
    assert_eq!(finished.output, b"before\n");
}

#[test]
fn a_full_disk_makes_the_command_wait_until_acknowledged_output_is_deleted() {
    let guest = guest();
    let expected = noise(5_000_000, 4);
    std::fs::write(guest.work().join("noise"), &expected).unwrap();
    let Some(mut connection) = guest.connect_with_small_disk("1m") else {
        return;
    };
    let finished = connection.run("small", "cat noise; exit 3");
    assert!(finished.output == expected, "the output differs");
    assert_eq!(finished.exit, Exit::Code { code: 3 });
}

/// A command whose first output came after it had filled the disk used to wait in its write, for minutes.
#[test]
fn a_command_that_fills_the_disk_can_say_so() {
    let guest = guest();
    let Some(mut connection) = guest.connect_with_small_disk("1m") else {
        return;
    };
    let fill = guest.state().join("fill").display().to_string();
    let finished = connection.run(
        "fill",
        &format!("cat /dev/zero >'{fill}' || seq 1 5000; exit 4"),
    );
    let output = String::from_utf8(finished.output).unwrap();
    let numbers: String = (1..=5000).map(|number| format!("{number}\n")).collect();
    assert!(output.contains("No space left on device"), "{output}");
    assert!(output.ends_with(&numbers));
    assert_eq!(finished.exit, Exit::Code { code: 4 });
}

#[test]
fn a_command_stopped_on_a_full_disk_ends_with_a_sentence() {
    let guest = guest();
    let Some(mut connection) = guest.connect_with_small_disk("1m") else {
        return;
    };
    connection.start("flood", "cat /dev/zero");
    let output = connection.read_output(0, 900_000);
    connection.stop("flood", 0);
    let mut offset = output.len() as u64;
    let message = loop {
        match connection.frame() {
            Frame::Output { offset: at, bytes } => {
                assert_eq!(at, offset);
                offset += bytes.len() as u64;
            }
            Frame::Control(json) => break Frame::parse::<ToMaster>(&json).unwrap(),
            Frame::Data(_) => panic!("data among the output"),
        }
    };
    let ToMaster::Failed { request, message } = message else {
        panic!("no refusal: {message:?}");
    };
    assert_eq!(request, "start");
    assert!(
        message.contains(&format!("stayed full; {offset} bytes of it were kept")),
        "{message}"
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

#[test]
fn unpacking_empties_the_folder_first_read_only_folders_included() {
    let guest = guest();
    let dir = guest.work().join("tree");
    std::fs::create_dir_all(dir.join("locked/inner")).unwrap();
    std::fs::write(dir.join("locked/inner/file"), "old").unwrap();
    std::fs::write(guest.work().join("outside"), "stays").unwrap();
    symlink(guest.work(), dir.join("out")).unwrap();
    for folder in ["locked/inner", "locked"] {
        std::fs::set_permissions(dir.join(folder), Permissions::from_mode(0o500)).unwrap();
    }
    let mut connection = guest.connect();
    let bytes = archive(&[
        entry(b"ro/", EntryType::Directory, "", b"", 0o555),
        entry(b"ro/file", EntryType::Regular, "", b"new", 0o444),
    ]);
    for _ in 0..2 {
        assert_eq!(
            unpack(&mut connection, &dir, &bytes),
            ToMaster::Unpacked { entries: 2 }
        );
        assert_eq!(std::fs::read(dir.join("ro/file")).unwrap(), b"new");
        assert_eq!(
            dir.join("ro").metadata().unwrap().permissions().mode() & 0o777,
            0o555
        );
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1);
    }
    assert_eq!(
        std::fs::read(guest.work().join("outside")).unwrap(),
        b"stays"
    );
    std::fs::set_permissions(dir.join("ro"), Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn what_is_no_regular_file_is_not_collected_and_a_link_is_not_followed() {
    let guest = guest();
    let dir = guest.work().join("built");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("a.bin"), "a").unwrap();
    symlink("/etc", dir.join("outside")).unwrap();
    symlink("/etc/passwd", dir.join("link.bin")).unwrap();
    let odd = dir.join(std::ffi::OsStr::from_bytes(b"odd\xff.bin"));
    std::fs::write(odd, "x").unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(dir.join("socket.bin")).unwrap();
    std::process::Command::new("mkfifo")
        .arg(dir.join("pipe.bin"))
        .status()
        .unwrap();
    let mut connection = guest.connect();
    let globs = ["**/*.bin", "outside/**"];
    let all = collect(&mut connection, &dir, &globs, 100, 1_000_000);
    assert_eq!(all.order, ["a.bin"]);
    assert_eq!(all.why("link.bin"), "it is a symbolic link");
    assert_eq!(all.why("socket.bin"), "it is no regular file");
    assert_eq!(all.why("pipe.bin"), "it is no regular file");
    assert_eq!(all.why("odd\u{fffd}.bin"), "its name is not UTF-8");
    assert_eq!(all.skipped.len(), 4);
}
