//! How far a quantised model's predictions are from those of its form in full precision:
//! `divergence BASE OTHER TEXT [CHUNKS]` prints the mean Kullback-Leibler divergence of OTHER's next tokens from BASE's.
//!
//! The text is cut into chunks of 512 tokens that know nothing of each other, and the second half of each counts:
//! as llama.cpp's `llama-perplexity --kl-divergence` has it, so that both can be compared on the same files.

use std::error::Error;
use std::path::Path;

use chandler_runtime::compute::Arithmetic;
use chandler_runtime::model::{self, Capacity, Model, Setup};
use chandler_runtime::step::{BLOCK_TOKENS, Run, StepPlan};
use chandler_runtime::weights::folder;

/// Tokens of a chunk.
const CHUNK: usize = 512;
/// Rows of a step, whose logits are kept until the other model has its own.
const ROWS: usize = 128;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [base, other, text, rest @ ..] = arguments.as_slice() else {
        return Err("usage: divergence BASE OTHER TEXT [CHUNKS]".into());
    };
    let most = rest.first().map_or(Ok(usize::MAX), |count| count.parse())?;
    let text = std::fs::read_to_string(text)?;
    let tokens = folder::open(Path::new(base))?
        .tokenizer
        .encode_completion(text)?;
    let (mut base, mut other) = (load(base)?, load(other)?);
    let (mut sum, mut count) = (0.0, 0_u32);
    for chunk in tokens.chunks_exact(CHUNK).take(most) {
        for first in (0..CHUNK).step_by(ROWS) {
            let plan = plan(chunk, first);
            let expected = base.forward(&plan)?;
            let found = other.forward(&plan)?;
            // The last token of a chunk has no next one.
            let counted =
                (first.max(CHUNK / 2)..(first + ROWS).min(CHUNK - 1)).map(|row| row - first);
            for row in counted {
                sum += divergence(expected.row(row), found.row(row));
                count += 1;
            }
        }
    }
    if count == 0 {
        return Err(format!("the text has {} tokens, {CHUNK} are needed", tokens.len()).into());
    }
    #[expect(clippy::print_stdout, reason = "it is what this program is for")]
    {
        println!("{:.9}", sum / f64::from(count));
    }
    Ok(())
}

fn load(path: &str) -> Result<Box<dyn Model>, Box<dyn Error>> {
    let setup = Setup {
        threads: std::thread::available_parallelism()?.get(),
        ranks: 1,
        dtype: Arithmetic::Float32,
        capacity: Capacity {
            rows: ROWS,
            logits_rows: ROWS,
            blocks: CHUNK / BLOCK_TOKENS,
        },
    };
    let mut opened = folder::open(Path::new(path))?;
    Ok(model::load(opened.weights.as_mut(), setup)?)
}

/// The next rows of a chunk, with the logits of all of them.
fn plan(chunk: &[u32], first: usize) -> StepPlan {
    let number = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
    StepPlan {
        tokens: chunk[first..first + ROWS].to_vec(),
        positions: (first..first + ROWS).map(number).collect(),
        runs: vec![Run {
            rows: 0..ROWS,
            blocks: (0..CHUNK / BLOCK_TOKENS).map(number).collect(),
            ..Run::default()
        }],
        logits: std::iter::once(0..ROWS).collect(),
        ..StepPlan::default()
    }
}

/// Of two rows of logits, in nats.
fn divergence(expected: &[f32], found: &[f32]) -> f64 {
    let (expected, found) = (log_probabilities(expected), log_probabilities(found));
    let parts = expected.iter().zip(&found);
    parts.map(|(p, q)| p.exp() * (p - q)).sum()
}

fn log_probabilities(logits: &[f32]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let shifted = logits.iter().map(|logit| f64::from(logit - largest));
    let total = shifted.clone().map(f64::exp).sum::<f64>().ln();
    shifted.map(|logit| logit - total).collect()
}
