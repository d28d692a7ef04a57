//! What is left of machines, and their end.

use anyhow::{Context, Result, bail};
use std::path::Path;
use std::process::{Command, Stdio};

/// What there is of machines of the master with this data folder in this libvirt: domains, files, processes.
pub fn leftovers(uri: &str, data_dir: &Path) -> Result<Vec<String>> {
    let mut left = Vec::new();
    for domain in domains_of(uri, data_dir)? {
        left.push(format!("the domain {domain}"));
    }
    collect_files(&data_dir.join("vms"), &mut left)?;
    for (pid, command) in qemu_processes_of(uri, data_dir) {
        left.push(format!("the process {pid}: {command}"));
    }
    Ok(left)
}

fn collect_files(folder: &Path, found: &mut Vec<String>) -> Result<()> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).context(format!("cannot list {}", folder.display())),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect_files(&entry.path(), found)?;
        } else {
            found.push(format!("the file {}", entry.path().display()));
        }
    }
    Ok(())
}

/// Asks or tells libvirt something; its answer.
pub fn virsh(uri: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new("virsh")
        .args(["--quiet", "--connect", uri])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .context("cannot run virsh")?;
    if !output.status.success() {
        bail!(
            "virsh {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Domains whose files are in the data folder: no other installation's.
pub fn domains_of(uri: &str, data_dir: &Path) -> Result<Vec<String>> {
    let folder = data_dir.to_string_lossy().into_owned();
    let names = virsh(uri, &["list", "--all", "--name"])?;
    Ok(names
        .lines()
        .map(str::trim)
        .filter(|name| name.starts_with("vivarium-"))
        // One that has gone in the meantime is nobody's.
        .filter(|name| virsh(uri, &["dumpxml", name]).is_ok_and(|xml| xml.contains(&folder)))
        .map(str::to_owned)
        .collect())
}

/// Ids and command lines of the QEMU processes that run domains of the data folder, or have its files open by name.
pub fn qemu_processes_of(uri: &str, data_dir: &Path) -> Vec<(i32, String)> {
    let folder = data_dir.to_string_lossy().into_owned();
    // A guest without a disk has no file of ours among its arguments: libvirt hands the console over open.
    let mut marks: Vec<String> = domains_of(uri, data_dir)
        .unwrap_or_default()
        .iter()
        .map(|name| format!("guest={name},"))
        .collect();
    marks.push(folder);
    let mut processes = qemu_processes();
    processes.retain(|(_, command)| marks.iter().any(|mark| command.contains(mark)));
    processes
}

/// Ids and command lines of all QEMU processes of the machine.
pub(super) fn qemu_processes() -> Vec<(i32, String)> {
    let mut found = processes();
    found.retain(|(_, command)| {
        let program = command.split(' ').next().unwrap_or_default();
        let name = program.rsplit('/').next().unwrap_or_default();
        name.starts_with("qemu-system-")
    });
    found
}

/// Processes of this machine with this text in their command lines.
pub fn processes_with(text: &str) -> Vec<(i32, String)> {
    let mut found = processes();
    found.retain(|(_, command)| command.contains(text));
    found
}

fn processes() -> Vec<(i32, String)> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let bytes = std::fs::read(entry.path().join("cmdline")).ok()?;
            Some((pid, String::from_utf8_lossy(&bytes).replace('\0', " ")))
        })
        .collect()
}

/// Kills the QEMU processes of one master, as the kernel does when memory runs out.
pub fn kill_qemu_of(uri: &str, data_dir: &Path) -> Result<usize> {
    let processes = qemu_processes_of(uri, data_dir);
    for (pid, _) in &processes {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::SIGKILL)
            .with_context(|| format!("cannot kill the QEMU process {pid}"))?;
    }
    Ok(processes.len())
}

/// Ends what a master that was killed left running, so that a failed test leaves nothing.
pub fn end_machines_of(uri: &str, data_dir: &Path) -> Result<()> {
    // Without a machine's files there is no machine, and on some hosts no libvirt to ask either.
    let mut files = Vec::new();
    collect_files(&data_dir.join("vms"), &mut files)?;
    if files.is_empty() {
        return Ok(());
    }
    for domain in domains_of(uri, data_dir)? {
        virsh(uri, &["destroy", &domain])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_a_machine_is_a_leftover() {
        let data = tempfile::tempdir().unwrap();
        let mut found = Vec::new();
        collect_files(&data.path().join("vms"), &mut found).unwrap();
        assert!(found.is_empty());
        std::fs::create_dir_all(data.path().join("vms/vm-1")).unwrap();
        std::fs::write(data.path().join("vms/vm-1/overlay.qcow2"), "x").unwrap();
        collect_files(&data.path().join("vms"), &mut found).unwrap();
        assert_eq!(found.len(), 1);
    }
}
