//! Files in both directions: archives, single files, collected artefacts.

use super::{AGENT, guest};
use crate::common::{Agent, Connection, noise};
use std::collections::BTreeMap;
use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use tar::{Builder, EntryType, Header};
use vivarium_protocol::{CollectedFile, Frame, Skipped, ToAgent, ToMaster};

pub(super) struct Collected {
    pub(super) files: BTreeMap<String, (CollectedFile, Vec<u8>)>,
    pub(super) order: Vec<String>,
    pub(super) skipped: Vec<Skipped>,
}

impl Collected {
    pub(super) fn why(&self, path: &str) -> &str {
        let found = self.skipped.iter().find(|s| s.path == path);
        found.map_or("it is not in the list of the skipped", |s| &s.why)
    }
}

pub(super) fn collect(
    connection: &mut Connection,
    dir: &Path,
    globs: &[&str],
    max_files: u64,
    max_bytes: u64,
) -> Collected {
    connection.send(&ToAgent::Collect {
        dir: dir.to_str().unwrap().into(),
        globs: globs.iter().map(|g| (*g).to_owned()).collect(),
        max_files,
        max_bytes,
    });
    let mut collected = Collected {
        files: BTreeMap::new(),
        order: Vec::new(),
        skipped: Vec::new(),
    };
    loop {
        match connection.message() {
            ToMaster::File(file) => {
                let mut content = Vec::new();
                let sha256 = loop {
                    match connection.frame() {
                        Frame::Data(bytes) => content.extend_from_slice(&bytes),
                        Frame::Control(json) => match Frame::parse(&json).unwrap() {
                            ToMaster::EndOfFile { sha256 } => break sha256,
                            other => panic!("in a file: {other:?}"),
                        },
                        Frame::Output { .. } => panic!("output in a file"),
                    }
                };
                assert_eq!(content.len() as u64, file.size);
                assert_eq!(sha256, sha256_of(&content));
                collected.order.push(file.path.clone());
                collected.files.insert(file.path.clone(), (file, content));
            }
            ToMaster::Collected {
                files,
                bytes,
                skipped,
            } => {
                assert_eq!(files, collected.files.len() as u64);
                assert_eq!(
                    bytes,
                    collected.files.values().map(|(f, _)| f.size).sum::<u64>()
                );
                collected.skipped = skipped;
                return collected;
            }
            other => panic!("while collecting: {other:?}"),
        }
    }
}

fn sha256_of(content: &[u8]) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(content)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect()
}

pub(super) fn unpack(connection: &mut Connection, dir: &Path, archive: &[u8]) -> ToMaster {
    connection.send(&ToAgent::Unpack {
        dir: dir.to_str().unwrap().into(),
    });
    connection.send_data(archive);
    connection.message()
}

pub(super) fn entry(name: &[u8], kind: EntryType, link: &str, content: &[u8], mode: u32) -> (Header, Vec<u8>) {
    let mut header = Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.set_entry_type(kind);
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_mode(mode);
    header.set_mtime(1_000_000_000);
    header.set_size(content.len() as u64);
    header.set_cksum();
    (header, content.to_vec())
}

pub(super) fn archive(entries: &[(Header, Vec<u8>)]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (header, content) in entries {
        builder.append(header, &content[..]).unwrap();
    }
    builder.into_inner().unwrap()
}

#[test]
fn a_tree_with_odd_names_makes_the_round_trip() {
    let guest = guest();
    let source = tempfile::tempdir().unwrap();
    let big = noise(3_000_000, 11);
    let names = [
        "plain",
        "with space/and more.txt",
        "-dash",
        "ünï/日本.bin",
        "deep/er/and/deeper",
        "empty",
    ];
    for (i, name) in names.iter().enumerate() {
        let path = source.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &big[..i * 600_000]).unwrap();
    }
    let long = format!("long/{}", "n".repeat(180));
    std::fs::create_dir(source.path().join("long")).unwrap();
    std::fs::write(source.path().join(&long), b"long").unwrap();
    std::fs::set_permissions(source.path().join("-dash"), Permissions::from_mode(0o755)).unwrap();
    symlink("plain", source.path().join("link")).unwrap();
    symlink("/nowhere/at/all", source.path().join("dangling")).unwrap();
    let mut builder = Builder::new(Vec::new());
    builder.follow_symlinks(false);
    builder.append_dir_all(".", source.path()).unwrap();
    let bytes = builder.into_inner().unwrap();

    let mut connection = guest.connect();
    let dir = guest.work().join("tree");
    let answer = unpack(&mut connection, &dir, &bytes);
    assert!(
        matches!(answer, ToMaster::Unpacked { entries } if entries > 9),
        "{answer:?}"
    );
    for (link, target) in [("link", "plain"), ("dangling", "/nowhere/at/all")] {
        let link = dir.join(link);
        if AGENT == Agent::Windows {
            // As with Git for Windows, a link is a file that holds its target.
            assert_eq!(std::fs::read_to_string(link).unwrap(), target);
        } else {
            assert_eq!(std::fs::read_link(link).unwrap(), Path::new(target));
        }
    }
    let mtime = |path: &Path| path.metadata().unwrap().modified().unwrap();
    let seconds = |time: std::time::SystemTime| {
        time.duration_since(std::time::UNIX_EPOCH)
            .unwrap()
            .as_secs()
    };
    assert_eq!(
        seconds(mtime(&dir.join("plain"))),
        seconds(mtime(&source.path().join("plain")))
    );

    let collected = collect(&mut connection, &dir, &["**"], 1000, u64::MAX);
    for (i, name) in names.iter().enumerate() {
        let (file, content) = &collected.files[*name];
        assert!(*content == big[..i * 600_000], "{name} differs");
        let executable = *name == "-dash" && AGENT != Agent::Windows;
        assert_eq!(file.executable, executable, "{name}");
    }
    assert_eq!(collected.files[&long].1, b"long");
    if AGENT == Agent::Windows {
        assert_eq!(collected.files.len(), names.len() + 3);
    } else {
        assert_eq!(collected.files.len(), names.len() + 1);
        assert_eq!(collected.why("link"), "it is a symbolic link");
    }
    let mut sorted = collected.order.clone();
    sorted.sort_by(|a, b| Path::new(a).cmp(Path::new(b)));
    assert_eq!(collected.order, sorted);
}

#[test]
fn an_archive_cannot_write_outside_of_its_folder() {
    let guest = guest();
    let dir = guest.work().join("tree");
    let target = guest.work().join("target");
    std::fs::create_dir(&target).unwrap();
    std::fs::write(target.join("secret"), "untouched").unwrap();
    let out = target.to_str().unwrap();
    let absolute = format!("{out}/absolute");
    let secret = format!("{out}/secret");
    let hostile = [
        vec![entry(b"../x", EntryType::Regular, "", b"evil", 0o644)],
        vec![entry(b"a/../../x", EntryType::Regular, "", b"evil", 0o644)],
        vec![entry(b"../d/", EntryType::Directory, "", b"", 0o755)],
        vec![entry(
            absolute.as_bytes(),
            EntryType::Regular,
            "",
            b"evil",
            0o644,
        )],
        vec![
            entry(b"link", EntryType::Symlink, out, b"", 0o777),
            entry(b"link/x", EntryType::Regular, "", b"evil", 0o644),
        ],
        vec![
            entry(b"link", EntryType::Symlink, "../target", b"", 0o777),
            entry(b"link/d/", EntryType::Directory, "", b"", 0o755),
        ],
        vec![entry(b"hard", EntryType::Link, &secret, b"", 0o644)],
        vec![entry(
            b"hard",
            EntryType::Link,
            "../target/secret",
            b"",
            0o644,
        )],
        vec![entry(b"device", EntryType::Char, "", b"", 0o644)],
        vec![entry(b"pipe", EntryType::Fifo, "", b"", 0o644)],
    ];
    let mut connection = guest.connect();
    for entries in &hostile {
        let answer = unpack(&mut connection, &dir, &archive(entries));
        assert!(
            matches!(&answer, ToMaster::Failed { request, .. } if request == "unpack"),
            "{:?} was answered by {answer:?}",
            entries.last().unwrap().0.path()
        );
    }
    let mut kept: Vec<_> = std::fs::read_dir(guest.work())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    kept.sort();
    assert_eq!(kept, ["target", "tree"]);
    assert_eq!(std::fs::read_dir(&target).unwrap().count(), 1);
    assert_eq!(std::fs::read(target.join("secret")).unwrap(), b"untouched");
    // A file that replaces a link is a file; the link's target stays.
    let bytes = archive(&[
        entry(b"link", EntryType::Symlink, &secret, b"", 0o777),
        entry(b"link", EntryType::Regular, "", b"evil", 0o644),
    ]);
    unpack(&mut connection, &dir, &bytes);
    assert_eq!(std::fs::read(target.join("secret")).unwrap(), b"untouched");
}

#[test]
fn a_broken_archive_is_refused_and_the_connection_goes_on() {
    let guest = guest();
    let mut connection = guest.connect();
    let answer = unpack(
        &mut connection,
        &guest.work().join("tree"),
        &noise(5_000_000, 1),
    );
    assert!(matches!(answer, ToMaster::Failed { .. }), "{answer:?}");
    connection.ping(1);
    let answer = unpack(
        &mut connection,
        Path::new("/proc/no/such/place"),
        &noise(5_000_000, 1),
    );
    assert!(matches!(answer, ToMaster::Failed { .. }), "{answer:?}");
    connection.ping(2);
    let whole = archive(&[entry(b"file", EntryType::Regular, "", &[7; 5000], 0o644)]);
    let answer = unpack(&mut connection, &guest.work().join("tree"), &whole[..1000]);
    assert!(matches!(answer, ToMaster::Failed { .. }), "{answer:?}");
    connection.send(&ToAgent::EndOfData);
    connection.refusal("end_of_data");
}

#[test]
fn folders_that_hold_the_agent_are_not_emptied() {
    let guest = guest();
    let mut connection = guest.connect();
    let state = guest.state();
    for dir in [Path::new("/"), state.parent().unwrap(), &state] {
        let answer = unpack(&mut connection, dir, &archive(&[]));
        assert!(
            matches!(&answer, ToMaster::Failed { message, .. } if message.contains("is not emptied")),
            "{answer:?}"
        );
    }
    assert!(state.join("exec").is_dir());
}

#[test]
fn a_file_is_written_whole_and_replaces_what_was_there() {
    let guest = guest();
    let mut connection = guest.connect();
    let path = guest.work().join("new folder/file");
    let content = noise(1_000_000, 2);
    for (content, executable) in [(&content[..], true), (&b""[..], false)] {
        connection.send(&ToAgent::Write {
            path: path.to_str().unwrap().into(),
            executable,
        });
        connection.send_data(content);
        let bytes = content.len() as u64;
        assert_eq!(connection.message(), ToMaster::Written { bytes });
        assert!(std::fs::read(&path).unwrap() == content);
        if AGENT != Agent::Windows {
            let mode = path.metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o111 != 0, executable);
        }
    }
    assert_eq!(
        std::fs::read_dir(path.parent().unwrap()).unwrap().count(),
        1
    );

    connection.send(&ToAgent::Write {
        path: guest.work().to_str().unwrap().into(),
        executable: false,
    });
    connection.send_data(b"a folder is no file");
    connection.refusal("write");
    // Relative paths are relative to where the connection started.
    connection.send(&ToAgent::Write {
        path: "relative".into(),
        executable: false,
    });
    connection.send_data(b"here");
    assert_eq!(connection.message(), ToMaster::Written { bytes: 4 });
    assert_eq!(
        std::fs::read(guest.work().join("relative")).unwrap(),
        b"here"
    );
}

#[test]
fn pings_are_answered_between_the_data_frames_of_a_file() {
    let guest = guest();
    let mut connection = guest.connect();
    connection.send(&ToAgent::Write {
        path: "file".into(),
        executable: false,
    });
    connection.send_bytes(&Frame::Data(b"one".to_vec()).into_bytes());
    connection.ping(5);
    connection.send_data(b"two");
    assert_eq!(connection.message(), ToMaster::Written { bytes: 6 });
    assert_eq!(std::fs::read(guest.work().join("file")).unwrap(), b"onetwo");
}

#[test]
fn an_upload_that_is_cut_off_leaves_the_old_file() {
    let guest = guest();
    std::fs::write(guest.work().join("file"), "old").unwrap();
    let mut connection = guest.connect();
    connection.send(&ToAgent::Write {
        path: "file".into(),
        executable: false,
    });
    connection.send_bytes(&Frame::Data(b"new".to_vec()).into_bytes());
    connection.ping(1);
    connection.close();
    assert_eq!(std::fs::read(guest.work().join("file")).unwrap(), b"old");
    assert_eq!(std::fs::read_dir(guest.work()).unwrap().count(), 1);
}

#[test]
fn collecting_keeps_to_its_globs_and_limits_and_says_what_it_skipped() {
    let guest = guest();
    let dir = guest.work().join("built");
    std::fs::create_dir_all(dir.join("sub/dir")).unwrap();
    for (name, size) in [
        ("a.bin", 100),
        ("b.bin", 200),
        ("sub/c.bin", 300),
        ("sub/dir/d.bin", 50),
        ("e.txt", 5),
    ] {
        std::fs::write(dir.join(name), vec![b'x'; size]).unwrap();
    }
    let mut connection = guest.connect();
    let all = collect(&mut connection, &dir, &["**/*.bin"], 100, 1_000_000);
    assert_eq!(all.order, ["a.bin", "b.bin", "sub/c.bin", "sub/dir/d.bin"]);
    assert_eq!(all.skipped.len(), 0);
    let top = collect(&mut connection, &dir, &["*.bin"], 100, 1_000_000);
    assert_eq!(top.order, ["a.bin", "b.bin"]);
    let few = collect(&mut connection, &dir, &["**/*.bin"], 1, 1_000_000);
    assert_eq!(few.order, ["a.bin"]);
    assert_eq!(few.why("b.bin"), "over the limit of 1 files");
    let small = collect(&mut connection, &dir, &["**/*.bin"], 100, 360);
    assert_eq!(small.order, ["a.bin", "b.bin", "sub/dir/d.bin"]);
    assert!(
        small
            .why("sub/c.bin")
            .starts_with("over the limit of 360 bytes")
    );

    for (folder, glob) in [("nowhere", "**"), ("built", "[")] {
        connection.send(&ToAgent::Collect {
            dir: folder.into(),
            globs: vec![glob.into()],
            max_files: 1,
            max_bytes: 1,
        });
        connection.refusal("collect");
    }
}

#[test]
fn a_file_that_changes_while_it_is_sent_keeps_its_announced_size_or_is_skipped() {
    let guest = guest();
    let path = guest.work().join("changing");
    let size = 12_000_000;
    for (new_size, whole) in [(size * 2, true), (1_000_000, false)] {
        std::fs::write(&path, vec![1; size]).unwrap();
        let mut connection = guest.connect();
        connection.send(&ToAgent::Collect {
            dir: guest.work().to_str().unwrap().into(),
            globs: vec!["changing".into()],
            max_files: 10,
            max_bytes: u64::MAX,
        });
        assert!(matches!(connection.message(), ToMaster::File(file) if file.size == size as u64));
        // The queues between here and the file hold less than the file, so it changes before its end is read.
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_len(new_size as u64).unwrap();
        let mut received = 0;
        loop {
            match connection.frame() {
                Frame::Data(bytes) => received += bytes.len(),
                Frame::Control(json) => {
                    let end = Frame::parse::<ToMaster>(&json).unwrap();
                    assert!(matches!(end, ToMaster::EndOfFile { .. }), "{end:?}");
                    break;
                }
                Frame::Output { .. } => panic!("output in a file"),
            }
        }
        let ToMaster::Collected { files, skipped, .. } = connection.message() else {
            panic!("no end of the collection");
        };
        assert_eq!(received == size, whole);
        assert_eq!(files, u64::from(whole));
        assert_eq!(skipped.len(), usize::from(!whole));
    }
}

#[test]
fn a_clock_that_is_right_is_left_alone() {
    let guest = guest();
    let mut connection = guest.connect();
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    connection.send(&ToAgent::SetClock {
        unix_ms: now.as_millis() as u64,
    });
    assert_eq!(connection.message(), ToMaster::ClockSet { stepped_ms: 0 });
}
