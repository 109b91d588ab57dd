//! Accounting of the cache's blocks. Knows numbers of blocks, never their content.

/// Free blocks of the cache.
pub struct Blocks {
    free: Vec<u32>,
    total: usize,
}

impl Blocks {
    /// All blocks free.
    #[must_use]
    pub fn new(total: usize) -> Self {
        // Blocks are used from 0 on, so memory that was touched before is used again first.
        Self {
            free: (0..u32::try_from(total).unwrap_or(u32::MAX))
                .rev()
                .collect(),
            total,
        }
    }

    /// How many are free.
    #[must_use]
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// How many there are.
    #[must_use]
    pub fn total(&self) -> usize {
        self.total
    }

    /// Moves `count` free blocks to `to`.
    ///
    /// # Panics
    /// When fewer are free; the scheduler plans with the true number.
    pub fn take(&mut self, count: usize, to: &mut Vec<u32>) {
        assert!(
            count <= self.free.len(),
            "the plan takes {count} of {} free blocks",
            self.free.len()
        );
        to.extend(self.free.drain(self.free.len() - count..).rev());
    }

    /// Takes all blocks back from `from`.
    pub fn give(&mut self, from: &mut Vec<u32>) {
        self.free.extend(from.drain(..).rev());
        debug_assert!(self.free.len() <= self.total, "a block came back twice");
    }
}
