//! Attention in bfloat16 by matrix units: as [`super::look`], with queries, keys, weights and values rounded to it.
//!
//! Sixteen queries are multiplied with a block of keys at a time. A query's numbers depend on its keys and their order alone.

use std::arch::asm;
use std::arch::x86_64::{
    __m512, __m512bh, __m512i, _mm512_cvtne2ps_pbh, _mm512_loadu_si512, _mm512_mask_mov_ps,
    _mm512_maskz_loadu_ps, _mm512_permutexvar_epi16, _mm512_reduce_add_ps, _mm512_reduce_max_ps,
    _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_si512,
};

use super::Span;
use super::lanes::{COUNT, Lanes};
use super::look::Cache;
use crate::compute::amx::{release, shape};
use crate::step::BLOCK_TOKENS;

/// Tokens in one block: pairs of them fill a tile's height.
const TOKENS: usize = BLOCK_TOKENS;

/// Bytes of a full tile, and of a row of it.
const TILE: usize = 1_024;
const ROW: usize = 64;

/// A row of a tile: where it begins on a cache line, it is loaded at once.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Row([f32; COUNT]);

const EMPTY: Row = Row([0.0; COUNT]);

/// What a piece of work keeps: tiles of queries, keys and values, and results.
struct Piece {
    /// Parts of 32 numbers that queries and keys are made of, and of 16 that values are.
    parts: usize,
    strips: usize,
    /// `[16 queries][part][query]`, as many queries in the last as there are.
    queries: Vec<Row>,
    /// `[part][16 tokens][pair of numbers]`.
    keys: Vec<Row>,
    /// `[strip][pair of tokens]`.
    values: Vec<Row>,
    /// `[query][strip]`.
    sums: Vec<Row>,
    /// Of each query, lane by lane.
    totals: Vec<Row>,
    /// Of each query, up to whole tiles.
    largest: Vec<f32>,
}

/// A block of keys and values some of which are seen.
struct Block<'a> {
    keys: &'a [f32],
    values: &'a [f32],
    visible: (usize, usize),
    repeats: f32,
}

/// The blocks that spans tell of, one after the other.
fn seen<'a>(spans: &'a [Span], cache: Cache<'a>) -> impl Iterator<Item = Block<'a>> {
    let size = cache.width * TOKENS;
    spans.iter().flat_map(move |span| {
        let seen = span.keys.clone();
        (seen.start / TOKENS..seen.end.div_ceil(TOKENS)).map(move |index| {
            let first = index * TOKENS;
            let at = span.blocks[index] as usize * cache.stride;
            Block {
                keys: &cache.keys[at..at + size],
                values: &cache.values[at..at + size],
                visible: (
                    seen.start.saturating_sub(first),
                    (seen.end - first).min(TOKENS),
                ),
                repeats: span.repeats as f32,
            }
        })
    })
}

/// As [`super::look::look`], for any number of queries.
///
/// # Safety
/// The units are usable.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub(super) unsafe fn look(queries: &[f32], spans: &[Span], cache: Cache<'_>, out: &mut [f32]) {
    let width = cache.width;
    let count = queries.len() / width;
    assert_eq!(out.len(), queries.len());
    // SAFETY: by this function's contract; the tiles are used here alone.
    unsafe {
        let mut piece = Piece::new(queries, width);
        let mut shaped = 0;
        for block in seen(spans, cache) {
            piece.pack(&block, width);
            for first in (0..count).step_by(COUNT) {
                let rows = (count - first).min(COUNT);
                if rows != shaped {
                    let (left, right) = ((rows, COUNT), (COUNT, COUNT));
                    shape([left, left, left, right, right, left, left, right]);
                    shaped = rows;
                }
                piece.take(&block, first, rows);
            }
        }
        release();
        piece.write(out, width);
    }
}

/// A bit for each of the first lanes of a register.
#[inline]
fn lanes(count: usize) -> u16 {
    ((1_u32 << count) - 1) as u16
}

/// The first numbers of a slice, at most a register's worth; zeros behind them.
#[inline]
#[target_feature(enable = "avx512f")]
fn some(numbers: &[f32]) -> __m512 {
    // SAFETY: lanes beyond the slice are not read.
    unsafe { _mm512_maskz_loadu_ps(lanes(numbers.len().min(COUNT)), numbers.as_ptr()) }
}

/// Two registers rounded to bfloat16, one after the other.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn rounded(first: __m512, second: __m512) -> __m512i {
    let both: __m512bh = _mm512_cvtne2ps_pbh(second, first);
    // SAFETY: both are 64 bytes of any content.
    unsafe { std::mem::transmute(both) }
}

/// The same, one number of each in turn.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn in_turn(first: __m512, second: __m512) -> __m512i {
    const PLACES: [u16; 2 * COUNT] = {
        let mut places = [0; 2 * COUNT];
        let mut at = 0;
        while at < places.len() {
            places[at] = (at / 2 + at % 2 * COUNT) as u16;
            at += 1;
        }
        places
    };
    // SAFETY: the table fills a register.
    let places = unsafe { _mm512_loadu_si512(PLACES.as_ptr().cast()) };
    _mm512_permutexvar_epi16(places, rounded(first, second))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn put(row: &mut Row, numbers: __m512i) {
    // SAFETY: a row is as long as a register.
    unsafe { _mm512_storeu_si512((&raw mut *row).cast(), numbers) };
}

impl Piece {
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    fn new(queries: &[f32], width: usize) -> Self {
        let (parts, strips) = (width.div_ceil(2 * COUNT), width.div_ceil(COUNT));
        let count = queries.len() / width;
        let mut piece = Self {
            parts,
            strips,
            queries: vec![EMPTY; count * parts],
            keys: vec![EMPTY; parts * TOKENS],
            values: vec![EMPTY; strips * COUNT],
            sums: vec![EMPTY; count * strips],
            totals: vec![EMPTY; count],
            largest: vec![f32::NEG_INFINITY; count.next_multiple_of(COUNT)],
        };
        for (query, numbers) in queries.chunks_exact(width).enumerate() {
            let first = query / COUNT * COUNT;
            let rows = (count - first).min(COUNT);
            for (part, numbers) in numbers.chunks(2 * COUNT).enumerate() {
                let at = first * parts + part * rows + query - first;
                let second = numbers.get(COUNT..).unwrap_or(&[]);
                put(&mut piece.queries[at], rounded(some(numbers), some(second)));
            }
        }
        piece
    }

    /// Makes tiles of a block's keys and values; values that are not seen become zeros.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    fn pack(&mut self, block: &Block<'_>, width: usize) {
        for (pair, keys) in block.keys.chunks(2 * TOKENS).enumerate() {
            let at = pair / COUNT * 2 * COUNT + pair % COUNT;
            for (half, keys) in [keys, &keys[COUNT..]].into_iter().enumerate() {
                let second = keys.get(TOKENS..).unwrap_or(&[]);
                let pair = in_turn(some(keys), some(second));
                put(&mut self.keys[at + half * COUNT], pair);
            }
        }
        let (begin, end) = block.visible;
        let strips = self.values.as_chunks_mut::<COUNT>().0;
        for (strip, rows) in strips.iter_mut().enumerate() {
            let lanes = lanes((width - strip * COUNT).min(COUNT));
            for (pair, row) in rows.iter_mut().enumerate() {
                let mut tokens = [_mm512_setzero_ps(); 2];
                for (odd, numbers) in tokens.iter_mut().enumerate() {
                    let token = 2 * pair + odd;
                    if begin <= token && token < end {
                        let from = &block.values[token * width + strip * COUNT..];
                        // SAFETY: lanes beyond the token's numbers are not read.
                        *numbers = unsafe { _mm512_maskz_loadu_ps(lanes, from.as_ptr()) };
                    }
                }
                put(row, in_turn(tokens[0], tokens[1]));
            }
        }
    }

    /// Takes a block into the results of up to sixteen queries.
    ///
    /// # Safety
    /// The tiles are shaped for so many queries, all of which there are.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512bf16")]
    unsafe fn take(&mut self, block: &Block<'_>, first: usize, rows: usize) {
        let mut scores = [[EMPTY; 2]; COUNT];
        let mut weights = [EMPTY; COUNT];
        // SAFETY: by this function's contract; lanes need the instructions that are there.
        unsafe {
            self.score(first, rows, &mut scores);
            let fades = self.weigh(block, first, &mut scores[..rows], &mut weights);
            if let Some(fades) = fades {
                let sums = &mut self.sums[first * self.strips..][..rows * self.strips];
                for (sums, fade) in sums.chunks_exact_mut(self.strips).zip(fades) {
                    for sum in sums {
                        let place = sum.0.as_mut_ptr();
                        __m512::load(place).mul(__m512::splat(fade)).store(place);
                    }
                }
            }
            self.add(first, &weights);
        }
    }

    /// The products of some queries with all keys.
    ///
    /// # Safety
    /// As [`Piece::take`].
    unsafe fn score(&self, first: usize, rows: usize, scores: &mut [[Row; 2]; COUNT]) {
        let queries = self.queries[first * self.parts..].as_ptr();
        // SAFETY: there are `parts` tiles of queries and twice as many of keys; all scores have room.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "2:",
                "tileloadd tmm2, [{queries} + {row}*1]",
                "tileloadd tmm3, [{keys} + {row}*1]",
                "tdpbf16ps tmm0, tmm2, tmm3",
                "tileloadd tmm4, [{keys} + {row}*1 + {tile}]",
                "tdpbf16ps tmm1, tmm2, tmm4",
                "add {queries}, {step}",
                "add {keys}, 2 * {tile}",
                "dec {parts}",
                "jnz 2b",
                "tilestored [{scores} + {row}*2], tmm0",
                "tilestored [{scores} + {row}*2 + {size}], tmm1",
                queries = inout(reg) queries => _,
                keys = inout(reg) self.keys.as_ptr() => _,
                parts = inout(reg) self.parts => _,
                scores = in(reg) scores.as_mut_ptr(),
                row = in(reg) ROW,
                step = in(reg) rows * ROW,
                tile = const TILE,
                size = const ROW,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _,
                options(nostack),
            );
        }
    }

    /// Turns scores into weights; tells what results so far are to be multiplied by, if by anything.
    ///
    /// # Safety
    /// The processor has the instructions.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512bf16")]
    unsafe fn weigh(
        &mut self,
        block: &Block<'_>,
        first: usize,
        scores: &mut [[Row; 2]],
        weights: &mut [Row; COUNT],
    ) -> Option<[f32; COUNT]> {
        let (begin, end) = block.visible;
        let hidden = [0, COUNT].map(|from| {
            let bits = (from..from + COUNT).filter(|token| !(begin..end).contains(token));
            bits.fold(0_u16, |bits, token| bits | 1 << (token - from))
        });
        let largest = &mut self.largest[first..][..COUNT];
        // SAFETY: rows are as long as registers; the rest by this function's contract.
        unsafe {
            let before = __m512::load(largest.as_ptr());
            let mut tops = [f32::NEG_INFINITY; COUNT];
            for (top, scores) in tops.iter_mut().zip(scores.iter_mut()) {
                let mut all = _mm512_set1_ps(f32::NEG_INFINITY);
                for (scores, hidden) in scores.iter_mut().zip(hidden) {
                    let place = scores.0.as_mut_ptr();
                    let seen = __m512::load(place);
                    if hidden != 0 {
                        let nothing = _mm512_set1_ps(f32::NEG_INFINITY);
                        _mm512_mask_mov_ps(seen, hidden, nothing).store(place);
                    }
                    all = __m512::load(place).max(all);
                }
                *top = _mm512_reduce_max_ps(all);
            }
            let now = __m512::load(tops.as_ptr()).max(before);
            now.store(largest.as_mut_ptr());
            let mut fades = [1.0; COUNT];
            before.sub(now).exp().store(fades.as_mut_ptr());
            let repeats = __m512::splat(block.repeats);
            for (query, scores) in scores.iter().enumerate() {
                let top = __m512::splat(largest[query]);
                let mut halves = [_mm512_setzero_ps(); 2];
                for (half, weights) in halves.iter_mut().enumerate() {
                    let exact = __m512::load(scores[half].0.as_ptr()).sub(top).exp();
                    // The smallest that `exp` gives is more than nothing.
                    let nothing = _mm512_setzero_ps();
                    *weights = _mm512_mask_mov_ps(exact.mul(repeats), hidden[half], nothing);
                }
                let [left, right] = halves;
                put(&mut weights[query], rounded(left, right));
                let total = self.totals[first + query].0.as_mut_ptr();
                let faded = __m512::load(total).mul(__m512::splat(fades[query]));
                faded.add(left.add(right)).store(total);
            }
            let rows = scores.len();
            fades[..rows]
                .iter()
                .any(|fade| *fade != 1.0)
                .then_some(fades)
        }
    }

    /// Adds the weighted values to the results of some queries.
    ///
    /// # Safety
    /// As [`Piece::take`].
    unsafe fn add(&mut self, first: usize, weights: &[Row; COUNT]) {
        let sums = self.sums[first * self.strips..].as_mut_ptr();
        // SAFETY: there are `strips` tiles of values, and of sums beside each other.
        unsafe {
            asm!(
                "tileloadd tmm6, [{weights} + {row}*1]",
                "2:",
                "tileloadd tmm5, [{sums} + {stride}*1]",
                "tileloadd tmm7, [{values} + {row}*1]",
                "tdpbf16ps tmm5, tmm6, tmm7",
                "tilestored [{sums} + {stride}*1], tmm5",
                "add {sums}, {row}",
                "add {values}, {tile}",
                "dec {strips}",
                "jnz 2b",
                weights = in(reg) weights.as_ptr(),
                sums = inout(reg) sums => _,
                values = inout(reg) self.values.as_ptr() => _,
                strips = inout(reg) self.strips => _,
                stride = in(reg) self.strips * ROW,
                row = in(reg) ROW,
                tile = const TILE,
                out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }

    /// The results, divided by the sums of their weights.
    #[target_feature(enable = "avx512f")]
    fn write(&self, out: &mut [f32], width: usize) {
        let sums = self.sums.chunks_exact(self.strips).zip(&self.totals);
        for (out, (sums, total)) in out.chunks_exact_mut(width).zip(sums) {
            // SAFETY: a row is as long as a register.
            let total = unsafe { __m512::load(total.0.as_ptr()) };
            let inverse = 1.0 / _mm512_reduce_add_ps(total);
            let numbers = sums.iter().flat_map(|sums| &sums.0);
            for (out, sum) in out.iter_mut().zip(numbers) {
                *out = sum * inverse;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::vision::look::{MOST, look as plain_look};
    use crate::compute::{Bf16, Instructions, wave};

    #[test]
    fn is_close_to_that_of_floats_and_the_same_in_any_company() {
        if Instructions::detect().bf16() != Bf16::Tiles {
            println!("no AMX: attention in bfloat16 is not tested");
            return;
        }
        let span = |blocks: &[u32], keys, repeats| Span {
            blocks: blocks.to_vec(),
            keys,
            repeats,
        };
        for width in [16, 20, 80] {
            let stride = width * TOKENS;
            let (keys, mut values) = (wave(stride * 5, 0.37), wave(stride * 5, 0.73));
            // What nobody sees may be anything.
            values[4 * stride + TOKENS * width - 1] = f32::NAN;
            let cache = Cache {
                keys: &keys,
                values: &values,
                stride,
                width,
            };
            let spans = [
                span(&[1, 4], 31..33, 1),
                span(&[0], 0..17, 7),
                span(&[3, 2], 40..64, 2),
            ];
            let queries: Vec<f32> = wave(width * 43, 1.1).iter().map(|x| x / 4.0).collect();
            let mut plain = vec![0.0; queries.len()];
            for (queries, plain) in queries
                .chunks(MOST * width)
                .zip(plain.chunks_mut(MOST * width))
            {
                plain_look(Instructions::Scalar, queries, &spans, cache, plain);
            }
            let mut found = vec![9.0; queries.len()];
            // SAFETY: the units are usable.
            unsafe { look(&queries, &spans, cache, &mut found) };
            for (found, plain) in found.iter().zip(&plain) {
                assert!((found - plain).abs() < 2e-2, "{found} for {plain}");
            }
            for part in [1, 16, 17] {
                let mut alone = vec![9.0; part * width];
                // SAFETY: as above.
                unsafe { look(&queries[..part * width], &spans, cache, &mut alone) };
                assert_eq!(alone, found[..part * width]);
            }
        }
    }
}
