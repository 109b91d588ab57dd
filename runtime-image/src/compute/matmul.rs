//! Products of one input with one or more matrices, spread over the pool by groups of sixteen outputs.

use super::activation::Activation;
use super::matrix::{BLOCK, GROUP, Matrix, Storage};
use super::pool::{Pool, Shares};
use super::{Instructions, scalar};

/// The quantised rows of an input.
pub(super) struct BlockInput<'a> {
    pub(super) rows: usize,
    pub(super) blocks: usize,
    pub(super) quants: &'a [i8],
    pub(super) scales: &'a [f32],
    pub(super) offsets: &'a [i32],
    pub(super) sums: &'a [f32],
}

impl BlockInput<'_> {
    /// The whole numbers of one block.
    pub(super) fn block(&self, row: usize, block: usize) -> [i32; BLOCK] {
        let (high, low) =
            self.quants[(row * self.blocks + block) * 2 * BLOCK..][..2 * BLOCK].split_at(BLOCK);
        std::array::from_fn(|k| i32::from(high[k]) * 128 + i32::from(low[k]))
    }
}

/// Where one group's sixteen outputs go, for each row of the input.
pub(super) struct GroupOutput {
    values: Shares<f32>,
    stride: usize,
    first: usize,
    lanes: usize,
}

impl GroupOutput {
    pub(super) fn write(&self, row: usize, sums: &[f32; GROUP]) {
        // SAFETY: `multiply` checked that the output holds this row, and this group's columns belong to this piece alone.
        let part = unsafe { self.values.part(row * self.stride + self.first, self.lanes) };
        part.copy_from_slice(&sums[..self.lanes]);
    }
}

/// One matrix and the row-major output (`matrix.rows()` wide) of its product.
pub struct Product<'a> {
    /// The weights.
    pub matrix: &'a Matrix,
    /// At least `rows * matrix.rows()` numbers.
    pub out: &'a mut [f32],
}

/// Multiplies the first `rows` rows of `input` with each matrix. The input must have been quantised if a matrix is.
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
        targets.push((matrix, Shares::new(product.out), groups));
        groups += matrix.groups();
    }
    let block_input = BlockInput {
        rows,
        blocks: columns / BLOCK,
        quants: &input.quants[..rows * (columns / BLOCK) * 2 * BLOCK],
        scales: &input.scales,
        offsets: &input.offsets,
        sums: &input.sums,
    };
    let floats = &input.values[..rows * columns];
    // Several pieces a thread, so that one that is held up can be helped; not so many that claiming shows.
    let per_piece = (groups / (pool.threads() * 6)).clamp(1, 64);
    pool.run(groups.div_ceil(per_piece), &|piece| {
        for index in piece * per_piece..((piece + 1) * per_piece).min(groups) {
            let Some((matrix, values, before)) =
                targets.iter().rev().find(|(_, _, before)| *before <= index)
            else {
                continue;
            };
            let group = index - before;
            let out = GroupOutput {
                values: *values,
                stride: matrix.rows(),
                first: group * GROUP,
                lanes: (matrix.rows() - group * GROUP).min(GROUP),
            };
            multiply_group(instructions, matrix, group, floats, &block_input, &out);
        }
    });
}

fn multiply_group(
    instructions: Instructions,
    matrix: &Matrix,
    group: usize,
    floats: &[f32],
    blocks: &BlockInput<'_>,
    out: &GroupOutput,
) {
    let columns = matrix.columns();
    let per_row = columns / BLOCK;
    let rows = blocks.rows;
    match matrix.storage() {
        Storage::F32(values) => {
            let weights = &values.bytes()[group * columns * GROUP * 4..][..columns * GROUP * 4];
            match instructions {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the variant stands for detected instructions; slices have the group's size.
                Instructions::Avx512Vnni => unsafe {
                    super::avx512::floats::<0>(weights, floats, columns, rows, out);
                },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                Instructions::Avx2 => unsafe {
                    super::avx2::floats::<0>(weights, floats, columns, rows, out);
                },
                Instructions::Scalar => {
                    scalar::floats(
                        &|at| scalar::read_f32(weights, at),
                        floats,
                        columns,
                        rows,
                        out,
                    );
                }
            }
        }
        Storage::F16(values) => {
            let weights = &values.bytes()[group * columns * GROUP * 2..][..columns * GROUP * 2];
            match instructions {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                Instructions::Avx512Vnni => unsafe {
                    super::avx512::floats::<1>(weights, floats, columns, rows, out);
                },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                Instructions::Avx2 => unsafe {
                    super::avx2::floats::<1>(weights, floats, columns, rows, out);
                },
                Instructions::Scalar => {
                    scalar::floats(
                        &|at| scalar::read_f16(weights, at),
                        floats,
                        columns,
                        rows,
                        out,
                    );
                }
            }
        }
        Storage::Bf16(values) => {
            let weights = &values.bytes()[group * columns * GROUP * 2..][..columns * GROUP * 2];
            match instructions {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                Instructions::Avx512Vnni => unsafe {
                    super::avx512::floats::<2>(weights, floats, columns, rows, out);
                },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                Instructions::Avx2 => unsafe {
                    super::avx2::floats::<2>(weights, floats, columns, rows, out);
                },
                Instructions::Scalar => {
                    scalar::floats(
                        &|at| scalar::read_bf16(weights, at),
                        floats,
                        columns,
                        rows,
                        out,
                    );
                }
            }
        }
        Storage::Q8 { quants, scales } => {
            let quants = &quants.bytes()[group * per_row * 512..][..per_row * 512];
            let scales = &scales.bytes()[group * per_row * 32..][..per_row * 32];
            match instructions {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                Instructions::Avx512Vnni => unsafe {
                    super::avx512::q8(quants, scales, blocks, out);
                },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                Instructions::Avx2 => unsafe { super::avx2::q8(quants, scales, blocks, out) },
                Instructions::Scalar => scalar::q8(quants, scales, blocks, out),
            }
        }
        Storage::Q4 {
            quants,
            scales,
            mins,
        } => {
            let quants = &quants.bytes()[group * per_row * 256..][..per_row * 256];
            let scales = &scales.bytes()[group * per_row * 32..][..per_row * 32];
            let mins = &mins.bytes()[group * per_row * 32..][..per_row * 32];
            match instructions {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                Instructions::Avx512Vnni => unsafe {
                    super::avx512::q4(quants, scales, mins, blocks, out);
                },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                Instructions::Avx2 => unsafe { super::avx2::q4(quants, scales, mins, blocks, out) },
                Instructions::Scalar => scalar::q4(quants, scales, mins, blocks, out),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::matrix::{Blocks, Float};
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
        activation.fill(&mut pool, set, rows, matrix.is_quantized(), &|row, out| {
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
        let input = noise(21 * columns, 5);
        let plain = run(matrix, &input, 21, Instructions::Scalar, 1);
        // Against the definition, in double precision; the rounding of the input costs up to half a step of 1/16256 each.
        let mut row = vec![0.0; columns];
        for output in 0..matrix.rows() {
            matrix.read_row(output, &mut row);
            for index in 0..21 {
                let exact: f64 = row
                    .iter()
                    .zip(&input[index * columns..])
                    .map(|(w, x)| f64::from(*w) * f64::from(*x))
                    .sum();
                let ours = plain[index * matrix.rows() + output];
                assert!(
                    (f64::from(ours) - exact).abs() < f64::from(tolerance),
                    "{name}: {ours} for {exact}"
                );
            }
        }
        for set in Instructions::available() {
            for rows in [1, 2, 7, 8, 13, 21] {
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
        check(
            "q8_0",
            &Matrix::from_blocks(37, 96, &nibble_blocks(37, 96, Blocks::Q8_0), Blocks::Q8_0),
            4.0,
        );
    }
}
