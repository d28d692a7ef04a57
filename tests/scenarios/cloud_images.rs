//! A vendor's cloud image, as it is: what it must know of us comes with each VM.

use crate::{CLOUD, needs_guests};
use anyhow::Result;
use std::time::Duration;
use tests::find;
use tests::github::StatusState;
use tests::repository::Suites;
use tests::world::{DEADLINE, World, context};

/// Only a bound: Debian's own initramfs, systemd and Python on a busy machine that emulates them.
const BOOT_DEADLINE: Duration = Duration::from_secs(900);

/// One boot for all of it: it takes a minute where guests are emulated.
#[tokio::test(flavor = "multi_thread")]
async fn a_cloud_image_without_any_preparation_runs_a_job_also_across_a_restart() -> Result<()> {
    needs_guests!();
    let suites = Suites::test_on(&[CLOUD])
        .step(
            "who",
            "echo \"I am $(id -un) on $(hostname)\"; sudo -n id -un; ls /etc/ssh/ssh_host_*_key",
        )
        .step(
            "grown",
            "test $(df --output=size -B 1M / | tail -n 1) -gt 3500",
        )
        .step(
            "long",
            "for n in $(seq 1 15); do echo number $n; sleep 1; done",
        );
    let mut world = World::with(&[CLOUD], &suites).await?;
    let head = world.propose_any().await?;
    let job = world.master.wait_for_job(&head, CLOUD, DEADLINE).await?;
    world
        .master
        .wait_for_output(job.number, b"number 2\n", BOOT_DEADLINE)
        .await?;
    // The key to this machine is nowhere but in its folder.
    world.master.kill()?;
    world.master.start().await?;
    world
        .settled_as(&head, &context(CLOUD), StatusState::Success)
        .await?;
    let job = world.master.job(job.number).await?;
    assert_eq!(job.attempts.len(), 1, "the machine was found again");
    let log = world.log(&job).await?;
    for line in [
        "I am build on build\nroot\n/etc/ssh/ssh_host_ed25519_key\n",
        "number 15\n",
    ] {
        assert!(
            find(&log, line.as_bytes()).is_some(),
            "{line}: {}",
            String::from_utf8_lossy(&log)
        );
    }
    world.end().await
}
