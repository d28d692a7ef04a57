//! What the certificates of all platforms are worth, as it was found last.

use super::Standing;
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

/// Of one platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registered {
    pub standing: Standing,
    /// Why its last test at night came to nothing, where it did: the host's fault, and no word on the image.
    pub trouble: Option<String>,
}

/// By platform; clones share it. `pipeline/certification` keeps it up to date.
#[derive(Debug, Clone, Default)]
pub struct Register {
    known: Arc<RwLock<BTreeMap<String, Registered>>>,
}

impl Register {
    pub fn get(&self, platform: &str) -> Option<Registered> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.get(platform).cloned()
    }

    pub fn all(&self) -> BTreeMap<String, Registered> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.clone()
    }

    /// What was found; the trouble of the night before is kept until there is news of that.
    pub(crate) fn found(&self, platform: &str, standing: Standing) {
        self.change(platform, |registered| registered.standing = standing);
    }

    pub(crate) fn trouble(&self, platform: &str, trouble: Option<String>) {
        self.change(platform, |registered| registered.trouble = trouble);
    }

    /// Forgets platforms that are gone.
    pub(crate) fn keep(&self, is_kept: impl Fn(&str) -> bool) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        known.retain(|platform, _| is_kept(platform));
    }

    fn change(&self, platform: &str, change: impl FnOnce(&mut Registered)) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let registered = known.entry(platform.to_owned());
        change(registered.or_insert(Registered {
            standing: Standing::None,
            trouble: None,
        }));
    }
}
