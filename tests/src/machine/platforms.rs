//! A folder of platforms for one test, made of the images that are there.

use super::{SshServer, WindowsMachine, images_folder};
use anyhow::{Context, Result};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use toml::{Table, Value};

/// What becomes of a platform's ready marker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Marker {
    Kept,
    Removed,
}

/// A folder of platforms for one test.
#[derive(Debug)]
pub struct Platforms {
    folder: tempfile::TempDir,
}

impl Platforms {
    pub fn new() -> Result<Platforms> {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::Builder::new()
            .prefix("vivarium-platforms-")
            .tempdir()?;
        // QEMU runs as a user of its own and reads the images through here.
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755))?;
        Ok(Platforms { folder })
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The image as it is, under its own name.
    pub fn add(&self, image: &str) -> Result<()> {
        self.add_changed(image, image, |_| {})
    }

    /// The image under another name, with its `platform.toml` changed. Its files are links to the originals.
    pub fn add_changed(
        &self,
        image: &str,
        name: &str,
        change: impl FnOnce(&mut Table),
    ) -> Result<()> {
        let original = images_folder().join(image);
        let text = std::fs::read_to_string(original.join("platform.toml")).with_context(|| {
            format!(
                "there is no image `{image}` in {}\nhint: images/build {image}",
                images_folder().display()
            )
        })?;
        let mut table: Table = toml::from_str(&text)
            .with_context(|| format!("cannot read the platform.toml of {image}"))?;
        change(&mut table);
        let folder = self.folder.path().join(name);
        std::fs::create_dir(&folder).with_context(|| format!("cannot add the platform {name}"))?;
        for entry in std::fs::read_dir(&original)? {
            let entry = entry?;
            if entry.file_name() != "platform.toml" {
                symlink(entry.path(), folder.join(entry.file_name()))?;
            }
        }
        // Last, because a watched folder without this file is no platform yet.
        std::fs::write(folder.join("platform.toml"), toml::to_string(&table)?)?;
        Ok(())
    }

    /// Changes the `platform.toml` of a platform that is there, in one step.
    pub fn change(&self, name: &str, change: impl FnOnce(&mut Table)) -> Result<()> {
        let folder = self.folder.path().join(name);
        let text = std::fs::read_to_string(folder.join("platform.toml"))?;
        let mut table: Table = toml::from_str(&text)?;
        change(&mut table);
        let new = folder.join(".platform.toml.new");
        std::fs::write(&new, toml::to_string(&table)?)?;
        std::fs::rename(new, folder.join("platform.toml"))?;
        Ok(())
    }

    /// Gives a platform the `platform.toml` of its image again.
    pub fn mend(&self, image: &str, name: &str) -> Result<()> {
        let text = std::fs::read_to_string(images_folder().join(image).join("platform.toml"))?;
        let original: Table = toml::from_str(&text)?;
        self.change(name, |platform| *platform = original)
    }

    /// A guest whose kernel finds no program to start and halts.
    pub fn add_never_booting(&self, image: &str, name: &str) -> Result<()> {
        self.add_changed(image, name, |platform| {
            platform.insert("boot_deadline_secs".to_owned(), 25.into());
            let kernel = platform.get_mut("kernel").and_then(Value::as_table_mut);
            if let Some(kernel) = kernel {
                let cmdline = "console=ttyS0 panic=0 rdinit=/no-such-program init=/no-such-program";
                kernel.insert("cmdline".to_owned(), cmdline.into());
            }
        })
    }

    /// A guest like tiny-linux in which this script stands in the place of its SSH server. It says that it listens
    /// (the image's ready marker) when `marker` is kept; without, only patience tells that nobody answers.
    pub fn add_without_sshd(
        &self,
        image: &str,
        name: &str,
        script: &str,
        marker: Marker,
        deadline_secs: i64,
    ) -> Result<()> {
        self.add_changed(image, name, |platform| match marker {
            Marker::Kept => {
                platform.insert("connect_deadline_secs".to_owned(), deadline_secs.into());
            }
            Marker::Removed => {
                platform.insert("boot_deadline_secs".to_owned(), deadline_secs.into());
                platform.insert("connect_deadline_secs".to_owned(), 1.into());
                platform.remove("console");
            }
        })?;
        self.overlay(name, &[("etc/rc.ssh", script)])
    }

    /// A guest like tiny-linux that lets its user in by this password, of which `hash` is the hash.
    pub fn add_with_password(
        &self,
        image: &str,
        name: &str,
        password: &str,
        hash: &str,
    ) -> Result<()> {
        self.add_changed(image, name, |platform| {
            if let Some(ssh) = platform.get_mut("ssh").and_then(Value::as_table_mut) {
                ssh.remove("key");
                ssh.insert("password_file".to_owned(), "password".into());
            }
        })?;
        let folder = self.folder.path().join(name);
        std::fs::write(folder.join("password"), format!("{password}\n"))?;
        // As root, who alone reads what passwords hash to.
        let sshd = "#!/bin/sh\nexec dropbear -F -E -m -r /etc/dropbear/host_key\n";
        let shadow = format!("root:*:19500:0:99999:7:::\nbuild:{hash}:19500:0:99999:7:::\n");
        self.overlay(name, &[("etc/rc.ssh", sshd), ("etc/shadow", &shadow)])
    }

    /// Puts files over those of the platform's initramfs.
    fn overlay(&self, name: &str, files: &[(&str, &str)]) -> Result<()> {
        let initrd = self.folder.path().join(name).join("initrd.img");
        let mut content = std::fs::read(&initrd).context("the image has no initramfs")?;
        std::fs::remove_file(&initrd)?;
        for (path, text) in files {
            content.extend(archive(path, text)?);
        }
        std::fs::write(&initrd, content)?;
        Ok(())
    }

    /// A machine that is there already, reached by SSH.
    pub fn add_ssh(&self, name: &str, server: &SshServer) -> Result<()> {
        self.add_ssh_at(name, server, server.port)
    }

    /// The same, reached by another port: a proxy's.
    pub fn add_ssh_at(&self, name: &str, server: &SshServer, port: u16) -> Result<()> {
        self.add_ssh_changed(name, server, port, |_| {})
    }

    /// The same, with its `platform.toml` changed.
    pub fn add_ssh_changed(
        &self,
        name: &str,
        server: &SshServer,
        port: u16,
        change: impl FnOnce(&mut Table),
    ) -> Result<()> {
        let folder = self.folder.path().join(name);
        std::fs::create_dir(&folder)?;
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        let mut ssh = Table::new();
        ssh.insert("host".to_owned(), "127.0.0.1".into());
        ssh.insert("port".to_owned(), i64::from(port).into());
        ssh.insert("user".to_owned(), server.user.clone().into());
        ssh.insert("key".to_owned(), text(server.user_key()).into());
        ssh.insert("host_key".to_owned(), text(server.host_key()).into());
        let mut platform = Table::new();
        platform.insert("kind".to_owned(), "ssh".into());
        platform.insert("os".to_owned(), "linux".into());
        platform.insert("work_dir".to_owned(), text(server.path("work")).into());
        platform.insert("state_dir".to_owned(), text(server.path("state")).into());
        platform.insert("ssh".to_owned(), ssh.into());
        change(&mut platform);
        std::fs::write(folder.join("platform.toml"), toml::to_string(&platform)?)?;
        Ok(())
    }

    /// A Windows machine, reached by SSH.
    pub fn add_windows(&self, name: &str, machine: &WindowsMachine) -> Result<()> {
        let folder = self.folder.path().join(name);
        std::fs::create_dir(&folder)?;
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        let mut ssh = Table::new();
        ssh.insert("host".to_owned(), "127.0.0.1".into());
        ssh.insert("port".to_owned(), i64::from(machine.port).into());
        ssh.insert("user".to_owned(), "build".into());
        ssh.insert("key".to_owned(), text(machine.path("user_key")).into());
        ssh.insert(
            "host_key".to_owned(),
            text(machine.path("host_key.pub")).into(),
        );
        let mut platform = Table::new();
        platform.insert("kind".to_owned(), "ssh".into());
        platform.insert("os".to_owned(), "windows".into());
        platform.insert(
            "work_dir".to_owned(),
            machine.guest_path("home/work").into(),
        );
        platform.insert(
            "state_dir".to_owned(),
            machine.guest_path("home/state of it").into(),
        );
        platform.insert("ssh".to_owned(), ssh.into());
        std::fs::write(folder.join("platform.toml"), toml::to_string(&platform)?)?;
        Ok(())
    }
}

/// A cpio archive with one program, to follow others in an initramfs: what comes later wins.
fn archive(path: &str, script: &str) -> Result<Vec<u8>> {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join(path);
    std::fs::create_dir_all(file.parent().context("the path has no folder")?)?;
    std::fs::write(&file, script)?;
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755))?;
    let mut cpio = Command::new("cpio")
        .args(["--create", "--format=newc", "--quiet", "-R", "+0:+0"])
        .current_dir(folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run cpio, which images/build needs too")?;
    // Closed afterwards, so that the list ends.
    cpio.stdin
        .take()
        .context("cpio has no input")?
        .write_all(path.as_bytes())?;
    let output = cpio.wait_with_output()?;
    anyhow::ensure!(output.status.success(), "cpio ended with {}", output.status);
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_platform_is_the_image_with_its_file_changed() {
        let images = tempfile::tempdir().unwrap();
        let image = images.path().join("small");
        std::fs::create_dir(&image).unwrap();
        std::fs::write(image.join("vmlinux"), "kernel").unwrap();
        let text = "memory_mib = 384\n[kernel]\npath = 'vmlinux'\ncmdline = 'quiet'\n\
                    [ssh]\nuser = 'build'\nkey = 'k'\nhost_key = 'h'\n";
        std::fs::write(image.join("platform.toml"), text).unwrap();
        // The folder is asked for by an absolute name, which `join` then takes instead.
        let image = image.to_str().unwrap();
        let platforms = Platforms::new().unwrap();
        platforms
            .add_changed(image, "tiny", |table| {
                table.insert("limit".to_owned(), 1.into());
            })
            .unwrap();
        platforms.add_never_booting(image, "dead").unwrap();
        for (name, limit) in [("tiny", 1), ("dead", 8)] {
            let folder = platforms.folder().join(name);
            let text = std::fs::read_to_string(folder.join("platform.toml")).unwrap();
            let platform = vivarium::config::parse_platform(&folder, &text).unwrap();
            assert_eq!(platform.limit, limit);
            assert_eq!(std::fs::read(folder.join("vmlinux")).unwrap(), b"kernel");
        }
    }
}
