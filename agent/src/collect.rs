//! Collecting: files below a folder that match globs go out, in sorted order, within limits.
//!
//! A file is announced with its size; as many bytes as were announced follow, or fewer if it shrank or broke meanwhile.
//! Fewer means to the receiver: discard this one; it stands in the list of the skipped. What a file grows by is not sent.

use crate::outbox::{Closed, Outbox};
use crate::platform;
use anyhow::{Context, Result, bail};
use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use sha2::{Digest, Sha256};
use std::fs::{File, FileType};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use vivarium_protocol::{CollectedFile, DATA_HEAD, MAX_DATA, Skipped, ToMaster, data_head};

/// How many globs a request may have.
const MAX_GLOBS: usize = 1000;
/// How many skipped files are listed, and how long their list may be as JSON; the rest is counted.
const MAX_SKIPPED: usize = 1000;
const MAX_SKIPPED_BYTES: usize = 128 * 1024;

/// What the master asks for.
#[derive(Debug)]
pub(crate) struct Wish {
    pub(crate) dir: PathBuf,
    pub(crate) globs: Vec<String>,
    pub(crate) max_files: u64,
    pub(crate) max_bytes: u64,
}

/// Sends the files and the end of the list, or the refusal.
pub(crate) fn collect(wish: &Wish, outbox: &Outbox) -> Result<(), Closed> {
    let mut collection = Collection {
        wish,
        outbox,
        files: 0,
        bytes: 0,
        skipped: SkippedList::default(),
    };
    match collection.run() {
        Ok(()) => outbox.send(&ToMaster::Collected {
            files: collection.files,
            bytes: collection.bytes,
            skipped: collection.skipped.into_list(),
        }),
        Err(error) if error.is::<Closed>() => Err(Closed),
        Err(error) => outbox.refuse("collect", format_args!("{error:#}")),
    }
}

fn compile(globs: &[String]) -> Result<GlobSet> {
    if globs.len() > MAX_GLOBS {
        bail!(
            "there are {} globs, at most {MAX_GLOBS} are allowed",
            globs.len()
        );
    }
    let mut set = GlobSetBuilder::new();
    for glob in globs {
        set.add(GlobBuilder::new(glob).literal_separator(true).build()?);
    }
    Ok(set.build()?)
}

struct Collection<'a> {
    wish: &'a Wish,
    outbox: &'a Outbox,
    files: u64,
    bytes: u64,
    skipped: SkippedList,
}

impl Collection<'_> {
    fn run(&mut self) -> Result<()> {
        let globs = compile(&self.wish.globs)?;
        let root = &self.wish.dir;
        let first = list(root).with_context(|| format!("cannot list {}", root.display()))?;
        // One sorted list per open folder, its next entry last.
        let mut open = vec![first];
        while let Some(folder) = open.last_mut() {
            let Some(Found { path, kind }) = folder.pop() else {
                open.pop();
                continue;
            };
            let relative = path.strip_prefix(root).unwrap_or(&path);
            let matches = globs.is_match(relative);
            if kind.is_dir() {
                match list(&path) {
                    Ok(entries) => open.push(entries),
                    // It may hold what was asked for, so silence would be wrong; one that vanished holds nothing.
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    Err(error) => self
                        .skipped
                        .add(relative, format!("cannot list the folder: {error}")),
                }
            } else if matches {
                self.offer(&path, relative, kind)?;
            }
        }
        Ok(())
    }

    /// Sends a file that matched, or writes down why not.
    fn offer(&mut self, path: &Path, relative: &Path, kind: FileType) -> Result<(), Closed> {
        let opened = match (relative.to_str(), kind) {
            (None, _) => Err("its name is not UTF-8".to_owned()),
            (Some(_), kind) if kind.is_symlink() => Err("it is a symbolic link".to_owned()),
            (Some(_), kind) if !kind.is_file() => Err("it is no regular file".to_owned()),
            (Some(name), _) => self.open(path, name),
        };
        match opened {
            Ok((header, file)) => self.send(header, file),
            Err(why) => {
                self.skipped.add(relative, why);
                Ok(())
            }
        }
    }

    fn open(&self, path: &Path, name: &str) -> Result<(CollectedFile, File), String> {
        let file =
            platform::open_regular(path).map_err(|error| format!("cannot open it: {error}"))?;
        let metadata = file
            .metadata()
            .map_err(|error| format!("cannot look at it: {error}"))?;
        if !metadata.is_file() {
            return Err("it is no regular file".to_owned());
        }
        let size = metadata.len();
        if self.files >= self.wish.max_files {
            return Err(format!("over the limit of {} files", self.wish.max_files));
        }
        if size > self.wish.max_bytes.saturating_sub(self.bytes) {
            return Err(format!(
                "over the limit of {} bytes in all, with {size} bytes",
                self.wish.max_bytes
            ));
        }
        let header = CollectedFile {
            path: portable(name),
            size,
            executable: platform::is_executable(&metadata),
        };
        Ok((header, file))
    }

    fn send(&mut self, header: CollectedFile, mut file: File) -> Result<(), Closed> {
        let (path, size) = (PathBuf::from(&header.path), header.size);
        self.outbox.send(&ToMaster::File(header))?;
        let mut sha = Sha256::new();
        let mut left = size;
        let broken = loop {
            if left == 0 {
                break None;
            }
            let most = usize::try_from(left).unwrap_or(MAX_DATA).min(MAX_DATA);
            let mut frame = self.outbox.spare_frame();
            frame.resize(DATA_HEAD + most, 0);
            let count = match file.read(frame.get_mut(DATA_HEAD..).unwrap_or_default()) {
                Ok(0) => {
                    break Some(format!(
                        "it shrank from {size} to {} bytes while it was sent",
                        size - left
                    ));
                }
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => {
                    break Some(format!(
                        "cannot read it beyond byte {}: {error}",
                        size - left
                    ));
                }
            };
            frame.truncate(DATA_HEAD + count);
            if let Some((head, content)) = frame.split_first_chunk_mut::<DATA_HEAD>() {
                *head = data_head(count);
                sha.update(content);
            }
            left -= count as u64;
            self.outbox.send_encoded(frame)?;
        };
        self.outbox.send(&ToMaster::EndOfFile {
            sha256: hex(&sha.finalize()),
        })?;
        match broken {
            None => {
                self.files += 1;
                self.bytes += size;
            }
            Some(why) => self.skipped.add(&path, why),
        }
        Ok(())
    }
}

struct Found {
    path: PathBuf,
    kind: FileType,
}

/// A folder's entries in reverse order of their names, to be taken from the end.
fn list(dir: &Path) -> std::io::Result<Vec<Found>> {
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        entries.push(Found {
            path: entry.path(),
            kind: entry.file_type()?,
        });
    }
    entries.sort_unstable_by(|a, b| b.path.file_name().cmp(&a.path.file_name()));
    Ok(entries)
}

/// A relative path with `/` between its parts.
fn portable(path: &str) -> String {
    if std::path::MAIN_SEPARATOR == '/' {
        path.to_owned()
    } else {
        path.replace(std::path::MAIN_SEPARATOR, "/")
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The skipped files, as many as one message can carry.
#[derive(Debug, Default)]
struct SkippedList {
    listed: Vec<Skipped>,
    bytes: usize,
    unlisted: u64,
}

impl SkippedList {
    fn add(&mut self, path: &Path, why: String) {
        let skipped = Skipped {
            path: portable(&path.to_string_lossy()),
            why,
        };
        let bytes = serde_json::to_vec(&skipped).map_or(0, |json| json.len() + 1);
        if self.listed.len() >= MAX_SKIPPED || self.bytes + bytes > MAX_SKIPPED_BYTES {
            self.unlisted += 1;
            return;
        }
        self.bytes += bytes;
        self.listed.push(skipped);
    }

    fn into_list(mut self) -> Vec<Skipped> {
        if self.unlisted > 0 {
            self.listed.push(Skipped {
                path: String::new(),
                why: format!("{} more were skipped and are not listed", self.unlisted),
            });
        }
        self.listed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stays_in_its_folder_and_two_stars_do_not() {
        let set = compile(&["*.xml".into(), "target/**/*.log".into()]).unwrap();
        for path in ["a.xml", "target/a.log", "target/x/y/a.log"] {
            assert!(set.is_match(path), "{path}");
        }
        for path in ["x/a.xml", "a.log", "x/target/a.log"] {
            assert!(!set.is_match(path), "{path}");
        }
        assert!(compile(&["[".into()]).is_err());
    }

    #[test]
    fn the_list_of_the_skipped_fits_into_a_message() {
        let mut list = SkippedList::default();
        for _ in 0..5000 {
            list.add(
                Path::new(&"\u{1}".repeat(200)),
                "it is a symbolic link".into(),
            );
        }
        let list = list.into_list();
        assert!(list.last().unwrap().why.contains("more were skipped"));
        assert!(
            serde_json::to_vec(&list).unwrap().len() < vivarium_protocol::MAX_CONTROL / 2 + 1024
        );
    }
}
