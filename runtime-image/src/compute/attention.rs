//! Attention of one query row over keys and values kept in blocks of [`TOKENS`] tokens.
//!
//! Blocks are visited in the order of positions with a running maximum, so the result depends on nothing but the
//! sequence itself.

use super::elementwise::{by_instructions, exp};
use crate::step::BLOCK_TOKENS;

/// Tokens in one block of the arena.
const TOKENS: usize = BLOCK_TOKENS;

/// Query heads that are computed together at most; they share one head of keys and values, and each load of them.
const HEADS: usize = 4;

/// Numbers of a head's result that are kept in registers while the values of a block are added to them.
const STRIP: usize = 64;

/// Width of partial sums; fixed, so that results do not depend on the processor.
const LANES: usize = 16;

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
    let cache = Cache {
        keys,
        values,
        blocks: &blocks[..length.div_ceil(TOKENS)],
        stride,
        length,
        width,
    };
    let mut heads = queries
        .chunks(width * HEADS)
        .zip(out.chunks_mut(width * HEADS));
    for (queries, out) in &mut heads {
        match queries.len() / width {
            1 => attend_heads::<1>(queries, &cache, out),
            2 => attend_heads::<2>(queries, &cache, out),
            3 => attend_heads::<3>(queries, &cache, out),
            _ => attend_heads::<HEADS>(queries, &cache, out),
        }
    }
}

/// What one sequence sees of one head's keys and values.
struct Cache<'a> {
    keys: &'a [f32],
    values: &'a [f32],
    blocks: &'a [u32],
    stride: usize,
    length: usize,
    width: usize,
}

#[inline(always)]
fn attend_heads<const N: usize>(queries: &[f32], cache: &Cache<'_>, out: &mut [f32]) {
    let width = cache.width;
    let factor = 1.0 / (width as f32).sqrt();
    let mut largest = [f32::NEG_INFINITY; N];
    let mut total = [0_f32; N];
    out.fill(0.0);
    for (index, block) in cache.blocks.iter().enumerate() {
        let visible = (cache.length - index * TOKENS).min(TOKENS);
        let at = *block as usize * cache.stride;
        let keys = &cache.keys[at..at + width * TOKENS];
        let values = &cache.values[at..at + width * TOKENS];
        let mut scores = products::<N>(queries, keys, width);
        let mut fade = [0.0; N];
        for head in 0..N {
            let scores = &mut scores[head];
            scores[visible..].fill(f32::NEG_INFINITY);
            let mut tops = [f32::NEG_INFINITY; LANES];
            for scores in scores.as_chunks_mut::<LANES>().0 {
                for (score, top) in scores.iter_mut().zip(&mut tops) {
                    *score *= factor;
                    *top = if *score > *top { *score } else { *top };
                }
            }
            let top = tops.iter().fold(
                largest[head],
                |top, score| {
                    if *score > top { *score } else { top }
                },
            );
            for score in scores.iter_mut() {
                *score = exp(*score - top);
            }
            // What is not visible has no weight at all, not even that of the smallest number.
            scores[visible..].fill(0.0);
            let mut sums = [0_f32; LANES];
            for scores in scores.as_chunks::<LANES>().0 {
                for (sum, score) in sums.iter_mut().zip(scores) {
                    *sum += score;
                }
            }
            fade[head] = exp(largest[head] - top);
            largest[head] = top;
            total[head] = total[head] * fade[head] + sums.iter().sum::<f32>();
        }
        add_values::<N>(&scores, values, &fade, visible, out, width);
    }
    for (out, total) in out.chunks_exact_mut(width).zip(total) {
        let inverse = 1.0 / total;
        for out in out {
            *out *= inverse;
        }
    }
}

/// The products of each head's query with each key of a block.
#[inline(always)]
fn products<const N: usize>(queries: &[f32], keys: &[f32], width: usize) -> [[f32; TOKENS]; N] {
    let mut sums = [[0_f32; TOKENS]; N];
    for (index, keys) in keys.as_chunks::<TOKENS>().0.iter().enumerate() {
        for (head, sums) in sums.iter_mut().enumerate() {
            let query = queries[head * width + index];
            for (sum, key) in sums.iter_mut().zip(keys) {
                *sum = key.mul_add(query, *sum);
            }
        }
    }
    sums
}

/// Fades each head's result and adds the values of the first `visible` tokens of a block by their weights.
#[inline(always)]
fn add_values<const N: usize>(
    weights: &[[f32; TOKENS]; N],
    values: &[f32],
    fade: &[f32; N],
    visible: usize,
    out: &mut [f32],
    width: usize,
) {
    let first = add_strips::<N, STRIP>(0, weights, values, fade, visible, out, width);
    let first = add_strips::<N, LANES>(first, weights, values, fade, visible, out, width);
    add_strips::<N, 1>(first, weights, values, fade, visible, out, width);
}

/// Adds as many whole strips as there are from `first` on; where they end.
#[inline(always)]
fn add_strips<const N: usize, const WIDE: usize>(
    mut first: usize,
    weights: &[[f32; TOKENS]; N],
    values: &[f32],
    fade: &[f32; N],
    visible: usize,
    out: &mut [f32],
    width: usize,
) -> usize {
    while first + WIDE <= width {
        let (values, out) = (&values[first..], &mut out[first..]);
        add_strip::<N, WIDE>(weights, values, fade, visible, out, width);
        first += WIDE;
    }
    first
}

#[inline(always)]
fn add_strip<const N: usize, const WIDE: usize>(
    weights: &[[f32; TOKENS]; N],
    values: &[f32],
    fade: &[f32; N],
    visible: usize,
    out: &mut [f32],
    width: usize,
) {
    let mut sums = [[0_f32; WIDE]; N];
    for (head, sums) in sums.iter_mut().enumerate() {
        for (sum, out) in sums.iter_mut().zip(&out[head * width..]) {
            *sum = out * fade[head];
        }
    }
    for token in 0..visible {
        let values = &values[token * width..][..WIDE];
        for (head, sums) in sums.iter_mut().enumerate() {
            let weight = weights[head][token];
            for (sum, value) in sums.iter_mut().zip(values) {
                *sum = value.mul_add(weight, *sum);
            }
        }
    }
    for (head, sums) in sums.iter().enumerate() {
        out[head * width..][..WIDE].copy_from_slice(sums);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::{Instructions, wave};

    #[test]
    fn equals_the_definition_for_lengths_inside_and_across_blocks() {
        // Strips and what is left of them; more heads than are computed together.
        for (width, heads) in [(16, 3), (64, 4), (80, 1), (88, 6)] {
            for length in [1, 31, 32, 33, 70, 96] {
                check(width, heads, length);
            }
        }
    }

    fn check(width: usize, heads: usize, length: usize) {
        let stride = width * TOKENS;
        let (keys, values) = (wave(stride * 4, 0.37), wave(stride * 4, 0.73));
        let queries = wave(width * heads, 1.1);
        let blocks = [2_u32, 0, 3];
        let mut plain = Vec::new();
        for set in Instructions::available() {
            let mut out = vec![0.0; width * heads];
            attend(
                set, &queries, &keys, &values, &blocks, stride, length, &mut out, width,
            );
            for head in 0..heads {
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
                            / (width as f64).sqrt()
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
                        "width {width}, length {length}"
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
