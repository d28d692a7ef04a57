//! The file of a backup: a tar archive, compressed where its name ends with `.zst`.

use anyhow::{Context, ensure};
use jiff::Timestamp;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Only its owner may read it: it holds logs, and hashes of tokens.
const MODE: u32 = 0o600;

/// The archive while it is written.
pub(super) struct Archive {
    tar: tar::Builder<Sink>,
    pub(super) files: usize,
}

enum Sink {
    Plain(io::BufWriter<File>),
    Compressed(Box<zstd::Encoder<'static, File>>),
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Sink::Plain(file) => file.write(bytes),
            Sink::Compressed(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Sink::Plain(file) => file.flush(),
            Sink::Compressed(encoder) => encoder.flush(),
        }
    }
}

impl Archive {
    /// A new file at `path`; its form follows from the name that it will get.
    pub(super) fn create(path: &Path, name: &Path) -> anyhow::Result<Archive> {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(MODE)
            .open(path)
            .with_context(|| format!("cannot write beside {}", name.display()))?;
        let sink = match is_compressed(name) {
            true => Sink::Compressed(Box::new(zstd::Encoder::new(file, 0)?)),
            false => Sink::Plain(io::BufWriter::new(file)),
        };
        Ok(Archive {
            tar: tar::Builder::new(sink),
            files: 0,
        })
    }

    pub(super) fn add_text(&mut self, name: &str, text: &str) -> anyhow::Result<()> {
        self.append(Path::new(name), text.len() as u64, text.as_bytes())
    }

    /// Adds a file with the length that it has now, should it grow meanwhile. One that has gone is left out.
    pub(super) fn add_file(&mut self, path: &Path, name: &Path) -> anyhow::Result<()> {
        let error = || format!("cannot read {}", path.display());
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            file => file.with_context(error)?,
        };
        let size = file.metadata().with_context(error)?.len();
        self.append(name, size, file.take(size))
    }

    /// Adds all files below a folder.
    pub(super) fn add_folder(&mut self, folder: &Path, name: &Path) -> anyhow::Result<()> {
        let error = || format!("cannot list {}", folder.display());
        let entries = match std::fs::read_dir(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries.with_context(error)?,
        };
        for entry in entries {
            let entry = entry.with_context(error)?;
            let (path, name) = (entry.path(), name.join(entry.file_name()));
            match entry.file_type() {
                Ok(form) if form.is_dir() => self.add_folder(&path, &name)?,
                Ok(form) if form.is_file() => self.add_file(&path, &name)?,
                // Nothing of ours, or gone.
                Ok(_) | Err(_) => {}
            }
        }
        Ok(())
    }

    fn append(&mut self, name: &Path, size: u64, mut bytes: impl Read) -> anyhow::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_size(size);
        header.set_mode(MODE);
        header.set_mtime(u64::try_from(Timestamp::now().as_second()).unwrap_or(0));
        let mut counted = Counted(&mut bytes, 0);
        self.tar
            .append_data(&mut header, name, &mut counted)
            .with_context(|| format!("cannot add {} to the archive", name.display()))?;
        // What follows would be read as if it were part of this.
        ensure!(
            counted.1 == size,
            "{} became shorter while it was read\nhint: run the backup again",
            name.display()
        );
        self.files += 1;
        Ok(())
    }

    /// Makes the archive whole and durable; returns its size.
    pub(super) fn finish(self) -> anyhow::Result<u64> {
        let file = match self.tar.into_inner()? {
            Sink::Plain(file) => file.into_inner()?,
            Sink::Compressed(encoder) => encoder.finish()?,
        };
        file.sync_all()?;
        Ok(file.metadata()?.len())
    }
}

/// Counts what is read.
struct Counted<R>(R, u64);

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.0.read(buffer)?;
        self.1 += read as u64;
        Ok(read)
    }
}

/// Unpacks all of an archive into a folder. No name in it leads out of there.
pub(super) fn unpack(file: &Path, folder: &Path) -> anyhow::Result<()> {
    let opened = File::open(file).with_context(|| format!("cannot open {}", file.display()))?;
    let reader: Box<dyn Read> = match is_compressed(file) {
        true => Box::new(zstd::Decoder::new(opened)?),
        false => Box::new(io::BufReader::new(opened)),
    };
    tar::Archive::new(reader)
        .unpack(folder)
        .with_context(|| format!("cannot unpack {}", file.display()))
}

fn is_compressed(file: &Path) -> bool {
    file.extension().is_some_and(|end| end == "zst")
}
