//! Memory of the host from which a played card copies.

use super::Emulated;
use crate::compute::cuda::card::{Address, Card, CardError, Pinned};

/// Copies when it is waited for, as late as a card may: who changes the bytes before shows it.
pub(super) struct HostBytes {
    card: Emulated,
    bytes: Vec<u8>,
    under_way: Option<(usize, Address)>,
}

impl HostBytes {
    pub(super) fn new(card: &Emulated, bytes: usize) -> Self {
        Self {
            card: card.clone(),
            bytes: vec![0; bytes],
            under_way: None,
        }
    }
}

impl Pinned for HostBytes {
    fn bytes(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    fn upload(&mut self, bytes: usize, to: Address) -> Result<(), CardError> {
        self.wait()?;
        self.under_way = Some((bytes, to));
        Ok(())
    }

    fn download(&mut self, bytes: usize, from: Address) -> Result<(), CardError> {
        self.wait()?;
        self.card.download(from, &mut self.bytes[..bytes])
    }

    fn wait(&mut self) -> Result<(), CardError> {
        self.card.inner.alive()?;
        match self.under_way.take() {
            Some((bytes, to)) => self.card.upload(&self.bytes[..bytes], to),
            None => Ok(()),
        }
    }
}
