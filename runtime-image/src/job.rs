//! How a command that ends runs: logs on standard error, a deadline by signal, one answer, one exit code.

use std::future::Future;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};

use crate::answer::Answer;
use crate::logging;

/// Unusable arguments, as clap ends for them.
const UNUSABLE: u8 = 2;

/// What a shell shows for a process that SIGTERM ended.
const TERMINATED: u8 = 128 + 15;

/// How long writers may take to put down what they hold after a signal; a part that is lost is fetched again.
const LAST_WRITES: Duration = Duration::from_secs(2);

/// Runs a command until it answers, or until SIGTERM or an interrupt; then nothing is answered, since nothing has failed.
pub(crate) fn run(result_file: Option<&Path>, command: impl Future<Output = Answer>) -> ExitCode {
    logging::start();
    let runtime = match Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "failed to start the asynchronous runtime");
            return ExitCode::FAILURE;
        }
    };
    let answer = runtime.block_on(async {
        tokio::select! {
            answer = command => Some(answer),
            signal = stop_signal() => {
                tracing::info!(signal, "stopping; what was fetched so far stays and is continued next time");
                None
            }
        }
    });
    runtime.shutdown_timeout(LAST_WRITES);
    let Some(answer) = answer else {
        return ExitCode::from(TERMINATED);
    };
    if let Answer::Failed(failure) = &answer {
        tracing::error!(reason = ?failure.reason, "{}", failure.message);
    }
    match answer.deliver(result_file) {
        Ok(()) => answer.exit_code(),
        Err(error) => {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "nobody can read how it ended"
            );
            ExitCode::from(UNUSABLE)
        }
    }
}

async fn stop_signal() -> &'static str {
    let wait = async |kind| match signal(kind) {
        Ok(mut signal) => drop(signal.recv().await),
        // Without a handler the signal ends the process by itself, which harms nothing that is on the volume.
        Err(_) => std::future::pending().await,
    };
    tokio::select! {
        () = wait(SignalKind::terminate()) => "SIGTERM",
        () = wait(SignalKind::interrupt()) => "SIGINT",
    }
}
