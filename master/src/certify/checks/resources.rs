//! What the guest has: memory, processors, disk, randomness; compared with what platform.toml says.

use super::{Checks, number};
use crate::certify::certificate::Verdict;
use crate::certify::guest::{Question, Trouble, shown};
use crate::model::PlatformKind;

/// What a kernel keeps for itself before it counts: so many MiB, and a part of the whole.
const KERNELS_MIB: u64 = 64;
const KERNELS_PART: u64 = 8;
/// Of these many bytes no two are alike, but for bad luck.
const RANDOM_BYTES: usize = 64;

impl Checks<'_> {
    pub(super) async fn memory(&mut self) -> Result<Verdict, Trouble> {
        if let Some(verdict) = self.unless_unix() {
            return Ok(verdict);
        }
        let script = match self.is_linux() {
            true => {
                r#"while read -r key kib unit; do case $key in MemTotal:) echo "$((kib / 1024))";; esac; done </proc/meminfo"#
            }
            false => {
                r#"bytes=$(sysctl -n hw.physmem64 2>/dev/null || sysctl -n hw.physmem) && echo "$((bytes / 1048576))""#
            }
        };
        let found = number(&self.guest.ask(Question::sh(script)).await?.good()?)?;
        let declared = self.guest.platform().memory_mib();
        let least = declared.saturating_sub(KERNELS_MIB + declared / KERNELS_PART);
        let said = format!("the guest has {found} MiB of {declared} MiB");
        Ok(match (least..=declared).contains(&found) {
            true => Verdict::Passed(said),
            false => Verdict::Failed(format!("{said}, {least} MiB would be enough")),
        })
    }

    pub(super) async fn processors(&mut self) -> Result<Verdict, Trouble> {
        if let Some(verdict) = self.unless_unix() {
            return Ok(verdict);
        }
        let script = match self.is_linux() {
            true => {
                r#"n=0; while read -r key rest; do case $key in processor*) n=$((n + 1));; esac; done </proc/cpuinfo; echo "$n""#
            }
            false => "sysctl -n hw.ncpuonline 2>/dev/null || sysctl -n hw.ncpu",
        };
        let found = number(&self.guest.ask(Question::sh(script)).await?.good()?)?;
        let declared = self.guest.platform().vcpus();
        let said = format!("the guest uses {found} of {declared}");
        Ok(match found == u64::from(declared) {
            true => Verdict::Passed(said),
            false => Verdict::Failed(said),
        })
    }

    /// The guest's disk is as large as it may become; more than that it cannot write.
    pub(super) async fn disk(&mut self, bytes: Option<u64>) -> Result<Verdict, Trouble> {
        let has_disk = match &self.guest.platform().kind {
            PlatformKind::Vm { disk, .. } => disk.is_some(),
            PlatformKind::Ssh { .. } => false,
        };
        let Some(cap) = bytes.filter(|_| has_disk) else {
            return Ok(Verdict::NotChecked("it has none".to_owned()));
        };
        if let Some(verdict) = self.unless_unix() {
            return Ok(verdict);
        }
        let script = r#"df -Pk / | { read -r head; read -r device kib rest; echo "$kib"; }"#;
        let root_kib = number(&self.guest.ask(Question::sh(script)).await?.good()?)?;
        let root = format!("/ has {:.1} GiB", gib(root_kib << 10));
        if root_kib << 10 > cap {
            return Ok(Verdict::Failed(format!(
                "{root}, more than the disk's {:.1} GiB",
                gib(cap)
            )));
        }
        if !self.is_linux() {
            return Ok(Verdict::NotChecked(format!(
                "{root}; nobody has shown yet how to ask for the size of the disk itself on {}",
                self.guest.platform().os.as_str()
            )));
        }
        // Those that stand for hardware, and not their partitions.
        let script = r#"for d in /sys/block/*; do [ -e "$d/device" ] && echo "${d##*/} $(cat "$d/size")"; done; true"#;
        let said = self.guest.ask(Question::sh(script)).await?.good()?;
        let disks: Vec<(&str, u64)> = said
            .lines()
            .filter_map(|line| line.split_once(' '))
            .filter_map(|(name, sectors)| Some((name, sectors.trim().parse::<u64>().ok()? << 9)))
            .collect();
        Ok(match disks.iter().find(|(_, size)| *size == cap) {
            Some((name, _)) => Verdict::Passed(format!("{name} has {:.1} GiB, {root}", gib(cap))),
            None => Verdict::Failed(format!(
                "it is to have a disk of {:.1} GiB, and {}",
                gib(cap),
                shown(said.as_bytes())
            )),
        })
    }

    pub(super) async fn entropy(&mut self) -> Result<Verdict, Trouble> {
        if let Some(verdict) = self.unless_unix() {
            return Ok(verdict);
        }
        let script = format!("for i in 1 2; do head -c {RANDOM_BYTES} /dev/random; done");
        let said = self.guest.ask(Question::sh(script)).await?;
        let (first, second) = said.bytes.split_at(said.bytes.len().min(RANDOM_BYTES));
        Ok(match first != second && second.len() == RANDOM_BYTES {
            true => Verdict::Passed("/dev/random gives without waiting".to_owned()),
            false => Verdict::Failed(format!(
                "/dev/random was asked for {RANDOM_BYTES} bytes twice and gave {} and {}, {}",
                first.len(),
                second.len(),
                match first == second {
                    true => "the same",
                    false => "not the same",
                }
            )),
        })
    }
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}
