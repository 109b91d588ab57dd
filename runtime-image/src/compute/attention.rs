//! Attention over keys and values kept in blocks of [`TOKENS`] tokens.
//!
//! Each row visits blocks in the order of positions with a running maximum, so its result depends on nothing but the
//! sequence itself.

use std::ops::Range;

use super::elementwise::{LANES, by_instructions, exp, higher, highest};
use crate::step::BLOCK_TOKENS;

/// Tokens in one block of the arena.
const TOKENS: usize = BLOCK_TOKENS;

/// Query heads that are computed together at most; they share one head of keys and values, and each load of them.
const HEADS: usize = 4;

/// Numbers of a head's result that are kept in registers while the values of a block are added to them.
const STRIP: usize = 64;

/// Rows of one sequence that look at a block of keys and values one after the other, while it is in a core's own cache.
pub const ROWS: usize = 8;

/// What one sequence has of one head's keys and values.
///
/// A block of keys is `[width][TOKENS]`, a block of values `[TOKENS][width]`; both start at `block * stride` of their arena.
pub struct Cache<'a> {
    /// Keys of all blocks.
    pub keys: &'a [f32],
    /// Values of all blocks.
    pub values: &'a [f32],
    /// The sequence's blocks.
    pub blocks: &'a [u32],
    /// Numbers from one block to the next.
    pub stride: usize,
    /// Numbers of a head.
    pub width: usize,
}

by_instructions! {
    /// Attends from at most [`ROWS`] rows' queries (heads that share this key head, one after the other): the first row sees
    /// `length` tokens, each further one more.
    pub fn attend(queries: &[&[f32]], cache: &Cache<'_>, length: usize, out: &mut [&mut [f32]]) = attend_body
}

#[inline(always)]
fn attend_body(queries: &[&[f32]], cache: &Cache<'_>, length: usize, out: &mut [&mut [f32]]) {
    let group = queries.first().map_or(0, |queries| queries.len());
    let together = cache.width * HEADS;
    for first in (0..group).step_by(together) {
        let heads = first..group.min(first + together);
        match heads.len() / cache.width {
            1 => attend_heads::<1>(queries, heads, cache, length, out),
            2 => attend_heads::<2>(queries, heads, cache, length, out),
            3 => attend_heads::<3>(queries, heads, cache, length, out),
            _ => attend_heads::<HEADS>(queries, heads, cache, length, out),
        }
    }
}

/// Some heads of each row; `heads` is where they are in it.
#[inline(always)]
fn attend_heads<const N: usize>(
    queries: &[&[f32]],
    heads: Range<usize>,
    cache: &Cache<'_>,
    length: usize,
    out: &mut [&mut [f32]],
) {
    let size = cache.width * TOKENS;
    let mut seen = [const { Seen::<N>::NOTHING }; ROWS];
    for out in out.iter_mut() {
        out[heads.clone()].fill(0.0);
    }
    let blocks = (length + queries.len() - 1).div_ceil(TOKENS);
    for (index, block) in cache.blocks[..blocks].iter().enumerate() {
        let at = *block as usize * cache.stride;
        let (keys, values) = (&cache.keys[at..at + size], &cache.values[at..at + size]);
        let rows = queries.iter().zip(out.iter_mut()).zip(&mut seen);
        for (row, ((queries, out), seen)) in rows.enumerate() {
            let visible = (length + row).saturating_sub(index * TOKENS).min(TOKENS);
            if visible > 0 {
                let (queries, out) = (&queries[heads.clone()], &mut out[heads.clone()]);
                seen.look(queries, keys, values, visible, out);
            }
        }
    }
    for (out, seen) in out.iter_mut().zip(seen) {
        let heads = out[heads.clone()].chunks_exact_mut(cache.width);
        for (out, totals) in heads.zip(seen.totals) {
            let inverse = 1.0 / totals.iter().sum::<f32>();
            for out in out {
                *out *= inverse;
            }
        }
    }
}

/// What a row's heads have seen so far: the largest score, and the sums of the weights.
struct Seen<const N: usize> {
    largest: [f32; N],
    totals: [[f32; LANES]; N],
}

impl<const N: usize> Seen<N> {
    const NOTHING: Self = Self {
        largest: [f32::NEG_INFINITY; N],
        totals: [[0.0; LANES]; N],
    };

    /// Adds what the first `visible` tokens of a block give to each head's result.
    #[inline(always)]
    fn look(
        &mut self,
        queries: &[f32],
        keys: &[f32],
        values: &[f32],
        visible: usize,
        out: &mut [f32],
    ) {
        let width = queries.len() / N;
        let factor = 1.0 / (width as f32).sqrt();
        let mut scores = products::<N>(queries, keys, width);
        let mut fade = [0.0; N];
        for (head, scores) in scores.iter_mut().enumerate() {
            if visible < TOKENS {
                scores[visible..].fill(f32::NEG_INFINITY);
            }
            let mut tops = [self.largest[head]; LANES];
            for scores in scores.as_chunks_mut::<LANES>().0 {
                for (score, top) in scores.iter_mut().zip(&mut tops) {
                    *score *= factor;
                    *top = higher(*score, *top);
                }
            }
            let top = highest(tops);
            for score in scores.iter_mut() {
                *score = exp(*score - top);
            }
            if visible < TOKENS {
                // What is not visible has no weight at all, not even that of the smallest number.
                scores[visible..].fill(0.0);
            }
            fade[head] = exp(self.largest[head] - top);
            self.largest[head] = top;
            let totals = &mut self.totals[head];
            for total in totals.iter_mut() {
                *total *= fade[head];
            }
            for scores in scores.as_chunks::<LANES>().0 {
                for (total, score) in totals.iter_mut().zip(scores) {
                    *total += score;
                }
            }
        }
        add_values::<N>(&scores, values, &fade, visible, out, width);
    }
}

/// The products of each head's query with each key of a block.
#[inline(always)]
fn products<const N: usize>(queries: &[f32], keys: &[f32], width: usize) -> [[f32; TOKENS]; N] {
    let mut sums = [[0_f32; TOKENS]; N];
    let queries: [&[f32]; N] = std::array::from_fn(|head| &queries[head * width..][..width]);
    let keys = &keys.as_chunks::<TOKENS>().0[..width];
    for (index, keys) in keys.iter().enumerate() {
        for (query, sums) in queries.iter().zip(&mut sums) {
            for (sum, key) in sums.iter_mut().zip(keys) {
                *sum = key.mul_add(query[index], *sum);
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
    for (token, values) in values.chunks(width).enumerate().take(visible) {
        let Some(values) = values.first_chunk::<WIDE>() else {
            break;
        };
        for (sums, weights) in sums.iter_mut().zip(weights) {
            let weight = weights[token % TOKENS];
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

    #[test]
    fn rows_that_attend_together_get_what_each_gets_alone() {
        let (width, heads) = (64, 6);
        let stride = width * TOKENS;
        let (keys, values) = (wave(stride * 4, 0.37), wave(stride * 4, 0.73));
        let queries = wave(width * heads * ROWS, 1.1);
        let queries: Vec<&[f32]> = queries.chunks(width * heads).collect();
        let cache = Cache {
            keys: &keys,
            values: &values,
            blocks: &[2, 0, 3],
            stride,
            width,
        };
        for set in Instructions::available() {
            // The last rows see a block more than the first.
            let length = 2 * TOKENS - 3;
            let mut together = vec![vec![0.0; width * heads]; ROWS];
            let mut out: Vec<&mut [f32]> = together.iter_mut().map(Vec::as_mut_slice).collect();
            attend(set, &queries, &cache, length, &mut out);
            for (row, together) in together.iter().enumerate() {
                let mut alone = vec![0.0; width * heads];
                attend(
                    set,
                    &[queries[row]],
                    &cache,
                    length + row,
                    &mut [&mut alone],
                );
                assert_eq!(*together, alone, "row {row} with {}", set.name());
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
            let cache = Cache {
                keys: &keys,
                values: &values,
                blocks: &blocks,
                stride,
                width,
            };
            attend(set, &[&queries], &cache, length, &mut [&mut out]);
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
