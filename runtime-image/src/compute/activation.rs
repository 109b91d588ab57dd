//! The input side of a matrix product: rows of floats and, for weights of fewer bits, what these are rounded to.

use super::Instructions;
use super::elementwise;
use super::matrix::{BLOCK, Matrix};
use super::pages::Aligned;
use super::pool::{Pool, Shares};
use super::rounded::{ROW, Rounded};
use super::turns::{FEW, SPAN, Turns};

/// Rows that one thread fills one after the other, where there are many.
const TOGETHER: usize = 4;

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

/// What stands before a block's numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Head {
    /// What its whole numbers are multiplied by.
    pub scale: f32,
    /// -128 times the sums of its high and of its low bytes: undoes the offset of [`super::matrix::Storage::Q8`].
    pub offsets: [i32; 2],
    /// Scale times the sum of its numbers: what a weight block's minimum is multiplied by.
    pub sum: f32,
}

/// Rows of an input as blocks; those of all rows that are at the same place in theirs lie one after the other.
pub(super) struct BlockInput<'a> {
    pub(super) rows: usize,
    pub(super) blocks: usize,
    pub(super) quants: &'a [i8],
    pub(super) heads: &'a [Head],
    pub(super) turns: &'a Turns,
}

impl BlockInput<'_> {
    /// Which of all blocks of `rows` rows one is.
    #[inline]
    const fn place(rows: usize, row: usize, block: usize) -> usize {
        block * rows + row
    }

    /// Which of all blocks one is.
    #[inline]
    pub(super) fn at(&self, row: usize, block: usize) -> usize {
        Self::place(self.rows, row, block)
    }

    /// The whole numbers of one block.
    pub(super) fn block(&self, row: usize, block: usize) -> [i32; BLOCK] {
        let quants = &self.quants[self.at(row, block) * 2 * BLOCK..][..2 * BLOCK];
        let (high, low) = quants.split_at(BLOCK);
        std::array::from_fn(|k| i32::from(high[k]) * 128 + i32::from(low[k]))
    }
}

/// Where the blocks of one row go, as [`BlockInput`] has them.
pub(super) struct RowOutput<'a> {
    pub(super) quants: &'a Shares<i8>,
    pub(super) heads: &'a Shares<Head>,
    pub(super) short: &'a Shares<bool>,
    pub(super) row: usize,
    pub(super) rows: usize,
}

impl RowOutput<'_> {
    /// One block's high and low bytes, its head, and whether it is short.
    ///
    /// # Safety
    /// There is this block, and no other reference to it.
    #[expect(clippy::mut_from_ref, reason = "as with the parts that it hands out")]
    pub(super) unsafe fn block(&self, block: usize) -> (&mut [i8], &mut Head, &mut bool) {
        let at = BlockInput::place(self.rows, self.row, block);
        // SAFETY: by this function's contract.
        unsafe {
            (
                self.quants.part(at * 2 * BLOCK, 2 * BLOCK),
                &mut self.heads.part(at, 1)[0],
                &mut self.short.part(at, 1)[0],
            )
        }
    }
}

/// Rows of one width, as floats and, for quantised weights, as blocks of 32 whole numbers with a scale each.
/// Allocated once for the largest step.
///
/// A number has 15 bits in two signed bytes, `scale * (128 * high + low)`: byte products are what processors are fast at,
/// and a single byte for all costs answers (SmolLM2 in Q4_1 forgets Paris, here as in llama.cpp; see docs/decisions/0030).
/// Blocks that are small beside their row have low bytes alone (see docs/decisions/0123).
/// What a product reads of a block lies beside that of the next row, so that a core's own cache holds it for many rows.
pub struct Activation {
    columns: usize,
    /// Row-major floats.
    pub values: Vec<f32>,
    /// What rows are rounded to, with how many of them.
    form: (Form, usize),
    /// For each block its 32 high bytes (-127 to 127), then its 32 low bytes (-64 to 63, in a short block -127 to 127); or see
    /// [`Rounded`].
    pub(crate) quants: Aligned,
    /// One a block.
    pub(super) heads: Vec<Head>,
    /// Which blocks have no high bytes: they are short.
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
            heads: vec![Head::default(); rows * blocks],
            short: vec![false; rows * blocks],
            turns: Turns::new(rows, blocks),
        }
    }

    /// Bytes that room for `rows` rows of `columns` numbers takes.
    #[must_use]
    pub const fn bytes(rows: usize, columns: usize) -> usize {
        let block = 2 * BLOCK * size_of::<i8>() + size_of::<Head>() + size_of::<bool>();
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
        let (columns, blocks) = (self.columns, self.columns.div_ceil(BLOCK));
        let values = Shares::new(&mut self.values[..rows * columns]);
        let quants = Shares::new(self.quants.signed_mut());
        let heads = Shares::new(&mut self.heads);
        let short = Shares::new(&mut self.short);
        // Heads of neighbouring rows share lines of memory.
        let together = if rows >= SPAN { TOGETHER } else { 1 };
        pool.run(rows.div_ceil(together), &|piece| {
            for row in piece * together..rows.min((piece + 1) * together) {
                // SAFETY: each piece has rows of its own, and the slices hold `rows` rows.
                let values = unsafe { values.part(row * columns, columns) };
                fill(row, values);
                match form {
                    Form::Floats => {}
                    Form::Blocks => {
                        let out = RowOutput {
                            quants: &quants,
                            heads: &heads,
                            short: &short,
                            row,
                            rows,
                        };
                        elementwise::quantize(instructions, values, &out);
                    }
                    Form::Rounded => {
                        for (block, values) in values.chunks(BLOCK).enumerate() {
                            let at = Rounded::place(rows, blocks, row, block);
                            // SAFETY: as above.
                            let rounded = unsafe { quants.part(at, ROW) };
                            elementwise::round(instructions, values, rounded);
                            rounded[2 * values.len()..].fill(0);
                        }
                    }
                }
            }
        });
        if form == Form::Blocks && rows >= FEW {
            self.turns.fill(pool, rows, &self.short);
        }
    }

    /// Whether these were the rows that were filled last, and were rounded as products with these weights need it.
    pub(super) fn suits(&self, matrix: &Matrix, rows: usize) -> bool {
        !matrix.is_quantized() || self.form == (Form::Blocks, rows)
    }

    /// The first `rows` rows as blocks of whole numbers, where they [suit](Self::suits).
    pub(super) fn blocks(&self, rows: usize) -> BlockInput<'_> {
        BlockInput {
            rows,
            blocks: self.columns / BLOCK,
            quants: self.quants.signed(),
            heads: &self.heads,
            turns: &self.turns,
        }
    }

    /// The first rows as they were rounded to bfloat16, if they were.
    pub(super) fn rounded(&self) -> Option<Rounded<'_>> {
        let (form, rows) = self.form;
        let blocks = self.columns.div_ceil(BLOCK);
        (form == Form::Rounded).then(|| Rounded::new(self.quants.bytes(), rows, blocks))
    }
}
