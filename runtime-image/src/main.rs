//! The command line of `chandler-runtime`: parses, runs one subcommand, turns its outcome into an exit code.

use std::process::ExitCode;

use chandler_runtime::fetch::{self, FetchArgs};
use chandler_runtime::resolve::{self, ResolveArgs};
use clap::Parser;

/// Fetches and serves open models.
#[derive(Parser)]
#[command(version, about)]
enum Command {
    /// Find out what a model is on its hub: commit, size, architecture.
    Resolve(ResolveArgs),
    /// Bring a model's files into a folder, each checked against the hub's digests.
    Fetch(FetchArgs),
}

fn main() -> ExitCode {
    match Command::parse() {
        Command::Resolve(args) => resolve::run(args),
        Command::Fetch(args) => fetch::run(args),
    }
}
