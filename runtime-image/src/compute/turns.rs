//! In which order the rows of an input meet a block of quantised weights: first those whose numbers have one byte there.

use std::ops::Range;

use super::pool::{Pool, Shares};

/// Rows that take turns with each other: so many rows' sums stay in a core's own cache while blocks go by.
pub(super) const SPAN: usize = 128;

/// Fewer rows than these take no turns.
pub(super) const FEW: usize = 8;

/// For each span of rows and each block the rows of the span, those that are short there before the others.
pub(super) struct Turns {
    rows: usize,
    blocks: usize,
    order: Vec<u8>,
    /// How many of them are short.
    short: Vec<u8>,
}

impl Turns {
    /// Room for `rows` rows of `blocks` blocks.
    pub(super) fn new(rows: usize, blocks: usize) -> Self {
        Self {
            rows: 0,
            blocks,
            order: vec![0; rows * blocks],
            short: vec![0; rows.div_ceil(SPAN) * blocks],
        }
    }

    /// Bytes that room for `rows` rows of `blocks` blocks takes, but for the one of each span.
    pub(super) const fn bytes(rows: usize, blocks: usize) -> usize {
        rows * blocks
    }

    /// Puts rows in order by which of their blocks `are_short`: those of the first block of every row, then of the second.
    pub(super) fn fill(&mut self, pool: &mut Pool, rows: usize, are_short: &[bool]) {
        self.rows = rows;
        let blocks = self.blocks;
        let order = Shares::new(&mut self.order[..rows * blocks]);
        let short = Shares::new(&mut self.short[..rows.div_ceil(SPAN) * blocks]);
        pool.run(rows.div_ceil(SPAN), &|span| {
            let of_span = rows_of(rows, span);
            let count = of_span.len();
            // SAFETY: each piece has a span of its own, and the slices hold all of them.
            let (order, short) = unsafe {
                (
                    order.part(of_span.start * blocks, count * blocks),
                    short.part(span * blocks, blocks),
                )
            };
            for (block, short) in short.iter_mut().enumerate() {
                let order = &mut order[block * count..][..count];
                let (mut first, mut last) = (0, count);
                let are_short = &are_short[block * rows..][of_span.clone()];
                for (within, is_short) in are_short.iter().enumerate() {
                    let is_short = *is_short;
                    let at = if is_short { first } else { last - 1 };
                    order[at] = within as u8;
                    first += usize::from(is_short);
                    last -= usize::from(!is_short);
                }
                *short = first as u8;
            }
        });
    }

    /// The spans of rows there are.
    pub(super) fn spans(&self) -> impl Iterator<Item = Range<usize>> {
        let rows = self.rows;
        (0..rows.div_ceil(SPAN)).map(move |span| rows_of(rows, span))
    }

    /// The rows of a span, counted from its first, whose numbers in a block are short, and the others.
    pub(super) fn of(&self, span: &Range<usize>, block: usize) -> (&[u8], &[u8]) {
        let order = &self.order[span.start * self.blocks + block * span.len()..][..span.len()];
        order.split_at(usize::from(
            self.short[span.start / SPAN * self.blocks + block],
        ))
    }
}

fn rows_of(rows: usize, span: usize) -> Range<usize> {
    span * SPAN..rows.min((span + 1) * SPAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_one_turn_with_each_block_among_its_like() {
        let blocks = 3;
        let mut turns = Turns::new(300, blocks);
        let mut pool = Pool::new(2);
        for rows in [1, 127, 128, 129, 300] {
            let is_short = |row: usize, block: usize| match block {
                0 => (row * 7).is_multiple_of(3),
                other => other == 1,
            };
            let flags: Vec<bool> = (0..rows * blocks)
                .map(|at| is_short(at % rows, at / rows))
                .collect();
            turns.fill(&mut pool, rows, &flags);
            for block in 0..blocks {
                let mut seen = vec![0; rows];
                for span in turns.spans() {
                    let (short, long) = turns.of(&span, block);
                    for (within, expected) in [(short, true), (long, false)] {
                        for within in within {
                            let row = span.start + usize::from(*within);
                            assert_eq!(is_short(row, block), expected);
                            seen[row] += 1;
                        }
                    }
                }
                assert_eq!(seen, vec![1; rows]);
            }
        }
    }
}
