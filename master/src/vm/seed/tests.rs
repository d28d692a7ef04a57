use super::*;
use crate::config::parse_platform;
use std::path::Path;

fn platform(more: &str) -> Platform {
    let text = format!("seed = 'nocloud'\n{more}[disk]\npath = 'disk.qcow2'\n");
    parse_platform(Path::new("/platforms/debian-12"), &text).expect("a platform")
}

fn folder(vms: &Path) -> VmFolder {
    let folder = VmFolder::of(vms, AttemptId(17));
    folder.make().expect("made");
    folder
}

fn seed(platform: &Platform) -> Vec<(&'static str, String)> {
    let vms = tempfile::tempdir().expect("a folder");
    let keys = GuestKeys::make(platform, &folder(vms.path())).expect("keys");
    files(AttemptId(17), platform, &keys, &Macs::new()).expect("files")
}

fn text<'a>(files: &'a [(&str, String)], wanted: &str) -> &'a str {
    let found = files.iter().find(|(name, _)| *name == wanted);
    &found.expect("the file").1
}

#[test]
fn each_vm_has_keys_of_its_own_and_only_ours_is_kept_outside_the_seed() {
    use std::os::unix::fs::PermissionsExt;
    let vms = tempfile::tempdir().expect("a folder");
    let folder = folder(vms.path());
    let platform = platform("");
    let path = make(AttemptId(17), &platform, &folder, &Macs::new()).expect("a seed");
    for secret in [folder.ssh_key(), path.clone()] {
        let mode = std::fs::metadata(&secret)
            .expect("there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{}", secret.display());
    }
    let ours = std::fs::read_to_string(folder.ssh_key()).expect("a key");
    let ours = russh::keys::decode_secret_key(&ours, None).expect("ours can be read");
    let host = std::fs::read_to_string(folder.ssh_host_key()).expect("a host key");
    let image = std::fs::read(&path).expect("the volume");
    let image = String::from_utf8_lossy(&image);
    let public = ours.public_key().to_openssh().expect("its public half");
    assert!(image.contains(&public), "the user's key is let in");
    assert!(image.contains(&host), "the host key is brought");
    assert!(host.starts_with("ssh-ed25519 "));

    folder.make().expect("made again");
    make(AttemptId(17), &platform, &folder, &Macs::new()).expect("another seed");
    let other = std::fs::read_to_string(folder.ssh_host_key()).expect("a host key");
    assert_ne!(host, other);
}

#[test]
fn the_user_the_network_and_the_growth_are_said_and_nothing_is_updated() {
    let files = seed(&platform(
        "os = 'freebsd'\nnetwork = { libvirt_network = 'lab' }\n[ssh]\nuser = 'ci'\n",
    ));
    let user = text(&files, "user-data");
    assert!(user.starts_with("#cloud-config\n"), "{user}");
    for line in [
        "  - name: \"ci\"",
        "      - \"permit nopass ci\"",
        "disable_root: true",
        "ssh_pwauth: false",
        "  ed25519_private: |",
        "    -----BEGIN OPENSSH PRIVATE KEY-----",
        "    -----END OPENSSH PRIVATE KEY-----",
        "  mode: auto",
        "package_upgrade: false",
    ] {
        assert!(user.lines().any(|own| own == line), "{line}: {user}");
    }
    let network = text(&files, "network-config");
    assert_eq!(
        network.matches("macaddress: \"52:54:00:").count(),
        2,
        "{network}"
    );
    let meta = text(&files, "meta-data");
    assert!(meta.starts_with("instance-id: \"vm-17-"), "{meta}");
    assert!(
        text(&seed(&platform("[ssh]\nuser = 'root'\n")), "user-data")
            .contains("disable_root: false")
    );
}

#[test]
fn an_image_with_a_host_key_of_its_own_keeps_it() {
    let files = seed(&platform("[ssh]\nhost_key = 'host.pub'\n"));
    assert!(!text(&files, "user-data").contains("ssh_keys"));
}

/// By the reader of the library that wrote it, and by another one's where the machine has it.
#[test]
fn the_volume_has_its_name_and_its_files_under_theirs() {
    let files = [
        ("meta-data", "instance-id: x\n".to_owned()),
        ("user-data", "#cloud-config\n".repeat(1000)),
        ("network-config", "version: 2\n".to_owned()),
    ];
    let image = volume::make(&files).expect("a volume");
    // The primary volume descriptor is sector 16; its name is at byte 40.
    assert_eq!(
        &image[16 * 2048 + 40..][..32],
        format!("{:32}", "cidata").as_bytes()
    );
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), &image).expect("written");
    let blkid = std::process::Command::new("/usr/sbin/blkid")
        .args(["-p", "-o", "value", "-s", "LABEL", "-s", "TYPE"])
        .arg(file.path())
        .output()
        .expect("blkid runs");
    let said = String::from_utf8_lossy(&blkid.stdout);
    let mut said: Vec<&str> = said.lines().collect();
    said.sort_unstable();
    assert_eq!(said, ["cidata", "iso9660"], "{blkid:?}");
}
