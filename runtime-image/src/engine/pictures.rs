//! The pictures of one sequence: which of them its rows see, where their keys and values lie, and when they are needed.
//!
//! A row sees the pictures of the last group of adjacent picture tokens that begins at or before it, up to its own place.
//! So a sequence that has passed a group gives its pages back; they stay known until they are needed for something else.

use std::ops::Range;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use super::cache::{self, Blocks, Digest};
use crate::model::PictureFacts;
use crate::pictures::Picture;
use crate::request::PromptPicture;
use crate::step::{CrossRun, Encoding, SeenPicture, cross_runs, seen};

/// All pictures of a prompt, in its order.
#[derive(Clone, Default)]
pub(super) struct Pictures {
    /// Where they stand, ascending.
    places: Vec<usize>,
    all: Vec<Held>,
}

#[derive(Clone)]
struct Held {
    picture: Arc<Picture>,
    /// Names its keys and values among those of the same salt.
    key: Digest,
    /// Keys that it has.
    length: usize,
    /// Pages that it takes.
    count: usize,
    /// Empty while it is not held.
    pages: Vec<u32>,
    /// Whether the pages have their content.
    ready: bool,
}

impl Held {
    /// What one of its pages is called.
    fn page(&self, index: usize) -> Digest {
        let mut hash = Sha256::new();
        hash.update(self.key);
        hash.update((index as u64).to_le_bytes());
        hash.finalize().into()
    }

    /// Where its pages are if all are known.
    fn known(&self, blocks: &Blocks) -> Option<Vec<u32>> {
        let pages = (0..self.count).map(|index| blocks.find(&self.page(index)));
        pages.collect()
    }

    fn hold(&mut self, blocks: &mut Blocks, pages: Vec<u32>, ready: bool) {
        for page in &pages {
            blocks.hold(*page);
        }
        (self.pages, self.ready) = (pages, ready);
    }

    fn give(&mut self, blocks: &mut Blocks) {
        blocks.give_all(&mut self.pages);
        self.ready = false;
    }
}

/// What a waiting sequence's pictures take when it begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Claim {
    /// Pages to be taken.
    pub(super) taken: usize,
    /// Pages that are known and held by nobody.
    pub(super) idle: usize,
}

impl Pictures {
    pub(super) fn new(
        pictures: &[PromptPicture],
        facts: Option<PictureFacts>,
        root: &Digest,
    ) -> Self {
        let Some(facts) = facts else {
            return Self::default();
        };
        let held = |prompt: &PromptPicture| {
            let mut hash = Sha256::new();
            hash.update(root);
            hash.update(b"picture");
            hash.update(prompt.picture.digest);
            let length = prompt.picture.tiles * facts.tile_keys;
            Held {
                picture: Arc::clone(&prompt.picture),
                key: hash.finalize().into(),
                length,
                count: facts.pages.count(length),
                pages: Vec::new(),
                ready: false,
            }
        };
        Self {
            places: pictures.iter().map(|prompt| prompt.position).collect(),
            all: pictures.iter().map(held).collect(),
        }
    }

    /// The pictures that are needed once so many tokens are computed.
    fn needed(&self, computed: usize) -> Range<usize> {
        seen(&self.places, computed).start..self.all.len()
    }

    /// Of the tokens after `computed`, those that cannot be computed yet.
    pub(super) fn held_back(&self, computed: usize, tokens: usize) -> usize {
        let first = self.needed(computed).find(|index| !self.all[*index].ready);
        first.map_or(0, |index| {
            tokens.saturating_sub(self.places[index].max(computed))
        })
    }

    /// The pages that it holds.
    pub(super) fn pages(&self) -> impl Iterator<Item = u32> + '_ {
        self.all.iter().flat_map(|held| &held.pages).copied()
    }

    /// The pages that nobody else holds.
    pub(super) fn own(&self, blocks: &Blocks) -> usize {
        let pages = self.all.iter().flat_map(|held| &held.pages);
        pages.filter(|page| blocks.holders(**page) == 1).count()
    }

    /// What it takes to hold what is needed after `computed` tokens, beside what `others` hold.
    pub(super) fn claim<'a>(
        &self,
        computed: usize,
        blocks: &Blocks,
        mut others: impl Iterator<Item = &'a Self> + Clone,
    ) -> Claim {
        let mut claim = Claim::default();
        for held in &self.all[self.needed(computed)] {
            let mut others = others.by_ref().clone();
            if others.any(|other| other.pages_of(&held.key).is_some()) {
                continue;
            }
            for index in 0..held.count {
                match blocks.find(&held.page(index)) {
                    Some(page) => claim.idle += usize::from(blocks.holders(page) == 0),
                    None => claim.taken += 1,
                }
            }
        }
        claim
    }

    fn pages_of(&self, key: &Digest) -> Option<(&[u32], bool)> {
        let held = self
            .all
            .iter()
            .find(|held| held.key == *key && !held.pages.is_empty());
        held.map(|held| (held.pages.as_slice(), held.ready))
    }

    /// Holds the pages of every picture that is needed after `computed` tokens: what others hold or what is known, or pages
    /// to be filled. Returns how many pictures were found complete.
    pub(super) fn acquire<'a>(
        &mut self,
        computed: usize,
        blocks: &mut Blocks,
        others: impl Iterator<Item = &'a Self> + Clone,
    ) -> usize {
        let mut found = 0;
        for index in self.needed(computed) {
            if !self.all[index].pages.is_empty() {
                continue;
            }
            let key = self.all[index].key;
            let shared = others.clone().find_map(|other| other.pages_of(&key));
            let shared = shared.or_else(|| self.pages_of(&key));
            let shared = shared.map(|(pages, ready)| (pages.to_vec(), ready));
            let held = &mut self.all[index];
            if let Some((pages, ready)) = shared {
                found += usize::from(ready);
                held.hold(blocks, pages, ready);
            } else if let Some(pages) = held.known(blocks) {
                found += 1;
                held.hold(blocks, pages, true);
            } else {
                // Pages that are left of it are written again with the same numbers.
                let left: Vec<Option<u32>> = (0..held.count)
                    .map(|page| blocks.find(&held.page(page)))
                    .collect();
                for page in left.iter().flatten() {
                    blocks.hold(*page);
                }
                let pages = left
                    .into_iter()
                    .map(|page| page.unwrap_or_else(|| blocks.take()));
                (held.pages, held.ready) = (pages.collect(), false);
            }
        }
        found
    }

    /// One more holder of all pages, for another answer to the same prompt.
    pub(super) fn shared(&self, blocks: &mut Blocks) -> Self {
        for page in self.all.iter().flat_map(|held| &held.pages) {
            blocks.hold(*page);
        }
        self.clone()
    }

    /// Gives back what no row after `computed` tokens sees.
    pub(super) fn give_passed(&mut self, computed: usize, blocks: &mut Blocks) {
        let start = self.needed(computed).start;
        for held in &mut self.all[..start] {
            held.give(blocks);
        }
    }

    /// Gives everything back.
    pub(super) fn give_all(&mut self, blocks: &mut Blocks) {
        for held in &mut self.all {
            held.give(blocks);
        }
    }

    /// The next picture to be encoded.
    pub(super) fn wanted(&self) -> Option<Encoding> {
        let held = self
            .all
            .iter()
            .find(|held| !held.ready && !held.pages.is_empty());
        held.map(|held| Encoding {
            picture: Arc::clone(&held.picture),
            pages: held.pages.clone(),
        })
    }

    /// Whether it waits for this one.
    pub(super) fn wants(&self, work: &Encoding) -> bool {
        let waits = |held: &Held| !held.ready && held.pages == work.pages;
        self.all.iter().any(waits)
    }

    /// Notes that these pages are complete, and makes them known.
    pub(super) fn complete(&mut self, work: &Encoding, blocks: &mut Blocks) {
        for held in self.all.iter_mut().filter(|held| held.pages == work.pages) {
            held.ready = true;
            for (index, page) in held.pages.iter().enumerate() {
                blocks.know(*page, held.page(index));
            }
        }
    }

    /// The pictures among the tokens of a block, for its name.
    pub(super) fn within(&self, block: Range<usize>) -> Vec<cache::Picture> {
        let inside = self.places.iter().zip(&self.all);
        inside
            .filter(|(position, _)| block.contains(position))
            .map(|(position, held)| cache::Picture {
                position: u32::try_from(*position).unwrap_or(u32::MAX),
                digest: held.picture.digest,
            })
            .collect()
    }

    /// What the rows of these positions see, the first of which is row `first` of the step.
    pub(super) fn cross(&self, positions: Range<usize>, first: usize) -> Vec<CrossRun> {
        cross_runs(&self.places, positions, first, |index| SeenPicture {
            pages: self.all[index].pages.clone(),
            length: self.all[index].length,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Pages;

    const FACTS: PictureFacts = PictureFacts {
        token: 9,
        tile_keys: 17,
        most_tiles: 4,
        tile_bytes: 0,
        arrangements: 8,
        pages: Pages {
            layers: 4,
            cross_layers: 2,
        },
    };

    fn pictures(places: &[(usize, u8)]) -> Pictures {
        let all: Vec<PromptPicture> = places
            .iter()
            .map(|(position, content)| PromptPicture {
                position: *position,
                picture: Arc::new(Picture {
                    arrangement: 1,
                    tiles: 4,
                    pixels: Vec::new(),
                    values: Arc::new([[0.0; 256]; 3]),
                    digest: [*content; 32],
                    kept: None,
                }),
            })
            .collect();
        Pictures::new(&all, Some(FACTS), &[0; 32])
    }

    #[test]
    fn rows_wait_for_their_pictures_and_passed_ones_are_given_back() {
        let mut blocks = Blocks::new(12);
        let mut all = pictures(&[(5, 1), (40, 2)]);
        let none = std::iter::empty::<&Pictures>();
        assert_eq!(all.claim(0, &blocks, none.clone()).taken, 4);
        assert_eq!(all.acquire(0, &mut blocks, none.clone()), 0);
        assert_eq!((blocks.free(), all.held_back(0, 60)), (8, 55));
        let first = all.wanted().expect("the first");
        all.complete(&first, &mut blocks);
        assert_eq!(all.held_back(0, 60), 20);
        let second = all.wanted().expect("the second");
        assert!(all.wants(&second) && !all.wants(&first));
        all.complete(&second, &mut blocks);
        assert_eq!((all.held_back(0, 60), all.wanted().is_none()), (0, true));
        all.give_passed(40, &mut blocks);
        assert_eq!((blocks.free(), all.held_back(40, 60)), (10, 0));
        // Another sequence finds both.
        let mut other = pictures(&[(0, 1), (2, 2)]);
        assert_eq!(
            other.claim(0, &blocks, [&all].into_iter()),
            Claim { taken: 0, idle: 2 }
        );
        assert_eq!(other.acquire(0, &mut blocks, [&all].into_iter()), 2);
        assert_eq!((blocks.free(), other.held_back(0, 9)), (8, 0));
        other.give_all(&mut blocks);
        all.give_all(&mut blocks);
        assert_eq!(blocks.free(), 12);
    }

    #[test]
    fn a_picture_under_way_is_shared_and_a_half_forgotten_one_is_made_again() {
        let mut blocks = Blocks::new(4);
        let mut one = pictures(&[(0, 1)]);
        let mut other = pictures(&[(0, 1), (1, 1)]);
        one.acquire(0, &mut blocks, std::iter::empty());
        assert_eq!(
            other.claim(0, &blocks, [&one].into_iter()),
            Claim::default()
        );
        assert_eq!(other.acquire(0, &mut blocks, [&one].into_iter()), 0);
        assert_eq!(blocks.free(), 2);
        let work = one.wanted().expect("not complete");
        one.give_all(&mut blocks);
        assert!(other.wants(&work));
        other.complete(&work, &mut blocks);
        other.give_all(&mut blocks);
        let taken: Vec<u32> = (0..3).map(|_| blocks.take()).collect();
        for block in &taken[..2] {
            blocks.give(*block);
        }
        // One of two pages is left.
        let none = std::iter::empty::<&Pictures>();
        assert_eq!(
            one.claim(0, &blocks, none.clone()),
            Claim { taken: 1, idle: 1 }
        );
        assert_eq!(one.acquire(0, &mut blocks, none), 0);
        assert!(one.wanted().is_some());
    }
}
