//! `qemu-img`: what it tells of an image, as far as it matters here.

use crate::model::DiskSpec;
use serde::Deserialize;
use std::path::PathBuf;
use std::process::{ExitStatus, Output, Stdio};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::process::Command;

/// Each run reads or writes a few blocks; a disk that needs longer is broken or hangs.
const DEADLINE: Duration = Duration::from_secs(30);
/// A check reads the tables of where everything is: of a large image on a slow disk.
const CHECK_DEADLINE: Duration = Duration::from_secs(300);
/// How much of its complaints is read, in bytes.
const MOST_COMPLAINTS: u64 = 64 << 10;
/// An image that is whole but for clusters that nobody uses; and a format that knows no check.
const LEAKS: i32 = 3;
const NO_CHECK: i32 = 63;

/// One image as `qemu-img info --output=json` tells of it.
#[derive(Debug, Deserialize)]
pub(super) struct ImageInfo {
    pub(super) filename: PathBuf,
    pub(super) format: String,
    #[serde(rename = "virtual-size")]
    pub(super) virtual_size: u64,
    #[serde(rename = "backing-filename")]
    pub(super) backing_filename: Option<String>,
    #[serde(rename = "format-specific")]
    format_specific: Option<FormatSpecific>,
}

#[derive(Debug, Deserialize)]
struct FormatSpecific {
    data: FormatData,
}

#[derive(Debug, Deserialize)]
struct FormatData {
    #[serde(rename = "data-file")]
    data_file: Option<String>,
    /// The files that a VMDK is made of.
    #[serde(default)]
    extents: Vec<Extent>,
}

#[derive(Debug, Deserialize)]
struct Extent {
    filename: PathBuf,
}

impl ImageInfo {
    /// Another file that has the image's data.
    pub(super) fn other_file(&self) -> Option<String> {
        let data = &self.format_specific.as_ref()?.data;
        let extent = data
            .extents
            .iter()
            .map(|extent| &extent.filename)
            .find(|filename| **filename != self.filename);
        data.data_file
            .clone()
            .or_else(|| extent.map(|filename| filename.display().to_string()))
    }
}

/// Whether the image is all there: its tables make sense and lead to nothing beyond its end.
pub(super) async fn check(disk: &DiskSpec) -> Result<(), String> {
    let mut child = Command::new("qemu-img")
        .args(["check", "-q", "--force-share", "-f", disk.format.as_str()])
        .arg(&disk.path)
        .kill_on_drop(true)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| not_run(&error))?;
    let mut complaints = Vec::new();
    let stderr = child.stderr.take();
    let checked = async {
        if let Some(stderr) = stderr {
            // Dropped with what is left: an image that is cut off has millions of faults, and one is enough.
            stderr
                .take(MOST_COMPLAINTS)
                .read_to_end(&mut complaints)
                .await?;
        }
        child.wait().await
    };
    let status = tokio::time::timeout(CHECK_DEADLINE, checked)
        .await
        .map_err(|_| format!("qemu-img did not end within {CHECK_DEADLINE:?}"))?
        .map_err(|error| not_run(&error))?;
    match status.code() {
        Some(0 | LEAKS | NO_CHECK) => Ok(()),
        _ => Err(words(&complaints, status)),
    }
}

/// Runs `qemu-img`; an error is its own words.
pub(super) async fn run(arguments: impl FnOnce(&mut Command)) -> Result<Vec<u8>, String> {
    let mut command = Command::new("qemu-img");
    arguments(&mut command);
    let output = output(command, DEADLINE).await?;
    match output.status.success() {
        true => Ok(output.stdout),
        false => Err(words(&output.stderr, output.status)),
    }
}

async fn output(mut command: Command, deadline: Duration) -> Result<Output, String> {
    command.kill_on_drop(true).stdin(Stdio::null());
    tokio::time::timeout(deadline, command.output())
        .await
        .map_err(|_| format!("qemu-img did not end within {deadline:?}"))?
        .map_err(|error| not_run(&error))
}

fn not_run(error: &std::io::Error) -> String {
    format!("qemu-img did not run: {error} (is qemu-utils installed?)")
}

/// The first of what it complained of.
fn words(complaints: &[u8], status: ExitStatus) -> String {
    let words = String::from_utf8_lossy(complaints);
    let words = words.trim().trim_start_matches("qemu-img: ");
    match words.lines().next() {
        Some(first) => first.to_owned(),
        None => format!("qemu-img ended with {status}"),
    }
}
