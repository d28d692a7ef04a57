//! A database that takes nothing for a while is no reason to give a machine up: what is to be written waits. The same
//! for a libvirtd that is away.

use crate::model::{Ending, Reason};
use crate::store::StoreError;
use crate::vm::VmError;
use std::time::Duration;
use tokio::time::Instant;

/// A full disk or a file system that went read-only needs a person; until then the guest spools on its own.
const PATIENCE: Duration = Duration::from_secs(15 * 60);
const PAUSE: Duration = Duration::from_secs(1);

/// Does it, again and again while it fails for a reason that may pass. What is done again must be safe to repeat.
pub(super) async fn patiently<T, F>(what: &str, act: impl Fn() -> F) -> Result<T, Ending>
where
    F: Future<Output = Result<T, StoreError>>,
{
    let until = Instant::now() + PATIENCE;
    let mut has_failed = false;
    loop {
        match act().await {
            Ok(done) => {
                if has_failed {
                    tracing::info!("{what}: done, after the database could be used again");
                }
                return Ok(done);
            }
            Err(error) if error.may_pass() && Instant::now() < until => {
                if !has_failed {
                    tracing::warn!(%error, "cannot {what}; the job waits");
                }
                has_failed = true;
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => return Err(Ending::new(Reason::HostError, error.to_string())),
        }
    }
}

/// Repeats a step in the database until it is done: nothing may happen that its rows do not tell, and a job does not
/// fail because another process holds the file or the disk is full for a while.
pub(super) async fn insist<T, F>(mut act: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, StoreError>>,
{
    const LONGEST_PAUSE: Duration = Duration::from_secs(15);
    let mut pause = Duration::from_millis(500);
    loop {
        match act().await {
            Ok(done) => return done,
            Err(error) => tracing::error!(%error, "the database does not take it; trying again"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Repeats a call of libvirt while libvirtd is away, as when it is restarted.
pub(super) async fn outlast<T, F>(
    patience: Duration,
    mut call: impl FnMut() -> F,
) -> Result<T, VmError>
where
    F: Future<Output = Result<T, VmError>>,
{
    let give_up = Instant::now() + patience;
    loop {
        match call().await {
            Err(error @ VmError::Away { .. }) if Instant::now() < give_up => {
                tracing::warn!(%error, "libvirt is waited for");
                tokio::time::sleep(PAUSE).await;
            }
            result => return result,
        }
    }
}
