//! What the certificates of images are worth.

use super::{Finding, fault, good, note};
use crate::certify::{HashCache, Standing, standing};
use crate::config::Config;
use crate::model::{Platform, PlatformKind};

/// What there is to say of one platform's, and whether it keeps the platform out of service.
pub(super) async fn look(config: &Config, platform: &Platform) -> (Option<Finding>, bool) {
    match platform.kind {
        PlatformKind::Vm { .. } => {}
        PlatformKind::Ssh { .. } => return (None, false),
    }
    let hashes = HashCache::kept_in(config.data_dir.join("image-hashes.json"));
    let folder = config.platforms_dir.join(&platform.name);
    let found = standing(&hashes, &folder, platform).await;
    let is_required = config.images.require_certificate;
    let told = format!(
        "{}: {found}\nhint: vivarium image test {}",
        platform.name, platform.name
    );
    let finding = match (&found, is_required) {
        (Standing::Certified { .. }, _) => {
            Some(good("certificate", format!("{}: {found}", platform.name)))
        }
        (_, true) | (Standing::Failed { .. }, false) => Some(fault("certificate", told)),
        (Standing::Outdated { .. } | Standing::Unreadable { .. }, false) => {
            Some(note("certificate", told))
        }
        // Nobody asked for one.
        (Standing::None, false) => None,
    };
    (finding, is_required && !found.is_certified())
}
