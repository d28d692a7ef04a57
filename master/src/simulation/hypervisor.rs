//! libvirt and QEMU: machines that boot, do not boot, die, and are never more than the host has room for.

use super::guest::{Boot, Guest};
use super::plan::PLATFORMS;
use super::trouble::Outage;
use super::world::{Moment, World};
use crate::model::AttemptId;
use crate::vm::hypervisor::{CreateError, HostCapacity, Hypervisor, Life, MachineSpec, Seen};
use crate::vm::{Accelerator, QemuUser, VmError};
use futures::FutureExt;
use futures::future::BoxFuture;
use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

pub(super) const MARKER: &str = "alpha is ready";

#[derive(Debug)]
pub(super) struct Host(pub(super) Arc<World>);

impl Host {
    async fn asked(&self, what: &str, attempt: i64) -> Result<(), VmError> {
        self.0.takes("hypervisor", attempt, 40).await;
        let percent = self.0.plan.faults.hypervisor_fails;
        if self.0.is_out(Outage::Hypervisor) || self.0.breaks(percent, "hypervisor", attempt) {
            return Err(VmError::host(what, "the hypervisor does not answer"));
        }
        Ok(())
    }

    async fn make(&self, spec: &MachineSpec) -> Result<(), CreateError> {
        let world = &self.0;
        let (faults, number) = (&world.plan.faults, spec.attempt.0);
        let failed = |why: &str| VmError::host(format!("start {}", spec.attempt), why);
        self.asked("start a machine", number)
            .await
            .map_err(CreateError::Other)?;
        if world.breaks(faults.port_taken, "create", number) {
            return Err(CreateError::PortTaken(failed("the port is taken")));
        }
        if world.breaks(faults.create_fails, "create", number) {
            return Err(CreateError::Other(failed("no memory")));
        }
        let now = world.now();
        let boots_in = Duration::from_millis(world.draw("create", number, |r| r.between(20, 300)));
        let boot = if world.breaks(faults.never_boots, "create", number) {
            Boot::Never
        } else {
            Boot::Until(now + boots_in)
        };
        let mut guest = Guest::new(spec, boot);
        if world.breaks(faults.dies_booting, "create", number) {
            guest.dies_at = Some(now + boots_in / 2);
        }
        world.note("host", format_args!("{} starts", spec.attempt));
        {
            let mut state = world.state();
            let before = state.guests.get(&spec.attempt);
            if before.is_some_and(|before| !before.is_cleared(now)) {
                drop(state);
                world.violated(format_args!("{} is started twice", spec.attempt));
                return Err(CreateError::Other(failed("it is there already")));
            }
            state.guests.insert(spec.attempt, guest);
        }
        self.check_room();
        if world.breaks(faults.create_fails_after_all, "create", number) {
            return Err(CreateError::Other(failed("the answer was lost")));
        }
        Ok(())
    }

    /// What runs fits into what the master was given, and into each platform's limit.
    fn check_room(&self) {
        let capacity = self.0.plan.capacity;
        let mut running: BTreeMap<u64, Vec<AttemptId>> = BTreeMap::new();
        for (id, guest) in &self.0.state().guests {
            if guest.is_alive() {
                running.entry(guest.memory_mib).or_default().push(*id);
            }
        }
        let (mut memory, mut vcpus) = (0, 0);
        for platform in PLATFORMS {
            let of_it = running.remove(&platform.memory_mib).unwrap_or_default();
            memory += platform.memory_mib * of_it.len() as u64;
            vcpus += platform.vcpus * of_it.len() as u32;
            if of_it.len() > platform.limit as usize {
                let what = format!("more of {} than its limit: {of_it:?}", platform.name);
                self.0.violated(what);
            }
        }
        if memory > capacity.memory_mib || vcpus > capacity.vcpus {
            let what = format!("{memory} MiB and {vcpus} processors run, on {capacity:?}");
            self.0.violated(what);
        }
    }

    fn look(&self, attempt: AttemptId) -> Option<Seen> {
        let now = self.0.now();
        let mut state = self.0.state();
        let guest = state.guests.get_mut(&attempt)?;
        guest.live_until(now);
        let life = match guest.death.as_ref() {
            None => Life::Running,
            // libvirt clears up after it.
            Some(_) if !guest.is_cleared(now) => Life::Ending,
            Some(_) => return None,
        };
        Some(Seen {
            attempt,
            ssh_port: guest.ssh_port,
            life,
        })
    }

    async fn end(&self, attempt: AttemptId) -> Result<(), VmError> {
        let world = &self.0;
        self.asked("destroy a machine", attempt.0).await?;
        if world.breaks(world.plan.faults.destroy_fails, "destroy", attempt.0) {
            return Err(VmError::host(format!("destroy {attempt}"), "it is busy"));
        }
        if let Some(mut guest) = world.state().guests.remove(&attempt) {
            guest.drop_connections();
        }
        world.note("host", format_args!("{attempt} is destroyed"));
        Ok(())
    }
}

impl Hypervisor for Host {
    fn accelerator(&self) -> Accelerator {
        Accelerator::Kvm
    }

    fn accelerator_why(&self) -> &str {
        "nothing is real"
    }

    fn qemu_user(&self) -> QemuUser {
        QemuUser::Ours
    }

    fn create<'a>(&'a self, spec: &'a MachineSpec) -> BoxFuture<'a, Result<(), CreateError>> {
        self.make(spec).boxed()
    }

    fn find(&self, attempt: AttemptId) -> BoxFuture<'_, Result<Option<Seen>, VmError>> {
        async move {
            self.asked("look for a machine", attempt.0).await?;
            Ok(self.look(attempt))
        }
        .boxed()
    }

    fn destroy(&self, attempt: AttemptId) -> BoxFuture<'_, Result<(), VmError>> {
        self.end(attempt).boxed()
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<Seen>, VmError>> {
        async move {
            self.asked("list machines", 0).await?;
            let all: Vec<AttemptId> = self.0.state().guests.keys().copied().collect();
            Ok(all.into_iter().filter_map(|id| self.look(id)).collect())
        }
        .boxed()
    }

    fn how_it_ended(&self, attempt: AttemptId) -> BoxFuture<'_, String> {
        async move {
            self.0.takes("hypervisor", attempt.0, 10).await;
            let state = self.0.state();
            match state
                .guests
                .get(&attempt)
                .and_then(|guest| guest.death.as_ref())
            {
                Some(death) => death.why.to_owned(),
                None => "it is not there".to_owned(),
            }
        }
        .boxed()
    }

    fn screenshot(&self, _attempt: AttemptId) -> BoxFuture<'_, Result<Option<Vec<u8>>, VmError>> {
        std::future::ready(Ok(None)).boxed()
    }

    fn own_log(&self, _attempt: AttemptId) -> BoxFuture<'_, String> {
        std::future::ready(String::new()).boxed()
    }

    fn capacity(&self) -> BoxFuture<'_, Result<HostCapacity, VmError>> {
        let capacity = HostCapacity {
            memory_mib: self.0.plan.capacity.memory_mib,
            vcpus: self.0.plan.capacity.vcpus,
        };
        std::future::ready(Ok(capacity)).boxed()
    }
}

/// Writes the consoles of guests that have booted; tells when the next one will have.
pub(super) fn write_consoles(world: &World) -> Option<Moment> {
    let now = world.now();
    let mut next: Option<Moment> = None;
    let mut state = world.state();
    for guest in state.guests.values_mut() {
        guest.live_until(now);
        let boots_at = guest.boots_at().filter(|at| *at > now);
        next = [next, boots_at].into_iter().flatten().min();
        if guest.is_alive() && guest.has_booted(now) && !guest.console_written {
            guest.console_written = true;
            // Gone with the folder when its attempt has ended.
            if let Ok(mut console) = std::fs::File::options().append(true).open(&guest.console) {
                writeln!(console, "booting\n{MARKER}").expect("written");
            }
        }
    }
    next
}
