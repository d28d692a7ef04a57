//! `vivarium doctor`: looks at all that a master needs on this machine, and says what to do for each fault.

mod agents;
mod certificates;
mod confinement;
mod github;
mod outbox;

use super::serve::{lock, open_objects, vm_config};
use super::terminal::{HINT, print, print_json, told};
use crate::config::{Config, Platforms};
use crate::pipeline::backlog;
use crate::pipeline::disks::Disks;
use crate::pipeline::pause::Pause;
use crate::result::artifacts::Artifacts;
use crate::result::log::Logs;
use crate::store::{Store, StoreError};
use crate::vm::Machines;
use crate::web::Tls;
use jiff::{SignedDuration, Timestamp};
use owo_colors::{OwoColorize, Stream};
use serde::Serialize;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, ExitCode};
use url::Url;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Good,
    /// It works, but not as well as it could.
    Note,
    Fault,
}

/// One thing looked at.
#[derive(Debug, Serialize)]
struct Finding {
    what: &'static str,
    verdict: Verdict,
    said: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

impl Finding {
    fn new(what: &'static str, verdict: Verdict, said: impl Into<String>) -> Finding {
        let said = said.into();
        let (said, hint) = match said.split_once(HINT) {
            Some((said, hint)) => (said.to_owned(), Some(hint.to_owned())),
            None => (said, None),
        };
        Finding {
            what,
            verdict,
            said,
            hint,
        }
    }
}

pub(super) async fn doctor(path: Option<&Path>, json: bool) -> anyhow::Result<ExitCode> {
    let config = match path {
        Some(path) => Config::load(path)?,
        None => {
            let mut config = Config::parse(Path::new("/"), "")?;
            config.data_dir =
                std::env::temp_dir().join(format!("vivarium-doctor-{}", std::process::id()));
            config
        }
    };
    let is_temporary = path.is_none();
    let mut findings = vec![
        program("git", "install the package git"),
        program("qemu-system-x86_64", "install the package qemu-system-x86"),
        program("qemu-img", "install the package qemu-utils"),
        kvm_device(),
    ];
    std::fs::create_dir_all(&config.data_dir)?;
    let machines = hypervisor(&config, &mut findings).await;
    images(&config, machines.as_ref(), &mut findings).await;
    agents::look(&config, &mut findings);
    master(&config, &mut findings);
    server(&config, &mut findings);
    database(&config, &mut findings).await;
    disks(&config, &mut findings).await;
    storage(&config, &mut findings).await;
    github::look(&config, &mut findings).await;
    if is_temporary {
        std::fs::remove_dir_all(&config.data_dir)?;
    }
    report(&findings, json)?;
    let is_well = findings
        .iter()
        .all(|finding| finding.verdict != Verdict::Fault);
    Ok(match is_well {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn good(what: &'static str, said: impl Into<String>) -> Finding {
    Finding::new(what, Verdict::Good, said)
}

fn note(what: &'static str, said: impl Into<String>) -> Finding {
    Finding::new(what, Verdict::Note, said)
}

fn fault(what: &'static str, said: impl Into<String>) -> Finding {
    Finding::new(what, Verdict::Fault, said)
}

fn program(what: &'static str, hint: &str) -> Finding {
    match Command::new(what).arg("--version").output() {
        Ok(output) if output.status.success() => {
            let text = String::from_utf8_lossy(&output.stdout);
            good(what, text.lines().next().unwrap_or_default())
        }
        Ok(output) => fault(
            what,
            format!("it ends with {}\nhint: {hint}", output.status),
        ),
        Err(error) => fault(what, format!("it cannot be run: {error}\nhint: {hint}")),
    }
}

/// A device that QEMU's user cannot open makes libvirt probe QEMU anew at each start, for seconds.
fn kvm_device() -> Finding {
    let path = Path::new("/dev/kvm");
    match std::fs::metadata(path) {
        Err(_) => note(
            "/dev/kvm",
            "not there: guests run in QEMU's emulation, several times slower",
        ),
        Ok(meta) if !opens_to_qemu(&meta) => note(
            "/dev/kvm",
            "QEMU's user cannot open it, so libvirt probes QEMU anew at each start, for seconds\n\
             hint: chgrp kvm /dev/kvm && chmod 660 /dev/kvm",
        ),
        Ok(_) => good("/dev/kvm", "can be opened by QEMU's user"),
    }
}

/// By its mode and group, as distributions set them: QEMU's user is in the group `kvm`.
fn opens_to_qemu(device: &std::fs::Metadata) -> bool {
    let kvm = nix::unistd::Group::from_name("kvm").ok().flatten();
    let is_kvms = kvm.is_some_and(|group| group.gid.as_raw() == device.gid());
    let mode = device.permissions().mode();
    mode & 0o006 == 0o006 || (is_kvms && mode & 0o060 == 0o060)
}

async fn hypervisor(config: &Config, findings: &mut Vec<Finding>) -> Option<Machines> {
    let opened = match vm_config(config) {
        Ok(vm_config) => Machines::open(vm_config).await.map_err(anyhow::Error::from),
        Err(error) => Err(error),
    };
    match opened {
        Err(error) => {
            let hint = "run config/prepare-host, or start virtlogd and libvirtd";
            findings.push(fault("libvirt", format!("{}\nhint: {hint}", told(&error))));
            None
        }
        Ok(machines) => {
            findings.push(match machines.capacity().await {
                Ok(host) => good(
                    "libvirt",
                    format!(
                        "answers; the host has {} MiB and {} processors",
                        host.memory_mib, host.vcpus
                    ),
                ),
                Err(error) => fault("libvirt", error.to_string()),
            });
            let why = machines.accelerator_why().to_owned();
            findings.push(match machines.accelerator() {
                crate::vm::Accelerator::Kvm => good("acceleration", format!("KVM: {why}")),
                crate::vm::Accelerator::Tcg => {
                    note("acceleration", format!("QEMU's emulation (TCG): {why}"))
                }
            });
            confinement::look(machines.qemu_user(), findings);
            Some(machines)
        }
    }
}

async fn images(config: &Config, machines: Option<&Machines>, findings: &mut Vec<Finding>) {
    let platforms = Platforms::of(config);
    for refused in platforms.refused() {
        findings.push(fault(
            "platform",
            format!("{}: {}", refused.name, refused.why),
        ));
    }
    let ready = platforms.ready();
    if ready.is_empty() {
        findings.push(note(
            "platform",
            format!(
                "none takes work: {} needs a folder with a platform.toml",
                config.platforms_dir.display()
            ),
        ));
    }
    for platform in ready {
        let checked = match machines {
            Some(machines) => machines
                .check_platform(&platform)
                .await
                .map_err(|e| e.to_string()),
            None => Ok(()),
        };
        let (certificate, is_kept_out) = certificates::look(config, &platform).await;
        match checked {
            // The certificate's finding says it all.
            Ok(()) if is_kept_out => {}
            Ok(()) => findings.push(good("platform", format!("{} takes work", platform.name))),
            Err(error) => findings.push(fault("platform", error)),
        }
        findings.extend(certificate);
        if let Some(expires) = platform.expires_soon(jiff::Zoned::now().date()) {
            let said = format!("{} takes no work from {expires} on", platform.name);
            findings.push(note("platform", said));
        }
        if let Some(issue) = &platform.known_issue {
            let said = format!(
                "{} blocks nobody, for a known issue: {issue}",
                platform.name
            );
            findings.push(note("platform", said));
        }
    }
}

fn master(config: &Config, findings: &mut Vec<Finding>) {
    findings.push(match lock::holder(&config.data_dir) {
        Ok(Some(holder)) => good("master", format!("runs: {holder}")),
        Ok(None) => note("master", "does not run"),
        Err(error) => fault("master", told(&error)),
    });
}

/// Whether what people send the master can be read on the way, and whether it can tell them apart.
fn server(config: &Config, findings: &mut Vec<Finding>) {
    let server = &config.server;
    let is_local = server.listen.ip().is_loopback();
    let https = server.public_url.as_ref().map(Url::scheme) == Some("https");
    match server.tls.as_ref().map(Tls::open) {
        Some(Ok(_)) => findings.push(good("HTTPS", "the certificate and its key serve")),
        Some(Err(error)) => findings.push(fault("HTTPS", format!("{error:#}"))),
        None if is_local => {}
        None => findings.push(note(
            "HTTPS",
            format!(
                "{} is served without TLS, so tokens and logins can be read on the way; \
                 hint: listen on 127.0.0.1 behind a proxy with TLS, or set [server.tls]",
                server.listen
            ),
        )),
    }
    if is_local && https && server.tls.is_none() && server.trusted_proxies.is_empty() {
        findings.push(note(
            "proxy",
            "public_url leads through a proxy, whose clients cannot be told apart, so no limit for one address holds; \
             hint: trusted_proxies = [\"127.0.0.1\"] under [server]",
        ));
    }
}

async fn database(config: &Config, findings: &mut Vec<Finding>) {
    let path = config.data_dir.join("vivarium.sqlite");
    if !path.exists() {
        let said = format!("{} is made at the first start", path.display());
        findings.push(note("database", said));
        return;
    }
    let store = match Store::open_to_read(&path).await {
        Ok(store) => store,
        Err(error @ StoreError::OtherForm { .. }) => {
            findings.push(note("database", error.to_string()));
            return;
        }
        Err(error) => {
            findings.push(fault("database", error.to_string()));
            return;
        }
    };
    findings.push(good("database", path.display().to_string()));
    match outbox::look(&store).await {
        Ok(found) => findings.extend(found),
        Err(error) => findings.push(fault("outbox", error.to_string())),
    }
    match store.platform_boots().await {
        Ok(boots) => findings.extend(boots.iter().filter_map(|(name, service)| {
            service.out.filter(|_| config.platforms_dir.join(name).is_dir())?;
            let hint = format!("the page of a job on {name} shows its console; `vivarium platform check {name}` looks at its files");
            Some(fault("platform", format!("{name} is {service}\nhint: {hint}")))
        })),
        Err(error) => findings.push(fault("platform", error.to_string())),
    }
    match store.drain().await {
        Ok(drain) => {
            findings.extend(drain.map(|drain| note("drain", Pause::Drain(drain).to_string())))
        }
        Err(error) => findings.push(fault("drain", error.to_string())),
    }
    match waiting_results(config, &store).await {
        Ok(finding) => findings.extend(finding),
        Err(error) => findings.push(fault("results", format!("{error:#}"))),
    }
    store.close().await;
}

/// What waits for the object store, once it is too much or waits for longer than it takes to send it.
async fn waiting_results(config: &Config, store: &Store) -> anyhow::Result<Option<Finding>> {
    const USUAL: SignedDuration = SignedDuration::from_mins(5);
    let objects = open_objects(config)?;
    let data = &config.data_dir;
    let cap = config.limits.log_mib << 20;
    let logs = Logs::open(data.join("logs"), cap, store.clone(), objects.clone())?;
    let artifacts = Artifacts::open(data.join("artifacts"), store.clone(), objects)?;
    let (_, backlog) = backlog::look(store, &logs, &artifacts).await?;
    if let Some(pause) = backlog.pause(config.storage.pending_mib) {
        let hint = "mend what `storage` says, or raise pending_mib under [storage]";
        return Ok(Some(fault("results", format!("{pause}\nhint: {hint}"))));
    }
    let since = backlog
        .oldest
        .filter(|oldest| Timestamp::now().duration_since(*oldest) > USUAL);
    Ok(since.map(|since| {
        let said = format!(
            "logs and artefacts of {} jobs ({} MiB) wait for the object store, the first since {}",
            backlog.jobs,
            backlog.bytes >> 20,
            since.strftime("%Y-%m-%d %H:%M UTC")
        );
        note("results", said)
    }))
}

async fn disks(config: &Config, findings: &mut Vec<Finding>) {
    let disks = Disks::of(config);
    let found = match disks.look().await {
        Ok(found) => found,
        Err(error) => {
            findings.push(fault("disk", error.to_string()));
            return;
        }
    };
    for disk in found {
        let said = format!(
            "{} has {} MiB free; jobs start from {} MiB on",
            disk.mount.display(),
            disk.free_mib,
            disks.min_free_mib
        );
        findings.push(match disk.free_mib < disks.min_free_mib {
            true => fault(
                "disk",
                format!("{said}\nhint: make room, or set min_free_disk_mib under [hypervisor]"),
            ),
            false => good("disk", said),
        });
    }
}

async fn storage(config: &Config, findings: &mut Vec<Finding>) {
    let checked = match open_objects(config) {
        Ok(objects) => objects.check().await.map_err(anyhow::Error::from),
        Err(error) => Err(error),
    };
    findings.push(match checked {
        Ok(()) => good("storage", "written, read back and deleted an object"),
        Err(error) => fault("storage", told(&error)),
    });
}

fn report(findings: &[Finding], json: bool) -> anyhow::Result<()> {
    if json {
        return print_json(&findings);
    }
    for finding in findings {
        let word = match finding.verdict {
            Verdict::Good => "good "
                .if_supports_color(Stream::Stdout, |w| w.green())
                .to_string(),
            Verdict::Note => "note "
                .if_supports_color(Stream::Stdout, |w| w.yellow())
                .to_string(),
            Verdict::Fault => "fault"
                .if_supports_color(Stream::Stdout, |w| w.red())
                .to_string(),
        };
        print(&format!("{word} {}: {}\n", finding.what, finding.said))?;
        if let Some(hint) = &finding.hint {
            print(&format!("      hint: {hint}\n"))?;
        }
    }
    Ok(())
}
