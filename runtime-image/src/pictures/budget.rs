//! Bytes that all pictures of this process may take together: while they are decoded, and while requests keep their pixels.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// Bytes that pictures being decoded may take together; the largest one fits alone.
const DECODING: u64 = 3 << 28;

/// Bytes of prepared pixels that requests may keep together.
const KEPT: u64 = 1 << 30;

/// What is left of both.
#[derive(Debug)]
pub struct Budget {
    decoding: Mutex<u64>,
    given_back: Condvar,
    kept: AtomicU64,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            decoding: Mutex::new(DECODING),
            given_back: Condvar::new(),
            kept: AtomicU64::new(KEPT),
        }
    }
}

/// Bytes of pixels that a picture keeps; given back when dropped.
#[derive(Debug)]
pub struct Kept {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.budget.kept.fetch_add(self.bytes, Ordering::Relaxed);
    }
}

impl Budget {
    /// Runs `decode` once so many bytes are free; nobody waits while holding any, so everybody's turn comes.
    pub(super) fn decoding<T>(&self, bytes: u64, decode: impl FnOnce() -> T) -> T {
        /// Gives back also when decoding panics.
        struct Taken<'a>(&'a Budget, u64);
        impl Drop for Taken<'_> {
            fn drop(&mut self) {
                *self
                    .0
                    .decoding
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner) += self.1;
                self.0.given_back.notify_all();
            }
        }
        let bytes = bytes.min(DECODING);
        let left = self.decoding.lock().unwrap_or_else(PoisonError::into_inner);
        let mut left = self
            .given_back
            .wait_while(left, |left| *left < bytes)
            .unwrap_or_else(PoisonError::into_inner);
        *left -= bytes;
        drop(left);
        let _taken = Taken(self, bytes);
        decode()
    }

    /// Takes bytes for pixels that are kept; none when too few are left.
    pub(super) fn keep(self: &Arc<Self>, bytes: u64) -> Option<Kept> {
        let less = |left: u64| left.checked_sub(bytes);
        let taken = self
            .kept
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        taken.ok().map(|_| Kept {
            budget: Arc::clone(self),
            bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_comes_back_and_too_much_is_refused() {
        let budget = Arc::new(Budget::default());
        let kept = budget.keep(KEPT - 1).expect("enough");
        assert!(budget.keep(2).is_none());
        drop(kept);
        assert!(budget.keep(KEPT).is_some());
        // More than there is counts as all there is.
        assert_eq!(budget.decoding(u64::MAX, || 7), 7);
        assert_eq!(*budget.decoding.lock().expect("whole"), DECODING);
    }
}
