//! Rows and tiles that attention is told of, and the spans that they see.

use super::{Attended, Attending, Entries, Told, word};
use crate::compute::backend::Heads;
use crate::compute::cuda::launches::{splits, tile_rows};
use crate::step::BLOCK_TOKENS;

/// Runs of so many rows at most are attended to as single rows.
const FEW_ROWS: usize = 4;
/// Words of an entry for one row.
const ROW_WORDS: usize = 4;
/// Words of an entry for a tile.
pub(super) const TILE_WORDS: usize = 8;
/// Words of a span.
pub(super) const SPAN_WORDS: usize = 4;

/// Entries and spans that are being collected; blocks are counted among all blocks.
pub(super) struct List {
    tile: usize,
    attending: Attending,
    rows: Vec<[u32; ROW_WORDS]>,
    tiles: Vec<[u32; TILE_WORDS]>,
    pub(super) spans: Vec<[usize; SPAN_WORDS]>,
    splits: usize,
}

impl List {
    pub(super) fn new(heads: Heads, attending: Attending) -> Self {
        Self {
            tile: tile_rows(heads),
            attending,
            rows: Vec::new(),
            tiles: Vec::new(),
            spans: Vec::new(),
            splits: 1,
        }
    }

    fn together(&self, rows: usize) -> bool {
        self.attending == Attending::Mixed && rows > FEW_ROWS && self.tile > 0
    }

    /// Rows from position `first` on that see what is before them and themselves.
    pub(super) fn causal(&mut self, rows: std::ops::Range<usize>, first: usize, blocks: usize) {
        if self.together(rows.len()) {
            let span = self.spans.len();
            self.spans.push([blocks, 0, first + rows.len(), 1]);
            for row in rows.clone().step_by(self.tile) {
                let count = self.tile.min(rows.end - row);
                let position = first + row - rows.start;
                self.tiles
                    .push([row, count, span, 1, 1, position, 0, 0].map(word));
            }
            return;
        }
        for (row, position) in rows.zip(first..) {
            let (span, pages) = (self.spans.len(), position / BLOCK_TOKENS + 1);
            self.spans.push([blocks, 0, position + 1, 1]);
            self.rows.push([row, span, 1, pages].map(word));
            self.need(pages);
        }
    }

    /// Rows that see all of some spans with so many pages.
    pub(super) fn seeing(
        &mut self,
        rows: std::ops::Range<usize>,
        (first, count): (usize, usize),
        pages: usize,
    ) {
        if self.together(rows.len()) {
            for row in rows.clone().step_by(self.tile) {
                let together = self.tile.min(rows.end - row);
                self.tiles
                    .push([row, together, first, count, 0, 0, 0, 0].map(word));
            }
            return;
        }
        self.rows
            .extend(rows.map(|row| [row, first, count, pages].map(word)));
        self.need(pages);
    }

    fn need(&mut self, pages: usize) {
        self.splits = self.splits.max(splits(pages).next_power_of_two());
    }

    pub(super) fn write(&self, told: &mut Told, blocks: &[u32]) -> Attended {
        let rows = told.put(self.rows.as_flattened());
        let tiles = told.put(self.tiles.as_flattened());
        let spans = told.put(&[]);
        let first = spans + self.spans.len() * SPAN_WORDS;
        for [at, begin, end, repeats] in &self.spans {
            let words = [first + at, *begin, *end, *repeats].map(word);
            told.words.extend_from_slice(&words);
        }
        told.words.extend_from_slice(blocks);
        Attended {
            rows: Entries {
                at: rows,
                count: self.rows.len(),
            },
            splits: self.splits,
            tiles: Entries {
                at: tiles,
                count: self.tiles.len(),
            },
            spans,
        }
    }
}
