//! The command line of `chandler-runtime`: parses, runs one subcommand, turns its outcome into an exit code.

use clap::Parser;

/// Fetches and serves open models.
#[derive(Parser)]
#[command(version, about)]
enum Command {}

fn main() {
    let _command = Command::parse();
}
