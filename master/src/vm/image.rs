//! Golden images: what is below an overlay, whether a platform's files are fit for use, and the overlay itself.
//! Everything about a disk's format is asked of `qemu-img`.

use super::VmError;
use super::hypervisor::BackingImage;
use crate::model::{DiskFormat, DiskSpec, Platform, PlatformKind};
use serde::Deserialize;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::process::Command;

/// Each run reads or writes a few blocks; a disk that needs longer is broken or hangs.
const QEMU_IMG_DEADLINE: Duration = Duration::from_secs(30);

/// One image as `qemu-img info --output=json` tells of it.
#[derive(Debug, Deserialize)]
struct ImageInfo {
    filename: PathBuf,
    format: String,
    #[serde(rename = "virtual-size")]
    virtual_size: u64,
    #[serde(rename = "backing-filename")]
    backing_filename: Option<String>,
    #[serde(rename = "format-specific")]
    format_specific: Option<FormatSpecific>,
}

#[derive(Debug, Deserialize)]
struct FormatSpecific {
    data: FormatData,
}

#[derive(Debug, Deserialize)]
struct FormatData {
    #[serde(rename = "data-file")]
    data_file: Option<String>,
}

/// Whether all that the platform boots from is there and fit for use.
pub(super) async fn check_platform(platform: &Platform) -> Result<(), VmError> {
    check_files(platform)?;
    if let PlatformKind::Vm {
        disk: Some(disk), ..
    } = &platform.kind
    {
        let chain = read_chain(&platform.name, disk).await?;
        check_size(&platform.name, disk, &chain)?;
    }
    Ok(())
}

/// The part of the check that reads nothing: cheap enough for every start.
pub(super) fn check_files(platform: &Platform) -> Result<(), VmError> {
    let (kernel, disk) = match &platform.kind {
        PlatformKind::Vm { kernel, disk, .. } => (kernel, disk),
        PlatformKind::Ssh { .. } => return Ok(()),
    };
    let name = &platform.name;
    if kernel.is_none() && disk.is_none() {
        return Err(VmError::image(
            name,
            "it has neither a kernel nor a disk to boot from",
        ));
    }
    if let Some(kernel) = kernel {
        check_readable(name, "kernel", &kernel.path)?;
        if let Some(initrd) = &kernel.initrd {
            check_readable(name, "initrd", initrd)?;
        }
    }
    if let Some(disk) = disk {
        check_readable(name, "disk image", &disk.path)?;
    }
    Ok(())
}

fn check_readable(platform: &str, role: &str, path: &Path) -> Result<(), VmError> {
    let refused = |why: String| VmError::image(platform, why);
    let file = File::open(path)
        .map_err(|error| refused(format!("its {role} {}: {error}", path.display())))?;
    let is_file = file.metadata().is_ok_and(|metadata| metadata.is_file());
    if !is_file {
        return Err(refused(format!(
            "its {role} {} is no regular file",
            path.display()
        )));
    }
    Ok(())
}

fn check_size(platform: &str, disk: &DiskSpec, chain: &[ImageInfo]) -> Result<(), VmError> {
    const GIB: u64 = 1 << 30;
    match (disk.size_gib, chain.first()) {
        (Some(wanted), Some(image)) if wanted.saturating_mul(GIB) < image.virtual_size => {
            Err(VmError::image(
                platform,
                format!(
                    "its disk is to have {wanted} GiB, but the image {} has {} GiB already",
                    disk.path.display(),
                    image.virtual_size.div_ceil(GIB)
                ),
            )
            .with_hint("raise `size_gib` or leave it out"))
        }
        (Some(_) | None, _) => Ok(()),
    }
}

/// The golden image and what is below it, for a disk that is about to be used.
pub(super) async fn backing_chain(
    platform: &str,
    disk: &DiskSpec,
) -> Result<Vec<BackingImage>, VmError> {
    let infos = read_chain(platform, disk).await?;
    infos
        .into_iter()
        .map(|info| {
            Ok(BackingImage {
                format: format_of(platform, &info)?,
                path: info.filename,
            })
        })
        .collect()
}

/// Reads the chain and refuses one that leads out of the image's own folder: a copied or downloaded image must not
/// open other files of the host.
async fn read_chain(platform: &str, disk: &DiskSpec) -> Result<Vec<ImageInfo>, VmError> {
    let path = disk.path.display();
    // A raw image has nothing below it, whatever its first bytes say.
    let output = qemu_img(|command| {
        command
            .args(["info", "--output=json", "--force-share", "--backing-chain"])
            .args(["-f", disk.format.as_str()])
            .arg(&disk.path);
    })
    .await
    .map_err(|why| {
        VmError::image(platform, format!("its disk image {path}: {why}")).with_hint(
            "check it with `qemu-img info`; the platform file's `format` must be the image's own",
        )
    })?;
    let chain: Vec<ImageInfo> = serde_json::from_slice(&output).map_err(|error| {
        VmError::image(
            platform,
            format!("its disk image {path}: qemu-img's answer is not understood: {error}"),
        )
    })?;
    let canonical = |path: &Path| {
        path.canonicalize()
            .map_err(|error| VmError::image(platform, format!("{}: {error}", path.display())))
    };
    let golden = canonical(&disk.path)?;
    let folder = golden.parent().unwrap_or(Path::new("/"));
    for info in &chain {
        format_of(platform, info)?;
        if let Some(data_file) = info
            .format_specific
            .as_ref()
            .and_then(|specific| specific.data.data_file.as_ref())
        {
            return Err(VmError::image(
                platform,
                format!(
                    "{} keeps its data in another file, {data_file}",
                    info.filename.display()
                ),
            )
            .with_hint("make one file of it with `qemu-img convert`"));
        }
        if !canonical(&info.filename)?.starts_with(folder) {
            return Err(VmError::image(
                platform,
                format!(
                    "its disk image {path} stands on {}, which is outside {}",
                    info.filename.display(),
                    folder.display()
                ),
            )
            .with_hint(
                "make one file of it with `qemu-img convert`, or move the backing file there",
            ));
        }
    }
    if let Some(lowest) = chain.last()
        && let Some(below) = &lowest.backing_filename
    {
        return Err(VmError::image(
            platform,
            format!(
                "{} stands on {below}, which could not be read",
                lowest.filename.display()
            ),
        ));
    }
    Ok(chain)
}

fn format_of(platform: &str, info: &ImageInfo) -> Result<DiskFormat, VmError> {
    match info.format.as_str() {
        "qcow2" => Ok(DiskFormat::Qcow2),
        "raw" => Ok(DiskFormat::Raw),
        other => Err(VmError::image(
            platform,
            format!(
                "{} is in the format {other}, not qcow2 or raw",
                info.filename.display()
            ),
        )),
    }
}

/// Makes the qcow2 that takes all writes of one VM.
pub(super) async fn create_overlay(overlay: &Path, disk: &DiskSpec) -> Result<(), VmError> {
    qemu_img(|command| {
        command
            .args(["create", "-q", "-f", "qcow2", "-F", disk.format.as_str()])
            .arg("-b")
            .arg(&disk.path)
            .arg(overlay);
        if let Some(size) = disk.size_gib {
            command.arg(format!("{size}G"));
        }
    })
    .await
    .map(|_| ())
    .map_err(|why| {
        VmError::host(
            format!(
                "create the overlay {} on {}",
                overlay.display(),
                disk.path.display()
            ),
            why,
        )
    })
}

/// Runs `qemu-img`; an error is its own words.
async fn qemu_img(arguments: impl FnOnce(&mut Command)) -> Result<Vec<u8>, String> {
    let mut command = Command::new("qemu-img");
    arguments(&mut command);
    command
        .kill_on_drop(true)
        .stdin(std::process::Stdio::null());
    let output = tokio::time::timeout(QEMU_IMG_DEADLINE, command.output())
        .await
        .map_err(|_| format!("qemu-img did not end within {QEMU_IMG_DEADLINE:?}"))?
        .map_err(|error| format!("qemu-img did not run: {error} (is qemu-utils installed?)"))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let words = String::from_utf8_lossy(&output.stderr);
    let words = words.trim().trim_start_matches("qemu-img: ");
    Err(if words.is_empty() {
        format!("qemu-img ended with {}", output.status)
    } else {
        words.to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
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
}
