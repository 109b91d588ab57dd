//! Whether bytes come fast enough to be waited for: a hub that lets them trickle holds a Job as surely as one that is silent.

use std::time::{Duration, Instant};

/// A file of 1 GB would take three days at this speed; no link that carries models is slower.
const SLOWEST: u64 = 4096;

/// Bytes of one answer, counted over windows of time.
#[derive(Debug)]
pub(super) struct Pace {
    window: Duration,
    since: Instant,
    bytes: u64,
}

impl Pace {
    /// Begins to count. A window is a third of a fetch's patience, so that a slow connection is given up for a new one before the hub is.
    pub(super) fn start(patience: Duration, now: Instant) -> Self {
        Self {
            window: patience / 3,
            since: now,
            bytes: 0,
        }
    }

    /// Counts bytes; says how slow they came once a window is over in which there were too few.
    pub(super) fn count(&mut self, bytes: usize, now: Instant) -> Result<(), String> {
        self.bytes += bytes as u64;
        let seconds = now.duration_since(self.since).as_secs_f64();
        if seconds < self.window.as_secs_f64() || seconds == 0.0 {
            return Ok(());
        }
        let speed = self.bytes as f64 / seconds;
        if speed < SLOWEST as f64 {
            return Err(format!(
                "only {speed:.0} bytes a second came for {seconds:.0} s, and {SLOWEST} are the least"
            ));
        }
        self.since = now;
        self.bytes = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_up_on_a_trickle_and_bears_a_pause_in_a_stream() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let patience = Duration::from_secs(60);
        let mut pace = Pace::start(patience, begin);
        for second in 1..20 {
            pace.count(1, at(second)).unwrap();
        }
        let why = pace.count(1, at(20)).unwrap_err();
        assert!(why.contains("only 1 bytes a second"), "{why}");

        let mut pace = Pace::start(patience, begin);
        pace.count(1 << 20, begin).unwrap();
        pace.count(1, at(19)).unwrap();
        pace.count(1, at(21)).unwrap();
        pace.count(1, at(40)).unwrap();
        assert!(pace.count(1, at(42)).is_err());
    }
}
