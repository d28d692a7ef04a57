//! From an image that its vendor compressed to the image.

use super::{BUFFER, FetchError, part_of, put_in_place};
use crate::model::Packing;
use async_compression::tokio::bufread::{GzipDecoder, XzDecoder, ZstdDecoder};
use sha2::{Digest, Sha256};
use std::path::Path;
use tokio::fs::{self, File};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};

/// Unpacks `from` to `to`, which is there once it is whole, and removes `from`; returns the SHA-256 of the image. `tell` hears
/// how many bytes of it there are after each piece.
pub async fn unpack(
    packing: Packing,
    from: &Path,
    to: &Path,
    mut tell: impl FnMut(u64),
) -> Result<String, FetchError> {
    let part = part_of(to);
    let broken = |what: &str, error: std::io::Error| {
        FetchError::Interrupted(format!("{} cannot be {what}: {error}", part.display()))
    };
    let packed = File::open(from).await.map_err(|error| {
        FetchError::Interrupted(format!("{} cannot be read: {error}", from.display()))
    })?;
    let mut packed = decoder(packing, BufReader::with_capacity(BUFFER, packed));
    let mut file = File::create(&part)
        .await
        .map_err(|error| broken("made", error))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; BUFFER];
    let mut have = 0;
    loop {
        let count = match packed.read(&mut buffer).await {
            Ok(count) => count,
            Err(error) => {
                fs::remove_file(&part)
                    .await
                    .map_err(|error| broken("removed", error))?;
                return Err(FetchError::Damaged {
                    path: from.display().to_string(),
                    error,
                });
            }
        };
        let Some(bytes) = buffer.get(..count).filter(|bytes| !bytes.is_empty()) else {
            break;
        };
        hash.update(bytes);
        file.write_all(bytes)
            .await
            .map_err(|error| broken("written", error))?;
        have += count as u64;
        tell(have);
    }
    file.sync_all()
        .await
        .map_err(|error| broken("written", error))?;
    put_in_place(&part, to).await?;
    fs::remove_file(from).await.map_err(|error| {
        FetchError::Interrupted(format!("{} cannot be removed: {error}", from.display()))
    })?;
    Ok(hex::encode(hash.finalize()))
}

/// Vendors pack in several pieces, one behind the other.
fn decoder(packing: Packing, packed: BufReader<File>) -> Box<dyn AsyncRead + Send + Unpin> {
    match packing {
        Packing::Gzip => {
            let mut decoder = GzipDecoder::new(packed);
            decoder.multiple_members(true);
            Box::new(decoder)
        }
        Packing::Xz => {
            let mut decoder = XzDecoder::new(packed);
            decoder.multiple_members(true);
            Box::new(decoder)
        }
        Packing::Zstd => {
            let mut decoder = ZstdDecoder::new(packed);
            decoder.multiple_members(true);
            Box::new(decoder)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    const IMAGE: &[u8] = b"an image ";

    /// Packs with the very programs that vendors use.
    fn packed(folder: &Path, program: &str, ending: &str, content: &[u8]) -> std::path::PathBuf {
        let path = folder.join(format!("disk.raw.{ending}"));
        let plain = folder.join("plain");
        std::fs::write(&plain, content).unwrap();
        let status = Command::new(program)
            .arg("-c")
            .arg(&plain)
            .stdout(Stdio::from(std::fs::File::create(&path).unwrap()))
            .status()
            .unwrap();
        assert!(status.success(), "{program}: {status}");
        path
    }

    #[tokio::test]
    async fn what_vendors_pack_is_unpacked_and_the_packed_file_goes() {
        let folder = tempfile::tempdir().unwrap();
        let image = IMAGE.repeat(400_000);
        for (program, ending, packing) in [("gzip", "gz", Packing::Gzip), ("xz", "xz", Packing::Xz)]
        {
            let from = packed(folder.path(), program, ending, &image);
            // A second piece behind the first.
            let mut twice = std::fs::read(&from).unwrap();
            twice.extend(twice.clone());
            std::fs::write(&from, twice).unwrap();
            let to = folder.path().join(format!("disk-{ending}.raw"));
            let mut told = 0;
            let hash = unpack(packing, &from, &to, |have| told = have)
                .await
                .unwrap();
            assert_eq!(std::fs::read(&to).unwrap(), image.repeat(2));
            assert_eq!(hash, crate::fetch::sha256(&to).await.unwrap());
            assert_eq!(told, image.len() as u64 * 2);
            assert!(!from.exists());
        }
    }

    #[tokio::test]
    async fn a_damaged_one_is_refused_and_leaves_nothing_half_done() {
        let folder = tempfile::tempdir().unwrap();
        let from = packed(folder.path(), "xz", "xz", &IMAGE.repeat(100_000));
        let whole = std::fs::read(&from).unwrap();
        std::fs::write(&from, &whole[..whole.len() / 2]).unwrap();
        let to = folder.path().join("disk.raw");
        let error = unpack(Packing::Xz, &from, &to, |_| {}).await.unwrap_err();
        let said = error.to_string();
        assert!(said.contains("disk.raw.xz cannot be unpacked"), "{said}");
        assert!(!to.exists() && !part_of(&to).exists());
    }
}
