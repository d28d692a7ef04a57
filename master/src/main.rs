//! The one binary; see [`vivarium::cli`].

use std::process::ExitCode;
use std::time::Duration;

/// Calls into libvirt run on threads of their own, and one that hangs must not keep a stopped master alive.
const LAST_CALLS: Duration = Duration::from_millis(500);

/// The C library's allocator maps what is larger than this by itself and unmaps it when it is freed, in bytes: the
/// largest that it accepts.
const MAP_FROM: i32 = 32 << 20;
/// How much free memory at the heap's end it keeps, in bytes.
const KEEP_FREE: i32 = 128 << 20;

fn main() -> ExitCode {
    keep_freed_memory();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start threads: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(vivarium::cli::run());
    runtime.shutdown_timeout(LAST_CALLS);
    code
}

/// Output comes in pieces of a quarter of a megabyte. By default the C library gives each of them back to the kernel,
/// which then has to find and clear pages for the next one: a third of a step's throughput, by docs/performance.md.
#[allow(
    unsafe_code,
    reason = "mallopt has no safe wrapper; it only sets numbers, before any other thread runs"
)]
fn keep_freed_memory() {
    #[cfg(target_env = "gnu")]
    unsafe {
        // Zero means that the number is not taken, which costs speed alone.
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAP_FROM);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEEP_FREE);
    }
}
