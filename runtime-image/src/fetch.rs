//! `chandler-runtime fetch`.

use std::process::ExitCode;

/// What `fetch` is asked.
#[derive(Debug, clap::Args)]
pub struct FetchArgs {}

/// Runs `fetch` to its exit code.
pub fn run(_args: FetchArgs) -> ExitCode {
    ExitCode::FAILURE
}
