//! The files that were kept after the merge, looked at where they lie.

use super::super::serve::Guests;
use super::watch::Watcher;
use crate::model::JobId;
use crate::web::BuildView;
use anyhow::{Context, bail};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// A kept file whose size and SHA-256 are what the master says, and what the guest printed.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) path: String,
    pub(super) size: u64,
    pub(super) sha256: String,
    pub(super) file: PathBuf,
}

/// Every job must have kept something, and every file must be there, whole.
pub(super) async fn check(
    build: &BuildView,
    watcher: &Watcher,
    guests: &Guests,
    objects: &Path,
) -> anyhow::Result<Vec<Kept>> {
    let mut kept = Vec::new();
    for job in &build.jobs {
        let rows = guests.ledger.store.artifacts(JobId(job.number)).await?;
        if rows.is_empty() {
            bail!("{} kept no artefact", job.platform);
        }
        // The sample's last step prints the sums as the guest sees them.
        let log = watcher.log(job.number).await?;
        for row in rows {
            let file = objects.join(&row.object);
            let (size, sha256) = measure(&file)
                .with_context(|| format!("the artefact {} cannot be read", file.display()))?;
            if (size, &sha256) != (row.size, &row.sha256) {
                bail!(
                    "{} has {size} bytes and SHA-256 {sha256}, but should have {} and {}",
                    file.display(),
                    row.size,
                    row.sha256
                );
            }
            if !log.contains(&sha256) {
                bail!("{} is not what {} made", file.display(), job.platform);
            }
            kept.push(Kept {
                path: row.path,
                size,
                sha256,
                file,
            });
        }
    }
    Ok(kept)
}

fn measure(file: &Path) -> std::io::Result<(u64, String)> {
    // The sample's are a few hundred bytes.
    let content = std::fs::read(file)?;
    Ok((content.len() as u64, hex::encode(Sha256::digest(&content))))
}
