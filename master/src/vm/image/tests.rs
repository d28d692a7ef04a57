use super::*;
use crate::model::DiskBus;
use std::process::Command as Blocking;

fn make(arguments: &[&str], path: &Path) {
    let status = Blocking::new("qemu-img")
        .args(["create", "-q", "-f"])
        .args(arguments)
        .arg(path)
        .arg("64M")
        .status()
        .expect("qemu-img runs");
    assert!(status.success());
}

fn disk(path: &Path, format: DiskFormat) -> DiskSpec {
    DiskSpec {
        path: path.to_owned(),
        format,
        size_gib: None,
        bus: DiskBus::VirtioBlk,
        sha256: None,
        url: None,
        packing: None,
    }
}

async fn refusal(disk: &DiskSpec) -> String {
    match read_chain("tiny", disk).await {
        Err(error @ VmError::Image { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_chain_below_an_image_is_read_from_top_to_bottom() {
    let folder = tempfile::tempdir().expect("a folder");
    let (base, top) = (folder.path().join("base.raw"), folder.path().join("disk"));
    make(&["raw"], &base);
    make(
        &["qcow2", "-F", "raw", "-b", &base.display().to_string()],
        &top,
    );
    let chain = backing_chain("tiny", &disk(&top, DiskFormat::Qcow2))
        .await
        .expect("a chain");
    let expected = [(top, DiskFormat::Qcow2), (base, DiskFormat::Raw)]
        .map(|(path, format)| BackingImage { path, format });
    assert_eq!(chain, expected);
}

#[tokio::test]
async fn an_image_that_stands_on_a_file_elsewhere_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let elsewhere = tempfile::tempdir().expect("another folder");
    let (base, top) = (elsewhere.path().join("base"), folder.path().join("disk"));
    make(&["qcow2"], &base);
    make(
        &["qcow2", "-F", "qcow2", "-b", &base.display().to_string()],
        &top,
    );
    let sentence = refusal(&disk(&top, DiskFormat::Qcow2)).await;
    assert!(sentence.contains(&base.display().to_string()), "{sentence}");
    assert!(sentence.contains("outside"), "{sentence}");
}

/// Its header is there, and `qemu-img info` sees no fault.
#[tokio::test]
async fn a_truncated_image_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("disk.qcow2");
    make(&["qcow2"], &path);
    let written = Blocking::new("qemu-io")
        .args(["-f", "qcow2", "-c", "write 0 8M"])
        .arg(&path)
        .output()
        .expect("qemu-io runs");
    assert!(written.status.success());
    let text = format!("[disk]\npath = {path:?}\n[ssh]\nkey = 'k'\nhost_key = 'h'\n");
    let platform = crate::config::parse_platform(&folder.path().join("tiny"), &text);
    let platform = platform.expect("a platform");
    check_platform(&platform).await.expect("a whole image");
    let file = File::options().write(true).open(&path).expect("opened");
    file.set_len(4 << 20).expect("cut off");
    let error = check_platform(&platform).await.expect_err("refused");
    let sentence = error.to_string();
    assert!(
        sentence.contains("is broken, perhaps cut off"),
        "{sentence}"
    );
    assert!(sentence.contains("disk.qcow2"), "{sentence}");
}

#[tokio::test]
async fn a_file_that_is_no_qcow2_is_refused_with_its_path() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("disk.qcow2");
    std::fs::write(&path, "<html>404</html>").expect("written");
    let sentence = refusal(&disk(&path, DiskFormat::Qcow2)).await;
    assert!(sentence.contains(&path.display().to_string()), "{sentence}");
    assert!(sentence.contains("hint: "), "{sentence}");
}

#[tokio::test]
async fn data_in_another_file_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let (path, data) = (folder.path().join("disk"), folder.path().join("data"));
    let option = format!("data_file={},data_file_raw=on", data.display());
    make(&["qcow2", "-o", &option], &path);
    let sentence = refusal(&disk(&path, DiskFormat::Qcow2)).await;
    assert!(sentence.contains("in another file"), "{sentence}");
}

#[tokio::test]
async fn a_vmdk_of_several_files_is_refused_and_one_of_a_single_file_serves() {
    let folder = tempfile::tempdir().expect("a folder");
    let (one, many) = (
        folder.path().join("one.vmdk"),
        folder.path().join("many.vmdk"),
    );
    make(&["vmdk"], &one);
    make(&["vmdk", "-o", "subformat=monolithicFlat"], &many);
    let disk = |path| disk(path, DiskFormat::Vmdk);
    read_chain("tiny", &disk(&one)).await.expect("a good image");
    let sentence = refusal(&disk(&many)).await;
    assert!(sentence.contains("many-flat.vmdk"), "{sentence}");
}

#[tokio::test]
async fn a_disk_smaller_than_its_image_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("disk");
    make(&["raw"], &path);
    File::options()
        .write(true)
        .open(&path)
        .and_then(|file| file.set_len(3 << 30))
        .expect("a sparse file");
    let mut disk = disk(&path, DiskFormat::Raw);
    disk.size_gib = Some(2);
    let chain = read_chain("tiny", &disk).await.expect("a chain");
    let error = check_size("tiny", &disk, &chain).expect_err("too small");
    assert!(error.to_string().contains("3 GiB already"), "{error}");
    disk.size_gib = Some(3);
    check_size("tiny", &disk, &chain).expect("large enough");
}
