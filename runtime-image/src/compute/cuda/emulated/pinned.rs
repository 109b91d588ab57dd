//! Memory of the host from which a played card copies.

use super::{Emulated, pointer};
use crate::compute::cuda::card::{Address, Card, CardError, Pinned};

/// Copies when it is waited for, as late as a card may: who changes the bytes before shows it.
pub(super) struct HostBytes {
    card: Emulated,
    bytes: Vec<u8>,
    under_way: Option<(usize, Address)>,
    /// What the card had been asked before the last download.
    asked: usize,
}

impl HostBytes {
    pub(super) fn new(card: &Emulated, bytes: usize) -> Self {
        Self {
            card: card.clone(),
            bytes: vec![0; bytes],
            under_way: None,
            asked: 0,
        }
    }

    fn end_upload(&mut self) -> Result<(), CardError> {
        match self.under_way.take() {
            Some((bytes, to)) => self.card.upload(&self.bytes[..bytes], to),
            None => Ok(()),
        }
    }
}

impl Pinned for HostBytes {
    fn bytes(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    fn upload(&mut self, bytes: usize, to: Address) -> Result<(), CardError> {
        self.end_upload()?;
        self.under_way = Some((bytes, to));
        Ok(())
    }

    fn download(&mut self, bytes: usize, from: Address) -> Result<(), CardError> {
        self.end_upload()?;
        self.card.inner.ordinary("a download")?;
        self.asked = self.card.inner.asked();
        // SAFETY: callers name bytes of this card.
        unsafe {
            self.bytes[..bytes]
                .as_mut_ptr()
                .copy_from(pointer(from).cast_const(), bytes);
        }
        Ok(())
    }

    fn wait(&mut self) -> Result<(), CardError> {
        self.card.inner.alive()?;
        self.card.inner.wait_for(self.asked);
        self.end_upload()
    }
}
