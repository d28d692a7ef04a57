//! `vivarium platform add`: from an image to a folder that the master takes into service.
//!
//! ```text
//! URL or FILE ─► .NAME.new/{disk image, platform.toml} ─► looked into ─► NAME/
//! ```
//!
//! The folder has its name only once all is there and good; one that was given up goes with the next try.

use super::super::Local;
use super::super::terminal::print;
use super::check;
use crate::config::{Config, is_platform_name};
use crate::fetch::{FetchError, Progress, Wanted, fetch, unpack};
use crate::model::Packing;
use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};
use sha2::{Digest, Sha256};
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{BufWriter, Read, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use url::Url;

/// A connection that broke is made again this often before a person is asked.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_secs(2);

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Options {
    /// The image: an address that begins with https:// or http://, or a file.
    image: String,
    /// The platform's name. Default: the image's, without what it ends with.
    #[arg(long)]
    name: Option<String>,
    /// The family of its system: linux, freebsd, netbsd, openbsd, dragonfly or windows. Default: what its name says.
    #[arg(long)]
    os: Option<String>,
    /// What the image must hash to, as its vendor says. Default: whatever there is, and its hash is written down.
    #[arg(long)]
    sha256: Option<String>,
    #[command(flatten)]
    local: Local,
}

/// Where the image comes from.
enum Origin {
    Url(Url),
    File(PathBuf),
}

pub(super) async fn add(options: Options) -> anyhow::Result<ExitCode> {
    let config = Config::load(&options.local.config)?;
    let (origin, file_name) = origin(&options.image)?;
    let name = options.name.unwrap_or_else(|| stem(&file_name).to_owned());
    if !is_platform_name(&name) {
        bail!(
            "`{name}` cannot name a platform: letters, digits, `.`, `_`, `-`, at most 64\nhint: give one with --name"
        );
    }
    let os = options.os.unwrap_or_else(|| os_of(&name).to_owned());
    let dir = &config.platforms_dir;
    let folder = dir.join(&name);
    if folder.exists() {
        bail!(
            "{} is there already\nhint: give another name with --name, or remove it",
            folder.display()
        );
    }
    let new = dir.join(format!(".{name}.new"));
    clear(&new)?;
    // Readable for QEMU's user, whatever the umask.
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(&new)
        .and_then(|()| fs::set_permissions(&new, Permissions::from_mode(0o755)))
        .with_context(|| format!("cannot make {}", new.display()))?;
    // What is looked into must have the name that it will have.
    let inner = new.join(&name);
    let made = async {
        fs::create_dir(&inner).with_context(|| format!("cannot make {}", inner.display()))?;
        fs::set_permissions(&inner, Permissions::from_mode(0o755))?;
        let image = inner.join(&file_name);
        let wanted = options.sha256.map(|hash| hash.to_ascii_lowercase());
        let mut sha256 = match &origin {
            Origin::Url(url) => download(url, wanted.as_deref(), &image).await?,
            Origin::File(path) => copy(path, wanted.as_deref(), &image)?,
        };
        let (unpacked, packing) = Packing::split(&file_name);
        if let Some(packing) = packing {
            let bar = bar();
            bar.set_message("unpacking");
            let to = inner.join(unpacked);
            let unpacking = unpack(packing, &image, &to, |have| {
                bar.set_length(have);
                bar.set_position(have);
            });
            sha256 = unpacking.await?;
            bar.finish_and_clear();
        }
        let text = platform_file(&origin, &os, unpacked, &sha256);
        fs::write(inner.join("platform.toml"), text).context("cannot write platform.toml")?;
        check::look(&inner, None)
            .await
            .map_err(|why| anyhow::anyhow!("{} was not added: {why}", options.image))?;
        fs::rename(&inner, &folder)
            .with_context(|| format!("cannot move {} to {}", inner.display(), folder.display()))
    };
    let made = made.await;
    clear(&new)?;
    made?;
    print(&format!(
        "{}: added; a running master takes it into service within seconds\n",
        folder.display()
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// Where the image is, and the name of its file.
fn origin(image: &str) -> anyhow::Result<(Origin, String)> {
    let (origin, last) = match image.starts_with("https://") || image.starts_with("http://") {
        true => {
            let url: Url = image
                .parse()
                .with_context(|| format!("{image} is no address"))?;
            let last = url.path().rsplit('/').next().unwrap_or_default().to_owned();
            (Origin::Url(url), last)
        }
        false => {
            let path = PathBuf::from(image);
            if !path.is_file() {
                bail!("{image} is no file, and no address that begins with https:// or http://");
            }
            let last = path.file_name().unwrap_or_default();
            let last = last.to_string_lossy().into_owned();
            (Origin::File(path), last)
        }
    };
    if last.is_empty() || last.starts_with('.') || last.contains(['%', '"', '\\']) {
        bail!("{image} does not end with the name of an image");
    }
    Ok((origin, last))
}

/// A name without what tells the format.
fn stem(file_name: &str) -> &str {
    let (file_name, _) = Packing::split(file_name);
    let endings = [".qcow2", ".img", ".raw", ".vmdk"];
    endings
        .iter()
        .find_map(|ending| file_name.strip_suffix(ending))
        .unwrap_or(file_name)
}

/// What a vendor's name of an image says of its system.
fn os_of(name: &str) -> &'static str {
    let name = name.to_ascii_lowercase();
    ["freebsd", "netbsd", "openbsd", "dragonfly", "windows"]
        .into_iter()
        .find(|os| name.contains(os))
        .unwrap_or("linux")
}

/// Five lines, and where the image is from.
fn platform_file(origin: &Origin, os: &str, file_name: &str, sha256: &str) -> String {
    let from = match origin {
        Origin::Url(url) => format!("# Image: {url}\n"),
        Origin::File(_) => String::new(),
    };
    format!(
        "{from}os = \"{os}\"\nseed = \"nocloud\"\n[disk]\npath = \"{file_name}\"\nsha256 = \"{sha256}\"\n"
    )
}

async fn download(url: &Url, sha256: Option<&str>, path: &Path) -> anyhow::Result<String> {
    let bar = bar();
    let wanted = Wanted { url, sha256, path };
    let mut tries = 1;
    loop {
        let fetched = fetch(wanted, |Progress { bytes, total }| {
            bar.set_length(total.unwrap_or(bytes));
            bar.set_position(bytes);
        });
        match fetched.await {
            Ok(hash) => {
                bar.finish_and_clear();
                return Ok(hash);
            }
            Err(FetchError::Interrupted(why)) if tries < TRIES => {
                tries += 1;
                bar.set_message(format!("broke off ({why}); going on"));
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn copy(from: &Path, sha256: Option<&str>, to: &Path) -> anyhow::Result<String> {
    const BUFFER: usize = 1 << 20;
    let told = || format!("cannot copy {} to {}", from.display(), to.display());
    let mut source = File::open(from).with_context(told)?;
    let bar = bar();
    bar.set_length(source.metadata().with_context(told)?.len());
    let mut target = BufWriter::new(File::create(to).with_context(told)?);
    let mut hash = Sha256::new();
    let mut buffer = vec![0; BUFFER];
    loop {
        let count = source.read(&mut buffer).with_context(told)?;
        let Some(bytes) = buffer.get(..count).filter(|bytes| !bytes.is_empty()) else {
            break;
        };
        hash.update(bytes);
        target.write_all(bytes).with_context(told)?;
        bar.inc(count as u64);
    }
    let target = target.into_inner().with_context(told)?;
    target
        .set_permissions(Permissions::from_mode(0o644))
        .and_then(|()| target.sync_all())
        .with_context(told)?;
    bar.finish_and_clear();
    let found = hex::encode(hash.finalize());
    if let Some(wanted) = sha256.filter(|wanted| *wanted != found) {
        bail!(
            "{} is not what was meant: its SHA-256 is {found}, not {wanted}",
            from.display()
        );
    }
    Ok(found)
}

/// Shown on a terminal only.
fn bar() -> ProgressBar {
    let style = ProgressStyle::with_template(
        "{wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta} {msg}",
    );
    ProgressBar::no_length().with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn clear(folder: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests;
