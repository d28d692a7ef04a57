//! What scenarios need of the machine they run on: images, platforms made of them, an SSH server, and a look at what
//! is left afterwards.
//!
//! Images are in `$VIVARIUM_IMAGES`, or where `images/build` puts them.

use anyhow::{Context, Result, bail};
use nix::unistd::{Uid, User};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use toml::{Table, Value};

/// Where `images/build` puts images by default.
pub fn images_folder() -> PathBuf {
    if let Some(folder) = std::env::var_os("VIVARIUM_IMAGES") {
        return folder.into();
    }
    if Uid::effective().is_root() {
        return "/var/cache/vivarium/images".into();
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache"),
        PathBuf::from,
    );
    cache.join("vivarium/images")
}

/// The libvirt that scenarios use: `$VIVARIUM_LIBVIRT_URI`, or the system's for root and the user's own for others.
pub fn hypervisor_uri() -> String {
    std::env::var("VIVARIUM_LIBVIRT_URI").unwrap_or_else(|_| {
        if Uid::effective().is_root() {
            "qemu:///system".to_owned()
        } else {
            "qemu:///session".to_owned()
        }
    })
}

/// Whether scenarios with guests run here. They do unless `VIVARIUM_WITHOUT_GUESTS` gives a reason, which is printed.
pub fn guests_run_here() -> bool {
    match std::env::var("VIVARIUM_WITHOUT_GUESTS") {
        Ok(reason) if !reason.is_empty() => {
            eprintln!("skipped, without guests: {reason}");
            false
        }
        _ => true,
    }
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

    /// A guest whose kernel finds no program to start and halts.
    pub fn add_never_booting(&self, image: &str, name: &str) -> Result<()> {
        self.add_changed(image, name, |platform| {
            platform.insert("boot_deadline_secs".to_owned(), 5.into());
            let kernel = platform.get_mut("kernel").and_then(Value::as_table_mut);
            if let Some(kernel) = kernel {
                let cmdline = "console=ttyS0 panic=0 rdinit=/no-such-program init=/no-such-program";
                kernel.insert("cmdline".to_owned(), cmdline.into());
            }
        })
    }

    /// A machine that is there already, reached by SSH.
    pub fn add_ssh(&self, name: &str, server: &SshServer) -> Result<()> {
        let folder = self.folder.path().join(name);
        std::fs::create_dir(&folder)?;
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        let mut ssh = Table::new();
        ssh.insert("host".to_owned(), "127.0.0.1".into());
        ssh.insert("port".to_owned(), i64::from(server.port).into());
        ssh.insert("user".to_owned(), server.user.clone().into());
        ssh.insert("key".to_owned(), text(server.user_key()).into());
        ssh.insert("host_key".to_owned(), text(server.host_key()).into());
        let mut platform = Table::new();
        platform.insert("kind".to_owned(), "ssh".into());
        platform.insert("os".to_owned(), "linux".into());
        platform.insert("work_dir".to_owned(), text(server.path("work")).into());
        platform.insert("state_dir".to_owned(), text(server.path("state")).into());
        platform.insert("ssh".to_owned(), ssh.into());
        std::fs::write(folder.join("platform.toml"), toml::to_string(&platform)?)?;
        Ok(())
    }
}

/// A real `sshd` on a loopback port, with keys of its own, for the user who runs the tests.
#[derive(Debug)]
pub struct SshServer {
    folder: tempfile::TempDir,
    pub port: u16,
    pub user: String,
    child: tokio::process::Child,
}

impl SshServer {
    const START_DEADLINE: Duration = Duration::from_secs(30);

    pub async fn start() -> Result<SshServer> {
        let folder = tempfile::Builder::new()
            .prefix("vivarium-sshd-")
            .tempdir()?;
        let user = User::from_uid(Uid::effective())?
            .context("the user who runs the tests has no name")?
            .name;
        let port = crate::master::free_port()?;
        for key in ["host_key", "user_key"] {
            let status = Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(folder.path().join(key))
                .stdin(Stdio::null())
                .status()
                .context("cannot run ssh-keygen")?;
            if !status.success() {
                bail!("ssh-keygen ended with {status}");
            }
        }
        let at = |name: &str| folder.path().join(name).display().to_string();
        let config = format!(
            "ListenAddress 127.0.0.1:{port}\nHostKey {}\nAuthorizedKeysFile {}\nPidFile {}\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\n\
             StrictModes no\nUsePAM no\nPrintMotd no\n",
            at("host_key"),
            at("user_key.pub"),
            at("sshd.pid")
        );
        std::fs::write(folder.path().join("sshd_config"), config)?;
        if Uid::effective().is_root() {
            // Where Debian's sshd goes to separate its privileges; made by its service otherwise.
            std::fs::create_dir_all("/run/sshd").context("cannot make /run/sshd")?;
        }
        let log = std::fs::File::create(folder.path().join("sshd.log"))?;
        let child = tokio::process::Command::new(sshd()?)
            .args(["-D", "-e", "-f"])
            .arg(folder.path().join("sshd_config"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .context("cannot run sshd")?;
        let server = SshServer {
            folder,
            port,
            user,
            child,
        };
        server.wait_for_banner().await?;
        Ok(server)
    }

    async fn wait_for_banner(&self) -> Result<()> {
        use tokio::io::AsyncReadExt;
        let greeted = async {
            loop {
                if let Ok(mut stream) =
                    tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await
                {
                    let mut start = [0; 4];
                    if stream.read_exact(&mut start).await.is_ok() && &start == b"SSH-" {
                        return;
                    }
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(Self::START_DEADLINE, greeted)
            .await
            .is_err()
        {
            bail!("sshd did not answer; it said:\n{}", self.output());
        }
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The private key that may log in.
    pub fn user_key(&self) -> PathBuf {
        self.path("user_key")
    }

    /// The server's public key.
    pub fn host_key(&self) -> PathBuf {
        self.path("host_key.pub")
    }

    /// What sshd has said.
    pub fn output(&self) -> String {
        std::fs::read_to_string(self.path("sshd.log")).unwrap_or_default()
    }

    /// Takes no more connections; those that are open go on.
    pub async fn stop(&mut self) -> Result<()> {
        self.child.kill().await.context("cannot end sshd")
    }
}

/// sshd insists on being called by its absolute path.
fn sshd() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/usr/local/sbin".into()])
        .map(|folder| folder.join("sshd"))
        .find(|program| program.is_file())
        .context("no sshd on this machine\nhint: install openssh-server")
}

/// What there is of machines of the master with this data folder: domains, files, processes.
pub fn leftovers(data_dir: &Path) -> Result<Vec<String>> {
    let mut left = Vec::new();
    for domain in domains_of(data_dir)? {
        left.push(format!("the domain {domain}"));
    }
    collect_files(&data_dir.join("vms"), &mut left)?;
    for (pid, command) in qemu_processes_of(data_dir) {
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

fn virsh(arguments: &[&str]) -> Result<String> {
    let output = Command::new("virsh")
        .args(["--quiet", "--connect", &hypervisor_uri()])
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
fn domains_of(data_dir: &Path) -> Result<Vec<String>> {
    let folder = data_dir.to_string_lossy().into_owned();
    let names = virsh(&["list", "--all", "--name"])?;
    Ok(names
        .lines()
        .map(str::trim)
        .filter(|name| name.starts_with("vivarium-"))
        // One that has gone in the meantime is nobody's.
        .filter(|name| virsh(&["dumpxml", name]).is_ok_and(|xml| xml.contains(&folder)))
        .map(str::to_owned)
        .collect())
}

/// Ids and command lines of the QEMU processes that run domains of the data folder, or have its files open by name.
pub fn qemu_processes_of(data_dir: &Path) -> Vec<(i32, String)> {
    let folder = data_dir.to_string_lossy().into_owned();
    // A guest without a disk has no file of ours among its arguments: libvirt hands the console over open.
    let mut marks: Vec<String> = domains_of(data_dir)
        .unwrap_or_default()
        .iter()
        .map(|name| format!("guest={name},"))
        .collect();
    marks.push(folder);
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let bytes = std::fs::read(entry.path().join("cmdline")).ok()?;
            let command = String::from_utf8_lossy(&bytes).replace('\0', " ");
            let program = command.split(' ').next()?;
            let is_qemu = Path::new(program)
                .file_name()?
                .to_str()?
                .starts_with("qemu-system-");
            let is_ours = marks.iter().any(|mark| command.contains(mark));
            (is_qemu && is_ours).then_some((pid, command))
        })
        .collect()
}

/// Kills the QEMU processes of one master, as the kernel does when memory runs out.
pub fn kill_qemu_of(data_dir: &Path) -> Result<usize> {
    let processes = qemu_processes_of(data_dir);
    for (pid, _) in &processes {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::SIGKILL)
            .with_context(|| format!("cannot kill the QEMU process {pid}"))?;
    }
    Ok(processes.len())
}

/// Ends what a master that was killed left running, so that a failed test leaves nothing.
pub(crate) fn end_machines_of(data_dir: &Path) -> Result<()> {
    // Without a machine's files there is no machine, and on some hosts no libvirt to ask either.
    let mut files = Vec::new();
    collect_files(&data_dir.join("vms"), &mut files)?;
    if files.is_empty() {
        return Ok(());
    }
    for domain in domains_of(data_dir)? {
        virsh(&["destroy", &domain])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_ssh_server_lets_its_key_in() {
        let server = SshServer::start().await.unwrap();
        let known = server.path("known_hosts");
        let host_key = std::fs::read_to_string(server.host_key()).unwrap();
        std::fs::write(&known, format!("[127.0.0.1]:{} {host_key}", server.port)).unwrap();
        let output = tokio::process::Command::new("ssh")
            .args([
                "-F",
                "none",
                "-o",
                "BatchMode=yes",
                "-o",
                "IdentitiesOnly=yes",
            ])
            .arg("-o")
            .arg(format!("UserKnownHostsFile={}", known.display()))
            .arg("-i")
            .arg(server.user_key())
            .args(["-p", &server.port.to_string()])
            .arg(format!("{}@127.0.0.1", server.user))
            .arg("echo hello")
            .stdin(Stdio::null())
            .output()
            .await
            .unwrap();
        assert_eq!(output.stdout, b"hello\n", "{}", server.output());
    }

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
