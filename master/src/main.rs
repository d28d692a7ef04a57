//! The one binary; see [`vivarium::cli`].

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    vivarium::cli::run().await
}
