//! How far a fetch is: a bar on a terminal, elsewhere one log line every few seconds. It shows and never decides.

use std::collections::VecDeque;
use std::io::{self, IsTerminal};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::task::JoinSet;
use tokio::time::{Instant, interval};

/// Between two log lines.
const LOG_INTERVAL: Duration = Duration::from_secs(5);

/// Between two pictures of the bar.
const BAR_INTERVAL: Duration = Duration::from_millis(200);

/// Between two looks at the speed.
const SPEED_INTERVAL: Duration = Duration::from_secs(1);

/// The speed is that of so many looks together.
const SPEED_LOOKS: usize = 5;

/// Counts bytes; relaxed order is enough, since nothing is concluded from it.
#[derive(Debug, Default)]
pub(super) struct Counter {
    done: AtomicU64,
    fetched: AtomicU64,
    per_second: AtomicU64,
    total: OnceLock<u64>,
}

/// Shows a counter until it is dropped.
#[derive(Debug)]
pub(super) struct Progress {
    counter: Arc<Counter>,
    _reporters: JoinSet<()>,
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

    /// Bytes of all files, where the hub tells.
    pub(super) fn total(&self) -> Option<u64> {
        self.total.get().copied()
    }

    /// Bytes from the hub in a second, over the last few.
    pub(super) fn per_second(&self) -> u64 {
        self.per_second.load(Ordering::Relaxed)
    }
}

impl Progress {
    /// Begins to show.
    pub(super) fn start(counter: Arc<Counter>, total: Option<u64>) -> Self {
        if let Some(total) = total {
            // Told once: a process fetches once.
            let _ = counter.total.set(total);
        }
        let mut reporters = JoinSet::new();
        reporters.spawn(measure(counter.clone()));
        if io::stderr().is_terminal() {
            reporters.spawn(draw(counter.clone()));
        } else {
            reporters.spawn(log(counter.clone()));
        }
        Self {
            counter,
            _reporters: reporters,
        }
    }

    /// What is counted.
    pub(super) fn counter(&self) -> Arc<Counter> {
        Arc::clone(&self.counter)
    }

    /// Bytes of all files, where the hub tells.
    pub(super) fn total(&self) -> Option<u64> {
        self.counter.total()
    }
}

async fn measure(counter: Arc<Counter>) {
    let mut ticks = interval(SPEED_INTERVAL);
    let mut looks = VecDeque::new();
    loop {
        let now = ticks.tick().await.max(Instant::now());
        looks.push_back((now, counter.fetched.load(Ordering::Relaxed)));
        if looks.len() > SPEED_LOOKS + 1 {
            looks.pop_front();
        }
        if let (Some((begin, before)), Some((end, after))) = (looks.front(), looks.back()) {
            let seconds = end.duration_since(*begin).as_secs_f64();
            if seconds > 0.0 {
                let speed = (after - before) as f64 / seconds;
                counter.per_second.store(speed as u64, Ordering::Relaxed);
            }
        }
    }
}

async fn draw(counter: Arc<Counter>) {
    let total = counter.total();
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

async fn log(counter: Arc<Counter>) {
    let mut ticks = interval(LOG_INTERVAL);
    loop {
        ticks.tick().await;
        let (bytes, speed) = (counter.done(), counter.per_second());
        let megabytes_per_second = (speed as f64 / 1e5).round() / 10.0;
        match counter.total() {
            Some(total) => {
                let percent = if total == 0 {
                    100.0
                } else {
                    (bytes as f64 / total as f64 * 1000.0).round() / 10.0
                };
                let seconds_left = (speed > 0).then(|| total.saturating_sub(bytes).div_ceil(speed));
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
