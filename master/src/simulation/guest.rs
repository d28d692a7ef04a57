//! A machine: how far it has booted, what was sent into it, and what runs there.

use super::program::Run;
use super::world::Moment;
use crate::model::AttemptId;
use crate::vm::hypervisor::MachineSpec;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use vivarium_protocol::Execution;

#[derive(Debug)]
pub(super) struct Guest {
    pub(super) memory_mib: u64,
    pub(super) ssh_port: u16,
    pub(super) console: PathBuf,
    pub(super) console_written: bool,
    boot: Boot,
    pub(super) dies_at: Option<Moment>,
    pub(super) death: Option<Death>,
    /// It neither reads nor writes before that.
    pub(super) deaf_until: Moment,
    pub(super) connections: Vec<CancellationToken>,
    /// The source, once it was unpacked whole.
    pub(super) tree: Option<Vec<u8>>,
    pub(super) files: BTreeMap<String, Vec<u8>>,
    pub(super) runs: BTreeMap<Execution, Run>,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Boot {
    Until(Moment),
    Never,
}

#[derive(Debug)]
pub(super) struct Death {
    pub(super) at: Moment,
    pub(super) why: &'static str,
}

impl Guest {
    pub(super) fn new(spec: &MachineSpec, boot: Boot) -> Guest {
        Guest {
            memory_mib: spec.memory_mib,
            ssh_port: spec.ssh_port,
            console: spec.console.clone(),
            console_written: false,
            boot,
            dies_at: None,
            death: None,
            deaf_until: Moment::ZERO,
            connections: Vec::new(),
            tree: None,
            files: BTreeMap::new(),
            runs: BTreeMap::new(),
        }
    }

    pub(super) fn is_alive(&self) -> bool {
        self.death.is_none()
    }

    pub(super) fn boots_at(&self) -> Option<Moment> {
        match self.boot {
            Boot::Until(at) => Some(at),
            Boot::Never => None,
        }
    }

    pub(super) fn has_booted(&self, now: Moment) -> bool {
        matches!(self.boot, Boot::Until(at) if at <= now)
    }

    /// Nothing of it is left for libvirt to show.
    pub(super) fn is_cleared(&self, now: Moment) -> bool {
        let death = self.death.as_ref();
        death.is_some_and(|death| now >= death.at + Duration::from_millis(700))
    }

    pub(super) fn die(&mut self, at: Moment, why: &'static str) {
        if self.death.is_none() {
            self.death = Some(Death { at, why });
            self.drop_connections();
        }
    }

    /// Dies if its time has come.
    pub(super) fn live_until(&mut self, now: Moment) {
        if let Some(at) = self.dies_at.filter(|at| *at <= now) {
            self.die(at, "the kernel panicked");
        }
    }

    pub(super) fn drop_connections(&mut self) {
        for connection in self.connections.drain(..) {
            connection.cancel();
        }
    }
}

pub(super) const JUNIT: &str = "<testsuite><testcase name='a'/><testcase name='b'/></testsuite>";

/// What a machine has built: files that no other machine has.
pub(super) fn artifacts(id: AttemptId) -> Vec<(String, Vec<u8>)> {
    let content = |name: &str, bytes: usize| {
        let line = format!("{name} built by {id}\n");
        line.bytes().cycle().take(bytes).collect()
    };
    vec![
        ("dist/engine".to_owned(), content("engine", 1700)),
        ("dist/manual.txt".to_owned(), content("manual", 90)),
    ]
}
