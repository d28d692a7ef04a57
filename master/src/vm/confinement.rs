//! What holds a guest that got the better of its QEMU: the user that QEMU runs as, and what the host gives to it at most.
//!
//! ```text
//!  libvirt's capabilities ─► QemuUser        memory, processors of the platform ─► Bounds ─► cgroup of one QEMU
//! ```
//!
//! The third wall, QEMU's own sandbox, is libvirt's to switch on, and does by default.

use super::Accelerator;

/// What QEMU takes beside the guest's memory: its devices, its threads, and the overlay's pages that wait for the disk.
/// Far more than the 100 to 200 MiB measured; a bound that a good guest meets would kill it.
const QEMU_MIB: u64 = 1024;
/// QEMU's translator keeps translated code in up to 1 GiB.
const TRANSLATOR_MIB: u64 = 1024;

/// Who runs QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QemuUser {
    /// The master's own user.
    Ours,
    /// A user that libvirt keeps for it, by its number.
    Libvirts(u32),
    Root,
}

impl QemuUser {
    /// From libvirt's capabilities: each security model in use is an element, and `dac` is the one that changes owners.
    pub(super) fn of(capabilities: &str) -> QemuUser {
        let Some((_, dac)) = capabilities.split_once("<model>dac</model>") else {
            return QemuUser::Ours;
        };
        let dac = dac.split("</secmodel>").next().unwrap_or_default();
        // `+64055:+64055`, one label for each kind of domain.
        let label = dac
            .split_once("<baselabel type='qemu'>")
            .map(|(_, label)| label.trim_start_matches('+'));
        let number = label
            .and_then(|label| label.split([':', '<']).next())
            .and_then(|number| number.parse().ok());
        match number {
            Some(0) | None => QemuUser::Root,
            Some(number) => QemuUser::Libvirts(number),
        }
    }

    /// Whether libvirt hands files to that user, and may use the host's cgroups.
    pub(super) fn is_libvirts(self) -> bool {
        match self {
            QemuUser::Ours => false,
            QemuUser::Libvirts(_) | QemuUser::Root => true,
        }
    }
}

/// What one QEMU may take of the host, whatever it wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bounds {
    pub(super) memory_mib: u64,
    /// Its own threads have one processor beside the guest's.
    pub(super) processors: u32,
}

impl Bounds {
    pub(super) fn of(memory_mib: u64, vcpus: u32, accelerator: Accelerator) -> Bounds {
        let translator = match accelerator {
            Accelerator::Kvm => 0,
            Accelerator::Tcg => TRANSLATOR_MIB,
        };
        Bounds {
            memory_mib: memory_mib + QEMU_MIB + translator,
            processors: vcpus + 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capabilities(label: &str) -> String {
        format!(
            "<host><secmodel><model>none</model><doi>0</doi></secmodel>\n<secmodel>\n<model>dac</model>\n<doi>0</doi>\n\
             <baselabel type='kvm'>+1:+1</baselabel>\n<baselabel type='qemu'>{label}</baselabel>\n</secmodel></host>"
        )
    }

    #[test]
    fn libvirt_tells_as_whom_it_runs_qemu() {
        let user = |label| QemuUser::of(&capabilities(label));
        assert_eq!(user("+64055:+64055"), QemuUser::Libvirts(64055));
        assert_eq!(user("+0:+0"), QemuUser::Root);
        let session = "<host><secmodel><model>none</model><doi>0</doi></secmodel></host>";
        assert_eq!(QemuUser::of(session), QemuUser::Ours);
    }

    #[test]
    fn qemu_has_room_beside_its_guest() {
        let bounds = |accelerator| Bounds::of(512, 2, accelerator);
        assert_eq!(bounds(Accelerator::Kvm).memory_mib, 512 + 1024);
        assert_eq!(bounds(Accelerator::Tcg).memory_mib, 512 + 2048);
        assert_eq!(bounds(Accelerator::Kvm).processors, 3);
    }
}
