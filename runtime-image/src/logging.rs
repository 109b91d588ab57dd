//! Logs: to standard error, since standard output carries answers; coloured only where a person looks.

use std::io::{self, IsTerminal as _};

use tracing_subscriber::EnvFilter;

/// Starts logging, at the level that `CHANDLER_LOG` names (`info` by default). A second call does nothing.
pub(crate) fn start() {
    let filter = EnvFilter::try_from_env("CHANDLER_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    // Fails only where somebody has set up logging before.
    drop(logs.try_init());
}
