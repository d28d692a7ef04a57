//! Platforms that cannot serve: refused alone, with what a person needs to mend them.

use crate::{TINY, needs_guests};
use anyhow::{Context, Result};
use serde_json::json;
use tests::find;
use tests::github::StatusState;
use tests::machine::Platforms;
use tests::repository::Suites;
use tests::world::{DEADLINE, World, context};
use toml::Value;

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_platform_is_refused_alone_and_serves_once_it_is_mended() -> Result<()> {
    needs_guests!();
    let platforms = Platforms::new()?;
    platforms.add(TINY)?;
    platforms.add_changed(TINY, "misspelt", |platform| {
        platform.insert("boot_deadline_sec".to_owned(), 120.into());
    })?;
    platforms.add_changed(TINY, "imageless", |platform| {
        let kernel = platform.get_mut("kernel").and_then(Value::as_table_mut);
        if let Some(kernel) = kernel {
            kernel.insert("path".to_owned(), "gone".into());
        }
    })?;
    let file = platforms.folder().join("misspelt/platform.toml");
    let text = std::fs::read_to_string(&file)?;
    let line = 1 + text
        .lines()
        .position(|line| line.starts_with("boot_deadline_sec "))
        .context("the key is not there")?;
    let misspelt = format!(
        "platform.toml:{line}:1: unknown key `boot_deadline_sec`: did you mean `boot_deadline_secs`?"
    );
    let missing = platforms
        .folder()
        .join("imageless/gone")
        .display()
        .to_string();

    let suites = Suites::test_on(&[TINY, "misspelt", "imageless"])
        .step("hello", "echo hello from $VIVARIUM_PLATFORM");
    let world =
        World::with_platforms(platforms, &suites, |master, entry| master.repository(entry)).await?;
    let shown = world.master.platforms().await?;
    let ready: Vec<&str> = shown
        .ready
        .iter()
        .map(|ready| ready.name.as_str())
        .collect();
    assert_eq!(ready, [TINY]);
    let head = world.propose_any().await?;
    for (name, sentence) in [("misspelt", &misspelt), ("imageless", &missing)] {
        let refused = shown.refused.iter().find(|refused| refused.name == name);
        let refused = refused.with_context(|| format!("{name} is in service"))?;
        assert!(refused.why.contains(sentence), "{}", refused.why);
        let description = world
            .settled_as(&head, &context(name), StatusState::Error)
            .await?;
        assert!(description.contains(sentence), "{description}");
        let job = world.ended_job(&head, "test", name).await?;
        assert_eq!(job.reason.as_deref(), Some("platform_unavailable"));
        assert!(job.attempts.is_empty(), "no machine was tried");
    }
    world
        .settled_as(&head, &context(TINY), StatusState::Success)
        .await?;

    std::fs::write(
        &file,
        text.replace("boot_deadline_sec ", "boot_deadline_secs "),
    )?;
    world
        .master
        .wait_for("the mended platform", DEADLINE, async |master| {
            let ready = master.platforms().await?.ready;
            Ok(ready.into_iter().find(|ready| ready.name == "misspelt"))
        })
        .await?;
    let job = world.ended_job(&head, "test", "misspelt").await?;
    let (status, answer) = world
        .master
        .post(&format!("/api/jobs/{}/rerun", job.number), &json!({}))
        .await?;
    assert_eq!(status, 200, "{answer}");
    world
        .master
        .wait_for("the rerun's success", DEADLINE, async |master| {
            let job = master.job(job.number).await?;
            Ok(job.conclusion.filter(|conclusion| conclusion == "success"))
        })
        .await?;
    let log = world.log(&job).await?;
    assert!(
        find(&log, b"hello from misspelt\n").is_some(),
        "its steps ran"
    );
    world.end().await
}
