//! Platforms that are out of service. Who counts boots tells which; here it is laid over what the folder says.

use super::{Entry, Platforms, Standing};
use std::collections::BTreeMap;

impl Platforms {
    /// Tells which platforms are out of service, with the sentence; what begins is logged.
    pub fn put_out_of_service(&self, out: BTreeMap<String, String>) {
        let mut known = self.out.write().unwrap_or_else(|e| e.into_inner());
        for (name, why) in out.iter().filter(|(name, _)| !known.contains_key(*name)) {
            tracing::warn!(platform = name, why, "platform out of service");
        }
        *known = out;
    }

    /// Whether the platform could take work but for having been put out of service.
    pub fn is_out_of_service(&self, name: &str) -> bool {
        let standing = self.known(|known| known.entries.get(name).map(Entry::standing));
        let standing = standing.map(|standing| self.in_service(name, standing));
        matches!(standing, Some(Standing::OutOfService(_)))
    }

    /// One that could take work takes none while it is out of service.
    pub(super) fn in_service(&self, name: &str, standing: Standing) -> Standing {
        match standing {
            Standing::Ready => {
                let out = self.out.read().unwrap_or_else(|e| e.into_inner());
                match out.get(name) {
                    Some(why) => Standing::OutOfService(why.clone()),
                    None => Standing::Ready,
                }
            }
            Standing::Held(_) | Standing::OutOfService(_) | Standing::Refused(_) => standing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::platforms::tests::{PLATFORM, add};

    #[test]
    fn a_platform_out_of_service_is_planned_for_and_takes_no_job() {
        let dir = tempfile::tempdir().unwrap();
        add(dir.path(), "bad", PLATFORM);
        add(dir.path(), "good", PLATFORM);
        add(dir.path(), "broken", "memory_mib = 'much'");
        let platforms = Platforms::load(dir.path().to_path_buf());
        let why = "out of service since yesterday";
        let out = ["bad", "broken", "gone"].map(|name| (name.to_owned(), why.to_owned()));
        platforms.put_out_of_service(BTreeMap::from(out));
        assert_eq!(platforms.why_held("bad").as_deref(), Some(why));
        assert!(platforms.is_out_of_service("bad") && platforms.get("bad").is_ok());
        assert!(!platforms.is_out_of_service("broken"), "it is refused");
        assert!(!platforms.is_out_of_service("gone"));
        let ready = platforms.ready();
        assert_eq!(ready.len(), 1, "the other one takes work");
        assert_eq!(platforms.usable().len(), 2);
        platforms.put_out_of_service(BTreeMap::new());
        assert_eq!(platforms.ready().len(), 2);
    }

    #[test]
    fn files_have_another_name_once_they_change() {
        let dir = tempfile::tempdir().unwrap();
        add(dir.path(), "one", PLATFORM);
        let platforms = Platforms::load(dir.path().to_path_buf());
        let before = platforms.files_of("one");
        assert_eq!(
            before,
            Platforms::load(dir.path().to_path_buf()).files_of("one")
        );
        std::fs::write(dir.path().join("one/vmlinuz"), "another").unwrap();
        platforms.reload();
        assert_ne!(platforms.files_of("one"), before);
        assert_eq!(platforms.files_of("none"), "");
    }
}
