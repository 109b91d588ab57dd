//! Products of bfloat16: an instruction multiplies up to sixteen input rows with sixteen outputs, over a block of columns.
//! One row goes the same way as many.

use std::arch::asm;
use std::ops::Range;

use super::{Shape, release, shape};
use crate::compute::matrix::GROUP;
use crate::compute::rounded::{PAIRS, Part, ROW, TILE};

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
    let rows = part.rows.clone();
    let rest = rows.len() % (2 * GROUP);
    let mut unit = Unit { part, shaped: None };
    for depth in part.depths() {
        for groups in part.together::<2>() {
            for row in rows.clone().step_by(2 * GROUP) {
                if row + GROUP < rows.end {
                    // SAFETY: by this function's contract; the rows and groups lie in the part.
                    unsafe { unit.square(row, groups, depth.clone()) };
                }
            }
        }
        if (1..=GROUP).contains(&rest) {
            for groups in part.together::<4>() {
                // SAFETY: as above.
                unsafe { unit.line(rows.end - rest, groups, depth.clone()) };
            }
        }
    }
    // SAFETY: by this function's contract.
    unsafe { release() };
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
        let lanes = self.part.lanes(groups[0]);
        let (above, _) = self.part.input.tile(upper.0, blocks.start);
        let (below, step) = self.part.input.tile(lower.0, blocks.start);
        let [left, right] = groups.map(|group| self.part.weights(group, blocks.start));
        let sums = [(upper.1, lanes), (lower.1, lanes)];
        let inputs = [(upper.1, PAIRS), (lower.1, PAIRS)];
        let weights = (PAIRS, lanes);
        // SAFETY: by this function's contract; sums, inputs and weights have the shapes that are set.
        unsafe {
            let places =
                [upper.0, lower.0].map(|row| groups.map(|group| self.part.place(row, group)));
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
        let lanes = self.part.lanes(groups[0]);
        let (input, step) = self.part.input.tile(row, blocks.start);
        let [first, second, third, fourth] =
            groups.map(|group| self.part.weights(group, blocks.start));
        let (sum, weights) = ((rows, lanes), (PAIRS, lanes));
        // SAFETY: as above.
        unsafe {
            let places = groups.map(|group| self.part.place(row, group));
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
