//! Whether guests run on the processor itself or are translated, decided once from what the host shows.
//!
//! The device file alone proves nothing: in some virtual machines `/dev/kvm` opens and even makes a VM, but the
//! processor lacks the extension and the guest hangs; libvirt's capabilities list `kvm` there as well.

use super::confinement::QemuUser;
use std::fs::OpenOptions;
use std::io::ErrorKind;

/// What the configuration asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Acceleration {
    /// KVM where the processor and the device allow it.
    #[default]
    Auto,
    Kvm,
    Tcg,
}

/// What guests run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    Kvm,
    /// QEMU's translator: works everywhere, several times slower.
    Tcg,
}

impl Accelerator {
    pub fn as_str(self) -> &'static str {
        match self {
            Accelerator::Kvm => "kvm",
            Accelerator::Tcg => "tcg",
        }
    }
}

/// `/dev/kvm` as this process finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KvmDevice {
    Opens,
    /// It is there, for other users.
    Denied,
    Missing,
}

impl KvmDevice {
    pub(super) fn find() -> KvmDevice {
        match OpenOptions::new().read(true).write(true).open("/dev/kvm") {
            Ok(_) => KvmDevice::Opens,
            Err(error) if error.kind() == ErrorKind::PermissionDenied => KvmDevice::Denied,
            Err(_) => KvmDevice::Missing,
        }
    }
}

/// The accelerator, and the reason for it as a clause for logs.
pub(super) fn decide(
    wanted: Acceleration,
    architecture: &str,
    cpuinfo: &str,
    device: KvmDevice,
    user: QemuUser,
) -> (Accelerator, String) {
    match wanted {
        Acceleration::Kvm => return (Accelerator::Kvm, "the configuration asks for it".into()),
        Acceleration::Tcg => return (Accelerator::Tcg, "the configuration asks for it".into()),
        Acceleration::Auto => {}
    }
    // Other architectures do not announce it in cpuinfo; there the device file is all there is to see.
    if architecture == "x86_64" && !has_virtualization_flag(cpuinfo) {
        return (
            Accelerator::Tcg,
            "the processor shows neither `vmx` nor `svm` in /proc/cpuinfo".into(),
        );
    }
    match (device, user) {
        (KvmDevice::Opens, QemuUser::Ours | QemuUser::Libvirts(_) | QemuUser::Root) => {
            (Accelerator::Kvm, "/dev/kvm opens".into())
        }
        (KvmDevice::Denied, QemuUser::Libvirts(_) | QemuUser::Root) => (
            Accelerator::Kvm,
            "/dev/kvm is there, and QEMU's own user opens it".into(),
        ),
        (KvmDevice::Denied, QemuUser::Ours) => (
            Accelerator::Tcg,
            "/dev/kvm may not be opened by this user (hint: add the user to the group `kvm`)"
                .into(),
        ),
        (KvmDevice::Missing, QemuUser::Ours | QemuUser::Libvirts(_) | QemuUser::Root) => (
            Accelerator::Tcg,
            "/dev/kvm does not open (hint: load the module kvm_intel or kvm_amd)".into(),
        ),
    }
}

fn has_virtualization_flag(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(key, _)| key.trim() == "flags")
        .flat_map(|(_, flags)| flags.split_whitespace())
        .any(|flag| flag == "vmx" || flag == "svm")
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: &str = "processor\t: 0\nmodel name\t: vmx svm\nflags\t\t: fpu sse svm_lock avx\n";
    const INTEL: &str = "processor\t: 0\nflags\t\t: fpu vmx sse\nbugs\t\t: itlb\n";
    const AMD: &str = "processor\t: 0\nflags\t\t: fpu sse svm\n";

    fn auto(cpuinfo: &str, device: KvmDevice, user: QemuUser) -> Accelerator {
        decide(Acceleration::Auto, "x86_64", cpuinfo, device, user).0
    }

    #[test]
    fn a_device_without_the_processor_flag_is_not_believed() {
        let (accelerator, why) = decide(
            Acceleration::Auto,
            "x86_64",
            PLAIN,
            KvmDevice::Opens,
            QemuUser::Libvirts(64055),
        );
        assert_eq!(accelerator, Accelerator::Tcg);
        assert!(why.contains("/proc/cpuinfo"), "{why}");
    }

    #[test]
    fn flag_and_device_together_mean_kvm() {
        for cpuinfo in [INTEL, AMD] {
            assert_eq!(
                auto(cpuinfo, KvmDevice::Opens, QemuUser::Ours),
                Accelerator::Kvm
            );
            assert_eq!(
                auto(cpuinfo, KvmDevice::Missing, QemuUser::Libvirts(64055)),
                Accelerator::Tcg
            );
        }
    }

    #[test]
    fn a_device_closed_to_us_matters_only_where_qemu_runs_as_us() {
        assert_eq!(
            auto(INTEL, KvmDevice::Denied, QemuUser::Ours),
            Accelerator::Tcg
        );
        assert_eq!(
            auto(INTEL, KvmDevice::Denied, QemuUser::Libvirts(64055)),
            Accelerator::Kvm
        );
    }

    #[test]
    fn the_configuration_has_the_last_word() {
        for (wanted, expected) in [
            (Acceleration::Kvm, Accelerator::Kvm),
            (Acceleration::Tcg, Accelerator::Tcg),
        ] {
            let (accelerator, _) =
                decide(wanted, "x86_64", PLAIN, KvmDevice::Missing, QemuUser::Ours);
            assert_eq!(accelerator, expected);
        }
    }
}
