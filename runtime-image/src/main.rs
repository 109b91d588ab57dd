//! The command line of `chandler-runtime`: parses, runs one subcommand, turns its outcome into an exit code.

use std::process::ExitCode;

use chandler_runtime::check::{self, CheckArgs};
use chandler_runtime::config::ServeArgs;
use chandler_runtime::fetch::{self, FetchArgs};
use chandler_runtime::resolve::{self, ResolveArgs};
use chandler_runtime::serve;
use chandler_runtime::verify::{self, VerifyArgs};
use clap::Parser;

/// Fetches and serves open models.
#[derive(Parser)]
#[command(version, about)]
enum Command {
    /// Find out what a model is on its hub: commit, size, architecture.
    Resolve(ResolveArgs),
    /// Bring a model's files into a folder, each checked against the hub's digests.
    Fetch(FetchArgs),
    /// Compare a folder of weights with its manifest, or make one.
    Verify(VerifyArgs),
    /// Serve a model over an OpenAI-compatible API.
    Serve(ServeArgs),
    /// Compare a model's results on this processor with a reference's.
    Check(CheckArgs),
}

fn main() -> ExitCode {
    match Command::parse() {
        Command::Resolve(args) => resolve::run(args),
        Command::Fetch(args) => fetch::run(args),
        Command::Verify(args) => verify::run(args),
        Command::Serve(args) => serve::run(&args),
        Command::Check(args) => check::run(&args),
    }
}
