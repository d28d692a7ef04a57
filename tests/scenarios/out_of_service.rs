//! Guests that do not come up: their jobs say how far they came, and their platform is put out of service until a boot
//! without a job brings it back.

use crate::{TINY, needs_guests};
use anyhow::{Context, Result};
use jiff::Timestamp;
use tests::github::StatusState;
use tests::machine::Platforms;
use tests::master::{AttemptView, Master, RefusedView};
use tests::repository::Suites;
use tests::world::{DEADLINE, World, context};

/// A guest whose kernel finds no program to start, with a display.
const DEAD: &str = "dead";

#[tokio::test(flavor = "multi_thread")]
async fn a_platform_that_does_not_boot_is_put_out_of_service_and_a_canary_brings_it_back()
-> Result<()> {
    needs_guests!();
    let platforms = Platforms::new()?;
    platforms.add(TINY)?;
    platforms.add_never_booting(TINY, DEAD)?;
    platforms.change(DEAD, |platform| {
        platform.insert("display".to_owned(), true.into());
    })?;
    let suites = Suites::test_on(&[DEAD, TINY]).step("greet", "echo hello");
    let mut world = World::with_platforms(platforms, &suites, |master, entry| {
        master
            .repository(entry)
            .set("limits", "infrastructure_retries", 1)
            .set("limits", "platform_failures", 2)
            .set("hypervisor", "tcg_deadline_scale", 1)
    })
    .await?;
    let first = world.propose_any().await?;
    let description = world
        .settled_as(&first, &context(DEAD), StatusState::Error)
        .await?;
    assert!(
        description.contains("waited for `Not backgrounding` on its console"),
        "{description}"
    );
    world
        .settled_as(&first, &context(TINY), StatusState::Success)
        .await?;
    let job = world.ended_job(&first, "test", DEAD).await?;
    assert_eq!(job.attempts.len(), 2);
    for attempt in &job.attempts {
        check_record(&world.master, attempt).await?;
    }
    let page = world
        .master
        .get_text(&format!("/jobs/{}", job.number))
        .await?;
    for part in [
        "first console byte",
        "waited for `Not backgrounding`",
        "<img class=\"screenshot\" src=\"",
        "QEMU's log of vm-",
    ] {
        assert!(page.contains(part), "no {part} in {page}");
    }
    let good = world.ended_job(&first, "test", TINY).await?;
    let seen = names(&good.attempts[0]);
    assert_eq!(
        seen,
        [
            "domain_started",
            "first_console_byte",
            "ready_marker",
            "port_answered",
            "ssh_banner",
            "ssh_handshake",
            "logged_in",
            "nonce_echoed"
        ]
    );
    assert_eq!(good.attempts[0].boot.waited_for, None);

    // Two boots in a row: from now on its jobs wait, and those of others do not.
    let out = out_of_service(&world.master).await?;
    assert!(out.why.contains("2 boots in a row failed"), "{}", out.why);
    let (_, second) = world
        .propose("second", |commit| commit.file("b", "1"))
        .await?;
    world
        .settled_as(&second, &context(TINY), StatusState::Success)
        .await?;
    let waiting = world.master.wait_for_job(&second, DEAD, DEADLINE).await?;
    assert_eq!(waiting.state, "queued");
    let why = waiting
        .waiting
        .context("the job does not say why it waits")?;
    assert!(why.contains("out of service since "), "{why}");
    let page = world.master.get_text("/platforms").await?;
    assert!(page.contains("data-standing=\"out_of_service\""), "{page}");
    let listed = world.master.command(&["platform", "list"]).await?;
    assert!(listed.contains("OUT"), "{listed}");
    let doctor = world.master.doctor().await?;
    assert!(
        doctor.contains("fault platform: dead is out of service since "),
        "{doctor}"
    );
    let metric = "vivarium_platforms{state=\"out_of_service\"}";
    assert!(world.master.metric(metric).await? > 0.0);

    // A restart forgets nothing.
    world.master.stop().await?;
    world.master.start().await?;
    let again = out_of_service(&world.master).await?;
    assert!(again.why.contains("boots in a row failed"), "{}", again.why);

    // Mended, it is tried at once.
    world.platforms.mend(TINY, DEAD)?;
    world
        .settled_as(&second, &context(DEAD), StatusState::Success)
        .await?;
    let job = world.ended_job(&second, "test", DEAD).await?;
    assert_eq!(job.attempts.len(), 1, "the canary went first");
    assert!(world.master.platforms().await?.out_of_service.is_empty());
    let said = world.master.output();
    assert!(said.contains("it came up: the platform is back in service"));
    world.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_does_not_wait_for_ever_for_a_platform_that_is_out_of_service() -> Result<()> {
    needs_guests!();
    let platforms = Platforms::new()?;
    platforms.add_never_booting(TINY, DEAD)?;
    let suites = Suites::test_on(&[DEAD]).step("never", "true");
    let world = World::with_platforms(platforms, &suites, |master, entry| {
        master
            .repository(entry)
            .set("limits", "infrastructure_retries", 0)
            .set("limits", "platform_failures", 1)
            .set("limits", "platform_patience_secs", 1)
            .set("hypervisor", "tcg_deadline_scale", 1)
    })
    .await?;
    let first = world.propose_any().await?;
    world
        .settled_as(&first, &context(DEAD), StatusState::Error)
        .await?;
    let job = world.ended_job(&first, "test", DEAD).await?;
    let attempt = &job.attempts[0];
    assert_eq!(attempt.screenshot_url, None, "it has no display");
    assert!(attempt.qemu_log.is_some() && attempt.console_tail.is_some());
    let (_, second) = world
        .propose("second", |commit| commit.file("b", "1"))
        .await?;
    let description = world
        .settled_as(&second, &context(DEAD), StatusState::Error)
        .await?;
    assert!(
        description.starts_with("No result: The platform dead is out of service since "),
        "{description}"
    );
    let job = world.ended_job(&second, "test", DEAD).await?;
    assert_eq!(job.reason.as_deref(), Some("platform_unavailable"));
    assert!(job.attempts.is_empty(), "no machine was made for it");
    world.end().await
}

/// Waits until the one platform is out of service.
async fn out_of_service(master: &Master) -> Result<RefusedView> {
    let out = async |master: &Master| {
        let mut platforms = master.platforms().await?;
        Ok(platforms.out_of_service.pop())
    };
    master
        .wait_for("a platform out of service", DEADLINE, out)
        .await
}

fn names(attempt: &AttemptView) -> Vec<&str> {
    let milestones = attempt.boot.milestones.iter();
    milestones.map(|(name, _)| name.as_str()).collect()
}

/// The record of an attempt whose kernel panicked.
async fn check_record(master: &Master, attempt: &AttemptView) -> Result<()> {
    assert_eq!(attempt.reason.as_deref(), Some("boot_deadline"));
    assert_eq!(names(attempt), ["domain_started", "first_console_byte"]);
    let times: Vec<Timestamp> = attempt.boot.milestones.iter().map(|(_, at)| *at).collect();
    assert!(times.is_sorted(), "{times:?}");
    assert!(times[0] >= attempt.phases[0].1, "{attempt:?}");
    let waited_for = attempt.boot.waited_for.as_deref();
    assert_eq!(
        waited_for,
        Some("`Not backgrounding` on its console, which has shown other things")
    );
    let console = attempt.console_tail.as_deref().context("no console")?;
    assert!(console.contains("Kernel panic"), "{console}");
    assert!(console.lines().count() <= 200);
    let log = attempt.qemu_log.as_deref().context("no log of QEMU")?;
    assert!(log.contains("qemu-system"), "{log}");
    let url = attempt.screenshot_url.as_deref().context("no screenshot")?;
    let png = master.get_bytes(url).await?;
    let (signature, rest) = png.split_at_checked(16).context("a short file")?;
    assert_eq!(signature, b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR");
    let side = |from: usize| {
        let bytes = rest.get(from..from + 4).unwrap_or_default();
        bytes
            .iter()
            .fold(0, |side, byte| side * 256 + u32::from(*byte))
    };
    assert!(side(0) >= 320 && side(4) >= 200, "{}×{}", side(0), side(4));
    Ok(())
}
