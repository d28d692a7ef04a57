//! What a certificate is worth: for the very image, and the very `platform.toml`, beside it.

use super::{Certificate, HashCache, Hashes};
use crate::model::Platform;
use jiff::Timestamp;
use serde::Serialize;
use std::fmt;
use std::path::Path;

/// What a certificate is worth for the image beside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum Standing {
    Certified {
        tested_at: Timestamp,
    },
    /// The image did not come through its last test.
    Failed {
        tested_at: Timestamp,
        /// A clause for each check that failed.
        failed: Vec<String>,
    },
    /// The image or its platform.toml is not what was tested.
    Outdated {
        tested_at: Timestamp,
        /// What has changed.
        why: String,
    },
    None,
    Unreadable {
        why: String,
    },
}

impl Standing {
    /// Of this certificate, for an image with these hashes.
    pub fn of(certificate: Option<&Certificate>, hashes: &Hashes) -> Standing {
        let Some(certificate) = certificate else {
            return Standing::None;
        };
        let tested_at = certificate.tested_at;
        let changed = [
            ("it", &certificate.image_sha256, &hashes.image),
            (
                "its platform.toml",
                &certificate.platform_sha256,
                &hashes.platform,
            ),
        ];
        let changed: Vec<&str> = changed
            .iter()
            .filter(|(_, was, is)| was != is)
            .map(|(what, _, _)| *what)
            .collect();
        if !changed.is_empty() {
            let why = format!("{} changed after that", changed.join(" and "));
            return Standing::Outdated { tested_at, why };
        }
        Standing::of_test(certificate)
    }

    /// Of the image that was just tested.
    pub(crate) fn of_test(certificate: &Certificate) -> Standing {
        let tested_at = certificate.tested_at;
        if certificate.is_pass() {
            return Standing::Certified { tested_at };
        }
        let failed = certificate
            .failed()
            .map(|result| format!("{}: {}", result.check.name(), result.verdict.said()))
            .collect();
        Standing::Failed { tested_at, failed }
    }

    /// When the test was that the certificate tells of.
    pub fn tested_at(&self) -> Option<Timestamp> {
        match self {
            Standing::Certified { tested_at }
            | Standing::Failed { tested_at, .. }
            | Standing::Outdated { tested_at, .. } => Some(*tested_at),
            Standing::None | Standing::Unreadable { .. } => None,
        }
    }

    pub fn is_failed(&self) -> bool {
        matches!(self, Standing::Failed { .. })
    }

    pub fn is_certified(&self) -> bool {
        matches!(self, Standing::Certified { .. })
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Standing::Certified { tested_at } => {
                write!(f, "its image was certified on {}", day(*tested_at))
            }
            Standing::Failed { tested_at, failed } => write!(
                f,
                "its image failed its test on {}: {}",
                day(*tested_at),
                failed.join("; ")
            ),
            Standing::Outdated { tested_at, why } => {
                write!(f, "its image was tested on {}, and {why}", day(*tested_at))
            }
            Standing::None => f.write_str("its image was never tested"),
            Standing::Unreadable { why } => f.write_str(why),
        }
    }
}

fn day(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d").to_string()
}

/// What the certificate in a platform's folder is worth. Without one nothing is hashed.
pub async fn standing(hashes: &HashCache, folder: &Path, platform: &Platform) -> Standing {
    let certificate = match Certificate::read(folder) {
        Ok(Some(certificate)) => certificate,
        Ok(None) => return Standing::None,
        Err(error) => {
            return Standing::Unreadable {
                why: error.to_string(),
            };
        }
    };
    match hashes.hashes(folder, platform).await {
        Ok(hashes) => Standing::of(Some(&certificate), &hashes),
        Err(error) => Standing::Unreadable {
            why: format!("its certificate cannot be compared with its image: {error:#}"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Check, CheckResult, Verdict};
    use super::*;

    #[test]
    fn a_certificate_counts_for_what_was_tested_alone() {
        let hashes = |image: &str, platform: &str| Hashes {
            image: image.to_owned(),
            platform: platform.to_owned(),
        };
        let of = |verdict: Verdict| {
            let result = CheckResult {
                check: Check::Memory,
                verdict,
            };
            let now = Timestamp::UNIX_EPOCH;
            Certificate::new("tiny", hashes("a", "b"), None, "tcg", now, vec![result])
        };
        let good = of(Verdict::Passed("yes".to_owned()));
        let bad = of(Verdict::Failed("too little".to_owned()));
        let said = |certificate, image, platform| {
            let standing = Standing::of(certificate, &hashes(image, platform));
            (standing.is_certified(), standing.to_string())
        };
        let day = "1970-01-01";
        assert_eq!(
            said(Some(&good), "a", "b"),
            (true, format!("its image was certified on {day}"))
        );
        assert_eq!(
            said(Some(&good), "x", "b"),
            (
                false,
                format!("its image was tested on {day}, and it changed after that")
            )
        );
        assert_eq!(
            said(Some(&good), "x", "y"),
            (
                false,
                format!(
                    "its image was tested on {day}, and it and its platform.toml changed after that"
                )
            )
        );
        assert_eq!(
            said(Some(&bad), "a", "b"),
            (
                false,
                format!("its image failed its test on {day}: memory: too little")
            )
        );
        assert_eq!(said(None, "a", "b").1, "its image was never tested");
    }
}
