//! Attention of one query row over keys and values kept in blocks of [`TOKENS`] tokens.
//!
//! Blocks are visited in the order of positions with a running maximum, so the result depends on nothing but the
//! sequence itself.

use super::elementwise::{by_instructions, exp};

/// Tokens in one block of the cache.
pub const TOKENS: usize = 32;

/// Query heads that are computed together at most; they share one head of keys and values.
const HEADS: usize = 8;

by_instructions! {
    /// Attends from `queries` (heads that share this key head, one after the other) to the first `length` tokens.
    ///
    /// A block of keys is `[width][TOKENS]`, a block of values `[TOKENS][width]`; both start at `block * stride` of their arena.
    pub fn attend(queries: &[f32], keys: &[f32], values: &[f32], blocks: &[u32], stride: usize, length: usize, out: &mut [f32], width: usize) = attend_body
}

#[inline(always)]
#[expect(
    clippy::too_many_arguments,
    reason = "queries, cache, table and result of one kernel"
)]
fn attend_body(
    queries: &[f32],
    keys: &[f32],
    values: &[f32],
    blocks: &[u32],
    stride: usize,
    length: usize,
    out: &mut [f32],
    width: usize,
) {
    for (queries, out) in queries
        .chunks(width * HEADS)
        .zip(out.chunks_mut(width * HEADS))
    {
        let heads = queries.len() / width;
        let factor = 1.0 / (width as f32).sqrt();
        let mut largest = [f32::NEG_INFINITY; HEADS];
        let mut total = [0_f32; HEADS];
        out.fill(0.0);
        for (index, block) in blocks.iter().take(length.div_ceil(TOKENS)).enumerate() {
            let visible = (length - index * TOKENS).min(TOKENS);
            let at = *block as usize * stride;
            let keys = &keys[at..at + width * TOKENS];
            let values = &values[at..at + width * TOKENS];
            for head in 0..heads {
                let query = &queries[head * width..][..width];
                let out = &mut out[head * width..][..width];
                let mut scores = [0_f32; TOKENS];
                for (keys, query) in keys.chunks_exact(TOKENS).zip(query) {
                    for (score, key) in scores.iter_mut().zip(keys) {
                        *score += query * key;
                    }
                }
                let mut top = largest[head];
                for (token, score) in scores.iter_mut().enumerate() {
                    *score = if token < visible {
                        *score * factor
                    } else {
                        f32::NEG_INFINITY
                    };
                    top = if *score > top { *score } else { top };
                }
                let fade = exp(largest[head] - top);
                largest[head] = top;
                let mut sum = 0.0;
                for score in &mut scores[..visible] {
                    *score = exp(*score - top);
                    sum += *score;
                }
                total[head] = total[head] * fade + sum;
                for out in out.iter_mut() {
                    *out *= fade;
                }
                for (weight, values) in scores[..visible].iter().zip(values.chunks_exact(width)) {
                    for (out, value) in out.iter_mut().zip(values) {
                        *out += weight * value;
                    }
                }
            }
        }
        for (head, out) in out.chunks_exact_mut(width).enumerate() {
            let inverse = 1.0 / total[head];
            for out in out {
                *out *= inverse;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::Instructions;

    #[test]
    fn equals_the_definition_for_lengths_inside_and_across_blocks() {
        let width = 16;
        let stride = width * TOKENS;
        let wave = |count: usize, step: f32| {
            (0..count)
                .map(|i| (i as f32 * step).sin())
                .collect::<Vec<f32>>()
        };
        let (keys, values) = (wave(stride * 4, 0.37), wave(stride * 4, 0.73));
        let queries = wave(width * 3, 1.1);
        let blocks = [2_u32, 0, 3];
        for length in [1, 31, 32, 33, 70, 96] {
            let mut plain = Vec::new();
            for set in Instructions::available() {
                let mut out = vec![0.0; width * 3];
                attend(
                    set, &queries, &keys, &values, &blocks, stride, length, &mut out, width,
                );
                for head in 0..3 {
                    let key = |t: usize, d: usize| {
                        keys[blocks[t / TOKENS] as usize * stride + d * TOKENS + t % TOKENS]
                    };
                    let value = |t: usize, d: usize| {
                        values[blocks[t / TOKENS] as usize * stride + t % TOKENS * width + d]
                    };
                    let scores: Vec<f64> = (0..length)
                        .map(|t| {
                            (0..width)
                                .map(|d| f64::from(queries[head * width + d] * key(t, d)))
                                .sum::<f64>()
                                / 4.0
                        })
                        .map(f64::exp)
                        .collect();
                    let total: f64 = scores.iter().sum();
                    for d in 0..width {
                        let exact: f64 = scores
                            .iter()
                            .enumerate()
                            .map(|(t, s)| s / total * f64::from(value(t, d)))
                            .sum();
                        assert!(
                            (f64::from(out[head * width + d]) - exact).abs() < 1e-5,
                            "length {length}"
                        );
                    }
                }
                if plain.is_empty() {
                    plain = out;
                } else {
                    assert_eq!(out, plain, "{} gives other bits", set.name());
                }
            }
        }
    }
}
