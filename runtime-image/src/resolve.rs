//! `chandler-runtime resolve`.

use std::process::ExitCode;

/// What `resolve` is asked.
#[derive(Debug, clap::Args)]
pub struct ResolveArgs {}

/// Runs `resolve` to its exit code.
pub fn run(_args: ResolveArgs) -> ExitCode {
    ExitCode::FAILURE
}
