//! What nobody owns goes: machines with our mark, and folders of VMs, that belong to no live attempt.

use super::{Machines, VmError, folder};
use crate::model::AttemptId;
use std::collections::{BTreeSet, HashSet};
use std::fmt;
use tokio::time::Instant;

/// What a sweep found and removed.
#[derive(Debug, Default)]
pub struct Swept {
    /// Attempts whose machine still ran.
    pub machines: Vec<AttemptId>,
    /// Attempts of which only files were left.
    pub folders: Vec<AttemptId>,
    /// What could not be removed; the next sweep tries again.
    pub left: Vec<(AttemptId, VmError)>,
}

impl Swept {
    pub fn is_empty(&self) -> bool {
        self.machines.is_empty() && self.folders.is_empty() && self.left.is_empty()
    }
}

impl fmt::Display for Swept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("nothing was left over");
        }
        let mut parts = Vec::new();
        for (attempts, what) in [
            (&self.machines, "machine and files of"),
            (&self.folders, "files of"),
        ] {
            parts.extend(attempts.iter().map(|attempt| format!("{what} {attempt}")));
        }
        if !parts.is_empty() {
            write!(f, "removed {}", parts.join(", "))?;
        }
        for (index, (_, error)) in self.left.iter().enumerate() {
            let separator = if index == 0 && parts.is_empty() {
                ""
            } else {
                "; "
            };
            write!(f, "{separator}{error}")?;
        }
        Ok(())
    }
}

impl Machines {
    /// Ends the machines that were made without a job: whoever made them is about to end. What is left is swept later.
    pub async fn end_canaries(&self) {
        let machines = match self.inner.hypervisor.list().await {
            Ok(machines) => machines,
            Err(error) => {
                tracing::info!(%error, "canaries are swept at the next start");
                return;
            }
        };
        for seen in machines.iter().filter(|seen| seen.attempt.is_canary()) {
            if let Err(error) = self.destroy(seen.attempt).await {
                tracing::info!(%error, "the canary is swept at the next start");
            }
        }
    }

    /// Removes what belongs to no attempt in `live`. Machines whose start was not over when the sweep began are
    /// spared: whoever listed the live attempts may not have known them yet.
    pub async fn sweep(&self, live: &HashSet<AttemptId>) -> Result<Swept, VmError> {
        let began = Instant::now();
        let machines: BTreeSet<AttemptId> = self
            .inner
            .hypervisor
            .list()
            .await?
            .into_iter()
            .map(|seen| seen.attempt)
            .collect();
        let dir = self.inner.dir.clone();
        let folders = super::blocking(move || folder::list(&dir)).await??;
        let orphans: BTreeSet<AttemptId> = machines
            .iter()
            .copied()
            .chain(folders)
            .filter(|attempt| !live.contains(attempt))
            .filter(|attempt| !self.inner.turns.was_starting_since(*attempt, began))
            .collect();
        let mut swept = Swept::default();
        for attempt in orphans {
            match self.destroy(attempt).await {
                Ok(()) if machines.contains(&attempt) => swept.machines.push(attempt),
                Ok(()) => swept.folders.push(attempt),
                Err(error) => swept.left.push((attempt, error)),
            }
        }
        Ok(swept)
    }
}
