//! Memory of the host that the driver's card copies from and to.

use std::sync::Arc;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

use super::{Inner, plain, told};
use crate::compute::cuda::card::{Address, CardError, Pinned};

/// Such memory, and the event that is passed when its last copy is done.
pub(super) struct PinnedBytes {
    card: Arc<Inner>,
    start: *mut u8,
    bytes: usize,
    done: sys::CUevent,
}

// SAFETY: used with the context bound, by one thread at a time.
unsafe impl Send for PinnedBytes {}

/// An event for which a thread of the host sleeps: waiting awake takes a processor that the container may not have.
fn event() -> Result<sys::CUevent, DriverError> {
    use sys::CUevent_flags::{CU_EVENT_BLOCKING_SYNC, CU_EVENT_DISABLE_TIMING};
    let mut event = std::ptr::null_mut();
    let flags = CU_EVENT_BLOCKING_SYNC as u32 | CU_EVENT_DISABLE_TIMING as u32;
    // SAFETY: the driver writes a new event there.
    unsafe { sys::cuEventCreate(&raw mut event, flags) }.result()?;
    Ok(event)
}

impl PinnedBytes {
    /// For a card whose context is bound.
    pub(super) fn new(card: &Arc<Inner>, bytes: usize) -> Result<Self, CardError> {
        let done = event().map_err(plain)?;
        // SAFETY: it is given back when dropped.
        let start = unsafe { result::malloc_host(bytes, 0) };
        let start = start.map_err(|error| match told(error, bytes) {
            CardError::Memory { asked } => CardError::Host { asked },
            other => other,
        })?;
        // SAFETY: so many bytes were just given.
        unsafe { start.cast::<u8>().write_bytes(0, bytes) };
        Ok(Self {
            card: Arc::clone(card),
            start: start.cast(),
            bytes,
            done,
        })
    }
}

impl Pinned for PinnedBytes {
    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: as many bytes were given, and zeroed, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.bytes) }
    }

    fn upload(&mut self, bytes: usize, to: Address) -> Result<(), CardError> {
        self.card.bind()?;
        let (card, done) = (Arc::clone(&self.card), self.done);
        // SAFETY: callers name room of this card, and leave the bytes alone until `wait`.
        unsafe {
            result::memcpy_htod_async(to.0, &self.bytes()[..bytes], card.uploads)
                .and_then(|()| result::event::record(done, card.uploads))
        }
        .map_err(plain)
    }

    fn download(&mut self, bytes: usize, from: Address) -> Result<(), CardError> {
        self.card.bind()?;
        let (card, done) = (Arc::clone(&self.card), self.done);
        let bytes = &mut self.bytes()[..bytes];
        // SAFETY: callers name bytes of this card, and leave the host's alone until `wait`.
        unsafe {
            let copied = match bytes {
                [] => Ok(()),
                bytes => result::memcpy_dtoh_async(bytes, from.0, card.stream),
            };
            copied.and_then(|()| result::event::record(done, card.stream))
        }
        .map_err(plain)
    }

    fn wait(&mut self) -> Result<(), CardError> {
        self.card.bind()?;
        // SAFETY: the event lives; one that was never recorded is passed.
        unsafe { result::event::synchronize(self.done) }.map_err(plain)
    }
}

impl Drop for PinnedBytes {
    fn drop(&mut self) {
        let _ = self.wait();
        if self.card.bind().is_ok() {
            // SAFETY: made by `pinned`, given back once, after the last copy.
            unsafe {
                let _ = result::event::destroy(self.done);
                let _ = result::free_host(self.start.cast());
            }
        }
    }
}
