//! Which agents the master has, and which of them each platform gets.

use super::{Finding, fault, good, note};
use crate::config::{Config, Platforms};
use crate::model::{AgentKind, Platform};
use crate::session::{Agents, Origin};

pub(super) fn look(config: &Config, findings: &mut Vec<Finding>) {
    let (agents, beside) = Agents::open(config.agents_dir.as_deref());
    for (os, arch, program) in agents.native() {
        let place = match &program.origin {
            Origin::Build => "in this build".to_owned(),
            Origin::File(path) => path.display().to_string(),
        };
        let (os, arch, kib) = (os.as_str(), arch.as_str(), program.size / 1024);
        findings.push(good("agent", format!("{os}/{arch}, {kib} KiB, {place}")));
    }
    findings.extend(beside.refused.into_iter().map(|why| fault("agent", why)));
    let platforms = Platforms::load(config.platforms_dir.clone());
    for platform in platforms.ready() {
        findings.push(agent_of(&platform, &agents));
    }
}

fn agent_of(platform: &Platform, agents: &Agents) -> Finding {
    let (name, os, arch) = (&platform.name, platform.os.as_str(), platform.arch.as_str());
    let chosen = agents.choose(platform.os, platform.arch, platform.agent);
    match (chosen.map(|program| program.kind), platform.agent) {
        (Some(AgentKind::Native), _) => {
            good("agent", format!("{name} has the one for {os}/{arch}"))
        }
        (Some(AgentKind::Sh), Some(_)) => {
            good("agent", format!("{name} has the one in sh, as it asks"))
        }
        (Some(AgentKind::Sh), None) => note(
            "agent",
            format!(
                "{name} has the one in sh, for there is none for {os}/{arch}\n\
                 hint: one that is built for it is faster; agents_dir says where it is looked for"
            ),
        ),
        (None, _) => fault(
            "agent",
            format!(
                "{name} has none, for there is none for {os}/{arch}\n\
                 hint: build one from agent/ and put it into agents_dir as {os}-{arch}"
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;
    use std::path::Path;

    fn said(os: &str, arch: &str, line: &str) -> (Verdict, String) {
        let text = format!(
            "os = '{os}'\narch = '{arch}'\n{line}\n[disk]\npath = 'd'\n[ssh]\nuser = 'u'\nkey = 'k'\nhost_key = 'h'\n"
        );
        let platform = crate::config::parse_platform(Path::new("/p/guest"), &text).unwrap();
        let finding = agent_of(&platform, &Agents::default());
        (finding.verdict, finding.said)
    }

    #[test]
    fn each_platform_is_told_its_agent() {
        let (own_os, own_arch) = (std::env::consts::OS, std::env::consts::ARCH);
        for (os, arch, line, verdict, expected) in [
            (own_os, own_arch, "", Verdict::Good, "has the one for"),
            (
                own_os,
                own_arch,
                "agent = 'sh'",
                Verdict::Good,
                "as it asks",
            ),
            (
                "dragonfly",
                "aarch64",
                "",
                Verdict::Note,
                "has the one in sh, for there is none",
            ),
            (
                "dragonfly",
                "aarch64",
                "agent = 'native'",
                Verdict::Fault,
                "has none",
            ),
            ("windows", "aarch64", "", Verdict::Fault, "has none"),
        ] {
            let (found, sentence) = said(os, arch, line);
            assert_eq!(found, verdict, "{os} {line}: {sentence}");
            assert!(sentence.contains(expected), "{os} {line}: {sentence}");
        }
    }
}
