//! SFTP, as far as a file is put somewhere: folders, writing, renaming, looking.
//!
//! A relative path begins in the user's home, and `/C:/x` is Windows' `C:\x`, as with Win32-OpenSSH.

use russh_sftp::protocol::{
    Attrs, File, FileAttributes, Handle, Name, OpenFlags, Status, StatusCode,
};
use russh_sftp::server::Handler;
use std::collections::HashMap;
use std::io::{ErrorKind, Seek, SeekFrom, Write};
use std::path::PathBuf;

pub(crate) struct Files {
    home: PathBuf,
    open: HashMap<String, std::fs::File>,
    opened: u64,
}

impl Files {
    pub(crate) fn below(home: PathBuf) -> Self {
        Self {
            home,
            open: HashMap::new(),
            opened: 0,
        }
    }

    fn path(&self, path: &str) -> PathBuf {
        let drive = path.as_bytes().get(2) == Some(&b':') && path.starts_with('/');
        self.home.join(if drive { &path[1..] } else { path })
    }

    fn handle(&mut self, handle: &str) -> Result<&mut std::fs::File, StatusCode> {
        self.open.get_mut(handle).ok_or(StatusCode::Failure)
    }
}

fn code(error: &std::io::Error) -> StatusCode {
    match error.kind() {
        ErrorKind::NotFound => StatusCode::NoSuchFile,
        ErrorKind::PermissionDenied => StatusCode::PermissionDenied,
        _ => StatusCode::Failure,
    }
}

fn done(id: u32, result: std::io::Result<()>) -> Result<Status, StatusCode> {
    result.map_err(|error| code(&error))?;
    Ok(Status {
        id,
        status_code: StatusCode::Ok,
        error_message: "ok".to_owned(),
        language_tag: "en".to_owned(),
    })
}

impl Handler for Files {
    type Error = StatusCode;

    fn unimplemented(&self) -> StatusCode {
        StatusCode::OpUnsupported
    }

    async fn open(
        &mut self,
        id: u32,
        filename: String,
        pflags: OpenFlags,
        _attrs: FileAttributes,
    ) -> Result<Handle, StatusCode> {
        let file = std::fs::OpenOptions::from(pflags)
            .open(self.path(&filename))
            .map_err(|error| code(&error))?;
        self.opened += 1;
        let handle = self.opened.to_string();
        self.open.insert(handle.clone(), file);
        Ok(Handle { id, handle })
    }

    async fn close(&mut self, id: u32, handle: String) -> Result<Status, StatusCode> {
        self.handle(&handle)?;
        self.open.remove(&handle);
        done(id, Ok(()))
    }

    async fn write(
        &mut self,
        id: u32,
        handle: String,
        offset: u64,
        data: Vec<u8>,
    ) -> Result<Status, StatusCode> {
        let file = self.handle(&handle)?;
        let written = file
            .seek(SeekFrom::Start(offset))
            .and_then(|_| file.write_all(&data));
        done(id, written)
    }

    async fn stat(&mut self, id: u32, path: String) -> Result<Attrs, StatusCode> {
        let metadata = std::fs::metadata(self.path(&path)).map_err(|error| code(&error))?;
        Ok(Attrs {
            id,
            attrs: FileAttributes::from(&metadata),
        })
    }

    async fn mkdir(
        &mut self,
        id: u32,
        path: String,
        _attrs: FileAttributes,
    ) -> Result<Status, StatusCode> {
        done(id, std::fs::create_dir(self.path(&path)))
    }

    async fn remove(&mut self, id: u32, filename: String) -> Result<Status, StatusCode> {
        done(id, std::fs::remove_file(self.path(&filename)))
    }

    async fn rename(
        &mut self,
        id: u32,
        oldpath: String,
        newpath: String,
    ) -> Result<Status, StatusCode> {
        let (from, to) = (self.path(&oldpath), self.path(&newpath));
        // The protocol's rename replaces nothing.
        if to.exists() {
            return Err(StatusCode::Failure);
        }
        done(id, std::fs::rename(from, to))
    }

    async fn realpath(&mut self, id: u32, path: String) -> Result<Name, StatusCode> {
        let path = std::path::absolute(self.path(&path)).map_err(|error| code(&error))?;
        let path = path.to_string_lossy().replace('\\', "/");
        let path = if path.starts_with('/') {
            path
        } else {
            format!("/{path}")
        };
        Ok(Name {
            id,
            files: vec![File::dummy(path)],
        })
    }
}
