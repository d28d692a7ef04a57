//! The same machine by hand: `virsh start` of the domain that the master makes, and the first `ssh … true`.

use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tests::machine::{hypervisor_uri, images_folder, ssh};
use tests::master::{Master, free_port};
use toml::Table;

const DEADLINE: Duration = Duration::from_secs(120);
/// As close as one can look without taking the guest's processor.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// A domain that libvirt knows by name and that is not the master's.
#[derive(Debug)]
pub(crate) struct ByHand {
    name: String,
    folder: tempfile::TempDir,
    port: u16,
    user: String,
    marker: String,
    disk: Option<PathBuf>,
}

impl ByHand {
    /// Takes the definition from the machine that the master runs just now for this image.
    pub(crate) async fn like_that_of(master: &Master, image: &str) -> Result<ByHand> {
        let original = images_folder().join(image);
        let text = std::fs::read_to_string(original.join("platform.toml"))?;
        let platform: Table = toml::from_str(&text)?;
        let entry = |table: &str, key: &str| {
            let value = platform.get(table).and_then(|table| table.get(key));
            value.and_then(toml::Value::as_str).map(str::to_owned)
        };
        let needed = |table: &str, key: &str| {
            entry(table, key).with_context(|| format!("{image} has no {key} in [{table}]"))
        };
        let folder = tempfile::Builder::new()
            .prefix("vivarium-by-hand-")
            .tempdir()?;
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755))?;
        let port = free_port()?;
        // libvirt hands these to QEMU's user: copies, as the master makes them.
        for (key, copy) in [("path", "kernel"), ("initrd", "initrd")] {
            if let Some(file) = entry("kernel", key) {
                std::fs::copy(original.join(file), folder.path().join(copy))?;
            }
        }
        let key = folder.path().join("key");
        std::fs::copy(original.join(needed("ssh", "key")?), &key)?;
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600))?;
        let host_key = std::fs::read_to_string(original.join(needed("ssh", "host_key")?))?;
        let known = format!("[127.0.0.1]:{port} {host_key}");
        std::fs::write(folder.path().join("known_hosts"), known)?;

        let name = format!("by-hand-{image}-{}", std::process::id());
        let theirs = running_domain(master).await?;
        let xml = virsh(&["dumpxml", "--inactive", &theirs]).await?;
        let xml = renamed(&xml, &name, folder.path(), port)?;
        let file = folder.path().join("domain.xml");
        std::fs::write(&file, xml)?;
        virsh(&["define", &file.to_string_lossy()]).await?;
        Ok(ByHand {
            name,
            port,
            user: needed("ssh", "user")?,
            marker: needed("console", "ready_marker")?,
            disk: entry("disk", "path").map(|file| original.join(file)),
            folder,
        })
    }

    /// From `virsh start` to the end of the first `ssh … true`. Knows when to try: the console's marker.
    pub(crate) async fn start_and_log_in(&self) -> Result<Duration> {
        self.fresh_disk().await?;
        let console = self.folder.path().join("console.log");
        std::fs::write(&console, "")?;
        let begun = Instant::now();
        virsh(&["start", &self.name]).await?;
        let ready = async {
            loop {
                let text = std::fs::read(&console)?;
                if tests::find(&text, self.marker.as_bytes()).is_some() {
                    return anyhow::Ok(());
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        tokio::time::timeout(DEADLINE, ready)
            .await
            .with_context(|| format!("{} did not boot", self.name))??;
        let key = self.folder.path().join("key");
        let known = self.folder.path().join("known_hosts");
        let login = ssh(self.port, &self.user, &key, &known)
            .arg("true")
            .stdin(Stdio::null())
            .status();
        let status = tokio::time::timeout(DEADLINE, login).await??;
        let took = begun.elapsed();
        ensure!(status.success(), "ssh … true: {status}");
        virsh(&["destroy", &self.name]).await?;
        Ok(took)
    }

    async fn fresh_disk(&self) -> Result<()> {
        let Some(disk) = &self.disk else {
            return Ok(());
        };
        let overlay = self.folder.path().join("overlay.qcow2");
        let status = tokio::process::Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"])
            .args([disk, &overlay])
            .stdin(Stdio::null())
            .status()
            .await?;
        ensure!(status.success(), "qemu-img create: {status}");
        Ok(())
    }
}

impl Drop for ByHand {
    fn drop(&mut self) {
        for act in ["destroy", "undefine"] {
            // The first fails where it does not run.
            std::process::Command::new("virsh")
                .args(["--quiet", "--connect", &hypervisor_uri(), act, &self.name])
                .stdin(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .ok();
        }
    }
}

/// The one machine of the master.
async fn running_domain(master: &Master) -> Result<String> {
    let folder = master.data_dir().to_string_lossy().into_owned();
    for name in virsh(&["list", "--name"]).await?.lines().map(str::trim) {
        if name.starts_with("vivarium-")
            && virsh(&["dumpxml", name])
                .await
                .is_ok_and(|xml| xml.contains(&folder))
        {
            return Ok(name.to_owned());
        }
    }
    anyhow::bail!("the master runs no machine just now")
}

/// The definition with another name, no mark of the master's, its files in this folder, and another port.
fn renamed(xml: &str, name: &str, folder: &Path, port: u16) -> Result<String> {
    let console = between(xml, "<source path='", "'")?;
    let theirs = Path::new(console)
        .parent()
        .context("the console's file is nowhere")?
        .to_string_lossy()
        .into_owned();
    let forward = between(xml, "hostfwd=tcp:127.0.0.1:", "-")?;
    let xml = xml
        .replace(
            &format!("hostfwd=tcp:127.0.0.1:{forward}-"),
            &format!("hostfwd=tcp:127.0.0.1:{port}-"),
        )
        .replace(&theirs, &folder.to_string_lossy());
    let xml = without(&without(&xml, "uuid")?, "metadata")?;
    Ok(without(&xml, "name")?.replacen("<memory", &format!("<name>{name}</name>\n<memory"), 1))
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Result<&'a str> {
    let (_, rest) = text
        .split_once(before)
        .with_context(|| format!("no {before} in the domain's definition"))?;
    let (found, _) = rest
        .split_once(after)
        .with_context(|| format!("nothing ends {before} in the domain's definition"))?;
    Ok(found)
}

fn without(xml: &str, element: &str) -> Result<String> {
    let content = between(xml, &format!("<{element}>"), &format!("</{element}>"))?;
    Ok(xml.replacen(&format!("<{element}>{content}</{element}>"), "", 1))
}

async fn virsh(arguments: &[&str]) -> Result<String> {
    let output = tokio::process::Command::new("virsh")
        .args(["--quiet", "--connect", &hypervisor_uri()])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .await
        .context("cannot run virsh")?;
    ensure!(
        output.status.success(),
        "virsh {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
