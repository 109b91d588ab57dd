//! Attention of some queries to ranges of keys kept in blocks, with a running maximum.
//!
//! Each query's numbers depend on its keys and their order alone, not on the queries computed beside it.

use super::Span;
use super::lanes::{COUNT, Lanes};
use crate::compute::Instructions;
use crate::compute::elementwise::exp;
use crate::step::BLOCK_TOKENS;

/// Tokens in one block.
const TOKENS: usize = BLOCK_TOKENS;

/// Registers' worth of tokens in one block.
const PARTS: usize = TOKENS / COUNT;

/// Queries that are computed together at most.
pub(super) const MOST: usize = 32;

/// Keys and values of one head: a block of keys is `[width][TOKENS]`, a block of values `[TOKENS][width]`; both start at
/// `block * stride`.
#[derive(Clone, Copy)]
pub(super) struct Cache<'a> {
    pub(super) keys: &'a [f32],
    pub(super) values: &'a [f32],
    pub(super) stride: usize,
    pub(super) width: usize,
}

/// Attends from queries (`[query][width]`, at most [`MOST`], already scaled by one over the root of the width) to the keys of
/// `spans`.
pub(super) fn look(
    instructions: Instructions,
    queries: &[f32],
    spans: &[Span],
    cache: Cache<'_>,
    out: &mut [f32],
) {
    assert!(queries.len() <= MOST * cache.width && out.len() == queries.len());
    match instructions {
        #[cfg(target_arch = "x86_64")]
        Instructions::Avx512(_) => {
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
            fn with_avx512(queries: &[f32], spans: &[Span], cache: Cache<'_>, out: &mut [f32]) {
                // SAFETY: the instructions are there.
                unsafe { look_by::<std::arch::x86_64::__m512, 8>(queries, spans, cache, out) };
            }
            // SAFETY: the variant exists only where these instructions were detected.
            unsafe { with_avx512(queries, spans, cache, out) }
        }
        #[cfg(target_arch = "x86_64")]
        Instructions::Avx2 => {
            #[target_feature(enable = "avx2,fma")]
            fn with_avx2(queries: &[f32], spans: &[Span], cache: Cache<'_>, out: &mut [f32]) {
                // SAFETY: as above.
                unsafe { look_by::<[std::arch::x86_64::__m256; 2], 2>(queries, spans, cache, out) };
            }
            // SAFETY: as above.
            unsafe { with_avx2(queries, spans, cache, out) }
        }
        // SAFETY: these need no instructions.
        Instructions::Scalar => unsafe {
            look_by::<[f32; COUNT], 2>(queries, spans, cache, out);
        },
    }
}

/// Takes `Q` queries at a time, so many as registers hold the results of.
///
/// # Safety
/// The processor has the instructions of `L`.
#[inline(always)]
unsafe fn look_by<L: Lanes, const Q: usize>(
    queries: &[f32],
    spans: &[Span],
    cache: Cache<'_>,
    out: &mut [f32],
) {
    let width = cache.width;
    let count = queries.len() / width;
    let mut largest = [f32::NEG_INFINITY; MOST];
    let mut total = [[0_f32; COUNT]; MOST];
    out.fill(0.0);
    for span in spans {
        let Span {
            blocks,
            keys: seen,
            repeats,
        } = span;
        let last = seen.end.div_ceil(TOKENS);
        let within = blocks.iter().enumerate().take(last);
        for (index, block) in within.skip(seen.start / TOKENS) {
            let first = index * TOKENS;
            let visible = (
                seen.start.saturating_sub(first),
                (seen.end - first).min(TOKENS),
            );
            let at = *block as usize * cache.stride;
            let block = Block {
                keys: &cache.keys[at..at + width * TOKENS],
                values: &cache.values[at..at + width * TOKENS],
                width,
                visible,
                repeats: *repeats as f32,
            };
            let mut from = 0;
            while from < count {
                let queries = &queries[from * width..];
                let out = &mut out[from * width..];
                let (largest, total) = (&mut largest[from..], &mut total[from..]);
                // SAFETY: by this function's contract.
                from += unsafe {
                    if count - from >= Q {
                        block.take::<L, Q>(queries, largest, total, out)
                    } else {
                        block.take::<L, 1>(queries, largest, total, out)
                    }
                };
            }
        }
    }
    for (out, total) in out.chunks_exact_mut(width).zip(total) {
        let inverse = 1.0 / total.into_iter().sum::<f32>();
        for out in out {
            *out *= inverse;
        }
    }
}

struct Block<'a> {
    keys: &'a [f32],
    values: &'a [f32],
    width: usize,
    visible: (usize, usize),
    repeats: f32,
}

impl Block<'_> {
    /// Takes this block into the results of `Q` queries.
    ///
    /// # Safety
    /// The processor has the instructions of `L`.
    #[inline(always)]
    unsafe fn take<L: Lanes, const Q: usize>(
        &self,
        queries: &[f32],
        largest: &mut [f32],
        total: &mut [[f32; COUNT]],
        out: &mut [f32],
    ) -> usize {
        let (largest, total) = (&mut largest[..Q], &mut total[..Q]);
        // SAFETY: by this function's contract.
        unsafe {
            let mut scores = self.scores::<L, Q>(queries);
            let mut fades = [0_f32; Q];
            for (query, scores) in scores.iter_mut().enumerate() {
                fades[query] = self.weigh::<L>(scores, &mut largest[query], &mut total[query]);
            }
            let (mut at, width) = (0, self.width);
            while at + 2 * COUNT <= width {
                self.sum::<L, Q, 2>(&scores, &fades, at, out);
                at += 2 * COUNT;
            }
            if at + COUNT <= width {
                self.sum::<L, Q, 1>(&scores, &fades, at, out);
                at += COUNT;
            }
            for at in at..width {
                self.sum_one(&scores, &fades, at, out);
            }
        }
        Q
    }

    /// The products of `Q` queries with all keys.
    ///
    /// # Safety
    /// The processor has the instructions of `L`.
    #[inline(always)]
    unsafe fn scores<L: Lanes, const Q: usize>(&self, queries: &[f32]) -> [[f32; TOKENS]; Q] {
        let width = self.width;
        let queries = &queries[..Q * width];
        let keys = &self.keys[..width * TOKENS];
        let mut scores = [[0_f32; TOKENS]; Q];
        // SAFETY: all places lie in the slices; the instructions are there by this function's contract.
        unsafe {
            let mut sums = [[L::splat(0.0); PARTS]; Q];
            for number in 0..width {
                let keys = keys.as_ptr().add(number * TOKENS);
                let keys: [L; PARTS] = std::array::from_fn(|part| L::load(keys.add(part * COUNT)));
                for (query, sums) in sums.iter_mut().enumerate() {
                    let value = L::splat(*queries.as_ptr().add(query * width + number));
                    for (sum, keys) in sums.iter_mut().zip(keys) {
                        *sum = value.mul_add(keys, *sum);
                    }
                }
            }
            for (scores, sums) in scores.iter_mut().zip(sums) {
                for (part, sum) in sums.into_iter().enumerate() {
                    sum.store(scores.as_mut_ptr().add(part * COUNT));
                }
            }
        }
        scores
    }

    /// Turns one query's scores into weights and adds them to its totals, one for each place in a register; returns what its
    /// results so far are to be multiplied by.
    ///
    /// # Safety
    /// The processor has the instructions of `L`.
    #[inline(always)]
    unsafe fn weigh<L: Lanes>(
        &self,
        scores: &mut [f32; TOKENS],
        largest: &mut f32,
        total: &mut [f32; COUNT],
    ) -> f32 {
        let (first, end) = self.visible;
        let all = (first, end) == (0, TOKENS);
        if !all {
            scores[..first].fill(f32::NEG_INFINITY);
            scores[end..].fill(f32::NEG_INFINITY);
        }
        // SAFETY: all places lie in the array; the instructions are there by this function's contract.
        unsafe {
            let place = scores.as_mut_ptr();
            let mut top = L::load(place);
            for part in 1..PARTS {
                top = L::load(place.add(part * COUNT)).max(top);
            }
            let top = top.largest();
            // Seldom after the first blocks.
            let fade = if top > *largest {
                exp(std::mem::replace(largest, top) - top)
            } else {
                1.0
            };
            let (top, repeats) = (L::splat(*largest), L::splat(self.repeats));
            for part in 0..PARTS {
                let place = place.add(part * COUNT);
                L::load(place).sub(top).exp().mul(repeats).store(place);
            }
            if !all {
                // The smallest that `exp` gives is more than nothing.
                scores[..first].fill(0.0);
                scores[end..].fill(0.0);
            }
            let place = scores.as_ptr();
            let mut sum = L::load(total.as_ptr()).mul(L::splat(fade));
            for part in 0..PARTS {
                sum = L::load(place.add(part * COUNT)).add(sum);
            }
            sum.store(total.as_mut_ptr());
            fade
        }
    }

    /// Adds the weighted values to `S` registers' worth of each result, from number `at` on.
    ///
    /// # Safety
    /// The processor has the instructions of `L`.
    #[inline(always)]
    unsafe fn sum<L: Lanes, const Q: usize, const S: usize>(
        &self,
        weights: &[[f32; TOKENS]; Q],
        fades: &[f32; Q],
        at: usize,
        out: &mut [f32],
    ) {
        let width = self.width;
        let out = &mut out[..Q * width];
        let values = &self.values[..TOKENS * width];
        assert!(at + S * COUNT <= width && self.visible.1 <= TOKENS);
        // SAFETY: all places lie in the slices; the instructions are there by this function's contract.
        unsafe {
            let place = |query: usize, part: usize| query * width + at + part * COUNT;
            let mut sums = [[L::splat(0.0); S]; Q];
            for (query, sums) in sums.iter_mut().enumerate() {
                let fade = L::splat(fades[query]);
                for (part, sum) in sums.iter_mut().enumerate() {
                    *sum = L::load(out.as_ptr().add(place(query, part))).mul(fade);
                }
            }
            // What lies outside of the range may be anything, also no number.
            for token in self.visible.0..self.visible.1 {
                let values = values.as_ptr().add(token * width + at);
                let values: [L; S] = std::array::from_fn(|part| L::load(values.add(part * COUNT)));
                for (weights, sums) in weights.iter().zip(&mut sums) {
                    let weight = L::splat(*weights.as_ptr().add(token));
                    for (sum, values) in sums.iter_mut().zip(values) {
                        *sum = weight.mul_add(values, *sum);
                    }
                }
            }
            for (query, sums) in sums.into_iter().enumerate() {
                for (part, sum) in sums.into_iter().enumerate() {
                    sum.store(out.as_mut_ptr().add(place(query, part)));
                }
            }
        }
    }

    /// The same for a single number of each result.
    fn sum_one<const Q: usize>(
        &self,
        weights: &[[f32; TOKENS]; Q],
        fades: &[f32; Q],
        at: usize,
        out: &mut [f32],
    ) {
        let width = self.width;
        for (query, (weights, fade)) in weights.iter().zip(fades).enumerate() {
            let mut sum = out[query * width + at] * fade;
            let weighted = weights.iter().zip(self.values.chunks_exact(width));
            let (first, end) = self.visible;
            for (weight, values) in weighted.take(end).skip(first) {
                sum = weight.mul_add(values[at], sum);
            }
            out[query * width + at] = sum;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::wave;

    fn span(blocks: &[u32], keys: std::ops::Range<usize>, repeats: u32) -> Span {
        Span {
            blocks: blocks.to_vec(),
            keys,
            repeats,
        }
    }

    /// By the definition, in double precision.
    fn exact(
        query: &[f32],
        spans: &[Span],
        keys: &[f32],
        values: &[f32],
        width: usize,
    ) -> Vec<f64> {
        let stride = width * TOKENS;
        let (mut total, mut sums) = (0.0, vec![0.0; width]);
        for Span {
            blocks,
            keys: seen,
            repeats,
        } in spans
        {
            for key in seen.clone() {
                let at = blocks[key / TOKENS] as usize * stride;
                let score: f64 = (0..width)
                    .map(|d| f64::from(query[d] * keys[at + d * TOKENS + key % TOKENS]))
                    .sum();
                let weight = f64::from(*repeats) * score.exp();
                total += weight;
                for (d, sum) in sums.iter_mut().enumerate() {
                    *sum += weight * f64::from(values[at + key % TOKENS * width + d]);
                }
            }
        }
        sums.iter().map(|sum| sum / total).collect()
    }

    #[test]
    fn equals_the_definition_for_any_ranges_and_in_any_company() {
        for width in [16, 20, 48] {
            let stride = width * TOKENS;
            let (keys, values) = (wave(stride * 5, 0.37), wave(stride * 5, 0.73));
            let queries = wave(width * 15, 1.1);
            let cache = Cache {
                keys: &keys,
                values: &values,
                stride,
                width,
            };
            for spans in [
                vec![span(&[2], 0..1, 1)],
                vec![span(&[2, 0, 3], 5..70, 1)],
                vec![
                    span(&[1, 4], 31..33, 1),
                    span(&[0], 0..17, 7),
                    span(&[3, 2], 40..64, 2),
                ],
            ] {
                let mut plain = Vec::new();
                for set in Instructions::available() {
                    let mut out = vec![0.0; width * 15];
                    look(set, &queries, &spans, cache, &mut out);
                    for (query, out) in queries.chunks(width).zip(out.chunks(width)) {
                        let exact = exact(query, &spans, &keys, &values, width);
                        for (found, exact) in out.iter().zip(exact) {
                            assert!((f64::from(*found) - exact).abs() < 2e-6, "{found} {exact}");
                        }
                        // Alone it has the same bits.
                        let mut alone = vec![0.0; width];
                        look(set, query, &spans, cache, &mut alone);
                        assert_eq!(alone, out);
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
}
