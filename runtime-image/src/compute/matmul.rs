//! Products of one input with one or more matrices, spread over the pool by groups of sixteen outputs, two at a time.

use super::activation::{Activation, BlockInput};
use super::matrix::{BLOCK, Float, GROUP, Matrix, Storage, in_pairs};
use super::pool::{Pool, Shares};
use super::rounded::{self, Part};
use super::{Instructions, scalar};

/// Rows of bfloat16 that one piece of work takes at most: so many inputs stay in a core's own cache while weights go by. Whole
/// pairs of tiles.
pub(super) const BAND: usize = 256;

/// Groups that one piece takes at most: with bands of rows so that their results stay there too, else so that helping is quick.
const MOST: (usize, usize) = (16, 64);

/// Where one group's sixteen outputs go, for each row of the input.
pub(super) struct GroupOutput {
    values: Shares<f32>,
    stride: usize,
    first: usize,
    lanes: usize,
}

impl GroupOutput {
    pub(super) fn write(&self, row: usize, sums: &[f32; GROUP]) {
        self.of(row).copy_from_slice(&sums[..self.lanes]);
    }

    /// Where a row's first output is, and how many numbers on that of the next row is.
    pub(super) fn from(&self, row: usize) -> (*mut f32, usize) {
        (self.values.at(row * self.stride + self.first), self.stride)
    }

    /// A row's outputs: sixteen of them, or fewer at the matrix' end.
    #[expect(clippy::mut_from_ref, reason = "as with the parts that it hands out")]
    pub(super) fn of(&self, row: usize) -> &mut [f32] {
        // SAFETY: `multiply` checked that the output holds this row, and this group's columns belong to this piece alone.
        unsafe { self.values.part(row * self.stride + self.first, self.lanes) }
    }
}

/// One matrix and the row-major output (`matrix.rows()` wide) of its product.
pub struct Product<'a> {
    /// The weights.
    pub matrix: &'a Matrix,
    /// At least `rows * matrix.rows()` numbers.
    pub out: &'a mut [f32],
}

/// Multiplies the first `rows` rows of `input` with each matrix. The input must have been quantised if a matrix is; where it was
/// rounded to bfloat16, matrices of that are multiplied with what it was rounded to.
///
/// # Panics
/// When shapes do not fit.
pub fn multiply(
    pool: &mut Pool,
    instructions: Instructions,
    input: &Activation,
    rows: usize,
    products: &mut [Product<'_>],
) {
    let columns = input.columns();
    let mut targets = Vec::with_capacity(products.len());
    let mut groups = 0;
    for product in products.iter_mut() {
        let matrix = product.matrix;
        assert_eq!(
            matrix.columns(),
            columns,
            "a matrix takes inputs of its own width"
        );
        assert!(
            product.out.len() >= rows * matrix.rows(),
            "the output has room for every row"
        );
        assert!(
            input.suits(matrix, rows),
            "the rows of a quantised matrix' input were rounded to blocks, and were all that were"
        );
        targets.push((matrix, Shares::new(product.out), groups));
        groups += matrix.groups();
    }
    let block_input = input.blocks(rows);
    let floats = &input.values[..rows * columns];
    let rounded_input = input.rounded();
    let (band_rows, most) = match rounded_input {
        Some(input) => {
            assert!(rows <= input.rows(), "every row was rounded");
            let even = rows.div_ceil(rows.div_ceil(BAND).max(1));
            let most = if rows > GROUP { MOST.0 } else { MOST.1 };
            (even.next_multiple_of(2 * GROUP), most)
        }
        None => (rows, MOST.1),
    };
    let bands = rows.div_ceil(band_rows.max(1));
    // Several pieces a thread, so that one that is held up can be helped; not so many that claiming shows. Pieces of many rows
    // take so long that a thread without one is worth more.
    let pieces = pool.threads() * if rows > GROUP { 16 } else { 6 };
    let per_piece = (groups * bands / pieces).clamp(1, most);
    // Kernels take two or four groups at a time where they can.
    let per_piece = per_piece.next_multiple_of(if rounded_input.is_some() { 4 } else { 2 });
    let per_band = groups.div_ceil(per_piece);
    pool.run(bands * per_band, &|piece| {
        let (band, piece) = (piece / per_band, piece % per_band);
        let end = ((piece + 1) * per_piece).min(groups);
        let mut index = piece * per_piece;
        while index < end {
            let Some((matrix, values, before)) =
                targets.iter().rev().find(|(_, _, before)| *before <= index)
            else {
                return;
            };
            let group = index - before;
            let last = matrix.groups().min(end - before);
            if let (Some(input), Storage::Bf16(weights)) = (rounded_input, matrix.storage()) {
                let first = band * band_rows;
                let size = Float::Bf16.group_bytes(columns);
                let part = Part {
                    input,
                    rows: first..rows.min(first + band_rows),
                    weights: &weights.bytes()[group * size..last * size],
                    values: *values,
                    stride: matrix.rows(),
                    outputs: group * GROUP..matrix.rows().min(last * GROUP),
                };
                rounded::multiply(instructions.bf16(), &part);
                index = before + last;
                continue;
            }
            if band > 0 {
                // The first band has all rows of what is not rounded.
                index = before + last;
                continue;
            }
            let out = |group: usize| GroupOutput {
                values: *values,
                stride: matrix.rows(),
                first: group * GROUP,
                lanes: (matrix.rows() - group * GROUP).min(GROUP),
            };
            if index + 1 < end && group + 1 < matrix.groups() {
                let outs = [out(group), out(group + 1)];
                multiply_groups(instructions, matrix, group, floats, &block_input, &outs);
                index += 2;
            } else {
                let outs = [out(group)];
                multiply_groups(instructions, matrix, group, floats, &block_input, &outs);
                index += 1;
            }
        }
    });
}

/// `G` neighbouring groups, the first of which is `group`.
fn multiply_groups<const G: usize>(
    instructions: Instructions,
    matrix: &Matrix,
    group: usize,
    floats: &[f32],
    blocks: &BlockInput<'_>,
    outs: &[GroupOutput; G],
) {
    let columns = matrix.columns();
    let per_row = columns / BLOCK;
    let of_groups = |bytes, size: usize| of_groups::<G>(bytes, group, size);
    match matrix.storage() {
        Storage::F32(values) => {
            let weights = of_groups(values.bytes(), Float::F32.group_bytes(columns));
            multiply_floats::<0, G>(instructions, weights, floats, (columns, blocks.rows), outs);
        }
        Storage::F16(values) => {
            let weights = of_groups(values.bytes(), Float::F16.group_bytes(columns));
            multiply_floats::<1, G>(instructions, weights, floats, (columns, blocks.rows), outs);
        }
        Storage::Bf16(values) => {
            let weights = of_groups(values.bytes(), Float::Bf16.group_bytes(columns));
            multiply_floats::<2, G>(instructions, weights, floats, (columns, blocks.rows), outs);
        }
        Storage::Q8 { quants, scales } => {
            let quants = of_groups(quants.bytes(), per_row * 512);
            let scales = of_groups(scales.bytes(), per_row * 32);
            multiply_bytes::<false, G>(instructions, quants, scales, blocks, outs);
        }
        Storage::Iq4 { quants, scales } => {
            let quants = of_groups(quants.bytes(), per_row * 256);
            let scales = of_groups(scales.bytes(), per_row * 32);
            multiply_bytes::<true, G>(instructions, quants, scales, blocks, outs);
        }
        Storage::Q4 {
            quants,
            scales,
            mins,
        } => {
            let quants = of_groups(quants.bytes(), per_row * 256);
            let scales = of_groups(scales.bytes(), per_row * 32);
            let mins = of_groups(mins.bytes(), per_row * 32);
            multiply_nibbles(instructions, quants, (scales, mins), blocks, outs);
        }
    }
}

/// The bytes of `G` groups of `size` bytes each.
fn of_groups<const G: usize>(bytes: &[u8], group: usize, size: usize) -> &[u8] {
    &bytes[group * size..][..G * size]
}

/// Cuts the bytes of some groups into one piece for each output.
fn one_by_one<'a, const G: usize>(
    bytes: &'a [u8],
    outs: &'a [GroupOutput; G],
) -> impl Iterator<Item = (&'a [u8], &'a GroupOutput)> {
    bytes.chunks_exact(bytes.len() / G).zip(outs)
}

/// Groups of a float matrix; `KIND` 0 is f32, 1 f16, 2 bf16.
fn multiply_floats<const KIND: u8, const G: usize>(
    instructions: Instructions,
    weights: &[u8],
    floats: &[f32],
    (columns, rows): (usize, usize),
    outs: &[GroupOutput; G],
) {
    match instructions {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the variant stands for detected instructions; slices have the groups' size.
        Instructions::Avx512(_) => unsafe {
            super::avx512::floats::<KIND, G>(weights, floats, columns, rows, outs);
        },
        #[cfg(target_arch = "x86_64")]
        Instructions::Avx2 => {
            for (weights, out) in one_by_one(weights, outs) {
                // SAFETY: as above.
                unsafe { super::avx2::floats::<KIND>(weights, floats, columns, rows, out) };
            }
        }
        Instructions::Scalar => {
            for (weights, out) in one_by_one(weights, outs) {
                let load = |at| match KIND {
                    0 => scalar::read_f32(weights, at),
                    1 => scalar::read_f16(weights, at),
                    _ => scalar::read_bf16(weights, in_pairs(at / GROUP, at % GROUP)),
                };
                scalar::floats(&load, floats, columns, rows, out);
            }
        }
    }
}

/// Groups of a byte matrix; with `NAMED`, of a matrix whose nibbles name the bytes.
fn multiply_bytes<const NAMED: bool, const G: usize>(
    instructions: Instructions,
    quants: &[u8],
    scales: &[u8],
    blocks: &BlockInput<'_>,
    outs: &[GroupOutput; G],
) {
    let each = one_by_one(quants, outs).zip(one_by_one(scales, outs));
    match instructions {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the variant stands for detected instructions; slices have the groups' size.
        Instructions::Avx512(_) => unsafe {
            use super::avx512::blocks::{BYTES, Groups, NAMES, multiply};
            let groups = Groups {
                quants,
                scales,
                mins: &[],
            };
            if NAMED {
                multiply::<NAMES, G>(&groups, blocks, outs);
            } else {
                multiply::<BYTES, G>(&groups, blocks, outs);
            }
        },
        #[cfg(target_arch = "x86_64")]
        Instructions::Avx2 => {
            for ((quants, out), (scales, _)) in each {
                // SAFETY: as above.
                unsafe { super::avx2::q8::<NAMED>(quants, scales, blocks, out) };
            }
        }
        Instructions::Scalar => {
            for ((quants, out), (scales, _)) in each {
                scalar::q8::<NAMED>(quants, scales, blocks, out);
            }
        }
    }
}

/// Groups of a nibble matrix.
fn multiply_nibbles<const G: usize>(
    instructions: Instructions,
    quants: &[u8],
    (scales, mins): (&[u8], &[u8]),
    blocks: &BlockInput<'_>,
    outs: &[GroupOutput; G],
) {
    let each = one_by_one(scales, outs).zip(one_by_one(mins, outs));
    let each = one_by_one(quants, outs).zip(each);
    match instructions {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the variant stands for detected instructions; slices have the groups' size.
        Instructions::Avx512(_) => unsafe {
            use super::avx512::blocks::{Groups, NIBBLES, multiply};
            let groups = Groups {
                quants,
                scales,
                mins,
            };
            multiply::<NIBBLES, G>(&groups, blocks, outs);
        },
        #[cfg(target_arch = "x86_64")]
        Instructions::Avx2 => {
            for ((quants, out), ((scales, _), (mins, _))) in each {
                // SAFETY: as above.
                unsafe { super::avx2::q4(quants, scales, mins, blocks, out) };
            }
        }
        Instructions::Scalar => {
            for ((quants, out), ((scales, _), (mins, _))) in each {
                scalar::q4(quants, scales, mins, blocks, out);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::activation::Form;
    use super::super::matrix::Blocks;
    use super::*;

    /// Numbers that look random and are the same everywhere.
    fn noise(count: usize, mut seed: u64) -> Vec<f32> {
        (0..count)
            .map(|_| {
                seed = seed
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                ((seed >> 40) as f32 / (1 << 23) as f32) - 1.0
            })
            .collect()
    }

    fn nibble_blocks(rows: usize, columns: usize, kind: Blocks) -> Vec<u8> {
        let bytes = noise(rows * columns / 32 * kind.bytes(), 77);
        let mut out = Vec::new();
        for block in bytes.chunks(kind.bytes()) {
            let head = if kind == Blocks::Q4_1 { 2 } else { 1 };
            for value in &block[..head] {
                out.extend_from_slice(&half::f16::from_f32(value * 0.1).to_le_bytes());
            }
            out.extend(
                block[head * 2..]
                    .iter()
                    .map(|value| (value * 127.0) as i8 as u8),
            );
        }
        out
    }

    fn run(
        matrix: &Matrix,
        input: &[f32],
        rows: usize,
        set: Instructions,
        threads: usize,
    ) -> Vec<f32> {
        let columns = matrix.columns();
        let mut pool = Pool::new(threads);
        let mut activation = Activation::new(rows, columns);
        let form = Form::of(&[matrix], false);
        activation.fill(&mut pool, set, rows, form, &|row, out| {
            out.copy_from_slice(&input[row * columns..][..columns]);
        });
        let mut out = vec![0.0; rows * matrix.rows()];
        multiply(
            &mut pool,
            set,
            &activation,
            rows,
            &mut [Product {
                matrix,
                out: &mut out,
            }],
        );
        out
    }

    fn check(name: &str, matrix: &Matrix, tolerance: f32) {
        let columns = matrix.columns();
        // Rows alike everywhere, with one large number, and with one in each block: all, some and none of their blocks are
        // short.
        let mut input = noise(37 * columns, 5);
        for (row, input) in input.chunks_mut(columns).enumerate() {
            let middle = columns.min(BLOCK)..columns.min(2 * BLOCK);
            match row % 3 {
                0 => {}
                1 => input[middle]
                    .iter_mut()
                    .take(1)
                    .for_each(|value| *value = 8.0),
                _ => input.chunks_mut(BLOCK).for_each(|block| {
                    block.iter_mut().for_each(|value| *value *= 0.1);
                    block[0] = 1.0;
                }),
            }
        }
        let plain = run(matrix, &input, 37, Instructions::Scalar, 1);
        // Against the definition, in double precision; the rounding of the input costs up to half a step of 1/16256 each, and
        // in short blocks up to 2/127 of the row's root mean square.
        let mut row = vec![0.0; columns];
        for output in 0..matrix.rows() {
            matrix.read_row(output, &mut row);
            for index in 0..37 {
                let input = &input[index * columns..][..columns];
                let pairs = row
                    .iter()
                    .zip(input)
                    .map(|(w, x)| (f64::from(*w), f64::from(*x)));
                let exact: f64 = pairs.clone().map(|(w, x)| w * x).sum();
                let mut allowed = f64::from(tolerance);
                if matrix.is_quantized() && index % 3 < 2 {
                    let square = pairs.clone().map(|(_, x)| x * x).sum::<f64>() / columns as f64;
                    allowed +=
                        pairs.map(|(w, _)| w.abs()).sum::<f64>() * square.sqrt() * 2.0 / 127.0;
                }
                let ours = plain[index * matrix.rows() + output];
                assert!(
                    (f64::from(ours) - exact).abs() < allowed,
                    "{name}: {ours} for {exact} in row {index}"
                );
            }
        }
        for set in Instructions::available() {
            for rows in [1, 2, 7, 8, 13, 16, 21, 37] {
                let out = run(matrix, &input[..rows * columns], rows, set, 2);
                let same = out
                    .iter()
                    .zip(&plain)
                    .all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(
                    same,
                    "{name} with {} gives other bits for {rows} rows",
                    set.name()
                );
            }
        }
    }

    #[test]
    fn every_format_gives_the_same_bits_on_every_instruction_set_and_in_every_batch() {
        let values = noise(37 * 96, 1);
        check(
            "f32",
            &Matrix::from_floats(37, 96, &values, Float::F32),
            1e-4,
        );
        check(
            "f16",
            &Matrix::from_floats(37, 96, &values, Float::F16),
            1e-4,
        );
        check(
            "bf16",
            &Matrix::from_floats(37, 96, &values, Float::Bf16),
            1e-4,
        );
        check("q8", &Matrix::quantize(37, 96, &values), 2e-3);
        check(
            "q4_0",
            &Matrix::from_blocks(37, 96, &nibble_blocks(37, 96, Blocks::Q4_0), Blocks::Q4_0),
            0.4,
        );
        check(
            "q4_1",
            &Matrix::from_blocks(37, 96, &nibble_blocks(37, 96, Blocks::Q4_1), Blocks::Q4_1),
            0.4,
        );
        let codes = nibble_blocks(37, 96, Blocks::Iq4Nl);
        check(
            "iq4_nl",
            &Matrix::from_blocks(37, 96, &codes, Blocks::Iq4Nl),
            4.0,
        );
        check(
            "q8_0",
            &Matrix::from_blocks(37, 96, &nibble_blocks(37, 96, Blocks::Q8_0), Blocks::Q8_0),
            4.0,
        );
    }

    #[test]
    fn columns_of_any_number_give_the_same_bits() {
        for columns in [1, 31, 33, 70] {
            let values = noise(20 * columns, 1);
            for float in [Float::F16, Float::Bf16] {
                let matrix = Matrix::from_floats(20, columns, &values, float);
                check(&format!("{float:?} of {columns}"), &matrix, 1e-4);
            }
        }
    }
}
