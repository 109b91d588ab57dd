//! The one bound on a fetch's memory and connections: whoever asks for bytes holds a buffer, and there are only so many.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Answers that are read at the same time, over all files: enough to fill a link of which each connection gets a part.
pub(super) const CONNECTIONS: usize = 8;

/// Buffers of a fetch, used again and again.
#[derive(Debug, Clone)]
pub(super) struct Buffers {
    free: Arc<Semaphore>,
    idle: Arc<Mutex<Vec<Vec<u8>>>>,
}

/// A buffer, empty at first; it goes back when dropped.
#[derive(Debug)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    idle: Arc<Mutex<Vec<Vec<u8>>>>,
    _permit: OwnedSemaphorePermit,
}

impl Buffers {
    pub(super) fn new() -> Self {
        Self {
            free: Arc::new(Semaphore::new(CONNECTIONS)),
            idle: Arc::default(),
        }
    }

    /// Waits for a buffer. Who waits first is served first, so the part of a file that is wanted next never waits for later ones.
    pub(super) async fn take(&self) -> Buffer {
        let permit = Arc::clone(&self.free)
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        let bytes = lock(&self.idle).pop().unwrap_or_default();
        Buffer {
            bytes,
            idle: Arc::clone(&self.idle),
            _permit: permit,
        }
    }
}

impl Deref for Buffer {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.bytes
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.bytes.clear();
        lock(&self.idle).push(std::mem::take(&mut self.bytes));
    }
}

fn lock(idle: &Mutex<Vec<Vec<u8>>>) -> std::sync::MutexGuard<'_, Vec<Vec<u8>>> {
    idle.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn there_are_only_so_many_and_they_are_used_again() {
        let buffers = Buffers::new();
        let mut taken = Vec::new();
        for _ in 0..CONNECTIONS {
            taken.push(buffers.take().await);
        }
        assert_eq!(buffers.free.available_permits(), 0);
        taken[0].extend_from_slice(&[1; 100]);
        taken.swap_remove(0);
        let again = buffers.take().await;
        assert!(again.is_empty() && again.capacity() >= 100);
    }
}
