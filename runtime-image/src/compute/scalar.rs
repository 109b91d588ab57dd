//! The kernels in plain Rust: what the others must equal, and what runs where no other fits.

use half::{bf16, f16};

use super::activation::BlockInput;
use super::matmul::GroupOutput;
use super::matrix::GROUP;
use super::quants::NON_LINEAR;

/// One group of a float matrix: `load` reads the weight at a position.
pub(super) fn floats(
    load: &dyn Fn(usize) -> f32,
    input: &[f32],
    columns: usize,
    rows: usize,
    out: &GroupOutput,
) {
    for row in 0..rows {
        let mut sums = [0_f32; GROUP];
        for (column, x) in input[row * columns..][..columns].iter().enumerate() {
            for (lane, sum) in sums.iter_mut().enumerate() {
                *sum = load(column * GROUP + lane).mul_add(*x, *sum);
            }
        }
        out.write(row, &sums);
    }
}

pub(super) fn read_f32(bytes: &[u8], at: usize) -> f32 {
    let at = at * 4;
    f32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

pub(super) fn read_f16(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at * 2], bytes[at * 2 + 1]]).to_f32()
}

pub(super) fn read_bf16(bytes: &[u8], at: usize) -> f32 {
    bf16::from_le_bytes([bytes[at * 2], bytes[at * 2 + 1]]).to_f32()
}

/// One group of a byte matrix; with `NAMED`, of a matrix whose nibbles name the bytes.
pub(super) fn q8<const NAMED: bool>(
    quants: &[u8],
    scales: &[u8],
    input: &BlockInput,
    out: &GroupOutput,
) {
    let byte = |block: usize, lane: usize, k: usize| {
        if NAMED {
            let byte = quants[block * 256 + k % 16 / 4 * 64 + lane * 4 + k % 4];
            let code = if k < 16 { byte & 15 } else { byte >> 4 };
            i32::from(NON_LINEAR[usize::from(code)]) + 128
        } else {
            i32::from(quants[block * 512 + k / 4 * 64 + lane * 4 + k % 4])
        }
    };
    for row in 0..input.rows {
        let mut sums = [0_f32; GROUP];
        for block in 0..input.blocks {
            let x = input.block(row, block);
            let head = input.heads[input.at(row, block)];
            for (lane, sum) in sums.iter_mut().enumerate() {
                let [high, low] = head.offsets;
                let mut dot = 128 * high + low;
                for (k, x) in x.iter().enumerate() {
                    dot += byte(block, lane, k) * x;
                }
                *sum =
                    (dot as f32).mul_add(read_f16(scales, block * GROUP + lane) * head.scale, *sum);
            }
        }
        out.write(row, &sums);
    }
}

/// One group of a nibble matrix.
pub(super) fn q4(quants: &[u8], scales: &[u8], mins: &[u8], input: &BlockInput, out: &GroupOutput) {
    for row in 0..input.rows {
        let mut sums = [0_f32; GROUP];
        for block in 0..input.blocks {
            let x = input.block(row, block);
            let head = input.heads[input.at(row, block)];
            for (lane, sum) in sums.iter_mut().enumerate() {
                let mut dot = 0;
                for (k, x) in x.iter().enumerate() {
                    let byte = quants[block * 256 + k % 16 / 4 * 64 + lane * 4 + k % 4];
                    let nibble = if k < 16 { byte & 15 } else { byte >> 4 };
                    dot += i32::from(nibble) * x;
                }
                let slot = block * GROUP + lane;
                *sum = (dot as f32).mul_add(read_f16(scales, slot) * head.scale, *sum);
                *sum = read_f16(mins, slot).mul_add(head.sum, *sum);
            }
        }
        out.write(row, &sums);
    }
}
