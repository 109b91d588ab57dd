//! Products of bfloat16 in vector registers: one register holds a pair of columns of sixteen outputs.

use std::arch::x86_64::{
    __m512, __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_loadu_si512, _mm512_mask_storeu_ps,
    _mm512_maskz_loadu_ps, _mm512_set1_epi32, _mm512_setzero_ps,
};
use std::ops::Range;

use super::by_tiles;
use crate::compute::matrix::GROUP;
use crate::compute::rounded::{PAIRS, Part, ROW, TILE};

/// Input rows and groups of outputs whose sums are in registers at a time: half a part of the input.
const ROWS: usize = 8;
const GROUPS: usize = 2;

/// Multiplies some rows with some groups.
///
/// # Safety
/// The processor has the instructions. The part's rows begin with a part of the input's and its weights and outputs are there.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(in crate::compute) unsafe fn multiply(part: &Part<'_>) {
    for blocks in part.depths() {
        for groups in part.together::<GROUPS>() {
            for first in part.rows.clone().step_by(GROUP) {
                let rows = (part.rows.end - first).min(GROUP);
                by_tiles!(ROWS, rows, |row, N| {
                    // SAFETY: the rows are those of one part of sixteen; the rest by this function's contract.
                    unsafe { tile::<N>(part, first + row, groups, blocks.clone()) }
                });
            }
        }
    }
}

/// Adds the products of some blocks of `N` rows to their sums, which begin with the first block.
///
/// # Safety
/// As [`multiply`]; rows, groups and blocks lie in the part, the rows in one part of sixteen.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn tile<const N: usize>(
    part: &Part<'_>,
    row: usize,
    groups: [usize; GROUPS],
    blocks: Range<usize>,
) {
    let lanes = u16::MAX >> (GROUP - part.lanes(groups[0]));
    let (input, step) = part.input.tile(row, blocks.start);
    let weights = groups.map(|group| part.weights(group, blocks.start));
    let mut sums = [[_mm512_setzero_ps(); GROUPS]; N];
    // SAFETY: by this function's contract; only the lanes that there are are read and written.
    unsafe {
        if blocks.start > 0 {
            for (at, sums) in sums.iter_mut().enumerate() {
                *sums =
                    groups.map(|group| _mm512_maskz_loadu_ps(lanes, part.place(row + at, group)));
            }
        }
        for block in 0..blocks.len() {
            let input = input.as_ptr().add(block * step);
            for pair in 0..PAIRS {
                let weights = weights.map(|weights| {
                    let at = weights.add(block * TILE + pair * ROW);
                    _mm512_loadu_si512(at.cast::<__m512i>())
                });
                for (at, sums) in sums.iter_mut().enumerate() {
                    let x = input.add(at * ROW + pair * size_of::<i32>());
                    let x = _mm512_set1_epi32(x.cast::<i32>().read_unaligned());
                    for (sum, weights) in sums.iter_mut().zip(weights) {
                        *sum = add(*sum, weights, x);
                    }
                }
            }
        }
        for (at, sums) in sums.iter().enumerate() {
            for (sum, group) in sums.iter().zip(groups) {
                _mm512_mask_storeu_ps(part.place(row + at, group), lanes, *sum);
            }
        }
    }
}

/// Adds the products of sixteen pairs to sixteen sums.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn add(sums: __m512, one: __m512i, other: __m512i) -> __m512 {
    // SAFETY: both are 64 bytes without rules of their own.
    let (one, other) = unsafe {
        (
            std::mem::transmute::<__m512i, __m512bh>(one),
            std::mem::transmute::<__m512i, __m512bh>(other),
        )
    };
    _mm512_dpbf16_ps(sums, one, other)
}
