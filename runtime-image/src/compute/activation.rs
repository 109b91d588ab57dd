//! The input side of a matrix product: rows of floats and, for weights of fewer bits, what these are rounded to.

use super::Instructions;
use super::elementwise;
use super::matrix::{BLOCK, Matrix};
use super::pages::Aligned;
use super::pool::{Pool, Shares};
use super::rounded::{ROW, Rounded};
use super::turns::{FEW, Turns};

/// What products read of their input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Floats.
    Floats,
    /// Blocks of whole numbers where weights are quantised, else floats.
    Blocks,
    /// Numbers of bfloat16 where weights are, else floats.
    Rounded,
}

impl Form {
    /// What products with these weights read, where inputs of bfloat16 weights are rounded too or are not.
    #[must_use]
    pub fn of(feeds: &[&Matrix], rounds: bool) -> Self {
        if feeds.iter().any(|matrix| matrix.is_quantized()) {
            Self::Blocks
        } else if rounds && feeds.iter().any(|matrix| matrix.is_bf16()) {
            Self::Rounded
        } else {
            Self::Floats
        }
    }
}

/// Rows of one width, as floats and, for quantised weights, as blocks of 32 whole numbers with a scale each.
/// Allocated once for the largest step.
///
/// A number has 15 bits in two signed bytes, `scale * (128 * high + low)`: byte products are what processors are fast at,
/// and a single byte for all costs answers (SmolLM2 in Q4_1 forgets Paris, here as in llama.cpp; see docs/decisions/0030).
/// Blocks that are small beside their row have no low bytes (see docs/decisions/0123).
pub struct Activation {
    columns: usize,
    /// Row-major floats.
    pub values: Vec<f32>,
    /// What rows are rounded to, with how many of them.
    form: (Form, usize),
    /// For each block its 32 high bytes (-127 to 127), then its 32 low bytes (-64 to 63); or see [`Rounded`].
    pub(crate) quants: Aligned,
    /// One scale a block.
    pub(crate) scales: Vec<f32>,
    /// -128 times the sums of a block's high and of its low bytes: undoes the offset of [`super::matrix::Storage::Q8`].
    pub(crate) offsets: Vec<[i32; 2]>,
    /// Scale times the sum of a block's numbers: what a weight block's minimum is multiplied by.
    pub(crate) sums: Vec<f32>,
    /// Which blocks have no low bytes: they are short.
    short: Vec<bool>,
    pub(super) turns: Turns,
}

impl Activation {
    /// Room for `rows` rows of `columns` numbers.
    #[must_use]
    pub fn new(rows: usize, columns: usize) -> Self {
        let blocks = columns.div_ceil(BLOCK);
        Self {
            columns,
            values: vec![0.0; rows * columns],
            form: (Form::Floats, 0),
            quants: Aligned::alone(rows * blocks * 2 * BLOCK),
            scales: vec![0.0; rows * blocks],
            offsets: vec![[0; 2]; rows * blocks],
            sums: vec![0.0; rows * blocks],
            short: vec![false; rows * blocks],
            turns: Turns::new(rows, blocks),
        }
    }

    /// Bytes that room for `rows` rows of `columns` numbers takes.
    #[must_use]
    pub const fn bytes(rows: usize, columns: usize) -> usize {
        let block = 2 * BLOCK * size_of::<i8>() + 4 * size_of::<f32>() + size_of::<bool>();
        let blocks = columns.div_ceil(BLOCK);
        rows * (columns * size_of::<f32>() + blocks * block) + Turns::bytes(rows, blocks)
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

    /// Calls `fill` for each of the first `rows` rows, then rounds the row as `form` says.
    pub fn fill(
        &mut self,
        pool: &mut Pool,
        instructions: Instructions,
        rows: usize,
        form: Form,
        fill: &(dyn Fn(usize, &mut [f32]) + Sync),
    ) {
        self.form = (form, rows);
        let (columns, blocks) = (self.columns, self.columns / BLOCK);
        let values = Shares::new(&mut self.values[..rows * columns]);
        let quants = Shares::new(self.quants.signed_mut());
        let scales = Shares::new(&mut self.scales);
        let offsets = Shares::new(&mut self.offsets);
        let sums = Shares::new(&mut self.sums);
        let short = Shares::new(&mut self.short);
        pool.run(rows, &|row| {
            // SAFETY: each piece has a row of its own, and the slices hold `rows` rows.
            let values = unsafe { values.part(row * columns, columns) };
            fill(row, values);
            match form {
                Form::Floats => {}
                Form::Blocks => {
                    // SAFETY: as above.
                    let (quants, scales, offsets, sums, short) = unsafe {
                        (
                            quants.part(row * blocks * 2 * BLOCK, blocks * 2 * BLOCK),
                            scales.part(row * blocks, blocks),
                            offsets.part(row * blocks, blocks),
                            sums.part(row * blocks, blocks),
                            short.part(row * blocks, blocks),
                        )
                    };
                    elementwise::quantize(
                        instructions,
                        values,
                        quants,
                        scales,
                        offsets,
                        sums,
                        short,
                    );
                }
                Form::Rounded => {
                    for (block, values) in values.chunks(BLOCK).enumerate() {
                        let at = Rounded::place(rows, columns.div_ceil(BLOCK), row, block);
                        // SAFETY: as above.
                        let rounded = unsafe { quants.part(at, ROW) };
                        elementwise::round(instructions, values, rounded);
                        rounded[2 * values.len()..].fill(0);
                    }
                }
            }
        });
        if form == Form::Blocks && rows >= FEW {
            self.turns.fill(pool, rows, &self.short);
        }
    }

    /// The first rows as they were rounded to bfloat16, if they were.
    pub(super) fn rounded(&self) -> Option<Rounded<'_>> {
        let (form, rows) = self.form;
        let blocks = self.columns.div_ceil(BLOCK);
        (form == Form::Rounded).then(|| Rounded::new(self.quants.bytes(), rows, blocks))
    }
}
