//! How a machine comes up: what was seen of it and when, and what was being waited for when it did not.
//!
//! ```text
//!  domain started ─► first console byte ─► ready marker ─► port ─► SSH banner ─► handshake ─► login ─► nonce
//! ```

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt::Debug;

/// A sign of a machine that comes up, in the order in which a VM gives them. One that is reached by SSH alone begins
/// with the port, and one whose platform names no marker shows none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Milestone {
    DomainStarted,
    FirstConsoleByte,
    /// The platform's ready marker was on the console.
    ReadyMarker,
    /// A connection was taken. QEMU does that for its guests, and holds it until the guest's network is up.
    PortAnswered,
    /// The SSH server's first byte.
    SshBanner,
    /// Keys were agreed upon, and the host key is the one that it should be.
    SshHandshake,
    LoggedIn,
    /// The agent echoed what was sent to it.
    NonceEchoed,
}

impl Milestone {
    pub const ALL: [Milestone; 8] = [
        Milestone::DomainStarted,
        Milestone::FirstConsoleByte,
        Milestone::ReadyMarker,
        Milestone::PortAnswered,
        Milestone::SshBanner,
        Milestone::SshHandshake,
        Milestone::LoggedIn,
        Milestone::NonceEchoed,
    ];

    /// Its name in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Milestone::DomainStarted => "domain_started",
            Milestone::FirstConsoleByte => "first_console_byte",
            Milestone::ReadyMarker => "ready_marker",
            Milestone::PortAnswered => "port_answered",
            Milestone::SshBanner => "ssh_banner",
            Milestone::SshHandshake => "ssh_handshake",
            Milestone::LoggedIn => "logged_in",
            Milestone::NonceEchoed => "nonce_echoed",
        }
    }
}

/// Hears of milestones as they are seen.
pub trait Witness: Debug + Send + Sync {
    fn sees(&self, milestone: Milestone);
}

/// For whoever does not care.
impl Witness for () {
    fn sees(&self, _milestone: Milestone) {}
}

/// What was seen of one machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootRecord {
    /// Each milestone with the time at which it was first seen, in that order.
    pub milestones: Vec<(Milestone, Timestamp)>,
    /// What was being waited for when it was given up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waited_for: Option<String>,
}

impl BootRecord {
    pub fn has(&self, milestone: Milestone) -> bool {
        self.milestones.iter().any(|(seen, _)| *seen == milestone)
    }

    /// Notes a milestone; only its first time counts. Says whether this was it.
    pub fn note(&mut self, milestone: Milestone, at: Timestamp) -> bool {
        let is_new = !self.has(milestone);
        if is_new {
            self.milestones.push((milestone, at));
        }
        is_new
    }

    /// What comes next, as the object of "waited for".
    pub fn awaited(&self, machine: Awaited<'_>) -> String {
        let missing = |milestone| !self.has(milestone);
        let silent = match machine {
            Awaited::Vm { .. } if missing(Milestone::FirstConsoleByte) => {
                ", and its console has shown nothing"
            }
            Awaited::Vm { .. } | Awaited::Machine => "",
        };
        match machine {
            Awaited::Vm { .. } if missing(Milestone::DomainStarted) => {
                "libvirt to start its domain".to_owned()
            }
            Awaited::Vm {
                marker: Some(marker),
            } if missing(Milestone::ReadyMarker) => {
                let shown = match silent {
                    "" => "other things",
                    _ => "nothing",
                };
                format!("`{marker}` on its console, which has shown {shown}")
            }
            _ if missing(Milestone::PortAnswered) => format!("its port to answer{silent}"),
            _ if missing(Milestone::SshBanner) => format!("its SSH banner{silent}"),
            _ if missing(Milestone::SshHandshake) => "the end of the SSH handshake".to_owned(),
            _ if missing(Milestone::LoggedIn) => "the end of the SSH login".to_owned(),
            _ if missing(Milestone::NonceEchoed) => "its agent to echo the nonce".to_owned(),
            _ => "its agent's answer about the clock".to_owned(),
        }
    }
}

/// What kind of machine is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Awaited<'a> {
    /// One of ours, with a console that shows `marker` once SSH answers.
    Vm { marker: Option<&'a str> },
    /// One that is there already.
    Machine,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn seen(milestones: &[Milestone]) -> BootRecord {
        let mut record = BootRecord::default();
        for (second, milestone) in (1..).zip(milestones) {
            record.note(*milestone, at(second));
        }
        record
    }

    #[test]
    fn only_the_first_time_counts() {
        let mut record = seen(&[Milestone::DomainStarted, Milestone::PortAnswered]);
        assert!(!record.note(Milestone::PortAnswered, at(9)));
        assert_eq!(
            record.milestones,
            [
                (Milestone::DomainStarted, at(1)),
                (Milestone::PortAnswered, at(2))
            ]
        );
    }

    #[test]
    fn what_is_waited_for_is_what_comes_next() {
        use Milestone::{
            DomainStarted, FirstConsoleByte, LoggedIn, PortAnswered, ReadyMarker, SshBanner,
            SshHandshake,
        };
        let marked = Awaited::Vm {
            marker: Some("ready"),
        };
        let plain = Awaited::Vm { marker: None };
        for (machine, milestones, sentence) in [
            (marked, &[] as &[Milestone], "libvirt to start its domain"),
            (
                marked,
                &[DomainStarted],
                "`ready` on its console, which has shown nothing",
            ),
            (
                marked,
                &[DomainStarted, FirstConsoleByte],
                "`ready` on its console, which has shown other things",
            ),
            (
                marked,
                &[DomainStarted, FirstConsoleByte, ReadyMarker, PortAnswered],
                "its SSH banner",
            ),
            (
                plain,
                &[DomainStarted, PortAnswered],
                "its SSH banner, and its console has shown nothing",
            ),
            (Awaited::Machine, &[], "its port to answer"),
            (
                Awaited::Machine,
                &[PortAnswered, SshBanner],
                "the end of the SSH handshake",
            ),
            (
                Awaited::Machine,
                &[PortAnswered, SshBanner, SshHandshake],
                "the end of the SSH login",
            ),
            (
                Awaited::Machine,
                &[PortAnswered, SshBanner, SshHandshake, LoggedIn],
                "its agent to echo the nonce",
            ),
        ] {
            assert_eq!(seen(milestones).awaited(machine), sentence);
        }
    }

    #[test]
    fn names_in_json_are_those_of_the_rows() {
        for milestone in Milestone::ALL {
            let json = serde_json::to_string(&milestone).expect("JSON");
            assert_eq!(json, format!("\"{}\"", milestone.as_str()));
        }
    }
}
