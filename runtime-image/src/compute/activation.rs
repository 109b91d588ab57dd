//! The input side of a matrix product: rows of floats and, for quantised weights, their bytes.

use super::Instructions;
use super::elementwise;
use super::matrix::BLOCK;
use super::pool::{Pool, Shares};

/// Rows of one width, as floats and as blocks of 32 signed bytes with a scale each.
/// Allocated once for the largest step.
pub struct Activation {
    columns: usize,
    /// Row-major floats.
    pub values: Vec<f32>,
    /// Signed bytes between -127 and 127, row-major.
    pub(crate) quants: Vec<i8>,
    /// One scale a block.
    pub(crate) scales: Vec<f32>,
    /// -128 times the sum of a block's bytes: undoes the offset of [`super::matrix::Storage::Q8`].
    pub(crate) offsets: Vec<i32>,
    /// Scale times the sum of a block's bytes: what a weight block's minimum is multiplied by.
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
            quants: vec![0; rows * columns],
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

    /// Calls `fill` for each of the first `rows` rows, then rounds the row to bytes where `quantize` says so.
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
        let quants = Shares::new(&mut self.quants[..rows * columns]);
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
                        quants.part(row * columns, columns),
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
