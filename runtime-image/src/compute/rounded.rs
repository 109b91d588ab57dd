//! Products of inputs and weights that are both bfloat16: with vector registers or with matrix units, as the processor has them.
//!
//! Neither the rows beside one nor the outputs that are computed with its own change the order in which its products are added.

use std::ops::Range;

use super::Bf16;
use super::matrix::{BLOCK, GROUP};
use super::pool::Shares;

/// Bytes of a row's block of columns.
pub(super) const ROW: usize = 2 * BLOCK;

/// Pairs of columns in a block, and the bytes that a group's weights for it take.
pub(super) const PAIRS: usize = BLOCK / 2;
pub(super) const TILE: usize = GROUP * ROW;

/// Blocks of columns that are taken together where there are many rows: those of all rows of a part stay in a core's own cache, and
/// sums are put aside seldom.
const DEPTH: usize = 64;

/// Rows of bfloat16: `[16 rows][block][row][32 columns]`, less than sixteen rows in the last part, so that matrix units find the
/// same block of neighbouring rows in one place. They take the bytes that blocks of whole numbers would.
#[derive(Clone, Copy)]
pub(super) struct Rounded<'a> {
    bytes: &'a [u8],
    rows: usize,
    blocks: usize,
}

impl<'a> Rounded<'a> {
    pub(super) fn new(bytes: &'a [u8], rows: usize, blocks: usize) -> Self {
        let bytes = &bytes[..rows * blocks * ROW];
        Self {
            bytes,
            rows,
            blocks,
        }
    }

    /// Where a block of a row begins.
    pub(super) fn place(rows: usize, blocks: usize, row: usize, block: usize) -> usize {
        let first = row / GROUP * GROUP;
        let together = GROUP.min(rows - first);
        (first * blocks + block * together + row - first) * ROW
    }

    /// Rows that there are.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Blocks of a row, the last one perhaps not full.
    pub(super) fn blocks(&self) -> usize {
        self.blocks
    }

    /// A block of the rows from `row` on, which lie one after the other to the end of their part, and what lies between it and the
    /// next block of them.
    pub(super) fn tile(&self, row: usize, block: usize) -> (&'a [u8], usize) {
        let at = Self::place(self.rows, self.blocks, row, block);
        let first = row / GROUP * GROUP;
        (&self.bytes[at..], GROUP.min(self.rows - first) * ROW)
    }
}

/// Some rows of an input, the first of which begins a part of sixteen, and some groups of a matrix.
pub(super) struct Part<'a> {
    pub(super) input: Rounded<'a>,
    pub(super) rows: Range<usize>,
    /// The groups' numbers.
    pub(super) weights: &'a [u8],
    /// Where results go: the row-major output, what lies between its rows, and which columns are these groups'.
    pub(super) values: Shares<f32>,
    pub(super) stride: usize,
    pub(super) outputs: Range<usize>,
}

impl Part<'_> {
    /// Ranges of blocks that are taken one after the other; sums go on from one to the next.
    pub(super) fn depths(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let blocks = self.input.blocks();
        // Weights that are read once go by in the order of memory.
        let depth = if self.rows.len() > GROUP {
            DEPTH
        } else {
            blocks.max(1)
        };
        (0..blocks)
            .step_by(depth)
            .map(move |first| first..(first + depth).min(blocks))
    }

    /// Groups, so many together, which have the same number of outputs; where some are missing, one stands there again: it is
    /// computed twice and written twice to the same place.
    pub(super) fn together<const N: usize>(&self) -> impl Iterator<Item = [usize; N]> + use<N> {
        let full = self.outputs.len() / GROUP;
        let whole = (0..full)
            .step_by(N)
            .map(move |first| std::array::from_fn(|at| (first + at).min(full - 1)));
        whole.chain((full..self.outputs.len().div_ceil(GROUP)).map(|group| [group; N]))
    }

    /// A group's weights from a block on.
    pub(super) fn weights(&self, group: usize, block: usize) -> *const u8 {
        self.weights[(group * self.input.blocks() + block) * TILE..].as_ptr()
    }

    /// Outputs of a group.
    pub(super) fn lanes(&self, group: usize) -> usize {
        (self.outputs.len() - group * GROUP).min(GROUP)
    }

    /// Where a row's outputs of a group go.
    ///
    /// # Safety
    /// Both lie in the part.
    pub(super) unsafe fn place(&self, row: usize, group: usize) -> *mut f32 {
        let at = row * self.stride + self.outputs.start + group * GROUP;
        // SAFETY: who made the part checked that the output holds this row, and these columns belong to this part alone.
        unsafe { self.values.part(at, self.lanes(group)) }.as_mut_ptr()
    }
}

/// Multiplies the rows with the groups.
///
/// # Panics
/// When the processor does not multiply bfloat16.
pub(super) fn multiply(by: Bf16, part: &Part<'_>) {
    match by {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the units are there. Rows begin with a part, and weights and outputs have the part's size.
        Bf16::Tiles => unsafe { super::amx::bf16::multiply(part) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Bf16::Vectors => unsafe { super::avx512::bf16::multiply(part) },
        by => panic!("inputs were rounded, but products of bfloat16 are {by:?}"),
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use crate::compute::activation::{Activation, Form};
    use crate::compute::matmul::{self, BAND, Product};
    use crate::compute::matrix::{Float, Matrix};
    use crate::compute::pool::Pool;
    use crate::compute::{Instructions, wave};

    /// The instruction sets that multiply bfloat16.
    fn sets() -> Vec<Instructions> {
        let mut sets = Instructions::available();
        sets.retain(|set| set.multiply_bf16());
        if sets.is_empty() {
            println!("neither AVX512-BF16 nor AMX: products of bfloat16 are not tested");
        }
        sets
    }

    /// The products of as many rows as there are with each matrix.
    fn run(
        set: Instructions,
        matrices: &[&Matrix],
        input: &[f32],
        threads: usize,
    ) -> Vec<Vec<f32>> {
        let columns = matrices[0].columns();
        let rows = input.len() / columns;
        let mut pool = Pool::new(threads);
        let mut activation = Activation::new(rows, columns);
        let form = Form::of(matrices, true);
        assert_eq!(form, Form::Rounded);
        activation.fill(&mut pool, set, rows, form, &|row, out| {
            out.copy_from_slice(&input[row * columns..][..columns]);
        });
        let room = |matrix: &&Matrix| vec![9.0; rows * matrix.rows()];
        let mut outs: Vec<Vec<f32>> = matrices.iter().map(room).collect();
        let products = matrices.iter().zip(&mut outs);
        let mut products: Vec<Product<'_>> = products
            .map(|(matrix, out)| Product { matrix, out })
            .collect();
        matmul::multiply(&mut pool, set, &activation, rows, &mut products);
        outs
    }

    #[test]
    fn products_are_the_definition_s_and_have_the_same_bits_in_every_batch() {
        for set in sets() {
            // Parts of blocks, of groups and of tiles; more blocks than are taken together; more rows than a band has.
            for (outputs, columns, most) in [(43, 102, 37), (96, 2_112, 37), (37, 33, BAND + 17)] {
                let values = wave(outputs * columns, 0.7);
                let weights = Matrix::from_floats(outputs, columns, &values, Float::Bf16);
                let input = wave(most * columns, 1.3);
                let all = run(set, &[&weights], &input, 1).remove(0);
                let mut row = vec![0.0; columns];
                for output in 0..outputs {
                    weights.read_row(output, &mut row);
                    for (index, input) in input.chunks(columns).enumerate() {
                        let (mut exact, mut magnitude) = (0.0, 0.0);
                        for (w, x) in row.iter().zip(input) {
                            let product = f64::from(*w) * bf16::from_f32(*x).to_f64();
                            exact += product;
                            magnitude += product.abs();
                        }
                        let ours = f64::from(all[index * outputs + output]);
                        assert!(
                            (ours - exact).abs() < 1e-6 * magnitude,
                            "{ours} for {exact} with {}",
                            set.name()
                        );
                    }
                }
                for rows in [1, 2, 7, 8, 13, 16, 21, 37, most] {
                    for threads in [1, 2] {
                        let input = &input[..rows * columns];
                        let part = run(set, &[&weights], input, threads).remove(0);
                        let same = part
                            .iter()
                            .zip(&all)
                            .all(|(a, b)| a.to_bits() == b.to_bits());
                        let name = set.name();
                        assert!(same, "{rows} rows of {columns} give other bits with {name}");
                    }
                }
            }
        }
    }

    #[test]
    fn weights_of_other_floats_get_inputs_that_are_not_rounded() {
        for set in sets() {
            let (rows, columns) = (BAND + 5, 64);
            let values = wave(40 * columns, 0.7);
            let singles = Matrix::from_floats(40, columns, &values, Float::F32);
            let rounded = Matrix::from_floats(40, columns, &values, Float::Bf16);
            let input = wave(rows * columns, 1.3);
            let together = run(set, &[&singles, &rounded], &input, 2);
            assert!(together[1] == run(set, &[&rounded], &input, 1)[0]);
            for (row, out) in together[0].chunks(40).enumerate() {
                for (weights, ours) in values.chunks(columns).zip(out) {
                    let products = weights.iter().zip(&input[row * columns..]);
                    let exact: f64 = products.map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
                    assert!(
                        (f64::from(*ours) - exact).abs() < 1e-4,
                        "{ours} for {exact} with {}",
                        set.name()
                    );
                }
            }
        }
    }

    #[test]
    fn numbers_that_are_too_small_count_as_nothing() {
        let tiny = f32::from_bits(0x0040_0000);
        let weights = Matrix::from_floats(1, 2, &[tiny, 2.0], Float::Bf16);
        for set in sets() {
            let found = run(set, &[&weights], &[1e30, 3.0, tiny, tiny], 1);
            assert_eq!(found[0], [6.0, 0.0], "with {}", set.name());
        }
    }
}
