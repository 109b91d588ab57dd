//! The input side of a matrix product: rows of floats and, for quantised weights, their bytes.

use super::Instructions;
use super::elementwise;
use super::matrix::BLOCK;
use super::pool::{Pool, Shares};

/// Rows of one width, as floats and, for quantised weights, as blocks of 32 whole numbers with a scale each.
/// Allocated once for the largest step.
///
/// A number has 15 bits in two signed bytes, `scale * (128 * high + low)`: byte products are what processors are fast at,
/// and a single byte costs answers (SmolLM2 in Q4_1 forgets Paris, here as in llama.cpp; see docs/decisions/0030).
pub struct Activation {
    columns: usize,
    /// Row-major floats.
    pub values: Vec<f32>,
    /// For each block its 32 high bytes (-127 to 127), then its 32 low bytes (-64 to 63).
    pub(crate) quants: Vec<i8>,
    /// One scale a block.
    pub(crate) scales: Vec<f32>,
    /// -128 times the sum of a block's numbers: undoes the offset of [`super::matrix::Storage::Q8`].
    pub(crate) offsets: Vec<i32>,
    /// Scale times the sum of a block's numbers: what a weight block's minimum is multiplied by.
    pub(crate) sums: Vec<f32>,
}

impl Activation {
    /// Room for `rows` rows of `columns` numbers.
    #[must_use]
    pub fn new(rows: usize, columns: usize) -> Self {
        let blocks = columns.div_ceil(BLOCK);
        Self {
            columns,
            values: vec![0.0; rows * columns],
            quants: vec![0; rows * blocks * 2 * BLOCK],
            scales: vec![0.0; rows * blocks],
            offsets: vec![0; rows * blocks],
            sums: vec![0.0; rows * blocks],
        }
    }

    /// Numbers in a row.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The floats of one row.
    #[must_use]
    pub fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.columns..][..self.columns]
    }

    /// The floats of one row, to be written.
    pub fn row_mut(&mut self, row: usize) -> &mut [f32] {
        &mut self.values[row * self.columns..][..self.columns]
    }

    /// Calls `fill` for each of the first `rows` rows, then rounds the row to blocks where `quantize` says so.
    pub fn fill(
        &mut self,
        pool: &mut Pool,
        instructions: Instructions,
        rows: usize,
        quantize: bool,
        fill: &(dyn Fn(usize, &mut [f32]) + Sync),
    ) {
        let (columns, blocks) = (self.columns, self.columns / BLOCK);
        let values = Shares::new(&mut self.values[..rows * columns]);
        let quants = Shares::new(&mut self.quants);
        let scales = Shares::new(&mut self.scales);
        let offsets = Shares::new(&mut self.offsets);
        let sums = Shares::new(&mut self.sums);
        pool.run(rows, &|row| {
            // SAFETY: each piece has a row of its own, and the slices hold `rows` rows.
            let values = unsafe { values.part(row * columns, columns) };
            fill(row, values);
            if quantize {
                // SAFETY: as above.
                let (quants, scales, offsets, sums) = unsafe {
                    (
                        quants.part(row * blocks * 2 * BLOCK, blocks * 2 * BLOCK),
                        scales.part(row * blocks, blocks),
                        offsets.part(row * blocks, blocks),
                        sums.part(row * blocks, blocks),
                    )
                };
                elementwise::quantize(instructions, values, quants, scales, offsets, sums);
            }
        });
    }
}
