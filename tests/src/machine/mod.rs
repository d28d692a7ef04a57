//! What scenarios need of the machine they run on: images, platforms made of them, an SSH server, and a look at what
//! is left afterwards.
//!
//! Images are in `$VIVARIUM_IMAGES`, or where `images/build` puts them.

mod leftovers;
mod libvirt;
mod platforms;
mod proxy;
mod small_disk;
mod ssh_server;
mod windows;

pub use leftovers::{
    domains_of, end_machines_of, kill_qemu_of, leftovers, processes_with, qemu_processes_of, virsh,
};
pub use libvirt::Libvirt;
pub use platforms::{Marker, Platforms};
pub use proxy::Proxy;
pub use small_disk::SmallDisk;
pub use ssh_server::{SshServer, ssh};
pub use windows::WindowsMachine;

use nix::unistd::Uid;
use std::path::PathBuf;

/// Where `images/build` puts images by default.
pub fn images_folder() -> PathBuf {
    if let Some(folder) = std::env::var_os("VIVARIUM_IMAGES") {
        return folder.into();
    }
    if Uid::effective().is_root() {
        return "/var/cache/vivarium/images".into();
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache"),
        PathBuf::from,
    );
    cache.join("vivarium/images")
}

/// The libvirt that scenarios use: `$VIVARIUM_LIBVIRT_URI`, or the system's for root and the user's own for others.
pub fn hypervisor_uri() -> String {
    std::env::var("VIVARIUM_LIBVIRT_URI").unwrap_or_else(|_| {
        if Uid::effective().is_root() {
            "qemu:///system".to_owned()
        } else {
            "qemu:///session".to_owned()
        }
    })
}

/// Whether scenarios with guests run here. They do unless `VIVARIUM_WITHOUT_GUESTS` gives a reason, which is printed.
pub fn guests_run_here() -> bool {
    match std::env::var("VIVARIUM_WITHOUT_GUESTS") {
        Ok(reason) if !reason.is_empty() => {
            eprintln!("skipped, without guests: {reason}");
            false
        }
        _ => true,
    }
}
