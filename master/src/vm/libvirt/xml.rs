//! A machine as libvirt's XML, and our mark in it.

use crate::model::{AttemptId, KernelSpec, Network};
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
    /// libvirt gives files to QEMU's user (its security model `dac` is in use).
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
    // Translated guests run anywhere; KVM is for the host's own architecture.
    let accelerator = match around.accelerator {
        Accelerator::Kvm if spec.arch.as_str() == std::env::consts::ARCH => Accelerator::Kvm,
        Accelerator::Kvm | Accelerator::Tcg => Accelerator::Tcg,
    };
    let (domain_type, cpu_mode) = match accelerator {
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

    let console = text(&spec.console)?;

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
                kernel,
                disk,
                owner_labels => around.owner_labels,
                open_network,
                libvirt_network,
                console,
            })
        })
        .map_err(|error| failed(&error))
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
