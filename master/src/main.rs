//! The one binary; see [`vivarium::cli`].

use std::process::ExitCode;
use std::time::Duration;

/// Calls into libvirt run on threads of their own, and one that hangs must not keep a stopped master alive.
const LAST_CALLS: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
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
