//! Products of bfloat16: an instruction multiplies up to sixteen input rows with sixteen outputs, over a block of columns.
//!
//! Neither the rows beside one nor the outputs that are computed with its own change the order in which its products are added,
//! so one row goes the same way as many.

use std::arch::asm;
use std::ops::Range;

use super::{Shape, release, shape};
use crate::compute::matmul::Part;
use crate::compute::matrix::{BLOCK, GROUP};

/// Bytes of a tile's row, a block of columns, and of a whole tile.
const ROW: usize = 2 * BLOCK;
const TILE: usize = GROUP * ROW;

/// Pairs of columns in a block: rows of a tile of weights.
const PAIRS: usize = BLOCK / 2;

/// Blocks of columns that are taken together where there are many rows: those of all rows of a part stay in a core's own cache, and
/// sums are put aside seldom.
const DEPTH: usize = 64;

/// Four sums that begin where there is nothing in `to`, or go on from their places; then the loop begins.
macro_rules! begin {
    () => {
        concat!(
            "test {to}, {to}\n",
            "jnz 2f\n",
            "tilezero tmm0\n",
            "tilezero tmm1\n",
            "tilezero tmm2\n",
            "tilezero tmm3\n",
            "jmp 3f\n",
            "2:\n",
            "mov {to}, [{places}]\n",
            "tileloadd tmm0, [{to} + {stride}*1]\n",
            "mov {to}, [{places} + 8]\n",
            "tileloadd tmm1, [{to} + {stride}*1]\n",
            "mov {to}, [{places} + 16]\n",
            "tileloadd tmm2, [{to} + {stride}*1]\n",
            "mov {to}, [{places} + 24]\n",
            "tileloadd tmm3, [{to} + {stride}*1]\n",
            "3:",
        )
    };
}

/// The loop's end; the sums go to their places.
macro_rules! end {
    () => {
        concat!(
            "dec {blocks}\n",
            "jnz 3b\n",
            "mov {to}, [{places}]\n",
            "tilestored [{to} + {stride}*1], tmm0\n",
            "mov {to}, [{places} + 8]\n",
            "tilestored [{to} + {stride}*1], tmm1\n",
            "mov {to}, [{places} + 16]\n",
            "tilestored [{to} + {stride}*1], tmm2\n",
            "mov {to}, [{places} + 24]\n",
            "tilestored [{to} + {stride}*1], tmm3",
        )
    };
}

/// Multiplies some rows with some groups.
///
/// # Safety
/// The units are usable. The part's rows begin with a part of the input's and its weights and outputs are there.
pub(in crate::compute) unsafe fn multiply(part: &Part<'_>) {
    let (rows, blocks) = (part.rows.clone(), part.input.blocks());
    // Weights that are read once go by in the order of memory.
    let depth = if rows.len() > GROUP { DEPTH } else { blocks };
    let rest = rows.len() % (2 * GROUP);
    let mut unit = Unit { part, shaped: None };
    for first in (0..blocks).step_by(depth.max(1)) {
        let depth = first..(first + depth).min(blocks);
        for groups in together::<2>(part) {
            for row in rows.clone().step_by(2 * GROUP) {
                if row + GROUP < rows.end {
                    // SAFETY: by this function's contract; the rows and groups lie in the part.
                    unsafe { unit.square(row, groups, depth.clone()) };
                }
            }
        }
        if (1..=GROUP).contains(&rest) {
            for groups in together::<4>(part) {
                // SAFETY: as above.
                unsafe { unit.line(rows.end - rest, groups, depth.clone()) };
            }
        }
    }
    // SAFETY: by this function's contract.
    unsafe { release() };
}

/// Groups, so many together, which have the same number of outputs; where some are missing, one stands there again: it is
/// computed twice and written twice to the same place.
fn together<const N: usize>(part: &Part<'_>) -> impl Iterator<Item = [usize; N]> + use<N> {
    let full = part.outputs.len() / GROUP;
    let whole = (0..full)
        .step_by(N)
        .map(move |first| std::array::from_fn(|at| (first + at).min(full - 1)));
    whole.chain((full..part.outputs.len().div_ceil(GROUP)).map(|group| [group; N]))
}

struct Unit<'a> {
    part: &'a Part<'a>,
    /// What the tiles are shaped for.
    shaped: Option<[Shape; 8]>,
}

impl Unit<'_> {
    /// # Safety
    /// As [`shape`].
    unsafe fn shape(&mut self, tiles: [Shape; 8]) {
        if self.shaped != Some(tiles) {
            // SAFETY: by this function's contract.
            unsafe { shape(tiles) };
            self.shaped = Some(tiles);
        }
    }

    /// A tile of the weights.
    fn weights(&self, group: usize, block: usize) -> *const u8 {
        self.part.weights[(group * self.part.input.blocks() + block) * TILE..].as_ptr()
    }

    /// Outputs of a group.
    fn lanes(&self, group: usize) -> usize {
        (self.part.outputs.len() - group * GROUP).min(GROUP)
    }

    /// Where a row's outputs of a group go.
    ///
    /// # Safety
    /// Both lie in the part.
    unsafe fn place(&self, row: usize, group: usize) -> *mut f32 {
        let at = row * self.part.stride + self.part.outputs.start + group * GROUP;
        // SAFETY: `multiply` checked that the output holds this row, and these columns belong to this part alone.
        unsafe { self.part.values.part(at, self.lanes(group)) }.as_mut_ptr()
    }

    /// Two tiles of rows, the first of them full, with two groups.
    ///
    /// # Safety
    /// The units are usable; rows, groups and blocks lie in the part.
    unsafe fn square(&mut self, row: usize, groups: [usize; 2], blocks: Range<usize>) {
        let (upper, lower) = (
            (row, GROUP),
            (row + GROUP, self.part.rows.end - row - GROUP),
        );
        let lower = (lower.0, lower.1.min(GROUP));
        let lanes = self.lanes(groups[0]);
        let (above, _) = self.part.input.tile(upper.0, blocks.start);
        let (below, step) = self.part.input.tile(lower.0, blocks.start);
        let [left, right] = groups.map(|group| self.weights(group, blocks.start));
        let sums = [(upper.1, lanes), (lower.1, lanes)];
        let inputs = [(upper.1, PAIRS), (lower.1, PAIRS)];
        let weights = (PAIRS, lanes);
        // SAFETY: by this function's contract; sums, inputs and weights have the shapes that are set.
        unsafe {
            let places = [upper.0, lower.0].map(|row| groups.map(|group| self.place(row, group)));
            self.shape([
                sums[0], sums[0], sums[1], sums[1], inputs[0], inputs[1], weights, weights,
            ]);
            asm!(
                begin!(),
                "tileloadd tmm4, [{above} + {row}*1]",
                "tileloadd tmm6, [{left} + {row}*1]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{right} + {row}*1]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{below} + {row}*1]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {above}, {tile}",
                "add {below}, {step}",
                "add {left}, {tile}",
                "add {right}, {tile}",
                end!(),
                to = inout(reg) blocks.start => _,
                places = in(reg) places.as_ptr(),
                stride = in(reg) self.part.stride * size_of::<f32>(),
                row = in(reg) ROW,
                tile = const TILE,
                step = in(reg) step,
                above = inout(reg) above.as_ptr() => _,
                below = inout(reg) below.as_ptr() => _,
                left = inout(reg) left => _,
                right = inout(reg) right => _,
                blocks = inout(reg) blocks.len() => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }

    /// One tile of rows with four groups, so that as many sums are under way and as many places in memory are read.
    ///
    /// # Safety
    /// As [`Unit::square`].
    unsafe fn line(&mut self, row: usize, groups: [usize; 4], blocks: Range<usize>) {
        let rows = self.part.rows.end - row;
        let lanes = self.lanes(groups[0]);
        let (input, step) = self.part.input.tile(row, blocks.start);
        let [first, second, third, fourth] = groups.map(|group| self.weights(group, blocks.start));
        let (sum, weights) = ((rows, lanes), (PAIRS, lanes));
        // SAFETY: as above.
        unsafe {
            let places = groups.map(|group| self.place(row, group));
            let inputs = (rows, PAIRS);
            self.shape([sum, sum, sum, sum, inputs, weights, weights, weights]);
            asm!(
                begin!(),
                "tileloadd tmm4, [{input} + {row}*1]",
                "tileloadd tmm5, [{first} + {row}*1]",
                "tdpbf16ps tmm0, tmm4, tmm5",
                "tileloadd tmm6, [{second} + {row}*1]",
                "tdpbf16ps tmm1, tmm4, tmm6",
                "tileloadd tmm7, [{third} + {row}*1]",
                "tdpbf16ps tmm2, tmm4, tmm7",
                "tileloadd tmm5, [{fourth} + {row}*1]",
                "tdpbf16ps tmm3, tmm4, tmm5",
                "add {input}, {step}",
                "add {first}, {tile}",
                "add {second}, {tile}",
                "add {third}, {tile}",
                "add {fourth}, {tile}",
                end!(),
                to = inout(reg) blocks.start => _,
                places = in(reg) places.as_ptr(),
                stride = in(reg) self.part.stride * size_of::<f32>(),
                row = in(reg) ROW,
                tile = const TILE,
                step = in(reg) step,
                input = inout(reg) input.as_ptr() => _,
                first = inout(reg) first => _,
                second = inout(reg) second => _,
                third = inout(reg) third => _,
                fourth = inout(reg) fourth => _,
                blocks = inout(reg) blocks.len() => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use crate::compute::activation::{Activation, Form};
    use crate::compute::matmul::{self, BAND, Product};
    use crate::compute::matrix::{Float, Matrix};
    use crate::compute::pool::Pool;
    use crate::compute::{Instructions, has_matrix_units};

    fn wave(count: usize, step: f32) -> Vec<f32> {
        (0..count).map(|at| (at as f32 * step).sin()).collect()
    }

    /// The products of as many rows as there are with each matrix.
    fn run(matrices: &[&Matrix], input: &[f32], threads: usize) -> Vec<Vec<f32>> {
        let columns = matrices[0].columns();
        let rows = input.len() / columns;
        let set = Instructions::detect();
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
        if !has_matrix_units() {
            println!("no AMX: products of bfloat16 are not tested");
            return;
        }
        // Parts of blocks, of groups and of tiles; more blocks than are taken together; more rows than a band has.
        for (outputs, columns, most) in [(43, 102, 37), (96, 2_112, 37), (37, 33, BAND + 17)] {
            let values = wave(outputs * columns, 0.7);
            let weights = Matrix::from_floats(outputs, columns, &values, Float::Bf16);
            let input = wave(most * columns, 1.3);
            let all = run(&[&weights], &input, 1).remove(0);
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
                        "{ours} for {exact}"
                    );
                }
            }
            for rows in [1, 2, 7, 8, 13, 16, 21, 37, most] {
                for threads in [1, 2] {
                    let part = run(&[&weights], &input[..rows * columns], threads).remove(0);
                    let same = part
                        .iter()
                        .zip(&all)
                        .all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(same, "{rows} rows of {columns} give other bits");
                }
            }
        }
    }

    #[test]
    fn weights_of_other_floats_get_inputs_that_are_not_rounded() {
        if !has_matrix_units() {
            println!("no AMX: products of bfloat16 beside others are not tested");
            return;
        }
        let (rows, columns) = (BAND + 5, 64);
        let values = wave(40 * columns, 0.7);
        let singles = Matrix::from_floats(40, columns, &values, Float::F32);
        let rounded = Matrix::from_floats(40, columns, &values, Float::Bf16);
        let input = wave(rows * columns, 1.3);
        let together = run(&[&singles, &rounded], &input, 2);
        assert!(together[1] == run(&[&rounded], &input, 1)[0]);
        for (row, out) in together[0].chunks(40).enumerate() {
            for (weights, ours) in values.chunks(columns).zip(out) {
                let products = weights.iter().zip(&input[row * columns..]);
                let exact: f64 = products.map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
                assert!(
                    (f64::from(*ours) - exact).abs() < 1e-4,
                    "{ours} for {exact}"
                );
            }
        }
    }

    #[test]
    fn numbers_that_are_too_small_count_as_nothing() {
        if !has_matrix_units() {
            println!("no AMX: subnormal numbers are not tested");
            return;
        }
        let tiny = f32::from_bits(0x0040_0000);
        let weights = Matrix::from_floats(1, 2, &[tiny, 2.0], Float::Bf16);
        assert_eq!(run(&[&weights], &[1e30, 3.0, tiny, tiny], 1)[0], [6.0, 0.0]);
    }
}
