//! Identities. Each is a type, and prints as it looks in logs, pages and domain names.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub i64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "-{}"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = String;

            /// Accepts the bare number and the printed form.
            fn from_str(text: &str) -> Result<Self, String> {
                let digits = text.strip_prefix(concat!($prefix, "-")).unwrap_or(text);
                digits.parse().map(Self).map_err(|_| {
                    format!(concat!("`{}` is no ", $prefix, " id: expected a number or `", $prefix, "-NUMBER`"), text)
                })
            }
        }
    };
}

id!(
    /// All the jobs of one commit.
    BuildId, "build"
);
id!(
    /// One suite on one platform for one build.
    JobId, "job"
);
id!(
    /// One try of a job on one VM; the VM bears this number.
    AttemptId, "vm"
);

impl AttemptId {
    /// The number of a machine without a job. Attempts count upwards from 1, and these downwards.
    pub fn canary(number: i64) -> AttemptId {
        AttemptId(-number)
    }

    pub fn is_canary(self) -> bool {
        self.0 < 0
    }
}
