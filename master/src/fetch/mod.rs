//! From an address and a hash to a file that has that hash: fetched once, gone on with after a break, never half there.
//!
//! ```text
//!  url ─► disk.qcow2.part ─(grows; a later try goes on where this one ended)─► hash ─► disk.qcow2
//!                                                                 │            └► another hash: removed
//!                                                                 └─ disk.qcow2.xz ─► unpacked ─► disk.qcow2
//! ```
//!
//! What is fetched is a stranger's until its hash is known to be the wanted one: nobody opens it before.

mod unpack;

pub use unpack::unpack;

use sha2::{Digest, Sha256};
use std::fs::Permissions;
use std::io::SeekFrom;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::fs::{self, File, OpenOptions};
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};
use url::Url;

/// A server that does not even answer is tried again later.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// So is one that sends nothing for this long.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
const BUFFER: usize = 1 << 20;

/// How far a fetch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    pub bytes: u64,
    /// Where the server has said it.
    pub total: Option<u64>,
}

impl Progress {
    /// From 0 to 100.
    pub fn percent(self) -> Option<u64> {
        let total = self.total.filter(|total| *total > 0)?;
        Some(self.bytes.saturating_mul(100) / total)
    }
}

/// Why there is no file.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Another try may do better, and goes on where this one ended.
    #[error("{0}")]
    Interrupted(String),
    /// The server will say the same again.
    #[error("{url} cannot be fetched: the server answers {status}")]
    Refused { url: String, status: String },
    #[error(
        "what {url} has is not what was meant: its SHA-256 is {found}, not {wanted}\nhint: was the file replaced there? \
         Then compare the hash with the one that its vendor publishes, and write that into platform.toml"
    )]
    WrongHash {
        url: String,
        found: String,
        wanted: String,
    },
    #[error("{path} cannot be unpacked: {error}\nhint: is it what its name says?")]
    Damaged { path: String, error: std::io::Error },
}

/// What is wanted.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    pub url: &'a Url,
    /// In lower-case hexadecimal digits. `None`: whatever there is, and its hash is told.
    pub sha256: Option<&'a str>,
    /// Where it goes, once it is whole.
    pub path: &'a Path,
}

/// One try to fetch the file; returns its hash. `tell` hears of each piece.
pub async fn fetch(
    wanted: Wanted<'_>,
    mut tell: impl FnMut(Progress),
) -> Result<String, FetchError> {
    let part = part_of(wanted.path);
    let broken = |what: &str, error: &dyn std::fmt::Display| {
        FetchError::Interrupted(format!("{} cannot be {what}: {error}", part.display()))
    };
    if let Some(folder) = part.parent() {
        make_folder(folder)
            .await
            .map_err(|error| broken("made", &error))?;
    }
    let mut file = OpenOptions::new()
        .create(true)
        .read(true)
        .write(true)
        .truncate(false)
        .open(&part)
        .await
        .map_err(|error| broken("opened", &error))?;
    let (mut hash, mut have) = hash_of(&mut file)
        .await
        .map_err(|error| broken("read", &error))?;

    let lost = |error: reqwest::Error| {
        FetchError::Interrupted(format!("{}: {}", wanted.url, root_cause(&error)))
    };
    let mut http = reqwest::Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(READ_TIMEOUT);
    if is_here(wanted.url) {
        http = http.no_proxy();
    }
    let http = http.build().map_err(lost)?;
    let mut request = http.get(wanted.url.clone());
    if have > 0 {
        request = request.header("range", format!("bytes={have}-"));
    }
    let mut answer = request.send().await.map_err(lost)?;
    let total = match judge(&answer, have) {
        Answer::Whole { total } => {
            file.set_len(0)
                .await
                .map_err(|error| broken("emptied", &error))?;
            file.seek(SeekFrom::Start(0))
                .await
                .map_err(|error| broken("emptied", &error))?;
            (hash, have) = (Sha256::new(), 0);
            total
        }
        Answer::Rest { total } => total,
        // The last try got all of it and did not come to its end.
        Answer::NothingLeft => Some(have),
        // A file that shrank, or a server that counts otherwise.
        Answer::Useless => {
            fs::remove_file(&part)
                .await
                .map_err(|error| broken("removed", &error))?;
            return Err(FetchError::Interrupted(format!(
                "{}: the server does not go on after {have} bytes; the next try begins anew",
                wanted.url
            )));
        }
        Answer::Refused => {
            let status = answer.status();
            let is_lasting =
                status.is_client_error() && !matches!(status.as_u16(), 408 | 425 | 429);
            let (url, status) = (wanted.url.to_string(), status.to_string());
            return Err(match is_lasting {
                true => FetchError::Refused { url, status },
                false => FetchError::Interrupted(format!("{url}: the server answers {status}")),
            });
        }
    };
    tell(Progress { bytes: have, total });
    while have < total.unwrap_or(u64::MAX) {
        let Some(piece) = answer.chunk().await.map_err(lost)? else {
            break;
        };
        file.write_all(&piece)
            .await
            .map_err(|error| broken("written", &error))?;
        hash.update(&piece);
        have += piece.len() as u64;
        tell(Progress { bytes: have, total });
    }
    file.sync_all()
        .await
        .map_err(|error| broken("written", &error))?;
    if let Some(total) = total.filter(|total| have < *total) {
        return Err(FetchError::Interrupted(format!(
            "{}: the connection ended after {have} of {total} bytes",
            wanted.url
        )));
    }
    let found = hex::encode(hash.finalize());
    if let Some(sha256) = wanted.sha256.filter(|sha256| *sha256 != found) {
        // Whatever it is, the next try would go on with it.
        fs::remove_file(&part)
            .await
            .map_err(|error| broken("removed", &error))?;
        return Err(FetchError::WrongHash {
            url: wanted.url.to_string(),
            found,
            wanted: sha256.to_owned(),
        });
    }
    put_in_place(&part, wanted.path).await?;
    Ok(found)
}

/// Gives a file that is whole its name.
async fn put_in_place(part: &Path, path: &Path) -> Result<(), FetchError> {
    let broken = |what: &str, error: std::io::Error| {
        FetchError::Interrupted(format!("{} cannot be {what}: {error}", part.display()))
    };
    // QEMU's user reads it.
    fs::set_permissions(part, Permissions::from_mode(0o644))
        .await
        .map_err(|error| broken("opened to QEMU", error))?;
    fs::rename(part, path)
        .await
        .map_err(|error| broken("moved to its place", error))
}

/// Whether the address is this machine's own: a proxy would look for it on its own machine.
pub(crate) fn is_here(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

/// The SHA-256 of a file, in lower-case hexadecimal digits.
pub async fn sha256(path: &Path) -> std::io::Result<String> {
    let (hash, _) = hash_of(&mut File::open(path).await?).await?;
    Ok(hex::encode(hash.finalize()))
}

/// What the server is about to send.
enum Answer {
    Whole { total: Option<u64> },
    Rest { total: Option<u64> },
    NothingLeft,
    Useless,
    Refused,
}

fn judge(answer: &reqwest::Response, have: u64) -> Answer {
    let range = answer.headers().get("content-range");
    let range = range.and_then(|range| range.to_str().ok()).unwrap_or("");
    // `bytes 1000-4999/5000`, and `bytes */5000` with 416.
    let (place, total) = range.rsplit_once('/').unwrap_or((range, ""));
    let total: Option<u64> = total.parse().ok();
    match answer.status().as_u16() {
        200 => Answer::Whole {
            total: answer.content_length(),
        },
        206 if place.starts_with(&format!("bytes {have}-")) => Answer::Rest { total },
        416 if total == Some(have) => Answer::NothingLeft,
        206 | 416 => Answer::Useless,
        _ => Answer::Refused,
    }
}

async fn hash_of(file: &mut File) -> std::io::Result<(Sha256, u64)> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; BUFFER];
    let mut have = 0;
    loop {
        let count = file.read(&mut buffer).await?;
        let Some(bytes) = buffer.get(..count).filter(|bytes| !bytes.is_empty()) else {
            return Ok((hash, have));
        };
        hash.update(bytes);
        have += count as u64;
    }
}

/// QEMU's user passes through to what is in it.
async fn make_folder(folder: &Path) -> std::io::Result<()> {
    let mut missing: Vec<&Path> = folder
        .ancestors()
        .take_while(|folder| !folder.as_os_str().is_empty() && !folder.is_dir())
        .collect();
    while let Some(folder) = missing.pop() {
        fs::create_dir(folder).await?;
        fs::set_permissions(folder, Permissions::from_mode(0o711)).await?;
    }
    Ok(())
}

fn part_of(path: &Path) -> PathBuf {
    longer(path, ".part")
}

/// The path with so much more at its end.
pub(crate) fn longer(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// reqwest's own sentence says no more than that there was an error.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests;
