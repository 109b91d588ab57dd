//! How long to go on asking a hub that is in trouble: growing pauses, the hub's own wish first, an end after a time without progress.

use std::future::Future;
use std::time::{Duration, SystemTime};

use reqwest::header::{HeaderMap, RETRY_AFTER};
use tokio::time::{Instant, sleep};

use super::error::HubError;

/// The first pause; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// The longest pause of our own choosing.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// The time that may pass without any progress before a process gives up and leaves the waiting to whoever started it.
#[derive(Debug, Clone, Copy)]
pub struct Patience(pub Duration);

/// The tries of one piece of work.
#[derive(Debug)]
pub struct Tries {
    patience: Duration,
    since: Instant,
    failures: u32,
}

impl Patience {
    /// Begins to count.
    pub fn start(self) -> Tries {
        Tries {
            patience: self.0,
            since: Instant::now(),
            failures: 0,
        }
    }

    /// Repeats `ask` until it succeeds, fails for good, or patience ends.
    ///
    /// # Errors
    /// The last error.
    pub async fn ask<T, F: Future<Output = Result<T, HubError>>>(
        self,
        mut ask: impl FnMut() -> F,
    ) -> Result<T, HubError> {
        let mut tries = self.start();
        loop {
            match ask().await {
                Ok(value) => return Ok(value),
                Err(error) => tries.pause(error).await?,
            }
        }
    }
}

impl Tries {
    /// Something arrived: patience begins anew.
    pub fn progressed(&mut self) {
        self.since = Instant::now();
        self.failures = 0;
    }

    /// [`Self::progressed`], where something arrived.
    pub fn progressed_if(&mut self, arrived: bool) {
        if arrived {
            self.progressed();
        }
    }

    /// Waits before the next try.
    ///
    /// # Errors
    /// The error itself, when another try is of no use or would come too late.
    pub async fn pause(&mut self, error: HubError) -> Result<(), HubError> {
        let pause = error
            .retry_after()
            .unwrap_or_else(|| own_pause(self.failures));
        self.failures += 1;
        if !error.is_transient() || self.since.elapsed().saturating_add(pause) > self.patience {
            return Err(error);
        }
        tracing::warn!(%error, pause_seconds = pause.as_secs_f64(), tries = self.failures, "trying again");
        sleep(pause).await;
        Ok(())
    }
}

fn own_pause(failures: u32) -> Duration {
    FIRST_PAUSE
        .saturating_mul(1 << failures.min(16))
        .min(LONGEST_PAUSE)
}

/// How long the hub wants to be left alone: `Retry-After` in seconds or as a date, else the reset of an exhausted `RateLimit`.
pub fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = |value: &reqwest::header::HeaderValue| {
        value.to_str().ok().map(str::trim).map(str::to_owned)
    };
    if let Some(value) = headers.get(RETRY_AFTER).and_then(text) {
        if let Ok(seconds) = value.parse() {
            return Some(Duration::from_secs(seconds));
        }
        if let Ok(date) = httpdate::parse_http_date(&value) {
            return Some(date.duration_since(now).unwrap_or(Duration::ZERO));
        }
    }
    // `"api";r=0;t=55`, after the IETF draft on rate limit headers; it stands on every answer, and matters when nothing remains.
    let limit = headers.get("ratelimit").and_then(text)?;
    let field = |name: &str| {
        limit.split(';').find_map(|part| {
            part.trim()
                .strip_prefix(name)?
                .trim()
                .strip_prefix('=')?
                .trim()
                .parse()
                .ok()
        })
    };
    (field("r") == Some(0_u64))
        .then(|| field("t"))
        .flatten()
        .map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(
            reqwest::header::HeaderName::from_static(name),
            value.parse().unwrap(),
        )])
    }

    #[test]
    fn reads_how_long_the_hub_wants_to_be_left_alone() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let seconds =
            |name, value| retry_after(&headers(name, value), now).map(|pause| pause.as_secs());
        assert_eq!(seconds("retry-after", "17"), Some(17));
        assert_eq!(
            seconds("retry-after", "Sun, 06 Nov 1994 08:50:37 GMT"),
            Some(60)
        );
        assert_eq!(
            seconds("retry-after", "Sun, 06 Nov 1994 08:00:00 GMT"),
            Some(0)
        );
        assert_eq!(seconds("retry-after", "soon"), None);
        assert_eq!(seconds("ratelimit", "\"api\";r=0;t=55"), Some(55));
        assert_eq!(seconds("ratelimit", "\"api\"; r = 3; t=55"), None);
        assert_eq!(seconds("x-other", "1"), None);
    }

    #[test]
    fn pauses_grow_to_a_limit() {
        let pauses: Vec<_> = (0..8)
            .map(|failures| own_pause(failures).as_millis())
            .collect();
        assert_eq!(pauses, [500, 1000, 2000, 4000, 8000, 15000, 15000, 15000]);
        assert_eq!(own_pause(u32::MAX), LONGEST_PAUSE);
    }
}
