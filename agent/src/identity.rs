//! Whether this program is the one that the master sent: for guests that have no other means to hash a file.

use crate::collect;
use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::Read;

/// Compares the hash of this program's file with `expected`, hexadecimal.
pub(crate) fn check(expected: &str) -> Result<()> {
    let path = std::env::current_exe().context("cannot find this program")?;
    let mut file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let count = file.read(&mut buffer).context("cannot read this program")?;
        if count == 0 {
            break;
        }
        hash.update(buffer.get(..count).unwrap_or_default());
    }
    let found = collect::hex(&hash.finalize());
    if !found.eq_ignore_ascii_case(expected) {
        bail!(
            "{} is not the agent that was sent: its SHA-256 is {found} instead of {expected}\nhint: remove the file",
            path.display()
        );
    }
    Ok(())
}
