//! Images that certify themselves: tested from inside before jobs use them.

use crate::{BOTH, DEBIAN, TINY, needs_guests};
use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tests::command_line::{CommandLine, Said, ended};
use tests::github::StatusState;
use tests::machine::{Platforms, domains_of, hypervisor_uri, leftovers, qemu_processes_of, virsh};
use tests::master::Master;
use tests::repository::Suites;
use tests::world::{DEADLINE, World, context};
use toml::Table;

/// Shorter than a person would have it: the clock is watched beside the other checks.
const DRIFT: [&str; 2] = ["--drift-secs", "5"];

/// A configuration for tests of images, without a master.
struct Workshop {
    folder: tempfile::TempDir,
    platforms: Platforms,
}

impl Workshop {
    fn new() -> Result<Workshop> {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::Builder::new()
            .prefix("vivarium-certify-")
            .tempdir()?;
        // QEMU runs as a user of its own and must be able to reach its disks.
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755))?;
        let platforms = Platforms::new()?;
        let workshop = Workshop { folder, platforms };
        let mut config = Table::new();
        let text = |path: &Path| path.to_string_lossy().into_owned();
        config.insert("data_dir".to_owned(), text(&workshop.data()).into());
        let platforms = text(workshop.platforms.folder());
        config.insert("platforms_dir".to_owned(), platforms.into());
        let mut hypervisor = Table::new();
        hypervisor.insert("uri".to_owned(), hypervisor_uri().into());
        config.insert("hypervisor".to_owned(), hypervisor.into());
        std::fs::write(workshop.config(), toml::to_string(&config)?)?;
        Ok(workshop)
    }

    fn config(&self) -> PathBuf {
        self.folder.path().join("vivarium.toml")
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn certificate(&self, name: &str) -> Result<Value> {
        let path = self.platforms.folder().join(name).join("certificate.json");
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("there is no {}", path.display()))?;
        Ok(serde_json::from_str(&text)?)
    }

    async fn test(&self, name: &str) -> Result<Said> {
        let config = self.config().display().to_string();
        let arguments = ["image", "test", name, "--config", &config];
        let arguments = [&arguments[..], &DRIFT[..]].concat();
        CommandLine::default().run(&arguments).await
    }

    fn assert_nothing_is_left(&self) -> Result<()> {
        assert_eq!(leftovers(&hypervisor_uri(), &self.data())?, [""; 0]);
        let runs = std::fs::read_dir(self.data().join("certify"))?;
        let runs: Vec<PathBuf> = runs.flatten().map(|entry| entry.path()).collect();
        assert!(runs.is_empty(), "{runs:?}");
        Ok(())
    }
}

impl Drop for Workshop {
    fn drop(&mut self) {
        let uri = hypervisor_uri();
        for domain in domains_of(&uri, &self.data()).unwrap_or_default() {
            if let Err(error) = virsh(&uri, &["destroy", &domain]) {
                eprintln!("a machine may be left behind: {error:#}");
            }
        }
    }
}

/// How a check came out, and what was said of it.
fn result<'a>(certificate: &'a Value, check: &str) -> Result<(&'a str, &'a str)> {
    let results = certificate["results"].as_array().context("no results")?;
    let found = results.iter().find(|result| result["check"] == check);
    let found = found.with_context(|| format!("no result of {check} in {certificate}"))?;
    let text = |key: &str| found[key].as_str().unwrap_or_default();
    Ok((text("result"), text("said")))
}

/// All checks; a guest without a disk has one less.
fn assert_all_passed(certificate: &Value, has_disk: bool) -> Result<()> {
    let results = certificate["results"].as_array().context("no results")?;
    assert_eq!(results.len(), 17, "{certificate:#}");
    for result in results {
        let wanted = match result["check"] == "disk" && !has_disk {
            true => "not_checked",
            false => "passed",
        };
        assert_eq!(result["result"], wanted, "{certificate:#}");
    }
    for name in ["image_sha256", "platform_sha256"] {
        assert_eq!(certificate[name].as_str().map(str::len), Some(64), "{name}");
    }
    assert_eq!(
        certificate["agent"]["sha256"].as_str().map(str::len),
        Some(64)
    );
    assert_eq!(certificate["passed"], true);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_two_built_in_images_are_certified() -> Result<()> {
    needs_guests!();
    let workshop = Workshop::new()?;
    for image in BOTH {
        workshop.platforms.add(image)?;
        let said = workshop.test(image).await?;
        assert_eq!(said.code, Some(0), "{}{}", said.out, said.err);
        let line = format!("{image}: certified, ");
        assert!(said.out.contains(&line), "{}", said.out);
        assert_all_passed(&workshop.certificate(image)?, image == DEBIAN)?;
        workshop.assert_nothing_is_left()?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_not_what_its_file_says_fails_with_the_reason() -> Result<()> {
    needs_guests!();
    let workshop = Workshop::new()?;
    workshop.platforms.add_changed(TINY, "small", |platform| {
        // The guest's kernel leaves half of the memory.
        let kernel = platform
            .get_mut("kernel")
            .and_then(toml::Value::as_table_mut);
        if let Some(kernel) = kernel {
            let cmdline = kernel.get("cmdline").and_then(toml::Value::as_str);
            let cmdline = format!("{} mem=224M", cmdline.unwrap_or_default());
            kernel.insert("cmdline".to_owned(), cmdline.into());
        }
    })?;
    let said = workshop.test("small").await?;
    assert_eq!(said.code, Some(1), "{}{}", said.out, said.err);
    let last = said.out.lines().last().unwrap_or_default();
    assert!(
        last.starts_with("small: not certified, 1 of"),
        "{}",
        said.out
    );
    let certificate = workshop.certificate("small")?;
    assert_eq!(certificate["passed"], false);
    let (found, why) = result(&certificate, "memory")?;
    assert_eq!(found, "failed");
    assert!(
        why.ends_with("of 384 MiB, 272 MiB would be enough"),
        "{why}"
    );
    assert_eq!(result(&certificate, "processors")?.0, "passed");

    workshop.platforms.add_never_booting(TINY, "dead")?;
    let said = workshop.test("dead").await?;
    assert_eq!(said.code, Some(1), "{}{}", said.out, said.err);
    let certificate = workshop.certificate("dead")?;
    let (found, why) = result(&certificate, "boot")?;
    assert_eq!(found, "failed");
    assert!(
        why.contains("waited for `Not backgrounding` on its console"),
        "{why}"
    );
    for check in ["connect", "network", "poweroff"] {
        assert_eq!(result(&certificate, check)?.0, "not_checked");
    }
    assert!(certificate["agent"].is_null());
    workshop.assert_nothing_is_left()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_network_is_seen_to_be_open() -> Result<()> {
    needs_guests!();
    let workshop = Workshop::new()?;
    workshop.platforms.add_changed(TINY, "open", |platform| {
        platform.insert("network".to_owned(), "internet".into());
    })?;
    let said = workshop.test("open").await?;
    assert_eq!(said.code, Some(0), "{}{}", said.out, said.err);
    let certificate = workshop.certificate("open")?;
    let (found, why) = result(&certificate, "network")?;
    assert_eq!((found, why), ("passed", "open: 10.0.2.2 leads to the host"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_test_that_is_ended_leaves_nothing_and_one_that_dies_is_cleared_away() -> Result<()> {
    needs_guests!();
    let workshop = Workshop::new()?;
    workshop.platforms.add(TINY)?;
    let config = workshop.config().display().to_string();
    let arguments = ["image", "test", TINY, "--config", &config];
    let data = workshop.data();
    let uri = hypervisor_uri();
    for signal in [Signal::SIGINT, Signal::SIGKILL] {
        let child = CommandLine::default().start(&arguments)?;
        let until = std::time::Instant::now() + DEADLINE;
        while domains_of(&uri, &data)?.is_empty() {
            ensure!(std::time::Instant::now() < until, "no machine was started");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let id = child.id().context("it has ended")?;
        kill(Pid::from_raw(id.cast_signed()), signal)?;
        let said = ended(child).await?;
        if signal == Signal::SIGINT {
            assert_eq!(said.code, Some(130), "{said:?}");
            workshop.assert_nothing_is_left()?;
        } else {
            assert_eq!(said.code, None, "{said:?}");
            assert_eq!(domains_of(&uri, &data)?.len(), 1, "it was not asked");
        }
    }
    // Its own sweep knows the mark that is left; a master with this folder would do it as well.
    let said = workshop.test(TINY).await?;
    assert_eq!(said.code, Some(0), "{}{}", said.out, said.err);
    assert!(qemu_processes_of(&uri, &data).is_empty());
    workshop.assert_nothing_is_left()
}

#[tokio::test(flavor = "multi_thread")]
async fn only_certified_images_take_jobs_where_that_is_required() -> Result<()> {
    needs_guests!();
    let platforms = Platforms::new()?;
    platforms.add(TINY)?;
    let suites = Suites::test_on(&[TINY]).step("hello", "echo hello");
    let world = World::with_platforms(platforms, &suites, |master, entry| {
        master
            .set("images", "require_certificate", true)
            .repository(entry)
    })
    .await?;
    let why = refusal(&world.master, "its image was never tested").await?;
    assert!(
        why.starts_with("only certified images take work here (require_certificate)")
            && why.ends_with("hint: vivarium image test tiny-linux"),
        "{why}"
    );
    let head = world.propose_any().await?;
    let description = world
        .settled_as(&head, &context(TINY), StatusState::Error)
        .await?;
    assert!(
        description.contains("its image was never tested"),
        "{description}"
    );

    // Beside the running master, whose sweep leaves the machine alone.
    let config = world.master.config_file().display().to_string();
    let arguments = ["image", "test", TINY, "--config", &config];
    let said = CommandLine::default()
        .run(&[&arguments[..], &DRIFT[..]].concat())
        .await?;
    assert_eq!(said.code, Some(0), "{}{}", said.out, said.err);
    world
        .master
        .wait_for("the certified platform", DEADLINE, async |master| {
            let ready = master.platforms().await?.ready;
            Ok(ready.into_iter().find(|ready| ready.name == TINY))
        })
        .await?;
    let (_, head) = world
        .propose("second", |commit| commit.file("b", "1"))
        .await?;
    world
        .settled_as(&head, &context(TINY), StatusState::Success)
        .await?;

    // Another image in its place: one byte more at its end.
    let initrd = world.platforms.folder().join(TINY).join("initrd.img");
    let mut bytes = std::fs::read(&initrd)?;
    bytes.push(0);
    std::fs::remove_file(&initrd)?;
    std::fs::write(&initrd, bytes)?;
    let why = refusal(&world.master, "it changed after that").await?;
    assert!(why.contains("its image was tested on"), "{why}");
    world.end().await
}

/// Waits until the platform is refused with this in the reason.
async fn refusal(master: &Master, with: &str) -> Result<String> {
    master
        .wait_for("the refusal", DEADLINE, async |master| {
            let refused = master.platforms().await?.refused;
            let refused = refused.into_iter().find(|refused| refused.name == TINY);
            Ok(refused.map(|one| one.why).filter(|why| why.contains(with)))
        })
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_rots_is_told_of_after_the_nightly_test() -> Result<()> {
    needs_guests!();
    let workshop = Workshop::new()?;
    workshop.platforms.add(TINY)?;
    let said = workshop.test(TINY).await?;
    assert_eq!(said.code, Some(0), "{}{}", said.out, said.err);
    // What has changed in the night is the host: the guest's memory is not what it was, and the file says the same.
    let file = workshop.platforms.folder().join(TINY).join("platform.toml");
    let text = std::fs::read_to_string(&file)?;
    std::fs::write(&file, text.replace("quiet", "quiet mem=224M"))?;
    let certificate = workshop
        .platforms
        .folder()
        .join(TINY)
        .join("certificate.json");
    let before = std::fs::read_to_string(&certificate)?;

    let soon = jiff::Zoned::now() + jiff::SignedDuration::from_secs(20);
    let master = Master::builder()
        .platforms(workshop.platforms.folder())
        .set("images", "drift_secs", 3)
        .set("images", "nightly", soon.strftime("%H:%M:%S").to_string())
        .start()
        .await?;
    let command_line = CommandLine::of(&master);
    let master = &master;
    master
        .wait_for("the outdated certificate", DEADLINE, async |_| {
            let listed = command_line.run(&["platform", "list"]).await?;
            let is_told = listed.out.contains("test: its image was tested on");
            Ok(
                (is_told && listed.out.contains("its platform.toml changed after that"))
                    .then_some(()),
            )
        })
        .await?;
    // A failure is looked at twice.
    master
        .wait_for("the failed test", DEADLINE, async |_| {
            let listed = command_line.run(&["platform", "list"]).await?;
            let is_told = listed.out.contains("test: its image failed its test on");
            Ok((is_told && listed.out.contains("memory: ")).then_some(()))
        })
        .await?;
    let metrics = master.get_text("/metrics").await?;
    assert!(
        metrics.contains("vivarium_image_test_failed{platform=\"tiny-linux\"} 1"),
        "{metrics}"
    );
    assert_ne!(std::fs::read_to_string(&certificate)?, before);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_built_by_its_recipe_wherever_the_recipes_are() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (recipes, out) = (folder.path().join("recipes"), folder.path().join("out"));
    let recipe = recipes.join("small");
    std::fs::create_dir_all(&recipe)?;
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../images");
    for file in ["build", "lib.sh", "progress.sh"] {
        std::fs::copy(sources.join(file), recipes.join(file))?;
    }
    std::fs::write(recipe.join("platform.toml"), "os = \"linux\"\n")?;
    std::fs::write(
        recipe.join("recipe"),
        ". \"$LIB\"\nsteps=1\nstep \"making it\"\necho made >\"$OUT/disk.qcow2\"\n",
    )?;
    let text = |path: &Path| path.display().to_string();
    let (recipes, out) = (text(&recipes), text(&out));
    let arguments = [
        "image",
        "build",
        "small",
        "--recipes",
        &recipes,
        "--out",
        &out,
    ];
    let said = CommandLine::default().run(&arguments).await?;
    assert_eq!(said.code, Some(0), "{said:?}");
    let disk = Path::new(&out).join("small/disk.qcow2");
    assert_eq!(std::fs::read_to_string(disk)?, "made\n");

    let said = CommandLine::default()
        .run(&["image", "build", "other", "--recipes", &recipes])
        .await?;
    assert_eq!(said.code, Some(1));
    assert!(
        said.err.contains("there is no recipe") && said.err.contains("there are small"),
        "{said:?}"
    );
    let said = CommandLine::default()
        .run(&["image", "build", "small", "--recipes", &out])
        .await?;
    assert_eq!(said.code, Some(1));
    assert!(said.err.contains("is no folder of recipes"), "{said:?}");
    Ok(())
}
