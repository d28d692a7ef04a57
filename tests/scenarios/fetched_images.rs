//! Images that are elsewhere: fetched once, gone on with after a break, and used only when they are what was meant.

use crate::{TINY, needs_guests};
use anyhow::{Context, Result};
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use tests::file_server::{FileServer, Sending};
use tests::github::StatusState;
use tests::machine::Platforms;
use tests::repository::Suites;
use tests::sha256;
use tests::world::{DEADLINE, World, context};
use toml::{Table, Value};

/// A qcow2 with some content.
fn image() -> Result<Vec<u8>> {
    let folder = tempfile::tempdir()?;
    let (raw, qcow2) = (folder.path().join("raw"), folder.path().join("qcow2"));
    // What does not get smaller when it is packed.
    let mut noise = vec![0; 4_000_000];
    StdRng::seed_from_u64(1).fill_bytes(&mut noise);
    std::fs::write(&raw, noise)?;
    let status = std::process::Command::new("qemu-img")
        .args(["convert", "-f", "raw", "-O", "qcow2"])
        .arg(&raw)
        .arg(&qcow2)
        .status()?;
    anyhow::ensure!(status.success(), "qemu-img ended with {status}");
    Ok(std::fs::read(&qcow2)?)
}

/// As vendors pack theirs.
fn packed(image: &[u8]) -> Result<Vec<u8>> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(&file, image)?;
    let output = std::process::Command::new("xz")
        .args(["-1", "-c"])
        .arg(file.path())
        .output()?;
    anyhow::ensure!(output.status.success(), "xz ended with {}", output.status);
    Ok(output.stdout)
}

/// tiny-linux, with a disk beside its kernel.
fn with_disk(url: String, hash: String) -> impl FnOnce(&mut Table) {
    move |platform| {
        let mut disk = Table::new();
        disk.insert("url".to_owned(), url.into());
        disk.insert("sha256".to_owned(), hash.into());
        platform.insert("disk".to_owned(), Value::Table(disk));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_fetched_while_its_jobs_wait_and_a_wrong_one_is_refused_alone() -> Result<()> {
    needs_guests!();
    let image = image()?;
    let packed = packed(&image)?;
    let server = FileServer::with(packed.clone()).await?;
    let half = packed.len() / 2;
    server.send(Sending::UpTo(half));
    let platforms = Platforms::new()?;
    platforms.add(TINY)?;
    let hash = sha256(&packed);
    platforms.add_changed(
        TINY,
        "far",
        with_disk(server.url("far.qcow2.xz"), hash.clone()),
    )?;
    let suites = Suites::test_on(&[TINY, "far"]).step("hello", "echo hello");
    let mut world =
        World::with_platforms(platforms, &suites, |master, entry| master.repository(entry)).await?;
    let head = world.propose_any().await?;
    world
        .settled_as(&head, &context(TINY), StatusState::Success)
        .await?;
    let job = world.master.wait_for_job(&head, "far", DEADLINE).await?;
    let waiting = world
        .master
        .wait_for("the sentence about the break", DEADLINE, async |master| {
            let waiting = master.job(job.number).await?.waiting;
            Ok(waiting.filter(|why| why.contains("the last try broke off")))
        })
        .await?;
    assert!(
        waiting.starts_with("The platform far takes no job yet: "),
        "{waiting}"
    );
    let held = world.master.platforms().await?.held;
    assert!(held.iter().any(|held| held.name == "far"), "{held:?}");
    // What is there survives the master.
    world.master.kill()?;
    server.send(Sending::All);
    world.master.start().await?;
    world
        .settled_as(&head, &context("far"), StatusState::Success)
        .await?;
    let asked = server.asked();
    assert_eq!(asked.first(), Some(&0));
    assert_eq!(asked.last(), Some(&half), "no byte is fetched twice");
    let kept = world.master.data_dir().join("images").join(&hash);
    assert_eq!(std::fs::read(kept.join("disk.qcow2"))?, image);

    let other = "0".repeat(64);
    let change = with_disk(server.url("other.qcow2"), other.clone());
    world.platforms.add_changed(TINY, "other", change)?;
    let refused = world
        .master
        .wait_for("the refusal", DEADLINE, async |master| {
            let refused = master.platforms().await?.refused;
            Ok(refused.into_iter().find(|refused| refused.name == "other"))
        })
        .await?;
    for part in [&server.url("other.qcow2"), &other, &hash] {
        assert!(refused.why.contains(part), "{}", refused.why);
    }
    let ready = world.master.platforms().await?.ready;
    assert_eq!(ready.len(), 2, "the others serve");
    let list = world.master.command(&["platform", "list"]).await?;
    let line = list.lines().find(|line| line.contains("  other  "));
    assert!(line.context("not listed")?.contains("refused"), "{list}");
    world.end().await
}

/// Each of these folders has its one fault; the good one beside them serves.
#[tokio::test(flavor = "multi_thread")]
async fn images_that_are_not_what_they_should_be_keep_their_platform_out_and_nothing_else()
-> Result<()> {
    needs_guests!();
    let image = image()?;
    let platforms = Platforms::new()?;
    platforms.add(TINY)?;
    let outside = tempfile::tempdir()?;
    let base = outside.path().join("base.qcow2");
    std::fs::write(&base, &image)?;
    let faults: [(&str, Vec<u8>, &str); 4] = [
        (
            "cut-off",
            image[..image.len() / 2].to_vec(),
            "is broken, perhaps cut off",
        ),
        (
            "a-page",
            b"<html>404 Not Found</html>".to_vec(),
            "Image is not in qcow2 format",
        ),
        ("on-another", Vec::new(), "which is outside"),
        ("other-hash", image.clone(), "is not the one that was meant"),
    ];
    for (name, content, _) in &faults {
        platforms.add_changed(TINY, name, |platform| {
            let mut disk = Table::new();
            disk.insert("path".to_owned(), "disk.qcow2".into());
            if *name == "other-hash" {
                disk.insert("sha256".to_owned(), "0".repeat(64).into());
            }
            platform.insert("disk".to_owned(), Value::Table(disk));
        })?;
        let path = platforms.folder().join(name).join("disk.qcow2");
        if *name == "on-another" {
            let status = std::process::Command::new("qemu-img")
                .args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"])
                .args([&base, &path])
                .status()?;
            anyhow::ensure!(status.success(), "qemu-img ended with {status}");
        } else {
            std::fs::write(path, content)?;
        }
    }
    let suites = Suites::test_on(&["*"]).step("hello", "echo hello");
    let world =
        World::with_platforms(platforms, &suites, |master, entry| master.repository(entry)).await?;
    let head = world.propose_any().await?;
    for (name, _, sentence) in &faults {
        let description = world
            .settled_as(&head, &context(name), StatusState::Error)
            .await?;
        assert!(description.contains("takes no work"), "{description}");
        let job = world.ended_job(&head, "test", name).await?;
        let message = job.message.as_deref().context("no message")?;
        assert!(message.contains(sentence), "{message}");
        assert!(job.attempts.is_empty(), "no machine was tried");
    }
    world
        .settled_as(&head, &context(TINY), StatusState::Success)
        .await?;
    let folder = world.platforms.folder().join("cut-off");
    let folder = folder.display().to_string();
    let check = world
        .master
        .local_command(&["platform", "check", &folder])
        .await;
    let said = check
        .err()
        .context("a broken image was found good")?
        .to_string();
    assert!(said.contains("is broken, perhaps cut off"), "{said}");
    world.end().await
}
