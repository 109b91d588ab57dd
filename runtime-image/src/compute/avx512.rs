//! Kernels for processors with AVX-512 and VNNI: one register holds one or more columns of sixteen outputs.
//!
//! A tile of some input rows shares each load of float weights, and two groups of sixteen outputs each load of the input.

use std::arch::x86_64::{
    __m256i, __m512, __m512i, _mm256_loadu_si256, _mm512_and_si512, _mm512_castsi512_ps,
    _mm512_cvtph_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mask_storeu_ps,
    _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_slli_epi32,
};

pub(super) mod bf16;
pub(super) mod blocks;

use super::matmul::GroupOutput;
use super::matrix::GROUP;

/// Input rows that share each load of floats.
const FLOAT_TILE: usize = 8;

/// Calls `$kernel::<N>(…, first row, …)` for tiles of `$tile` rows and once for what is left.
macro_rules! by_tiles {
    ($tile:expr, $rows:expr, |$first:ident, $n:ident| $call:expr) => {{
        let mut $first = 0;
        while $first + $tile <= $rows {
            const $n: usize = $tile;
            $call;
            $first += $tile;
        }
        match $rows - $first {
            1 => {
                const $n: usize = 1;
                $call
            }
            2 => {
                const $n: usize = 2;
                $call
            }
            3 => {
                const $n: usize = 3;
                $call
            }
            4 => {
                const $n: usize = 4;
                $call
            }
            5 => {
                const $n: usize = 5;
                $call
            }
            6 => {
                const $n: usize = 6;
                $call
            }
            7 => {
                const $n: usize = 7;
                $call
            }
            _ => {}
        }
    }};
}

use by_tiles;

/// Writes the sums of some rows from `first` on: for each those of `G` groups.
///
/// # Safety
/// The processor has AVX-512F.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store<const G: usize>(sums: &[[__m512; G]], first: usize, outs: &[GroupOutput; G]) {
    for (row, sums) in sums.iter().enumerate() {
        for (sum, out) in sums.iter().zip(outs) {
            let out = out.of(first + row);
            let lanes = u16::MAX >> (GROUP - out.len());
            // SAFETY: only the lanes that there are are written.
            unsafe { _mm512_mask_storeu_ps(out.as_mut_ptr(), lanes, *sum) };
        }
    }
}

/// `G` neighbouring groups of a float matrix; `KIND` 0 is f32, 1 f16, 2 bf16.
///
/// # Safety
/// The processor has the instructions; `weights` holds `G` groups' numbers, `input` `rows * columns`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,f16c")]
pub(super) unsafe fn floats<const KIND: u8, const G: usize>(
    weights: &[u8],
    input: &[f32],
    columns: usize,
    rows: usize,
    outs: &[GroupOutput; G],
) {
    by_tiles!(FLOAT_TILE, rows, |first, N| {
        // SAFETY: `first + N` is at most `rows`; the rest by this function's contract.
        unsafe {
            let input = input.as_ptr().add(first * columns);
            if KIND == 2 {
                pairs_tile::<N, G>(weights, input, columns, first, outs);
            } else {
                floats_tile::<KIND, N, G>(weights.as_ptr(), input, columns, first, outs);
            }
        }
    });
}

/// # Safety
/// As [`floats`], for `N` rows from `input` on.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,f16c")]
unsafe fn floats_tile<const KIND: u8, const N: usize, const G: usize>(
    weights: *const u8,
    input: *const f32,
    columns: usize,
    first: usize,
    outs: &[GroupOutput; G],
) {
    let mut sums = [[_mm512_setzero_ps(); G]; N];
    for column in 0..columns {
        let mut weight = [_mm512_setzero_ps(); G];
        for (group, weight) in weight.iter_mut().enumerate() {
            let at = (group * columns + column) * GROUP;
            // SAFETY: inside the groups' numbers.
            *weight = unsafe {
                match KIND {
                    0 => _mm512_loadu_ps(weights.add(at * 4).cast()),
                    _ => halves(weights.add(at * 2)),
                }
            };
        }
        for (row, sums) in sums.iter_mut().enumerate() {
            // SAFETY: inside the tile's rows.
            let x = _mm512_set1_ps(unsafe { *input.add(row * columns + column) });
            for (sum, weight) in sums.iter_mut().zip(&weight) {
                *sum = _mm512_fmadd_ps(*weight, x, *sum);
            }
        }
    }
    // SAFETY: the instructions are there.
    unsafe { store(&sums, first, outs) };
}

/// The even ones of sixteen rows' pairs of bfloat16, and the odd ones.
///
/// # Safety
/// 64 bytes are readable; the processor has AVX-512F.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn even_and_odd(at: *const u8) -> [__m512; 2] {
    // SAFETY: by this function's contract.
    let pairs = unsafe { _mm512_loadu_si512(at.cast::<__m512i>()) };
    let odd = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000_u32.cast_signed()));
    [
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs)),
        _mm512_castsi512_ps(odd),
    ]
}

/// [`floats_tile`] with weights of bfloat16, which lie in pairs of columns.
///
/// # Safety
/// As [`floats`], for `N` rows from `input` on.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,f16c")]
unsafe fn pairs_tile<const N: usize, const G: usize>(
    weights: &[u8],
    input: *const f32,
    columns: usize,
    first: usize,
    outs: &[GroupOutput; G],
) {
    let size = weights.len() / G;
    let mut sums = [[_mm512_setzero_ps(); G]; N];
    let pair = |at: usize| {
        let mut pair = [[_mm512_setzero_ps(); 2]; G];
        for (group, pair) in pair.iter_mut().enumerate() {
            // SAFETY: inside the groups' numbers.
            *pair = unsafe { even_and_odd(weights.as_ptr().add(group * size + at * GROUP * 4)) };
        }
        pair
    };
    for at in 0..columns / 2 {
        let weight = pair(at);
        for odd in 0..2 {
            for (row, sums) in sums.iter_mut().enumerate() {
                // SAFETY: inside the tile's rows.
                let x = _mm512_set1_ps(unsafe { *input.add(row * columns + 2 * at + odd) });
                for (sum, weight) in sums.iter_mut().zip(&weight) {
                    *sum = _mm512_fmadd_ps(weight[odd], x, *sum);
                }
            }
        }
    }
    if columns % 2 == 1 {
        let weight = pair(columns / 2);
        for (row, sums) in sums.iter_mut().enumerate() {
            // SAFETY: as above.
            let x = _mm512_set1_ps(unsafe { *input.add(row * columns + columns - 1) });
            for (sum, [even, _]) in sums.iter_mut().zip(&weight) {
                *sum = _mm512_fmadd_ps(*even, x, *sum);
            }
        }
    }
    // SAFETY: the instructions are there.
    unsafe { store(&sums, first, outs) };
}

/// Sixteen halves as floats.
///
/// # Safety
/// 32 bytes are readable; the processor has AVX-512F.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn halves(at: *const u8) -> __m512 {
    // SAFETY: by this function's contract.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(at.cast::<__m256i>()) })
}
