//! `vivarium demo`, which `make demo` runs: it shows the whole, and leaves no machine however it ends.

use crate::{BOTH, needs_guests};
use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;
use tests::command_line::{CommandLine, ended};
use tests::machine::{
    end_machines_of, hypervisor_uri, images_folder, leftovers, qemu_processes_of,
};
use tests::sha256;
use tests::world::DEADLINE;

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Result<Place> {
        let folder = tempfile::Builder::new()
            .prefix("vivarium-demo-")
            .tempdir()?;
        // QEMU runs as a user of its own and must be able to reach its disks.
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755))?;
        Ok(Place { folder })
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("demo/data")
    }

    /// The arguments of a demo here, on a free port.
    fn arguments(&self) -> Vec<String> {
        let images = images_folder().display().to_string();
        let dir = self.folder.path().join("demo").display().to_string();
        ["demo", "--images", &images, "--dir", &dir]
            .into_iter()
            .chain(["--listen", "127.0.0.1:0", "--exit"])
            .map(str::to_owned)
            .collect()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = end_machines_of(&hypervisor_uri(), &self.data()) {
            eprintln!("machines may be left behind: {error:#}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_shows_two_platforms_and_keeps_what_they_built() -> Result<()> {
    needs_guests!();
    let place = Place::new()?;
    let arguments = place.arguments();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let said = CommandLine::default().run(&arguments).await?;
    assert_eq!(said.code, Some(0), "{}{}", said.out, said.err);
    let has = |text: &str| assert!(said.out.contains(text), "no `{text}` in:\n{}", said.out);
    for platform in BOTH {
        has(&format!("{platform:<10} | ok: greets by name\n"));
        has(&format!("test ({platform})"));
    }
    has("demo: the master serves http://127.0.0.1:");
    has("demo: everything came out right\n");
    assert!(!said.out.contains('\x1b'), "no terminal, no colours");

    // The sums that it prints are those of the files that it names.
    let mut lines = said.out.lines();
    let mut kept = 0;
    while let Some(line) = lines.next() {
        let Some((_, sum)) = line.split_once("bytes  sha256 ") else {
            continue;
        };
        let file = lines.next().context("no file below its sum")?;
        assert_eq!(sha256(&std::fs::read(file.trim())?), sum);
        kept += 1;
    }
    assert_eq!(kept, 2);
    assert_eq!(
        leftovers(&hypervisor_uri(), &place.data())?,
        Vec::<String>::new()
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_demo_that_is_ended_leaves_no_machine() -> Result<()> {
    needs_guests!();
    let place = Place::new()?;
    let arguments = place.arguments();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let demo = CommandLine::default().start(&arguments)?;
    let booting = async {
        while qemu_processes_of(&hypervisor_uri(), &place.data()).is_empty() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let booting = tokio::time::timeout(DEADLINE, booting).await;
    ensure!(booting.is_ok(), "no machine was started");
    let pid = demo.id().context("it ended by itself")?;
    kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGTERM)?;
    let said = ended(demo).await?;
    assert_eq!(said.code, Some(1), "{}{}", said.out, said.err);
    assert_eq!(
        leftovers(&hypervisor_uri(), &place.data())?,
        Vec::<String>::new()
    );
    Ok(())
}
