//! What Windows wants in `unsafe`: job objects, consoles, Ctrl-Break, a process that waits to be let go, handles, the clock.
//!
//! Each function is one call or two of the Windows API, with its handles in owned types and its structures on the stack.

#![allow(
    unsafe_code,
    reason = "the standard library knows neither job objects nor consoles; all of it is in this folder"
)]

mod console;

pub(super) use console::{Console, inherited};

use anyhow::{Context, Result};
use std::io::{self, PipeReader, PipeWriter};
use std::mem::{size_of, zeroed};
use std::os::windows::io::{AsRawHandle, FromRawHandle, OwnedHandle};
use std::os::windows::process::ExitStatusExt;
use std::process::{Child, ExitStatus};
use std::ptr::{from_mut, from_ref, null, null_mut};
use std::time::Duration;
use windows_sys::Win32::Foundation::{
    FILETIME, HANDLE, HANDLE_FLAG_INHERIT, INVALID_HANDLE_VALUE, SYSTEMTIME, SetHandleInformation,
    WAIT_OBJECT_0,
};
use windows_sys::Win32::System::Console::{
    CTRL_BREAK_EVENT, CTRL_C_EVENT, GenerateConsoleCtrlEvent, GetStdHandle, STD_ERROR_HANDLE,
    STD_INPUT_HANDLE, STD_OUTPUT_HANDLE, SetConsoleCtrlHandler,
};
use windows_sys::Win32::System::Diagnostics::Debug::{
    SEM_FAILCRITICALERRORS, SEM_NOGPFAULTERRORBOX, SEM_NOOPENFILEERRORBOX, SetErrorMode,
};
use windows_sys::Win32::System::Diagnostics::ToolHelp::{
    CreateToolhelp32Snapshot, TH32CS_SNAPTHREAD, THREADENTRY32, Thread32First, Thread32Next,
};
use windows_sys::Win32::System::JobObjects::{
    AssignProcessToJobObject, CreateJobObjectW, JOB_OBJECT_LIMIT_DIE_ON_UNHANDLED_EXCEPTION,
    JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE, JOBOBJECT_BASIC_ACCOUNTING_INFORMATION,
    JOBOBJECT_EXTENDED_LIMIT_INFORMATION, JobObjectBasicAccountingInformation,
    JobObjectExtendedLimitInformation, QueryInformationJobObject, SetInformationJobObject,
    TerminateJobObject,
};
use windows_sys::Win32::System::Pipes::CreatePipe;
use windows_sys::Win32::System::SystemInformation::SetSystemTime;
use windows_sys::Win32::System::Threading::{
    GetExitCodeProcess, INFINITE, OpenThread, ResumeThread, THREAD_SUSPEND_RESUME,
    TerminateProcess, WaitForSingleObject,
};
use windows_sys::Win32::System::Time::FileTimeToSystemTime;

/// The exit code of processes that were ended by force here: no program's own, as good as can be.
pub(super) const KILLED: u32 = 0xE000_5649;

/// A job object: the command and all its descendants. Closed, it ends them.
#[derive(Debug)]
pub(super) struct Job(OwnedHandle);

fn check(done: i32) -> io::Result<()> {
    if done == 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn size<T>() -> u32 {
    // Structures of the Windows API have some hundred bytes at most.
    size_of::<T>() as u32
}

impl Job {
    /// Whatever is in it ends when the last handle of it is closed, by the end of this process too; a program in it
    /// that crashes shows no dialogue.
    pub(super) fn create() -> io::Result<Self> {
        // SAFETY: no security attributes, no name; the handle is ours and checked.
        let job = unsafe {
            let handle = CreateJobObjectW(null(), null());
            if handle.is_null() {
                return Err(io::Error::last_os_error());
            }
            Self(OwnedHandle::from_raw_handle(handle))
        };
        // SAFETY: the structure is plain data, lives through the call, and its size is told.
        unsafe {
            let mut limits: JOBOBJECT_EXTENDED_LIMIT_INFORMATION = zeroed();
            limits.BasicLimitInformation.LimitFlags =
                JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE | JOB_OBJECT_LIMIT_DIE_ON_UNHANDLED_EXCEPTION;
            check(SetInformationJobObject(
                job.0.as_raw_handle(),
                JobObjectExtendedLimitInformation,
                from_ref(&limits).cast(),
                size::<JOBOBJECT_EXTENDED_LIMIT_INFORMATION>(),
            ))?;
        }
        Ok(job)
    }

    /// Takes in a process that waits to be let go, and lets it go; those it starts belong to the job too. Where it cannot,
    /// it ends the process.
    pub(super) fn hold(&self, process: &Process) -> Result<()> {
        let (job, handle) = (self.0.as_raw_handle(), process.handle.as_raw_handle());
        // SAFETY: both handles are open for as long as they are borrowed.
        let held = check(unsafe { AssignProcessToJobObject(job, handle) })
            .context("cannot put the command into a job object")
            .and_then(|()| let_go(process.id).context("cannot let the command run"));
        if held.is_err() {
            // SAFETY: as above. One that has ended already is what is wanted.
            unsafe { TerminateProcess(handle, KILLED) };
        }
        held
    }

    /// Whether no process is left in it.
    pub(super) fn is_empty(&self) -> io::Result<bool> {
        // SAFETY: the structure is plain data, lives through the call, and its size is told.
        unsafe {
            let mut account: JOBOBJECT_BASIC_ACCOUNTING_INFORMATION = zeroed();
            check(QueryInformationJobObject(
                self.0.as_raw_handle(),
                JobObjectBasicAccountingInformation,
                from_mut(&mut account).cast(),
                size::<JOBOBJECT_BASIC_ACCOUNTING_INFORMATION>(),
                null_mut(),
            ))?;
            Ok(account.ActiveProcesses == 0)
        }
    }

    /// Ends every process in it, at once.
    pub(super) fn terminate(&self) -> io::Result<()> {
        // SAFETY: the handle is open for as long as it is borrowed.
        check(unsafe { TerminateJobObject(self.0.as_raw_handle(), KILLED) })
    }
}

/// A process that this one started.
#[derive(Debug)]
pub(super) struct Process {
    handle: OwnedHandle,
    id: u32,
}

impl From<Child> for Process {
    fn from(child: Child) -> Self {
        let id = child.id();
        Self {
            handle: child.into(),
            id,
        }
    }
}

impl Process {
    /// Waits until it ends.
    pub(super) fn wait(&self) -> io::Result<ExitStatus> {
        let mut code = 0;
        // SAFETY: the handle is open, and the number's place lives through the call.
        unsafe {
            if WaitForSingleObject(self.handle.as_raw_handle(), INFINITE) != WAIT_OBJECT_0 {
                return Err(io::Error::last_os_error());
            }
            check(GetExitCodeProcess(self.handle.as_raw_handle(), &mut code))?;
        }
        Ok(ExitStatus::from_raw(code))
    }
}

/// A pipe that holds a megabyte, as on Linux: a command that has written its last has ended, whether it was read or not.
pub(super) fn wide_pipe() -> io::Result<(PipeReader, PipeWriter)> {
    const BYTES: u32 = 1024 * 1024;
    let (mut reader, mut writer): (HANDLE, HANDLE) = (null_mut(), null_mut());
    // SAFETY: both places live through the call, and what it puts there is ours.
    unsafe {
        check(CreatePipe(&mut reader, &mut writer, null(), BYTES))?;
        Ok((
            OwnedHandle::from_raw_handle(reader).into(),
            OwnedHandle::from_raw_handle(writer).into(),
        ))
    }
}

/// Makes this process deaf to what [`ask_to_end`] does, and those that it starts hear it.
pub(super) fn be_deaf() {
    // SAFETY: the function is there for as long as the program.
    unsafe {
        // Who is born deaf to Ctrl-C has deaf children.
        SetConsoleCtrlHandler(None, 0);
        SetConsoleCtrlHandler(Some(ignore), 1);
    }
}

extern "system" fn ignore(_event: u32) -> i32 {
    1
}

/// Presses Ctrl-Break for all that share this process's console, or else Ctrl-C (Wine 8 has no Ctrl-Break).
pub(super) fn ask_to_end() -> io::Result<()> {
    // SAFETY: numbers go in.
    let press = |key| check(unsafe { GenerateConsoleCtrlEvent(key, 0) });
    press(CTRL_BREAK_EVENT).or_else(|_| press(CTRL_C_EVENT))
}

/// Lets a process run that was created suspended, and so has one thread.
fn let_go(pid: u32) -> io::Result<()> {
    // SAFETY: the snapshot's handle is ours and checked.
    let snapshot = unsafe {
        let handle = CreateToolhelp32Snapshot(TH32CS_SNAPTHREAD, 0);
        if handle == INVALID_HANDLE_VALUE {
            return Err(io::Error::last_os_error());
        }
        OwnedHandle::from_raw_handle(handle)
    };
    let mut entry = THREADENTRY32 {
        dwSize: size::<THREADENTRY32>(),
        ..THREADENTRY32::default()
    };
    // SAFETY: the entry says its size and lives through each call.
    let mut more = unsafe { Thread32First(snapshot.as_raw_handle(), &mut entry) };
    while more != 0 {
        if entry.th32OwnerProcessID == pid {
            return resume(entry.th32ThreadID);
        }
        // SAFETY: as above.
        more = unsafe { Thread32Next(snapshot.as_raw_handle(), &mut entry) };
    }
    Err(io::Error::other("its thread is not found"))
}

fn resume(thread: u32) -> io::Result<()> {
    // SAFETY: the thread's handle is ours and checked.
    unsafe {
        let handle: HANDLE = OpenThread(THREAD_SUSPEND_RESUME, 0, thread);
        if handle.is_null() {
            return Err(io::Error::last_os_error());
        }
        let thread = OwnedHandle::from_raw_handle(handle);
        if ResumeThread(thread.as_raw_handle()) == u32::MAX {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Keeps this process's standard input, output and error from processes that it starts.
pub(super) fn keep_standard_handles() {
    for which in [STD_INPUT_HANDLE, STD_OUTPUT_HANDLE, STD_ERROR_HANDLE] {
        // SAFETY: a handle that is missing or none is refused by the call, which does not matter.
        unsafe {
            SetHandleInformation(GetStdHandle(which), HANDLE_FLAG_INHERIT, 0);
        }
    }
}

/// Keeps a program that crashes, or misses a disk, from asking somebody who is not there; children inherit it.
pub(super) fn crash_silently() {
    // SAFETY: a number goes in.
    unsafe {
        SetErrorMode(SEM_FAILCRITICALERRORS | SEM_NOGPFAULTERRORBOX | SEM_NOOPENFILEERRORBOX);
    }
}

/// Seconds between 1601-01-01, where Windows begins to count, and 1970-01-01.
const EPOCH_SECS: u64 = 11_644_473_600;

/// Sets the clock to this time since 1970-01-01 UTC.
pub(crate) fn step_clock(time: Duration) -> Result<()> {
    let since_1601 = time + Duration::from_secs(EPOCH_SECS);
    let steps = u64::try_from(since_1601.as_nanos() / 100).context("the time is out of range")?;
    let time = FILETIME {
        dwLowDateTime: (steps & u64::from(u32::MAX)) as u32,
        dwHighDateTime: (steps >> 32) as u32,
    };
    let mut wanted = SYSTEMTIME::default();
    // SAFETY: both structures live through the calls.
    unsafe {
        check(FileTimeToSystemTime(&time, &mut wanted)).context("the time is out of range")?;
        check(SetSystemTime(&wanted)).context("cannot set the clock: this user may not")
    }
}
