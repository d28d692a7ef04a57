//! How the master gets in: by key, by password, or not, and then with a sentence that says whose fault it is.

use crate::{TINY, needs_guests};
use anyhow::{Context, Result};
use tests::find;
use tests::github::StatusState;
use tests::machine::{Marker, Platforms, SshServer};
use tests::repository::Suites;
use tests::world::{World, context};
use toml::Value;

const PASSWORD: &str = "open sesame 17";
/// Its hash, as `openssl passwd -6` makes it.
const HASH: &str = "$6$vivarium$HPbf3HiFTK9.k4TKuhp61IrySOG10HFBJmbF.nwPPpuyC8zwyQILwOt/AP7BbzO9VerOoSoiWA/rsGzxrmY1u/";

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_lets_its_user_in_by_the_right_password_alone() -> Result<()> {
    needs_guests!();
    let platforms = Platforms::new()?;
    platforms.add_with_password(TINY, "right", PASSWORD, HASH)?;
    platforms.add_with_password(TINY, "wrong", "something else", HASH)?;
    let suites = Suites::test_on(&["right", "wrong"]).step("hello", "echo hello from $(id -un)");
    let world =
        World::with_platforms(platforms, &suites, |master, entry| master.repository(entry)).await?;
    let head = world.propose_any().await?;
    world
        .settled_as(&head, &context("right"), StatusState::Success)
        .await?;
    let job = world.ended_job(&head, "test", "right").await?;
    let log = world.log(&job).await?;
    assert!(find(&log, b"hello from build\n").is_some());
    world
        .settled_as(&head, &context("wrong"), StatusState::Error)
        .await?;
    let job = world.ended_job(&head, "test", "wrong").await?;
    let message = job.message.as_deref().context("no message")?;
    for part in [
        "does not let the user build in with the password in ",
        "/wrong/password: ",
        "the password is refused",
    ] {
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(job.attempts.len(), 1, "another machine would say the same");
    for secret in [PASSWORD, "something else"] {
        assert!(!world.master.output().contains(secret));
        assert!(!message.contains(secret), "{message}");
    }
    world.end().await
}

/// Each is refused with its sentence; the good one beside them works.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_with_other_keys_is_refused_and_the_file_that_is_wrong_is_named() -> Result<()> {
    let (server, stranger) = (SshServer::start().await?, SshServer::start().await?);
    let platforms = Platforms::new()?;
    platforms.add_ssh("good", &server)?;
    let swap = |name: &str, key: &str, path: std::path::PathBuf| -> Result<()> {
        platforms.add_ssh(name, &server)?;
        let file = platforms.folder().join(name).join("platform.toml");
        let mut table: toml::Table = toml::from_str(&std::fs::read_to_string(&file)?)?;
        let ssh = table.get_mut("ssh").and_then(Value::as_table_mut);
        ssh.context("no [ssh]")?
            .insert(key.to_owned(), path.display().to_string().into());
        Ok(std::fs::write(&file, toml::to_string(&table)?)?)
    };
    swap("other-host-key", "host_key", stranger.host_key())?;
    swap("other-key", "key", stranger.user_key())?;
    let suites = Suites::test_on(&["*"]).step("hello", "echo hello");
    let world =
        World::with_platforms(platforms, &suites, |master, entry| master.repository(entry)).await?;
    let head = world.propose_any().await?;
    for (name, parts) in [
        (
            "other-host-key",
            [
                "is not the machine it should be: it shows the host key ssh-ed25519 SHA256:"
                    .to_owned(),
                format!("the key is pinned by {}", stranger.host_key().display()),
            ],
        ),
        (
            "other-key",
            [
                format!("in with the key {}", stranger.user_key().display()),
                "the key is refused".to_owned(),
            ],
        ),
    ] {
        world
            .settled_as(&head, &context(name), StatusState::Error)
            .await?;
        let job = world.ended_job(&head, "test", name).await?;
        let message = job.message.context("no message")?;
        for part in parts {
            assert!(message.contains(&part), "{message}");
        }
        assert_eq!(job.reason.as_deref(), Some("platform_unavailable"));
        assert_eq!(job.attempts.len(), 1, "waiting does not mend it");
    }
    world
        .settled_as(&head, &context("good"), StatusState::Success)
        .await?;
    world.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_whose_ssh_server_closes_at_once_is_our_error_and_said_so() -> Result<()> {
    needs_guests!();
    let platforms = Platforms::new()?;
    let closing = "#!/bin/sh\necho 'Not backgrounding, and closing' >/dev/console\n\
                   exec nc -ll -p 22 -e true\n";
    platforms.add_without_sshd(TINY, "closing", closing, Marker::Kept, 5)?;
    let suites = Suites::test_on(&["closing"]).step("never", "true");
    let world = World::with_platforms(platforms, &suites, |master, entry| {
        master
            .repository(entry)
            .set("limits", "infrastructure_retries", 0)
            .set("hypervisor", "tcg_deadline_scale", 1)
    })
    .await?;
    let head = world.propose_any().await?;
    let description = world
        .settled_as(&head, &context("closing"), StatusState::Error)
        .await?;
    assert!(
        description.starts_with("No result: closing did not answer by SSH in 5 s: "),
        "{description}"
    );
    world.end().await
}
