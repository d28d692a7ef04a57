//! The recipes in `images/`: what can be known of each without building it, among them those that no test boots.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use vivarium::config::parse_platform;
use vivarium::model::PlatformKind;

/// What stands at the top of each recipe that no test boots.
const NOT_BOOTED: &str = "not booted by our tests yet";
/// What the scenarios boot.
const BOOTED: [&str; 3] = ["debian-12", "debian-12-cloud", "tiny-linux"];
/// What the project promises a recipe for.
const PROMISED: [&str; 14] = [
    "alpine",
    "debian-12",
    "dragonfly",
    "fedora",
    "freebsd-14",
    "freebsd-15",
    "macos",
    "netbsd-10",
    "openbsd-7",
    "tiny-linux",
    "ubuntu-24.04",
    "windows-11",
    "windows-server-2022",
    "debian-12-cloud",
];

fn images() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../images")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The folder of each recipe, by its name.
fn folders() -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(images()).expect("images/ is there");
    let mut folders: Vec<_> = entries
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.is_dir())
        .map(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            (name.into_owned(), path)
        })
        .collect();
    folders.sort();
    folders
}

/// Every file of ours below `images/`; what is shared by a link is told once, where it is.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_symlink() {
            assert!(path.exists(), "{} leads nowhere", path.display());
        } else if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

#[derive(Clone, Copy)]
enum Interpreter {
    Bash,
    Sh,
}

/// What runs a script, by its first line; what is read or put together by others, by its name.
fn interpreter(path: &Path) -> Option<Interpreter> {
    let text = fs::read_to_string(path).ok()?;
    let first = text.lines().next().unwrap_or_default();
    let name = path.file_name()?.to_str()?;
    match (first, name) {
        ("#!/usr/bin/env bash", _) | (_, "lib.sh" | "vendor.sh" | "progress.sh") => {
            Some(Interpreter::Bash)
        }
        ("#!/bin/sh", _) | (_, "guest.sh" | "seal" | "install") => Some(Interpreter::Sh),
        _ => None,
    }
}

fn passes(program: &str, arguments: &[&str], files: &[PathBuf]) {
    let output = Command::new(program)
        .args(arguments)
        .args(files)
        .output()
        .unwrap_or_else(|error| {
            panic!("{program} was not run: {error}; run config/prepare-host --test first")
        });
    assert!(
        output.status.success(),
        "{program} on {files:?}:\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn every_promised_system_has_a_recipe_or_is_a_machine_that_is_there() {
    let names: BTreeSet<_> = folders().into_iter().map(|(name, _)| name).collect();
    for name in PROMISED {
        assert!(names.contains(name), "no folder images/{name}");
    }
    for (name, folder) in folders() {
        let platform = parse_platform(&folder, &read(&folder.join("platform.toml")))
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        match platform.kind {
            PlatformKind::Vm { .. } => assert!(
                folder.join("recipe").is_file(),
                "images/{name} has no recipe"
            ),
            PlatformKind::Ssh { .. } => assert!(
                folder.join("README.md").is_file(),
                "images/{name} does not say how to prepare the machine"
            ),
        }
    }
}

#[test]
fn a_recipe_says_at_its_top_whether_a_test_boots_it() {
    for (name, folder) in folders() {
        for file in ["recipe", "platform.toml"] {
            let Ok(text) = fs::read_to_string(folder.join(file)) else {
                continue;
            };
            let top: Vec<_> = text
                .lines()
                .take_while(|line| line.starts_with('#'))
                .collect();
            let says = top.join("\n").to_lowercase().contains(NOT_BOOTED);
            assert_eq!(says, !BOOTED.contains(&name.as_str()), "{name}/{file}");
        }
    }
}

#[test]
fn no_hash_of_a_vendors_file_is_written_down_by_hand() {
    for path in files(&images()) {
        let Ok(text) = fs::read_to_string(&path) else {
            continue;
        };
        for line in text.lines() {
            let digits = |word: &&str| {
                [64, 128].contains(&word.len()) && word.bytes().all(|byte| byte.is_ascii_hexdigit())
            };
            let word = line
                .split(|letter: char| !letter.is_ascii_alphanumeric())
                .find(digits);
            assert!(word.is_none(), "{}: {line}", path.display());
        }
    }
}

#[test]
fn scripts_are_right_as_far_as_a_reader_can_tell() {
    let (mut bash, mut sh) = (Vec::new(), Vec::new());
    for path in files(&images()) {
        match interpreter(&path) {
            Some(Interpreter::Bash) => bash.push(path),
            Some(Interpreter::Sh) => sh.push(path),
            None => {}
        }
    }
    for (shell, scripts) in [("bash", bash), ("sh", sh)] {
        assert!(scripts.len() >= 10, "{shell}: {scripts:?}");
        for script in &scripts {
            passes(shell, &["-n"], std::slice::from_ref(script));
        }
        let shell = format!("--shell={shell}");
        let arguments = [
            "--severity=warning",
            "--external-sources",
            "--source-path=SCRIPTDIR",
            &shell,
        ];
        passes("shellcheck", &arguments, &scripts);
    }
}

#[test]
fn answer_files_are_well_formed() {
    let mut answers = files(&images());
    answers.retain(|path| path.extension().is_some_and(|ending| ending == "xml"));
    assert!(!answers.is_empty());
    passes("xmllint", &["--noout"], &answers);
}

/// What the recipes' talk with an installer says of a command, and how it ends.
fn talk(command: &str) -> (bool, String) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes/talk.exp");
    let guest = "printf 'login: '; read -r name; exec env PS1='guest# ' sh -i";
    let output = Command::new("expect")
        .arg(script)
        .args([command, "sh", "-c", guest])
        .output()
        .unwrap_or_else(|error| {
            panic!("expect was not run: {error}; run config/prepare-host --test first")
        });
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.success(), said)
}

#[test]
fn the_talk_with_an_installer_ends_at_the_first_command_that_fails() {
    let (good, said) = talk("test $((6 * 7)) = 42");
    assert!(
        good && said.contains("the dialogue came to its end"),
        "{said}"
    );

    let (good, said) = talk("test -e /nowhere");
    assert!(!good, "{said}");
    let sentence = "vivarium: failed: in the guest: test -e /nowhere";
    assert!(said.contains(sentence), "{said}");
}

#[test]
fn the_list_of_recipes_is_the_folders() {
    let output = Command::new(images().join("build"))
        .arg("--list")
        .output()
        .expect("images/build runs");
    assert!(output.status.success());
    let listed: BTreeSet<_> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(str::to_owned)
        .collect();
    let recipes: BTreeSet<_> = folders()
        .into_iter()
        .filter(|(_, folder)| folder.join("recipe").is_file())
        .map(|(name, _)| name)
        .collect();
    assert_eq!(listed, recipes);
}

#[test]
fn the_table_of_the_recipes_names_each_of_them() {
    let table = read(&images().join("README.md"));
    for (name, _) in folders() {
        let row = table
            .lines()
            .find(|line| line.starts_with(&format!("| `{name}` |")))
            .unwrap_or_else(|| panic!("images/README.md has no row for {name}"));
        let booted = if BOOTED.contains(&name.as_str()) {
            "| yes"
        } else {
            "| no"
        };
        assert!(row.contains(booted), "{row}");
    }
}
