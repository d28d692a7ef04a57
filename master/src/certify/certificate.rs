//! What a test of an image found, as it is kept beside the image.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The file's name in the platform's folder.
pub const FILE: &str = "certificate.json";
/// Of the form of the file: another one is as good as none.
const VERSION: u32 = 1;
/// A certificate has some KiB.
const MOST_BYTES: u64 = 1 << 20;

/// What is looked at in a guest, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    Boot,
    Connect,
    WorkDirectory,
    Clock,
    Shell,
    Environment,
    ExitCodes,
    Entropy,
    Memory,
    Processors,
    Disk,
    Network,
    ProcessTree,
    Output,
    Artefacts,
    ClockDrift,
    Poweroff,
}

impl Check {
    pub const ALL: [Check; 17] = [
        Check::Boot,
        Check::Connect,
        Check::WorkDirectory,
        Check::Clock,
        Check::Shell,
        Check::Environment,
        Check::ExitCodes,
        Check::Entropy,
        Check::Memory,
        Check::Processors,
        Check::Disk,
        Check::Network,
        Check::ProcessTree,
        Check::Output,
        Check::Artefacts,
        Check::ClockDrift,
        Check::Poweroff,
    ];

    /// As people read it.
    pub fn name(self) -> &'static str {
        match self {
            Check::Boot => "boot",
            Check::Connect => "connect",
            Check::WorkDirectory => "work directory",
            Check::Clock => "clock",
            Check::Shell => "shell and quoting",
            Check::Environment => "environment",
            Check::ExitCodes => "exit codes",
            Check::Entropy => "entropy",
            Check::Memory => "memory",
            Check::Processors => "processors",
            Check::Disk => "disk",
            Check::Network => "network",
            Check::ProcessTree => "process tree",
            Check::Output => "output",
            Check::Artefacts => "artefacts",
            Check::ClockDrift => "clock drift",
            Check::Poweroff => "power-off",
        }
    }
}

/// How a check came out, and what there is to say of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "result", content = "said")]
pub enum Verdict {
    Passed(String),
    Failed(String),
    /// Nobody looked, and why: it speaks neither for the image nor against it.
    NotChecked(String),
}

impl Verdict {
    pub fn is_failed(&self) -> bool {
        match self {
            Verdict::Failed(_) => true,
            Verdict::Passed(_) | Verdict::NotChecked(_) => false,
        }
    }

    pub fn said(&self) -> &str {
        match self {
            Verdict::Passed(said) | Verdict::Failed(said) | Verdict::NotChecked(said) => said,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckResult {
    pub check: Check,
    #[serde(flatten)]
    pub verdict: Verdict,
}

/// The agent that did the work in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TestedAgent {
    pub version: String,
    /// Hexadecimal.
    pub sha256: String,
}

/// The whole file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    pub version: u32,
    pub platform: String,
    /// Of all that the guest boots from.
    pub image_sha256: String,
    /// Of what platform.toml says of the machine.
    pub platform_sha256: String,
    /// `None` where no agent answered.
    pub agent: Option<TestedAgent>,
    pub vivarium: String,
    /// `kvm` or `tcg`.
    pub accelerator: String,
    pub tested_at: Timestamp,
    pub passed: bool,
    pub results: Vec<CheckResult>,
}

impl Certificate {
    pub(super) fn new(
        platform: &str,
        hashes: super::hash::Hashes,
        agent: Option<TestedAgent>,
        accelerator: &str,
        tested_at: Timestamp,
        results: Vec<CheckResult>,
    ) -> Certificate {
        Certificate {
            version: VERSION,
            platform: platform.to_owned(),
            image_sha256: hashes.image,
            platform_sha256: hashes.platform,
            agent,
            vivarium: env!("CARGO_PKG_VERSION").to_owned(),
            accelerator: accelerator.to_owned(),
            tested_at,
            passed: is_pass(&results),
            results,
        }
    }

    /// The checks that failed.
    pub fn failed(&self) -> impl Iterator<Item = &CheckResult> {
        self.results
            .iter()
            .filter(|result| result.verdict.is_failed())
    }

    /// Whether the guest came through, by the results themselves.
    pub fn is_pass(&self) -> bool {
        self.passed && is_pass(&self.results)
    }

    /// Writes it beside the image, in place of the one before.
    pub fn write(&self, folder: &Path) -> Result<PathBuf, CertificateError> {
        let path = folder.join(FILE);
        let failed = |error: std::io::Error| CertificateError::Unwritable {
            path: path.clone(),
            why: error.to_string(),
        };
        let text = serde_json::to_string_pretty(self).map_err(|error| failed(error.into()))?;
        // With a dot: not taken for a file of the image.
        let mut new = tempfile::Builder::new()
            .prefix(".certificate-")
            .tempfile_in(folder)
            .map_err(failed)?;
        writeln!(new, "{text}").map_err(failed)?;
        // For all to read, whatever the umask.
        new.as_file()
            .set_permissions(Permissions::from_mode(0o644))
            .map_err(failed)?;
        new.as_file().sync_all().map_err(failed)?;
        new.persist(&path).map_err(|error| failed(error.error))?;
        Ok(path)
    }

    /// Reads the one beside the image; `None` where there is none.
    pub fn read(folder: &Path) -> Result<Option<Certificate>, CertificateError> {
        let path = folder.join(FILE);
        let unreadable = |why: String| CertificateError::Unreadable {
            path: path.clone(),
            why,
        };
        match std::fs::metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(unreadable(error.to_string())),
            Ok(meta) if meta.len() > MOST_BYTES => {
                return Err(unreadable(format!("it has {} bytes", meta.len())));
            }
            Ok(_) => {}
        }
        let bytes = std::fs::read(&path).map_err(|error| unreadable(error.to_string()))?;
        let certificate: Certificate =
            serde_json::from_slice(&bytes).map_err(|error| unreadable(error.to_string()))?;
        match certificate.version {
            VERSION => Ok(Some(certificate)),
            other => Err(unreadable(format!(
                "it has the form {other}, this version of Vivarium writes {VERSION}"
            ))),
        }
    }
}

/// Something was looked at, and nothing failed.
fn is_pass(results: &[CheckResult]) -> bool {
    let passed = |result: &CheckResult| matches!(result.verdict, Verdict::Passed(_));
    results.iter().any(passed) && !results.iter().any(|result| result.verdict.is_failed())
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    #[error("the certificate {path} cannot be read: {why}")]
    Unreadable { path: PathBuf, why: String },
    #[error(
        "the certificate {path} cannot be written: {why}\nhint: the platform's folder must be writable for the user who tests its image"
    )]
    Unwritable { path: PathBuf, why: String },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(verdicts: &[Verdict]) -> Certificate {
        let results = Check::ALL.into_iter().zip(verdicts.iter().cloned());
        let results = results.map(|(check, verdict)| CheckResult { check, verdict });
        let hashes = super::super::Hashes {
            image: "a".to_owned(),
            platform: "b".to_owned(),
        };
        let now = Timestamp::UNIX_EPOCH;
        Certificate::new("tiny", hashes, None, "tcg", now, results.collect())
    }

    #[test]
    fn what_was_not_checked_speaks_neither_for_an_image_nor_against_it() {
        let passed = Verdict::Passed("yes".to_owned());
        let left = Verdict::NotChecked("no disk".to_owned());
        let failed = Verdict::Failed("no".to_owned());
        assert!(certificate(&[passed.clone(), left.clone()]).is_pass());
        assert!(!certificate(&[left]).is_pass());
        assert!(!certificate(&[passed.clone(), failed.clone()]).is_pass());
        // Whatever its first lines say.
        let mut forged = certificate(&[passed, failed]);
        forged.passed = true;
        assert!(!forged.is_pass());
    }

    #[test]
    fn a_certificate_is_read_as_it_was_written_and_one_of_another_form_is_none() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Certificate::read(folder.path()), Ok(None));
        let mut written = certificate(&[Verdict::Passed("yes".to_owned())]);
        let path = written.write(folder.path()).unwrap();
        assert_eq!(Certificate::read(folder.path()), Ok(Some(written.clone())));
        written.version = 2;
        std::fs::write(&path, serde_json::to_vec(&written).unwrap()).unwrap();
        let error = Certificate::read(folder.path()).unwrap_err().to_string();
        assert!(error.contains("it has the form 2"), "{error}");
        std::fs::write(&path, "{}").unwrap();
        assert!(Certificate::read(folder.path()).is_err());
    }
}
