//! Golden images: what is below an overlay, whether a platform's files are fit for use, and the overlay itself.
//! Everything about a disk's format is asked of `qemu-img`.

mod qemu_img;

use super::VmError;
use super::hypervisor::BackingImage;
use crate::model::{DiskFormat, DiskSpec, Platform, PlatformKind};
use qemu_img::ImageInfo;
use std::fs::File;
use std::path::{Path, PathBuf};

/// Whether all that the platform boots from is there and fit for use.
pub async fn check_platform(platform: &Platform) -> Result<(), VmError> {
    check_files(platform)?;
    if let PlatformKind::Vm {
        disk: Some(disk), ..
    } = &platform.kind
    {
        let chain = read_chain(&platform.name, disk).await?;
        check_size(&platform.name, disk, &chain)?;
        qemu_img::check(disk).await.map_err(|why| {
            let path = disk.path.display();
            VmError::image(
                &platform.name,
                format!("its disk image {path} is broken, perhaps cut off: {why}"),
            )
            .with_hint("copy or fetch it again, and compare its size and hash with the original's")
        })?;
    }
    Ok(())
}

/// The files that a platform boots from, and what its guest finds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageFacts {
    /// Kernel, initrd, disk, and what the disk stands on, in this order.
    pub files: Vec<PathBuf>,
    /// The size of the disk as the guest sees it, which is the most that it can write.
    pub disk_bytes: Option<u64>,
}

/// Looks at what the platform boots from; of a machine reached by SSH there is nothing.
pub async fn image_facts(platform: &Platform) -> Result<ImageFacts, VmError> {
    check_files(platform)?;
    let (mut files, mut disk_bytes) = (Vec::new(), None);
    if let PlatformKind::Vm { kernel, disk, .. } = &platform.kind {
        if let Some(kernel) = kernel {
            files.push(kernel.path.clone());
            files.extend(kernel.initrd.clone());
        }
        if let Some(disk) = disk {
            let chain = read_chain(&platform.name, disk).await?;
            let own_size = chain.first().map(|image| image.virtual_size);
            disk_bytes = disk.size_gib.map(|size| size << 30).or(own_size);
            files.extend(chain.into_iter().map(|image| image.filename));
        }
    }
    Ok(ImageFacts { files, disk_bytes })
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
    let output = qemu_img::run(|command| {
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
        if let Some(data_file) = info.other_file() {
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
    DiskFormat::ALL
        .into_iter()
        .find(|format| format.as_str() == info.format)
        .ok_or_else(|| {
            VmError::image(
                platform,
                format!(
                    "{} is in the format {}, not qcow2, raw or vmdk",
                    info.filename.display(),
                    info.format
                ),
            )
        })
}

/// Makes the qcow2 that takes all writes of one VM.
pub(super) async fn create_overlay(overlay: &Path, disk: &DiskSpec) -> Result<(), VmError> {
    qemu_img::run(|command| {
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

#[cfg(test)]
mod tests;
