//! A machine as libvirt's XML, and our mark in it.

use crate::model::{
    Architecture, AttemptId, DiskBus, Firmware, KernelSpec, Network, NetworkDevice,
};
use crate::vm::hypervisor::MachineSpec;
use crate::vm::{Accelerator, VmError};
use minijinja::{Environment, context};
use quick_xml::XmlVersion;
use quick_xml::events::Event;
use std::path::Path;

/// Namespace of our element in a domain's metadata.
pub(super) const MARK_URI: &str = "urn:vivarium:vm";

/// What the host adds to a machine's own description.
#[derive(Debug, Clone)]
pub(super) struct Surroundings {
    pub(super) installation: String,
    pub(super) accelerator: Accelerator,
    /// libvirt gives files to QEMU's user.
    pub(super) owner_labels: bool,
}

impl Surroundings {
    pub(super) fn domain_name(&self, attempt: AttemptId) -> String {
        format!("{}{attempt}", self.name_prefix())
    }

    pub(super) fn name_prefix(&self) -> String {
        let short: String = self
            .installation
            .chars()
            .filter(char::is_ascii_alphanumeric)
            .take(8)
            .collect();
        format!("vivarium-{}-", short.to_ascii_lowercase())
    }

    /// Translated guests run anywhere; KVM is for the host's own architecture.
    pub(super) fn accelerator_of(&self, spec: &MachineSpec) -> Accelerator {
        match self.accelerator {
            Accelerator::Kvm if spec.arch.as_str() == std::env::consts::ARCH => Accelerator::Kvm,
            Accelerator::Kvm | Accelerator::Tcg => Accelerator::Tcg,
        }
    }
}

pub(super) fn render(spec: &MachineSpec, around: &Surroundings) -> Result<String, VmError> {
    let failed = |why: &dyn std::fmt::Display| {
        VmError::host(format!("describe {} to libvirt", spec.attempt), why)
    };
    let text = |path: &Path| {
        path.to_str()
            .map(str::to_owned)
            .ok_or_else(|| failed(&format_args!("{} is not UTF-8", path.display())))
    };
    let (domain_type, cpu_mode) = match around.accelerator_of(spec) {
        Accelerator::Kvm => ("kvm", "host-passthrough"),
        Accelerator::Tcg => ("qemu", "maximum"),
    };
    let (open_network, libvirt_network) = match &spec.network {
        Network::Closed => (false, None),
        Network::Internet => (true, None),
        Network::LibvirtNetwork(name) => (false, Some(name)),
    };
    let kernel = match &spec.kernel {
        Some(KernelSpec {
            path,
            initrd,
            cmdline,
        }) => Some(context! {
            path => text(path)?,
            initrd => initrd.as_deref().map(text).transpose()?,
            cmdline,
        }),
        None => None,
    };
    let disk = match &spec.disk {
        Some(disk) => {
            let backing = disk
                .backing
                .iter()
                .map(|image| {
                    Ok(context! { path => text(&image.path)?, format => image.format.as_str() })
                })
                .collect::<Result<Vec<_>, VmError>>()?;
            Some(context! { overlay => text(&disk.path)?, backing })
        }
        None => None,
    };

    let uefi = match spec.firmware {
        Firmware::Bios => None,
        Firmware::Uefi => Some("yes"),
        Firmware::UefiWithoutSecureBoot => Some("no"),
    };
    let uefi = match uefi {
        Some(secure) => Some(context! { secure, variables => text(&spec.firmware_variables)? }),
        None => None,
    };
    let console = text(&spec.console)?;
    let seed = spec.seed.as_deref().map(text).transpose()?;

    let mut environment = Environment::new();
    environment.set_undefined_behavior(minijinja::UndefinedBehavior::SemiStrict);
    // The name's ending turns XML escaping on.
    environment
        .add_template("domain.xml", include_str!("domain.xml.j2"))
        .map_err(|error| failed(&error))?;
    environment
        .get_template("domain.xml")
        .and_then(|template| {
            template.render(context! {
                domain_type,
                cpu_mode,
                name => around.domain_name(spec.attempt),
                mark_uri => MARK_URI,
                installation => around.installation,
                attempt => spec.attempt.0,
                ssh_port => spec.ssh_port,
                guest_port => spec.guest_port,
                memory_mib => spec.memory_mib,
                vcpus => spec.vcpus,
                arch => spec.arch.as_str(),
                machine => spec.machine,
                uefi,
                cpu_model => spec.cpu_model,
                clock => spec.clock.as_str(),
                video => spec.display.then(|| video(spec.arch)),
                kernel,
                disk,
                bus => bus(spec.disk_bus),
                seed,
                network_device => spec.network_device.as_str(),
                qemu_device => qemu_device(spec.network_device),
                macs => context! { ssh => spec.macs.ssh, network => spec.macs.network },
                owner_labels => around.owner_labels,
                open_network,
                libvirt_network,
                console,
            })
        })
        .map_err(|error| failed(&error))
}

/// How libvirt names a bus and the two disks on it. A seed is a CD where the bus knows CDs: that is where most guests
/// look; all that know virtio look at any disk.
fn bus(bus: DiskBus) -> minijinja::Value {
    let (name, first, second, seed_device) = match bus {
        DiskBus::VirtioBlk => ("virtio", "vda", "vdb", "disk"),
        DiskBus::VirtioScsi => ("scsi", "sda", "sdb", "cdrom"),
        DiskBus::Sata => ("sata", "sda", "sdb", "cdrom"),
        DiskBus::Ide => ("ide", "hda", "hdc", "cdrom"),
    };
    let controller = (bus == DiskBus::VirtioScsi).then_some("virtio-scsi");
    context! { name, first, second, seed_device, controller }
}

/// The graphics card that firmware, boot loaders and systems of the architecture know.
fn video(arch: Architecture) -> &'static str {
    match arch {
        Architecture::X86_64 => "vga",
        Architecture::Aarch64 => "virtio",
    }
}

/// QEMU's own name of a card for PCI.
fn qemu_device(device: NetworkDevice) -> &'static str {
    match device {
        NetworkDevice::Virtio => "virtio-net-pci",
        NetworkDevice::E1000 | NetworkDevice::E1000e | NetworkDevice::Rtl8139 => device.as_str(),
    }
}

/// Our element of a domain's metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) installation: String,
    pub(super) attempt: AttemptId,
    pub(super) ssh_port: u16,
}

impl Mark {
    /// Reads the element as libvirt returns it; `None` for anything else.
    pub(super) fn parse(xml: &str) -> Option<Mark> {
        let mut reader = quick_xml::Reader::from_str(xml);
        loop {
            let element = match reader.read_event().ok()? {
                Event::Start(element) | Event::Empty(element) => element,
                Event::Eof => return None,
                _ => continue,
            };
            let attribute = |name: &str| {
                element
                    .try_get_attribute(name)
                    .ok()
                    .flatten()
                    .and_then(|attribute| attribute.normalized_value(XmlVersion::Implicit1_0).ok())
                    .map(|value| value.into_owned())
            };
            return Some(Mark {
                installation: attribute("installation")?,
                attempt: AttemptId(attribute("attempt")?.parse().ok()?),
                ssh_port: attribute("ssh_port")?.parse().ok()?,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ClockOffset, DiskFormat};
    use crate::vm::hypervisor::{BackingImage, Macs, OverlaySpec};

    fn around(accelerator: Accelerator) -> Surroundings {
        Surroundings {
            installation: "0C1d2e3f-aaaa-bbbb".into(),
            accelerator,
            owner_labels: true,
        }
    }

    fn spec(network: Network) -> MachineSpec {
        MachineSpec {
            attempt: AttemptId(17),
            arch: Architecture::X86_64,
            machine: "q35".into(),
            firmware: Firmware::Bios,
            firmware_variables: "/vms/vm-17/variables".into(),
            cpu_model: None,
            memory_mib: 384,
            vcpus: 2,
            kernel: Some(KernelSpec {
                path: "/vms/vm-17/kernel".into(),
                initrd: Some("/vms/vm-17/initrd".into()),
                cmdline: "console=ttyS0 a=\"<&>'\"".into(),
            }),
            disk: Some(OverlaySpec {
                path: "/vms/vm-17/overlay.qcow2".into(),
                backing: vec![
                    BackingImage {
                        path: "/images/R&D/disk.qcow2".into(),
                        format: DiskFormat::Qcow2,
                    },
                    BackingImage {
                        path: "/images/R&D/base.raw".into(),
                        format: DiskFormat::Raw,
                    },
                ],
            }),
            disk_bus: DiskBus::VirtioBlk,
            seed: None,
            network,
            network_device: NetworkDevice::Virtio,
            macs: Macs::new(),
            clock: ClockOffset::Utc,
            display: false,
            console: "/vms/vm-17/console.log".into(),
            ssh_port: 40_022,
            guest_port: 22,
        }
    }

    fn rendered(spec: &MachineSpec, accelerator: Accelerator) -> String {
        render(spec, &around(accelerator)).expect("rendered")
    }

    /// The schema that libvirt installs; it knows every element and its place.
    fn assert_valid(xml: &str) {
        use std::process::Command;
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), xml).expect("written");
        match Command::new("virt-xml-validate")
            .arg(file.path())
            .arg("domain")
            .output()
        {
            // The shell's word for a missing program, here xmllint.
            Ok(output) if output.status.code() == Some(127) => eprintln!(
                "skipped: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            ),
            Ok(output) => assert!(
                output.status.success(),
                "{}\n{xml}",
                String::from_utf8_lossy(&output.stderr)
            ),
            Err(error) => eprintln!("skipped: virt-xml-validate does not run: {error}"),
        }
    }

    #[test]
    fn every_kind_of_machine_is_valid_to_libvirt() {
        let full = spec(Network::Closed);
        let mut diskless = spec(Network::Internet);
        diskless.disk = None;
        let mut without_kernel = spec(Network::LibvirtNetwork("lab".into()));
        without_kernel.kernel = None;
        let mut arm = spec(Network::Closed);
        arm.arch = Architecture::Aarch64;
        arm.machine = "virt".into();
        let mut all = vec![full, diskless, without_kernel, arm];
        for arch in Architecture::ALL {
            let mut shown = spec(Network::Closed);
            shown.arch = arch;
            shown.display = true;
            all.push(shown);
        }
        for firmware in [Firmware::Uefi, Firmware::UefiWithoutSecureBoot] {
            let mut uefi = spec(Network::Closed);
            (uefi.kernel, uefi.firmware) = (None, firmware);
            uefi.cpu_model = Some("Nehalem".into());
            uefi.clock = ClockOffset::Localtime;
            all.push(uefi);
        }
        for bus in [
            DiskBus::VirtioBlk,
            DiskBus::VirtioScsi,
            DiskBus::Sata,
            DiskBus::Ide,
        ] {
            let mut seeded = spec(Network::LibvirtNetwork("lab".into()));
            seeded.seed = Some("/vms/vm-17/seed.iso".into());
            seeded.disk_bus = bus;
            seeded.network_device = NetworkDevice::E1000;
            all.push(seeded);
        }
        for spec in all {
            for accelerator in [Accelerator::Kvm, Accelerator::Tcg] {
                assert_valid(&rendered(&spec, accelerator));
            }
        }
    }

    #[test]
    fn each_key_of_a_platform_is_in_its_machine() {
        let bios = rendered(&spec(Network::Closed), Accelerator::Tcg);
        for absent in [
            "<firmware>",
            "<nvram>",
            "<smm",
            "cdrom",
            "<model",
            "<video>",
        ] {
            assert!(!bios.contains(absent), "{absent}: {bios}");
        }
        assert!(bios.contains("<clock offset=\"utc\"/>"), "{bios}");
        assert!(bios.contains("virtio-net-pci,netdev=n0,"), "{bios}");
        assert!(bios.contains("<target dev=\"vda\" bus=\"virtio\"/>"));

        let mut other = spec(Network::LibvirtNetwork("lab".into()));
        other.firmware = Firmware::Uefi;
        other.cpu_model = Some("Nehalem".into());
        other.clock = ClockOffset::Localtime;
        other.display = true;
        other.disk_bus = DiskBus::VirtioScsi;
        other.network_device = NetworkDevice::Rtl8139;
        other.seed = Some("/vms/vm-17/seed.iso".into());
        // As a reader of XML sees it.
        let xml = rendered(&other, Accelerator::Tcg).replace("&#x2f;", "/");
        let lab_card = format!("<mac address=\"{}\"/>", other.macs.network);
        for present in [
            "<os firmware=\"efi\">",
            "<feature enabled=\"yes\" name=\"secure-boot\"/>",
            "<nvram>/vms/vm-17/variables</nvram>",
            "<smm state=\"on\"/>",
            "<video><model type=\"vga\"/></video>",
            "<model fallback=\"forbid\">Nehalem</model>",
            "<clock offset=\"localtime\"/>",
            "<target dev=\"sda\" bus=\"scsi\"/>",
            "<controller type=\"scsi\" model=\"virtio-scsi\"/>",
            "<source file=\"/vms/vm-17/seed.iso\"/>",
            "rtl8139,netdev=n0,mac=52:54:00:12:34:56,",
            "<model type=\"rtl8139\"/>",
            &lab_card,
        ] {
            assert!(xml.contains(present), "{present}: {xml}");
        }
        other.firmware = Firmware::UefiWithoutSecureBoot;
        let xml = rendered(&other, Accelerator::Tcg);
        assert!(xml.contains("enabled=\"no\" name=\"secure-boot\""), "{xml}");
        assert!(!xml.contains("<smm"), "{xml}");
    }

    #[test]
    fn text_of_a_platform_cannot_become_markup() {
        let xml = rendered(&spec(Network::Closed), Accelerator::Tcg);
        assert!(!xml.contains("<&>"), "{xml}");
        assert!(xml.contains("R&amp;D"), "{xml}");
    }

    #[test]
    fn the_network_is_closed_unless_it_is_opened() {
        for (network, restrict) in [
            (Network::Closed, "restrict=on"),
            (Network::Internet, "restrict=off"),
            (Network::LibvirtNetwork("lab".into()), "restrict=on"),
        ] {
            let is_open = network == Network::Internet;
            let xml = rendered(&spec(network), Accelerator::Tcg);
            assert!(xml.contains(restrict), "{xml}");
            assert_eq!(!xml.contains("ipv6=off"), is_open, "{xml}");
            assert!(xml.contains("hostfwd=tcp:127.0.0.1:40022-:22"), "{xml}");
        }
    }

    #[test]
    fn kvm_is_for_the_hosts_own_architecture() {
        let own = rendered(&spec(Network::Closed), Accelerator::Kvm);
        let mut foreign = spec(Network::Closed);
        foreign.arch = match std::env::consts::ARCH {
            "aarch64" => Architecture::X86_64,
            _ => Architecture::Aarch64,
        };
        let foreign = rendered(&foreign, Accelerator::Kvm);
        assert_eq!(
            own.contains("type=\"kvm\""),
            std::env::consts::ARCH == "x86_64"
        );
        assert!(foreign.contains("type=\"qemu\""), "{foreign}");
    }

    #[test]
    fn our_mark_is_read_back_and_a_strangers_is_not() {
        let xml = rendered(&spec(Network::Closed), Accelerator::Tcg);
        let start = xml.find("<vivarium:vm").expect("our element");
        let end = xml.find("</metadata>").expect("its end");
        assert_eq!(
            Mark::parse(&xml[start..end]),
            Some(Mark {
                installation: "0C1d2e3f-aaaa-bbbb".into(),
                attempt: AttemptId(17),
                ssh_port: 40_022
            })
        );
        assert_eq!(Mark::parse("<other attempt='17'/>"), None);
        assert_eq!(Mark::parse("<vm attempt='"), None);
        assert_eq!(
            around(Accelerator::Tcg).domain_name(AttemptId(17)),
            "vivarium-0c1d2e3f-vm-17"
        );
    }
}
