//! Machines as libvirt's domains.
//!
//! ```text
//! MachineSpec ─ xml ─► domain ─► Seen       calls: [link]     how a domain ended: [log]
//! ```
//!
//! Domains are transient (gone when they end), outlive this process, and bear our mark in their metadata: installation,
//! attempt and SSH port. Nothing about them is kept here; each question is asked of libvirt.

mod link;
mod log;
mod xml;

use super::accelerator::{self, Acceleration, Accelerator, KvmDevice};
use super::confinement::{Bounds, QemuUser};
use super::hypervisor::{CreateError, HostCapacity, Hypervisor, Life, MachineSpec, Seen};
use super::{VmError, blocking, folder, screenshot};
use crate::model::AttemptId;
use futures::FutureExt;
use futures::future::BoxFuture;
use link::{Link, LinkError, Try};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use virt::connect::Connect;
use virt::domain::{
    Domain, DomainPausedReason, DomainState, DomainStateEnum, DomainStateReason,
    DomainStateReasonEnum, MemoryParameters, SchedBandwidth, SchedulerInfo,
};
use virt::enumutil::Enum;
use virt::error::{Error, ErrorNumber};
use virt::stream::Stream;
use virt::sys;
use xml::{MARK_URI, Mark, Surroundings};

/// A look at libvirt takes milliseconds; right after libvirtd was started it takes seconds.
const LOOK_DEADLINE: Duration = Duration::from_secs(30);
/// libvirt probes QEMU anew at a start when its cache is stale: 8 s measured. Longer than its own patience (30 s) for
/// QEMU's monitor.
const CREATE_DEADLINE: Duration = Duration::from_secs(90);
/// libvirt itself gives up on a QEMU that does not die after 10 s of TERM and 30 s of KILL.
const DESTROY_DEADLINE: Duration = Duration::from_secs(60);

/// The time over which processor time is counted.
const PERIOD_MICROSECONDS: u64 = 100_000;

#[derive(Debug)]
pub(super) struct Libvirt {
    uri: String,
    link: Link,
    around: Surroundings,
    accelerator_why: String,
    qemu_user: QemuUser,
    /// It was told that libvirt cannot bound a QEMU here.
    told_boundless: AtomicBool,
}

impl Libvirt {
    pub(super) async fn open(
        uri: &str,
        installation: &str,
        acceleration: Acceleration,
    ) -> Result<Libvirt, VmError> {
        let what = || format!("connect to libvirt at {uri}");
        let link = Link::new(uri).map_err(|error| VmError::host(what(), error))?;
        let capabilities = link
            .call(LOOK_DEADLINE, |connect, _| connect.capabilities())
            .await
            .map_err(|error| explain(what(), &error))?;
        let qemu_user = QemuUser::of(&capabilities);
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let (accelerator, accelerator_why) = accelerator::decide(
            acceleration,
            std::env::consts::ARCH,
            &cpuinfo,
            KvmDevice::find(),
            qemu_user,
        );
        Ok(Libvirt {
            uri: uri.to_owned(),
            link,
            around: Surroundings {
                installation: installation.to_owned(),
                accelerator,
                owner_labels: qemu_user.is_libvirts(),
            },
            accelerator_why,
            qemu_user,
            told_boundless: AtomicBool::default(),
        })
    }

    fn log_paths(&self, attempt: AttemptId) -> Vec<PathBuf> {
        log::paths(&self.uri, &self.around.domain_name(attempt))
    }

    async fn read_log(&self, attempt: AttemptId, read: fn(&[PathBuf]) -> String) -> String {
        let paths = self.log_paths(attempt);
        tokio::task::spawn_blocking(move || read(&paths))
            .await
            .unwrap_or_else(|error| error.to_string())
    }

    async fn create_domain(&self, spec: &MachineSpec) -> Result<(), CreateError> {
        let xml = xml::render(spec, &self.around).map_err(CreateError::Other)?;
        let name = self.around.domain_name(spec.attempt);
        let accelerator = self.around.accelerator_of(spec);
        // An ordinary user's libvirt uses no cgroups.
        let bounds = match self.qemu_user.is_libvirts() {
            true => Some(Bounds::of(spec.memory_mib, spec.vcpus, accelerator)),
            false => None,
        };
        let bounded = self
            .link
            .call(CREATE_DEADLINE, move |connect, run| {
                let there = match run {
                    Try::First => None,
                    Try::AfterReconnect => lookup(connect, &name)?,
                };
                let domain = match there {
                    Some(domain) => domain,
                    None => connect.create_domain_xml(&xml, sys::VIR_DOMAIN_NONE)?,
                };
                Ok(bounds.map_or(Ok(()), |bounds| bound(&domain, bounds)))
            })
            .await
            .map_err(|error| {
                let text = error.to_string();
                let mut failure = explain(format!("start {}", spec.attempt), &error);
                if text.contains("Could not set up host forwarding rule") {
                    return CreateError::PortTaken(failure);
                }
                if is_denied(&text)
                    && let Some(hint) = self.access_hint(spec)
                {
                    failure = failure.with_hint(hint);
                }
                CreateError::Other(failure)
            })?;
        if let Err(error) = bounded
            && !self.told_boundless.swap(true, Ordering::Relaxed)
        {
            let why = error.message();
            tracing::warn!(why, "QEMU's memory and processors cannot be bounded here");
        }
        Ok(())
    }

    /// Which of the machine's files QEMU's user most probably cannot reach.
    fn access_hint(&self, spec: &MachineSpec) -> Option<String> {
        let disk = spec.disk.as_ref();
        let backing = disk.into_iter().flat_map(|disk| &disk.backing);
        let mut paths = backing
            .map(|image| &image.path)
            .chain(spec.kernel.as_ref().map(|kernel| &kernel.path));
        let closed = paths.find_map(|path| folder::closed_to_others(path))?;
        let bits = if closed.is_dir() { "o+x" } else { "o+r" };
        Some(format!(
            "QEMU runs as a user of its own under {}; let it in with `chmod {bits} {}`",
            self.uri,
            closed.display()
        ))
    }

    async fn find_domain(&self, attempt: AttemptId) -> Result<Option<Seen>, VmError> {
        let name = self.around.domain_name(attempt);
        let installation = self.around.installation.clone();
        self.link
            .call(LOOK_DEADLINE, move |connect, _| {
                match lookup(connect, &name)? {
                    Some(domain) => see(&domain, &installation),
                    None => Ok(None),
                }
            })
            .await
            .map_err(|error| explain(format!("look for {attempt}"), &error))
    }

    async fn destroy_domain(&self, attempt: AttemptId) -> Result<(), VmError> {
        let name = self.around.domain_name(attempt);
        let installation = self.around.installation.clone();
        self.link
            .call(DESTROY_DEADLINE, move |connect, _| {
                let Some(domain) = lookup(connect, &name)? else {
                    return Ok(());
                };
                match see(&domain, &installation)? {
                    Some(_) => absent_is_fine(domain.destroy(), ()),
                    // Another's domain by the same name stays.
                    None => Ok(()),
                }
            })
            .await
            .map_err(|error| explain(format!("destroy {attempt}"), &error))?;
        log::remove(&self.log_paths(attempt));
        Ok(())
    }

    async fn list_domains(&self) -> Result<Vec<Seen>, VmError> {
        let prefix = self.around.name_prefix();
        let installation = self.around.installation.clone();
        self.link
            .call(LOOK_DEADLINE, move |connect, _| {
                let mut ours = Vec::new();
                for domain in connect.list_all_domains(0)? {
                    if domain.name()?.starts_with(&prefix) {
                        ours.extend(see(&domain, &installation)?);
                    }
                }
                Ok(ours)
            })
            .await
            .map_err(|error| explain("list the VMs".into(), &error))
    }

    async fn take_screenshot(&self, attempt: AttemptId) -> Result<Option<Vec<u8>>, VmError> {
        let what = || format!("take a screenshot of {attempt}");
        let name = self.around.domain_name(attempt);
        let taken = self
            .link
            .call(LOOK_DEADLINE, move |connect, _| {
                match lookup(connect, &name)? {
                    Some(domain) => picture(connect, &domain),
                    None => Ok(None),
                }
            })
            .await
            .map_err(|error| explain(what(), &error))?;
        match taken {
            Some(picture) => blocking(move || screenshot::to_png(&picture))
                .await?
                .map(Some)
                .map_err(|why| VmError::host(what(), why)),
            None => Ok(None),
        }
    }

    async fn read_capacity(&self) -> Result<HostCapacity, VmError> {
        let node = self
            .link
            .call(LOOK_DEADLINE, |connect, _| connect.node_info())
            .await
            .map_err(|error| explain("ask for the host's size".into(), &error))?;
        Ok(HostCapacity {
            memory_mib: node.memory / 1024,
            vcpus: node.cpus,
        })
    }
}

impl Hypervisor for Libvirt {
    fn accelerator(&self) -> Accelerator {
        self.around.accelerator
    }

    fn accelerator_why(&self) -> &str {
        &self.accelerator_why
    }

    fn qemu_user(&self) -> QemuUser {
        self.qemu_user
    }

    fn create<'a>(&'a self, spec: &'a MachineSpec) -> BoxFuture<'a, Result<(), CreateError>> {
        self.create_domain(spec).boxed()
    }

    fn find(&self, attempt: AttemptId) -> BoxFuture<'_, Result<Option<Seen>, VmError>> {
        self.find_domain(attempt).boxed()
    }

    fn destroy(&self, attempt: AttemptId) -> BoxFuture<'_, Result<(), VmError>> {
        self.destroy_domain(attempt).boxed()
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<Seen>, VmError>> {
        self.list_domains().boxed()
    }

    fn how_it_ended(&self, attempt: AttemptId) -> BoxFuture<'_, String> {
        self.read_log(attempt, log::how_it_ended).boxed()
    }

    fn screenshot(&self, attempt: AttemptId) -> BoxFuture<'_, Result<Option<Vec<u8>>, VmError>> {
        self.take_screenshot(attempt).boxed()
    }

    fn own_log(&self, attempt: AttemptId) -> BoxFuture<'_, String> {
        self.read_log(attempt, log::shown).boxed()
    }

    fn capacity(&self) -> BoxFuture<'_, Result<HostCapacity, VmError>> {
        self.read_capacity().boxed()
    }
}

fn lookup(connect: &Connect, name: &str) -> Result<Option<Domain>, Error> {
    absent_is_fine(connect.lookup_domain_by_name(name).map(Some), None)
}

/// What the first display shows, in whatever form QEMU writes it; `None` where the domain has none, or is gone.
fn picture(connect: &Connect, domain: &Domain) -> Result<Option<Vec<u8>>, Error> {
    let stream = Stream::new(connect, 0)?;
    match domain.screenshot(&stream, 0, 0) {
        Ok(_) => {}
        // "no screens to take screenshot from", in two ways.
        Err(error)
            if matches!(
                error.code(),
                Enum::Known(ErrorNumber::OperationInvalid | ErrorNumber::InvalidArg)
            ) =>
        {
            return Ok(None);
        }
        Err(error) => return absent_is_fine(Err(error), None),
    }
    let mut picture = Vec::new();
    let mut piece = vec![0; 64 * 1024];
    loop {
        let read = usize::try_from(stream.recv(&mut piece)?).unwrap_or(0);
        if read == 0 {
            stream.finish()?;
            return Ok(Some(picture));
        }
        picture.extend_from_slice(piece.get(..read).unwrap_or_default());
        if picture.len() > screenshot::MOST_PICTURE_BYTES {
            stream.abort()?;
            return Ok(None);
        }
    }
}

/// Lets the host's cgroups bound what QEMU takes; refused where it has none. Not a part of the description: a memory
/// limit in there also lets QEMU lock that much, which not every libvirtd may allow.
fn bound(domain: &Domain, bounds: Bounds) -> Result<(), Error> {
    let processors = SchedulerInfo {
        global_bw: SchedBandwidth {
            period: Some(PERIOD_MICROSECONDS),
            quota: Some(i64::from(bounds.processors) * PERIOD_MICROSECONDS as i64),
        },
        ..SchedulerInfo::default()
    };
    let memory = MemoryParameters {
        hard_limit: Some(bounds.memory_mib * 1024),
        soft_limit: None,
        min_guarantee: None,
        swap_hard_limit: None,
    };
    // One that ended at once is found gone later.
    absent_is_fine(
        domain.set_memory_parameters(memory, sys::VIR_DOMAIN_AFFECT_LIVE),
        (),
    )?;
    absent_is_fine(
        domain.set_scheduler_parameters_flags(&processors, sys::VIR_DOMAIN_AFFECT_LIVE),
        (),
    )
}

/// Between a look and the act a domain may end, and a transient one is gone then.
fn absent_is_fine<T>(result: Result<T, Error>, absent: T) -> Result<T, Error> {
    match result {
        Err(error) if error.code() == Enum::Known(ErrorNumber::NoDomain) => Ok(absent),
        // "domain is not running": it ended this moment.
        Err(error)
            if error.code() == Enum::Known(ErrorNumber::OperationInvalid)
                && error.message().contains("not running") =>
        {
            Ok(absent)
        }
        other => other,
    }
}

/// The domain as the stage sees it; `None` if it is not ours, or gone meanwhile.
fn see(domain: &Domain, installation: &str) -> Result<Option<Seen>, Error> {
    let metadata = domain.metadata(
        sys::VIR_DOMAIN_METADATA_ELEMENT as i32,
        Some(MARK_URI),
        sys::VIR_DOMAIN_AFFECT_CURRENT,
    );
    let metadata = match metadata {
        Ok(metadata) => metadata,
        Err(error) if error.code() == Enum::Known(ErrorNumber::NoDomainMetadata) => {
            return Ok(None);
        }
        Err(error) => return absent_is_fine(Err(error), None),
    };
    let Some(mark) = Mark::parse(&metadata).filter(|mark| mark.installation == installation) else {
        return Ok(None);
    };
    let (state, reason) = domain.state()?;
    Ok(Some(Seen {
        attempt: mark.attempt,
        ssh_port: mark.ssh_port,
        life: life_of(state, reason),
    }))
}

fn life_of(state: DomainStateEnum, reason: DomainStateReasonEnum) -> Life {
    if let Enum::Known(DomainStateReason::Paused(Enum::Known(DomainPausedReason::IOError))) = reason
    {
        return Life::Ended(
            "its disk failed under it and it was stopped (is the host's disk full?)".into(),
        );
    }
    match state {
        Enum::Known(DomainState::Shutdown | DomainState::Shutoff) => Life::Ending,
        Enum::Known(DomainState::Crashed) => Life::Ended("the guest crashed".into()),
        // Paused: by a person, who will let it go on, or for the moment it is being started.
        Enum::Known(
            DomainState::Running
            | DomainState::Blocked
            | DomainState::Paused
            | DomainState::PMSuspended
            | DomainState::NoState,
        )
        | Enum::Unknown(_) => Life::Running,
    }
}

fn is_denied(text: &str) -> bool {
    text.contains("Permission denied") || text.contains("Cannot access storage file")
}

/// libvirt's words in our sentence, with advice for what a person can mend.
fn explain(what: String, error: &LinkError) -> VmError {
    let text = error.to_string();
    let failure = match error {
        LinkError::Libvirt(_) | LinkError::Ended => VmError::host(what, &text),
        LinkError::Away(_) | LinkError::Deadline(_) | LinkError::Behind => {
            VmError::away(what, &text)
        }
    };
    let advice = [
        (
            "Failed to connect socket",
            "is libvirtd running? `systemctl enable --now libvirtd.socket`, or where there is no systemd \
             `virtlogd -d; libvirtd -d`",
        ),
        (
            "authentication",
            "add the master's user to the group `libvirt` and start the master again",
        ),
        (
            "KVM kernel module",
            "KVM does not work on this host; leave `acceleration` at \"auto\" or set it to \"tcg\"",
        ),
        (
            "annot allocate memory",
            "the host has no memory left for this VM; lower the platform's `memory_mib` or its `limit`",
        ),
        (
            "Network not found",
            "`virsh net-list --all` shows libvirt's networks; the platform names one of them",
        ),
        (
            "unsupported machine type",
            "`qemu-system-x86_64 -machine help` lists the machine types",
        ),
        // libvirt's words for a machine type that it has never heard of.
        (
            "No PCI buses available",
            "does the machine type exist? `qemu-system-x86_64 -machine help` lists them",
        ),
        (
            "does not support machine type",
            "`qemu-system-x86_64 -machine help` lists the machine types",
        ),
    ];
    match advice.into_iter().find(|(sign, _)| text.contains(sign)) {
        Some((_, hint)) => failure.with_hint(hint),
        None => failure,
    }
}
