//! Tells how fast this processor multiplies: `product_speed THREADS KIND ROWS COLUMNS OUTPUTS`.
//!
//! `KIND` is one of f32, f16, bf16, q8_0, q4_1, or rounded: bf16 with inputs that are rounded to it.
//!
//! Prints the best of several rounds, in which so many matrices are taken in turn that no cache holds them between two uses.

use std::error::Error;
use std::time::Instant;

use chandler_runtime::compute::activation::{Activation, Form};
use chandler_runtime::compute::matmul::{Product, multiply};
use chandler_runtime::compute::matrix::{Blocks, Float, Matrix};
use chandler_runtime::compute::pool::Pool;
use chandler_runtime::compute::{Instructions, multiplies_bf16};

/// Bytes of all matrices together.
const BYTES: usize = 512 << 20;
/// Rounds over all of them.
const ROUNDS: usize = 4;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [threads, kind, rows, columns, outputs] = arguments.as_slice() else {
        return Err("usage: product_speed THREADS KIND ROWS COLUMNS OUTPUTS".into());
    };
    let (rows, columns, outputs): (usize, usize, usize) =
        (rows.parse()?, columns.parse()?, outputs.parse()?);
    let one = || matrix(kind, outputs, columns);
    let first = one()?;
    let many = (BYTES / first.bytes()).clamp(1, 64);
    let mut matrices = vec![first];
    for _ in 1..many {
        matrices.push(one()?);
    }
    let mut pool = Pool::new(threads.parse()?);
    let set = Instructions::detect();
    let mut input = Activation::new(rows, columns);
    let rounds = kind == "rounded";
    if rounds && !multiplies_bf16() {
        return Err("this processor does not multiply bfloat16".into());
    }
    let form = Form::of(&[&matrices[0]], rounds);
    input.fill(&mut pool, set, rows, form, &|row, out| {
        for (at, out) in out.iter_mut().enumerate() {
            // Every other block is so small beside the row that one byte a number does.
            let power = if at / 32 % 2 == 0 { 1 } else { 3 };
            *out = ((row * 31 + at) as f32 % 13.0 - 6.0).powi(power);
        }
    });
    let mut out = vec![0.0; rows * outputs];
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        let begin = Instant::now();
        for matrix in &matrices {
            let out = &mut out;
            multiply(&mut pool, set, &input, rows, &mut [Product { matrix, out }]);
        }
        best = best.min(begin.elapsed().as_secs_f64() / many as f64);
    }
    let operations = 2.0 * (rows * columns * outputs) as f64;
    #[expect(clippy::print_stdout, reason = "it is what this program is for")]
    {
        println!(
            "{kind} {rows}x{columns}x{outputs} with {}: {:.3} ms, {:.0} GFLOP/s, {:.1} GB/s of weights",
            set.name(),
            best * 1e3,
            operations / best / 1e9,
            matrices[0].bytes() as f64 / best / 1e9
        );
    }
    Ok(())
}

fn matrix(kind: &str, rows: usize, columns: usize) -> Result<Matrix, Box<dyn Error>> {
    let numbers = || -> Vec<f32> {
        (0..rows * columns)
            .map(|at| (at % 13) as f32 / 13.0 - 0.4)
            .collect()
    };
    let floats = |float| Matrix::from_floats(rows, columns, &numbers(), float);
    Ok(match kind {
        "f32" => floats(Float::F32),
        "f16" => floats(Float::F16),
        "bf16" | "rounded" => floats(Float::Bf16),
        "q8_0" => Matrix::quantize(rows, columns, &numbers()),
        "q4_1" => {
            let bytes = vec![0x31; rows * columns / 32 * Blocks::Q4_1.bytes()];
            Matrix::from_blocks(rows, columns, &bytes, Blocks::Q4_1)
        }
        _ => return Err(format!("{kind} is no kind of matrix").into()),
    })
}
