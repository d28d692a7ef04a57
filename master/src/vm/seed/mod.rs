//! What one VM is told of itself: a volume `cidata` in the form of cloud-init's NoCloud, with keys of its own.
//!
//! ```text
//! Platform ─► [keys] ─► ssh_key (ours), ssh_host_key.pub (what the guest must show)
//!                └────► seed.iso: meta-data, user-data, network-config ─► the guest's user, host key, network
//! ```
//!
//! An image as its vendor made it knows neither our user nor a key. It reads all of this before its SSH server starts.
//! <https://cloudinit.readthedocs.io/en/latest/reference/datasources/nocloud.html>

mod keys;
mod volume;

use super::VmError;
use super::folder::VmFolder;
use super::hypervisor::Macs;
use crate::model::{AttemptId, Network, OsFamily, Platform, PlatformKind};
use keys::GuestKeys;
use minijinja::{Environment, UndefinedBehavior, context};
use secrecy::ExposeSecret;
use std::path::PathBuf;

/// Writes the keys and the volume into the VM's folder, and says where the volume is.
pub(super) fn make(
    attempt: AttemptId,
    platform: &Platform,
    folder: &VmFolder,
    macs: &Macs,
) -> Result<PathBuf, VmError> {
    let keys = GuestKeys::make(platform, folder)?;
    let files = files(attempt, platform, &keys, macs)
        .map_err(|error| VmError::host(format!("write the seed of {attempt}"), error))?;
    let image = volume::make(&files)
        .map_err(|error| VmError::host(format!("make the seed of {attempt}"), error))?;
    let path = folder.seed();
    VmFolder::write_secret(&path, &image)?;
    Ok(path)
}

/// The files by their names.
fn files(
    attempt: AttemptId,
    platform: &Platform,
    keys: &GuestKeys,
    macs: &Macs,
) -> Result<Vec<(&'static str, String)>, minijinja::Error> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::SemiStrict);
    // A domain of libvirt's network has a second card.
    let network_mac = match &platform.kind {
        PlatformKind::Vm {
            network: Network::LibvirtNetwork(_),
            ..
        } => Some(&macs.network),
        PlatformKind::Vm {
            network: Network::Closed | Network::Internet,
            ..
        }
        | PlatformKind::Ssh { .. } => None,
    };
    let has_doas = match platform.os {
        OsFamily::Freebsd | OsFamily::Netbsd | OsFamily::Openbsd | OsFamily::Dragonfly => true,
        OsFamily::Linux | OsFamily::Windows | OsFamily::Macos => false,
    };
    let values = context! {
        // Another one than any before: what is done once for each instance is done.
        instance => format!("{attempt}-{}", hex::encode(rand::random::<[u8; 4]>())),
        user => platform.ssh.user,
        user_key => keys.user_public,
        host_key => keys.host.as_ref().map(|host| context! {
            private => host.private.expose_secret(),
            public => host.public,
        }),
        ssh_mac => macs.ssh,
        network_mac,
        has_doas,
    };
    [
        ("meta-data", include_str!("meta-data.j2")),
        ("user-data", include_str!("user-data.j2")),
        ("network-config", include_str!("network-config.j2")),
    ]
    .into_iter()
    .map(|(name, template)| Ok((name, environment.render_str(template, &values)?)))
    .collect()
}

#[cfg(test)]
mod tests;
