//! How far a fetch is: a bar on a terminal, elsewhere one log line every few seconds. It shows and never decides.

use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::task::JoinHandle;
use tokio::time::{Instant, interval};

/// Between two log lines.
const LOG_INTERVAL: Duration = Duration::from_secs(5);

/// Between two pictures of the bar.
const BAR_INTERVAL: Duration = Duration::from_millis(200);

/// Counts bytes; relaxed order is enough, since nothing is concluded from it.
#[derive(Debug, Default)]
pub(super) struct Counter {
    done: AtomicU64,
    fetched: AtomicU64,
}

/// Shows a counter until it is dropped.
#[derive(Debug)]
pub(super) struct Progress {
    counter: Arc<Counter>,
    total: Option<u64>,
    reporter: JoinHandle<()>,
}

impl Counter {
    /// Bytes came from the hub.
    pub(super) fn fetched(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
        self.fetched.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes were there already.
    pub(super) fn found(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes had to be thrown away.
    pub(super) fn lost(&self, bytes: u64) {
        self.done.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Bytes that are there now.
    pub(super) fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }
}

impl Progress {
    /// Begins to show.
    pub(super) fn start(total: Option<u64>) -> Self {
        let counter = Arc::new(Counter::default());
        let reporter = if io::stderr().is_terminal() {
            tokio::spawn(draw(Arc::clone(&counter), total))
        } else {
            tokio::spawn(log(Arc::clone(&counter), total))
        };
        Self {
            counter,
            total,
            reporter,
        }
    }

    /// What is counted.
    pub(super) fn counter(&self) -> Arc<Counter> {
        Arc::clone(&self.counter)
    }

    /// Bytes of all files, where the hub tells.
    pub(super) fn total(&self) -> Option<u64> {
        self.total
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.reporter.abort();
    }
}

async fn draw(counter: Arc<Counter>, total: Option<u64>) {
    let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr());
    let template = match total {
        Some(_) => {
            "{bar:30} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta} left"
        }
        None => "{spinner} {decimal_bytes} {decimal_bytes_per_sec}",
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    let mut ticks = interval(BAR_INTERVAL);
    loop {
        ticks.tick().await;
        bar.set_position(counter.done());
    }
}

async fn log(counter: Arc<Counter>, total: Option<u64>) {
    let begin = Instant::now();
    let mut ticks = interval(LOG_INTERVAL);
    let mut before = (begin, 0);
    loop {
        let now = ticks.tick().await.max(begin);
        let fetched = counter.fetched.load(Ordering::Relaxed);
        let seconds = now.duration_since(before.0).as_secs_f64();
        let speed = if seconds > 0.0 {
            (fetched - before.1) as f64 / seconds
        } else {
            0.0
        };
        before = (now, fetched);
        let bytes = counter.done();
        let megabytes_per_second = (speed / 1e5).round() / 10.0;
        match total {
            Some(total) => {
                let percent = if total == 0 {
                    100.0
                } else {
                    (bytes as f64 / total as f64 * 1000.0).round() / 10.0
                };
                let seconds_left = (speed > 0.0)
                    .then(|| (total.saturating_sub(bytes) as f64 / speed).ceil() as u64);
                tracing::info!(
                    bytes,
                    total,
                    percent,
                    megabytes_per_second,
                    seconds_left,
                    "fetching"
                );
            }
            None => tracing::info!(bytes, megabytes_per_second, "fetching"),
        }
    }
}
