//! Accounting of the arena's blocks: who holds them, and which hold a prefix that somebody may want again.
//! Knows numbers and digests of blocks, never their content.
//!
//! A block that nobody holds keeps its digest until it is taken for something else, the longest unused first.
//! A sequence gives its last block back first, so an end of a prefix goes before its beginning.

use std::collections::{BTreeMap, HashMap};

use sha2::{Digest as _, Sha256};

use crate::step::BLOCK_TOKENS;

/// What a full block holds: everything that its keys and values depend on.
pub type Digest = [u8; 32];

/// A picture among the tokens of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Picture {
    /// Place of its token in the sequence.
    pub position: u32,
    /// Digest of its pixels and of how they were prepared.
    pub digest: [u8; 32],
}

/// The parent of a sequence's first block: sequences with other adapters or salts share nothing.
#[must_use]
pub fn root(adapter: Option<u32>, salt: &str) -> Digest {
    let mut hash = Sha256::new();
    // The first byte tells this from an absent adapter whatever its number is.
    hash.update([u8::from(adapter.is_some())]);
    hash.update(adapter.unwrap_or(0).to_le_bytes());
    hash.update(salt.as_bytes());
    hash.finalize().into()
}

/// The digest of a full block after `parent`, with the pictures that stand in it.
///
/// # Panics
/// When the block is not full.
#[must_use]
pub fn digest(parent: &Digest, tokens: &[u32], pictures: &[Picture]) -> Digest {
    assert_eq!(tokens.len(), BLOCK_TOKENS, "only full blocks are shared");
    let mut hash = Sha256::new();
    hash.update(parent);
    for token in tokens {
        hash.update(token.to_le_bytes());
    }
    for Picture { position, digest } in pictures {
        hash.update(position.to_le_bytes());
        hash.update(digest);
    }
    hash.finalize().into()
}

/// The arena's blocks.
pub struct Blocks {
    /// How many hold each block.
    holders: Vec<u32>,
    /// What each block is known to hold.
    digests: Vec<Option<Digest>>,
    known: HashMap<Digest, u32>,
    /// Held by nobody and known to hold nothing; the last one is taken first.
    blank: Vec<u32>,
    /// Held by nobody but known, by the time at which they were given back.
    idle: BTreeMap<u64, u32>,
    /// For each idle block, its key in `idle`.
    since: Vec<u64>,
    time: u64,
}

impl Blocks {
    /// All blocks blank.
    #[must_use]
    pub fn new(total: usize) -> Self {
        Self {
            holders: vec![0; total],
            digests: vec![None; total],
            known: HashMap::new(),
            // Blocks are used from 0 on, so memory that was touched before is used again first.
            blank: (0..u32::try_from(total).unwrap_or(u32::MAX))
                .rev()
                .collect(),
            idle: BTreeMap::new(),
            since: vec![0; total],
            time: 0,
        }
    }

    /// How many are held by nobody, known ones included.
    #[must_use]
    pub fn free(&self) -> usize {
        self.blank.len() + self.idle.len()
    }

    /// How many there are.
    #[must_use]
    pub fn total(&self) -> usize {
        self.holders.len()
    }

    /// How many hold this block.
    #[must_use]
    pub fn holders(&self, block: u32) -> u32 {
        self.holders[block as usize]
    }

    /// A block of one's own; what an idle one held is forgotten.
    ///
    /// # Panics
    /// When none is free; the scheduler plans with the true number.
    pub fn take(&mut self) -> u32 {
        let block = self.blank.pop().unwrap_or_else(|| {
            let (_, block) = self.idle.pop_first().expect("the plan takes a free block");
            if let Some(digest) = self.digests[block as usize].take() {
                self.known.remove(&digest);
            }
            block
        });
        self.holders[block as usize] = 1;
        block
    }

    /// The block that holds this, if there is one.
    #[must_use]
    pub fn find(&self, digest: &Digest) -> Option<u32> {
        self.known.get(digest).copied()
    }

    /// One more holder of a block that is known or held.
    pub fn hold(&mut self, block: u32) {
        let holders = &mut self.holders[block as usize];
        *holders += 1;
        if *holders == 1 {
            self.idle.remove(&self.since[block as usize]);
        }
    }

    /// Makes known what a held block holds. The first of equal blocks is kept, the others stay their holder's own.
    pub fn know(&mut self, block: u32, digest: Digest) {
        debug_assert!(self.holders[block as usize] > 0, "only who holds may tell");
        if self.digests[block as usize].is_none() && !self.known.contains_key(&digest) {
            self.known.insert(digest, block);
            self.digests[block as usize] = Some(digest);
        }
    }

    /// One holder less of one block.
    pub fn give(&mut self, block: u32) {
        let holders = &mut self.holders[block as usize];
        debug_assert!(*holders > 0, "a block came back twice");
        *holders -= 1;
        if *holders > 0 {
            return;
        }
        if self.digests[block as usize].is_some() {
            self.time += 1;
            self.since[block as usize] = self.time;
            self.idle.insert(self.time, block);
        } else {
            self.blank.push(block);
        }
    }

    /// Forgets what blocks hold: it cannot be trusted.
    pub fn forget(&mut self) {
        self.known.clear();
        self.digests.fill(None);
        self.blank
            .extend(std::mem::take(&mut self.idle).into_values());
    }

    /// One holder less of each block of a sequence.
    pub fn give_all(&mut self, blocks: &mut Vec<u32>) {
        for block in blocks.drain(..).rev() {
            self.give(block);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::Noise;

    #[test]
    fn a_digest_depends_on_all_that_keys_and_values_depend_on() {
        let tokens: Vec<u32> = (0..32).collect();
        let mut others = tokens.clone();
        others[31] = 99;
        let picture = Picture {
            position: 3,
            digest: [7; 32],
        };
        let elsewhere = Picture {
            position: 4,
            ..picture
        };
        let plain = root(None, "");
        let all = [
            digest(&plain, &tokens, &[]),
            digest(&plain, &others, &[]),
            digest(&plain, &tokens, &[picture]),
            digest(&plain, &tokens, &[elsewhere]),
            digest(&root(Some(0), ""), &tokens, &[]),
            digest(&root(None, "tenant"), &tokens, &[]),
            digest(&digest(&plain, &others, &[]), &tokens, &[]),
        ];
        for (index, one) in all.iter().enumerate() {
            assert!(!all[..index].contains(one), "{index}");
        }
    }

    #[test]
    fn ends_of_prefixes_are_forgotten_before_their_beginnings() {
        let mut blocks = Blocks::new(3);
        let mut held: Vec<u32> = (0..3).map(|_| blocks.take()).collect();
        for (index, block) in held.iter().enumerate() {
            blocks.know(*block, [u8::try_from(index).unwrap_or(0); 32]);
        }
        blocks.give_all(&mut held);
        assert_eq!(blocks.free(), 3);
        blocks.take();
        blocks.take();
        assert_eq!(
            [0, 1, 2].map(|index| blocks.find(&[index; 32]).is_some()),
            [true, false, false]
        );
    }

    #[test]
    fn what_is_forgotten_is_free_and_found_no_more() {
        let mut blocks = Blocks::new(3);
        let held: Vec<u32> = (0..2).map(|_| blocks.take()).collect();
        for block in &held {
            blocks.know(*block, [u8::try_from(*block).unwrap_or(0); 32]);
        }
        blocks.give(held[0]);
        blocks.forget();
        assert_eq!(blocks.free(), 2);
        assert!((0..3).all(|digest| blocks.find(&[digest; 32]).is_none()));
        blocks.give(held[1]);
        assert_eq!(blocks.free(), 3);
        let mut taken: Vec<u32> = (0..3).map(|_| blocks.take()).collect();
        taken.sort_unstable();
        assert_eq!(taken, [0, 1, 2]);
    }

    /// Plays random histories against a plain account of who holds what.
    #[test]
    fn no_block_is_lost_or_wrongly_shared() {
        for seed in 0..200 {
            let mut noise = Noise::new(seed);
            let total = 1 + noise.below(12);
            let mut blocks = Blocks::new(total);
            // Each holder has (block, what it holds).
            let mut held: Vec<(u32, Option<Digest>)> = Vec::new();
            let mut next = 0_u64;
            for _ in 0..400 {
                match noise.below(5) {
                    0 if blocks.free() > 0 => {
                        let block = blocks.take();
                        assert!(held.iter().all(|(other, _)| *other != block));
                        held.push((block, None));
                    }
                    1 if !held.is_empty() => {
                        let (block, content) = held[noise.below(held.len())];
                        if content.is_none() {
                            next += u64::from(noise.below(3) > 0);
                            let mut digest = [0; 32];
                            digest[..8].copy_from_slice(&next.to_le_bytes());
                            for (other, content) in &mut held {
                                if *other == block {
                                    *content = Some(digest);
                                }
                            }
                            blocks.know(block, digest);
                        }
                    }
                    2 if !held.is_empty() => {
                        let (block, digest) = held[noise.below(held.len())];
                        blocks.hold(block);
                        held.push((block, digest));
                    }
                    3 => {
                        let mut digest = [0; 32];
                        let wanted = noise.below(next as usize + 1) as u64;
                        digest[..8].copy_from_slice(&wanted.to_le_bytes());
                        if let Some(block) = blocks.find(&digest) {
                            // Whoever holds it already holds the same.
                            assert!(held.iter().all(|(other, content)| *other != block
                                || content.is_none_or(|content| content == digest)));
                            blocks.hold(block);
                            held.push((block, Some(digest)));
                        }
                    }
                    _ if !held.is_empty() => {
                        let (block, _) = held.swap_remove(noise.below(held.len()));
                        blocks.give(block);
                    }
                    _ => {}
                }
                let mut distinct: Vec<u32> = held.iter().map(|(block, _)| *block).collect();
                distinct.sort_unstable();
                distinct.dedup();
                assert_eq!(blocks.free() + distinct.len(), total);
                for block in distinct {
                    let count = held.iter().filter(|(other, _)| *other == block).count();
                    assert_eq!(blocks.holders(block) as usize, count);
                }
            }
        }
    }
}
