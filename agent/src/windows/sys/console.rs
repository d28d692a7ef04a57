//! Pseudo-consoles: a terminal whose other side is two pipes.

use super::{Process, check};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, PipeReader, PipeWriter};
use std::mem::{size_of, zeroed};
use std::os::windows::ffi::OsStrExt;
use std::os::windows::io::{AsRawHandle, FromRawHandle, OwnedHandle};
use std::ptr::{from_ref, null, null_mut};
use windows_sys::Win32::Foundation::{HANDLE, HANDLE_FLAG_INHERIT, SetHandleInformation};
use windows_sys::Win32::System::Console::{COORD, ClosePseudoConsole, CreatePseudoConsole, HPCON};
use windows_sys::Win32::System::Threading::{
    CREATE_SUSPENDED, CreateProcessW, DeleteProcThreadAttributeList, EXTENDED_STARTUPINFO_PRESENT,
    InitializeProcThreadAttributeList, LPPROC_THREAD_ATTRIBUTE_LIST,
    PROC_THREAD_ATTRIBUTE_HANDLE_LIST, PROC_THREAD_ATTRIBUTE_PSEUDOCONSOLE, PROCESS_INFORMATION,
    STARTF_USESTDHANDLES, STARTUPINFOEXW, UpdateProcThreadAttribute,
};

/// A console that draws itself on a pipe. Closed, it ends what is still attached to it, and its output ends.
#[derive(Debug)]
pub(in crate::windows) struct Console(HPCON);

impl Console {
    /// One of this size, which reads its keys from `keys` and writes what it shows to `screen`.
    pub(in crate::windows) fn open(
        columns: u16,
        rows: u16,
        keys: &PipeReader,
        screen: &PipeWriter,
    ) -> io::Result<Self> {
        let size = COORD {
            X: i16::try_from(columns).unwrap_or(i16::MAX),
            Y: i16::try_from(rows).unwrap_or(i16::MAX),
        };
        let mut console: HPCON = 0;
        // SAFETY: both pipes are open during the call, which duplicates them; what it gives is ours and checked.
        let result = unsafe {
            CreatePseudoConsole(
                size,
                keys.as_raw_handle(),
                screen.as_raw_handle(),
                0,
                &mut console,
            )
        };
        match result {
            0 => Ok(Self(console)),
            code => Err(io::Error::from_raw_os_error(code)),
        }
    }

    /// Starts a program on it that waits to be let go, and has of this process's handles none but `inherited`.
    pub(in crate::windows) fn start(
        &self,
        command_line: &OsStr,
        inherited: &[HANDLE],
    ) -> io::Result<Process> {
        for handle in inherited {
            // SAFETY: the handle is open for as long as the slice.
            check(unsafe {
                SetHandleInformation(*handle, HANDLE_FLAG_INHERIT, HANDLE_FLAG_INHERIT)
            })?;
        }
        let mut attributes = Attributes::new()?;
        attributes.set(
            PROC_THREAD_ATTRIBUTE_PSEUDOCONSOLE,
            self.0 as *const _,
            size_of::<HPCON>(),
        )?;
        attributes.set(
            PROC_THREAD_ATTRIBUTE_HANDLE_LIST,
            inherited.as_ptr().cast(),
            size_of_val(inherited),
        )?;
        let mut line: Vec<u16> = command_line.encode_wide().chain([0]).collect();
        // SAFETY: the structures are plain data and live through the call, as do the attributes and what they point at; the
        // handles that come back are ours.
        unsafe {
            let mut startup: STARTUPINFOEXW = zeroed();
            startup.StartupInfo.cb = size_of::<STARTUPINFOEXW>() as u32;
            // Without any: else those of this process would be the program's, and the console would see nothing.
            startup.StartupInfo.dwFlags = STARTF_USESTDHANDLES;
            startup.lpAttributeList = attributes.list();
            let mut process: PROCESS_INFORMATION = zeroed();
            check(CreateProcessW(
                null(),
                line.as_mut_ptr(),
                null(),
                null(),
                1,
                CREATE_SUSPENDED | EXTENDED_STARTUPINFO_PRESENT,
                null(),
                null(),
                from_ref(&startup).cast(),
                &mut process,
            ))?;
            drop(OwnedHandle::from_raw_handle(process.hThread));
            Ok(Process {
                handle: OwnedHandle::from_raw_handle(process.hProcess),
                id: process.dwProcessId,
            })
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        // SAFETY: it is open, and closed once.
        unsafe { ClosePseudoConsole(self.0) }
    }
}

/// What a process is started with beside the usual.
struct Attributes(Vec<usize>);

impl Attributes {
    const COUNT: u32 = 2;

    fn new() -> io::Result<Self> {
        let mut bytes = 0;
        // SAFETY: the first call only says how much room it needs, and so fails; the second gets that much, aligned for pointers.
        unsafe {
            InitializeProcThreadAttributeList(null_mut(), Self::COUNT, 0, &mut bytes);
            let mut room = vec![0_usize; bytes.div_ceil(size_of::<usize>())];
            let list = room.as_mut_ptr().cast();
            check(InitializeProcThreadAttributeList(
                list,
                Self::COUNT,
                0,
                &mut bytes,
            ))?;
            Ok(Self(room))
        }
    }

    fn list(&mut self) -> LPPROC_THREAD_ATTRIBUTE_LIST {
        self.0.as_mut_ptr().cast()
    }

    /// `value` has to live as long as this does.
    fn set(&mut self, which: u32, value: *const std::ffi::c_void, bytes: usize) -> io::Result<()> {
        // SAFETY: the list is initialised; only a pointer is kept of the value.
        check(unsafe {
            UpdateProcThreadAttribute(
                self.list(),
                0,
                which as usize,
                value,
                bytes,
                null_mut(),
                null(),
            )
        })
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: the list is initialised, and not used again.
        unsafe { DeleteProcThreadAttributeList(self.list()) }
    }
}

/// The handle that this process inherited under that number, and passes on to nobody.
pub(in crate::windows) fn inherited(number: usize) -> io::Result<File> {
    let handle: HANDLE = number as HANDLE;
    // SAFETY: a number that is no handle is refused by the first call; who started this process says that it is meant for it.
    unsafe {
        check(SetHandleInformation(handle, HANDLE_FLAG_INHERIT, 0))?;
        Ok(File::from_raw_handle(handle))
    }
}
