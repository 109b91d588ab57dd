//! Products with weights.

use super::{Factor, Kind, THREADS, Target, arguments, by_part, launch};
use crate::compute::cuda::card::{Address, Launch};

/// Rows of a thin product that those with more do not pay for.
const FEW_ROWS: usize = 8;
/// Most rows of a thin product.
pub const THIN_ROWS: usize = 16;

/// Most matrices of one thin product.
pub const MOST_FACTORS: usize = 3;

/// Products of few rows with up to three matrices of one kind, whose rows have `columns` numbers.
#[must_use]
pub fn thin(kind: Kind, factors: &[Factor], input: Address, columns: usize, rows: usize) -> Launch {
    let few = rows <= FEW_ROWS;
    let kernel = match (kind, few) {
        (Kind::F32, _) => "thin_f32",
        (Kind::Bf16, true) => "thin_bf16_8",
        (Kind::F16, true) => "thin_f16_8",
        (Kind::Q8, true) => "thin_q8_0_8",
        (Kind::Q4, true) => "thin_q4_1_8",
        (Kind::Q4K, true) => "thin_q4_k_8",
        (Kind::Fp8, true) => "thin_fp8_8",
        (Kind::Bf16, false) => "thin_bf16_16",
        (Kind::F16, false) => "thin_f16_16",
        (Kind::Q8, false) => "thin_q8_0_16",
        (Kind::Q4, false) => "thin_q4_1_16",
        (Kind::Q4K, false) => "thin_q4_k_16",
        (Kind::Fp8, false) => "thin_fp8_16",
    };
    let (outputs, together, shared) = match (kind, few) {
        (Kind::F32, _) => (32, FEW_ROWS, 33_792),
        (_, true) => (16, FEW_ROWS, 4_096),
        (_, false) => (32, THIN_ROWS, 16_384),
    };
    let mut arguments = Vec::with_capacity(15);
    let mut groups = 0;
    for index in 0..MOST_FACTORS {
        let factor = factors.get(index).copied().unwrap_or_default();
        arguments.extend(arguments![factor.weights, factor.scales, factor.out]);
        arguments.extend(arguments![factor.outputs]);
        groups += factor.outputs.div_ceil(outputs);
    }
    arguments.extend(arguments![input, columns, rows]);
    let grid = [groups, rows.div_ceil(together), 1];
    launch(kernel, grid, THREADS, shared, arguments)
}

/// Products of few rows with a gate's matrix and another as large, and `silu(gate) * up` of them to an input. None for f32.
#[must_use]
pub fn gated(
    kind: Kind,
    [gate, up]: [Factor; 2],
    (input, columns): (Address, usize),
    rows: usize,
    out: Target,
) -> Option<Launch> {
    let few = rows <= FEW_ROWS;
    let kernel = match (kind, few) {
        (Kind::F32, _) => return None,
        (Kind::Bf16, true) => "thin_bf16_8_gated",
        (Kind::F16, true) => "thin_f16_8_gated",
        (Kind::Q8, true) => "thin_q8_0_8_gated",
        (Kind::Q4, true) => "thin_q4_1_8_gated",
        (Kind::Q4K, true) => "thin_q4_k_8_gated",
        (Kind::Fp8, true) => "thin_fp8_8_gated",
        (Kind::Bf16, false) => "thin_bf16_16_gated",
        (Kind::F16, false) => "thin_f16_16_gated",
        (Kind::Q8, false) => "thin_q8_0_16_gated",
        (Kind::Q4, false) => "thin_q4_1_16_gated",
        (Kind::Q4K, false) => "thin_q4_k_16_gated",
        (Kind::Fp8, false) => "thin_fp8_16_gated",
    };
    let (together, shared) = if few {
        (FEW_ROWS, 8_192)
    } else {
        (THIN_ROWS, 16_384)
    };
    let mut arguments = arguments![gate.weights, gate.scales, up.weights, up.scales];
    arguments.extend(arguments![
        input, out.at, out.kind, out.width, columns, rows
    ]);
    let grid = [out.width.div_ceil(16), rows.div_ceil(together), 1];
    Some(launch(kernel, grid, THREADS, shared, arguments))
}

/// A product of many rows with the bits of [`thin`], for matrices of halves.
#[must_use]
pub fn same_bits(
    kind: Kind,
    factor: Factor,
    input: Address,
    columns: usize,
    rows: usize,
) -> Launch {
    let kernel = if kind == Kind::F16 {
        "gemm_f16"
    } else {
        "gemm_bf16"
    };
    let mut arguments = arguments![factor.weights, input, factor.out];
    arguments.extend(arguments![factor.outputs, columns, rows]);
    let grid = [factor.outputs.div_ceil(128), rows.div_ceil(64), 1];
    launch(kernel, grid, THREADS, 73_728, arguments)
}

/// Some rows of a quantised matrix as bf16.
#[must_use]
pub fn dequantise(
    (factor, kind, columns): (Factor, Kind, usize),
    first: usize,
    outputs: usize,
    out: Address,
) -> Launch {
    let arguments = arguments![factor.weights, factor.scales, kind, out, first, columns];
    by_part("dequantise", columns, outputs, arguments)
}
