//! Bytes on their way: into the guest, out of it, and through its output.

use super::Checks;
use crate::certify::certificate::Verdict;
use crate::certify::guest::{Question, Trouble, shown};
use crate::certify::seconds;
use crate::session::SessionError;
use rand::RngCore;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use tokio::time::Instant;

/// What is sent into the guest once, and printed so often: 10 MiB in all.
const BLOCK_BYTES: usize = 256 << 10;
const BLOCKS: usize = 40;
/// Names that a suite might give to its files. Windows knows none of the signs in the second part.
const NAMES: [&str; 7] = [
    "plain.txt",
    "with  two spaces.txt",
    "-dash",
    ".hidden",
    "percent%20 & semi;colon.txt",
    "ünïcode ß 日本.txt",
    "deep/er/and deeper/report.xml",
];
const UNIX_NAMES: [&str; 4] = [
    "quote'and\"quote.txt",
    "dollar$HOME`x`.txt",
    "star*and?mark[1].txt",
    "back\\slash.txt",
];
const MOST_FILES: u64 = 1000;
const MOST_BYTES: u64 = 64 << 20;

impl Checks<'_> {
    /// Where the source goes is there, and can be written to; so can the user's home and the place for temporary files.
    pub(super) async fn work_directory(&mut self) -> Result<Verdict, Trouble> {
        let dir = self.guest.platform().work_dir.clone();
        let archive = archive(&BTreeMap::from([("seen".to_owned(), b"yes\n".to_vec())]))?;
        self.guest.agent.unpack(&dir, &*archive).await?;
        if let Some(verdict) = self.unless_unix() {
            return Ok(verdict);
        }
        let script = r#"for d in . "$HOME" /tmp; do f=$d/.vivarium-try; (: >"$f") 2>/dev/null && rm "$f" || echo "$d"; done; df -Pk . 2>/dev/null | { read -r head; read -r device kib used free rest; [ -z "$free" ] || echo "free $((free / 1024))"; }"#;
        let said = self.guest.ask(Question::sh(script)).await?.good()?;
        let (unwritable, free): (Vec<&str>, Vec<&str>) =
            said.lines().partition(|line| !line.starts_with("free "));
        let free = free.first().and_then(|line| line.strip_prefix("free "));
        Ok(match (unwritable.is_empty(), free) {
            (true, Some(mib)) => Verdict::Passed(format!("{dir} takes files, {mib} MiB are free")),
            (true, None) => Verdict::Passed(format!("{dir} takes files")),
            (false, _) => {
                Verdict::Failed(format!("cannot be written to: {}", unwritable.join(", ")))
            }
        })
    }

    /// Every value of a byte, none changed and none lost.
    pub(super) async fn output(&mut self) -> Result<Verdict, Trouble> {
        if let Some(verdict) = self.unless_unix() {
            return Ok(verdict);
        }
        let mut block = vec![0; BLOCK_BYTES];
        rand::rng().fill_bytes(&mut block);
        let path = self.guest.path("block");
        self.guest.agent.write(&path, &*block, false).await?;
        let script = format!(
            r#"i=0; while [ "$i" -lt {BLOCKS} ]; do cat "$BLOCK"; i=$((i + 1)); done; rm "$BLOCK""#
        );
        let began = Instant::now();
        let question = Question::sh(script).with("BLOCK", &path);
        let said = self.guest.ask(question).await?;
        let took = began.elapsed();
        let wanted = BLOCKS * BLOCK_BYTES;
        if said.bytes.len() != wanted {
            return Ok(Verdict::Failed(format!(
                "{} of {wanted} bytes came",
                said.bytes.len()
            )));
        }
        let differs = said.bytes.chunks(BLOCK_BYTES).position(|got| got != block);
        Ok(match differs {
            None => Verdict::Passed(format!(
                "{} MiB came as they were printed, in {}",
                wanted >> 20,
                seconds(took)
            )),
            Some(number) => Verdict::Failed(format!(
                "the bytes from {} on came changed",
                number * BLOCK_BYTES
            )),
        })
    }

    /// In as a source tree, out as artefacts.
    pub(super) async fn artefacts(&mut self) -> Result<Verdict, Trouble> {
        let is_unix = self.guest.platform().os.is_unix();
        let names = NAMES
            .iter()
            .chain(UNIX_NAMES.iter().filter(|_| is_unix))
            .map(|name| (*name).to_owned());
        let mut files: BTreeMap<String, Vec<u8>> = names
            .enumerate()
            .map(|(number, name)| {
                let mut content = vec![0; 100 + 1000 * number];
                rand::rng().fill_bytes(&mut content);
                (name, content)
            })
            .collect();
        files.insert("empty".to_owned(), Vec::new());
        let dir = self.guest.path("odd names");
        self.guest.agent.unpack(&dir, &*archive(&files)?).await?;
        let globs = ["**".to_owned()];
        let agent = &self.guest.agent;
        let mut collection = agent.collect(&dir, &globs, MOST_FILES, MOST_BYTES).await?;
        let mut got: BTreeMap<String, String> = BTreeMap::new();
        while let Some(mut file) = collection.next_file().await? {
            let name = file.file.path.clone();
            let mut hash = Sha256::new();
            loop {
                match file.next_chunk().await {
                    Ok(Some(bytes)) => hash.update(&bytes),
                    Ok(None) => break,
                    Err(error @ SessionError::Incomplete { .. }) => {
                        return Ok(Verdict::Failed(error.to_string()));
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            got.insert(name, hex::encode(hash.finalize()));
        }
        let wanted: BTreeMap<String, String> = files
            .iter()
            .map(|(name, content)| (name.clone(), hex::encode(Sha256::digest(content))))
            .collect();
        let missing = wanted.iter().filter(|(name, _)| !got.contains_key(*name));
        let changed = wanted
            .iter()
            .filter(|(name, hash)| got.get(*name).is_some_and(|got| got != *hash));
        let strange = got.keys().filter(|name| !wanted.contains_key(*name));
        let wrong: Vec<String> = missing
            .map(|(name, _)| format!("{name} did not come back"))
            .chain(changed.map(|(name, _)| format!("{name} came back changed")))
            .chain(strange.map(|name| format!("nobody sent a file {}", shown(name.as_bytes()))))
            .collect();
        Ok(match wrong.is_empty() {
            true => Verdict::Passed(format!("{} files with odd names came back", wanted.len())),
            false => Verdict::Failed(wrong.join("; ")),
        })
    }
}

fn archive(files: &BTreeMap<String, Vec<u8>>) -> Result<Vec<u8>, Trouble> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = || {
        for (name, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            header.set_mtime(1_700_000_000);
            tar.append_data(&mut header, name, &**content)?;
        }
        tar.finish()
    };
    // Into memory: only a name could be refused.
    add().map_err(|error| Trouble::Check(format!("the archive cannot be made: {error}")))?;
    tar.into_inner()
        .map_err(|error| Trouble::Check(format!("the archive cannot be made: {error}")))
}
