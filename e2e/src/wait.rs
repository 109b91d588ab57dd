//! Waiting for something to become true, with a deadline that names what it waited for and tells what was seen last.

use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::Instant;

/// How often is looked.
const PAUSE: Duration = Duration::from_millis(200);

/// What one look saw.
#[derive(Debug)]
pub enum Seen<T> {
    /// It is so.
    Yes(T),
    /// Not yet; the text stands in the error if the deadline passes.
    NotYet(String),
    /// It can no longer become so.
    Never(String),
}

impl Seen<()> {
    /// `Yes` or `NotYet`.
    pub fn when(is_so: bool, otherwise: impl FnOnce() -> String) -> Self {
        if is_so {
            Self::Yes(())
        } else {
            Self::NotYet(otherwise())
        }
    }
}

/// Looks until it is so. An error while looking counts as not yet: the API server may be busy for a moment.
///
/// # Errors
/// When the deadline passes, or when it can no longer become so.
pub async fn until<T>(
    deadline: Duration,
    what: &str,
    mut look: impl AsyncFnMut() -> Result<Seen<T>>,
) -> Result<T> {
    let end = Instant::now() + deadline;
    loop {
        let last = match look().await {
            Ok(Seen::Yes(value)) => return Ok(value),
            Ok(Seen::Never(why)) => bail!("waited for {what}; it will not come: {why}"),
            Ok(Seen::NotYet(last)) => last,
            Err(error) => format!("{error:#}"),
        };
        if Instant::now() >= end {
            bail!(
                "waited {} s for {what}; seen last: {last}",
                deadline.as_secs()
            );
        }
        tokio::time::sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_error_names_what_was_waited_for_and_what_was_seen() {
        let mut looks = 0;
        let waited = until(Duration::ZERO, "rain", async || {
            looks += 1;
            Ok::<Seen<()>, _>(Seen::NotYet(format!("sun {looks}")))
        });
        let error = waited.await.unwrap_err().to_string();
        assert_eq!(error, "waited 0 s for rain; seen last: sun 1");
    }
}
