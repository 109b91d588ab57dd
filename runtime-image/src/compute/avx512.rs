//! Kernels for processors with AVX-512 and VNNI: one register holds one column quad of sixteen rows.
//!
//! `vpdpbusd` multiplies unsigned by signed bytes, so weights are kept unsigned and inputs signed.
//! A tile of up to [`TILE`] input rows shares each load of the weights.

use std::arch::x86_64::{
    __m256i, __m512, __m512i, _mm256_loadu_si256, _mm512_add_epi32, _mm512_and_si512,
    _mm512_castsi512_ps, _mm512_cvtepi32_ps, _mm512_cvtepu16_epi32, _mm512_cvtph_ps,
    _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mul_ps,
    _mm512_set1_epi8, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_setzero_si512,
    _mm512_slli_epi32, _mm512_srli_epi16, _mm512_storeu_ps,
};

use super::matmul::{BlockInput, GroupOutput};
use super::matrix::{BLOCK, GROUP};

/// Input rows computed together: as many as leave registers for weights, scales and a spare.
const TILE: usize = 8;

/// Calls `$kernel::<N>(…, first row, …)` for tiles of `TILE` rows and once for what is left.
macro_rules! by_tiles {
    ($rows:expr, |$first:ident, $n:ident| $call:expr) => {{
        let mut $first = 0;
        while $first + TILE <= $rows {
            const $n: usize = TILE;
            $call;
            $first += TILE;
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

/// Writes the sums of a tile.
///
/// # Safety
/// The processor has AVX-512F.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store<const N: usize>(sums: &[__m512; N], first: usize, out: &GroupOutput) {
    for (row, sum) in sums.iter().enumerate() {
        let mut values = [0_f32; GROUP];
        // SAFETY: the array holds sixteen floats.
        unsafe { _mm512_storeu_ps(values.as_mut_ptr(), *sum) };
        out.write(first + row, &values);
    }
}

/// One group of a float matrix; `KIND` 0 is f32, 1 f16, 2 bf16.
///
/// # Safety
/// The processor has the instructions; `weights` holds `columns * 16` numbers, `input` `rows * columns`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,f16c")]
pub(super) unsafe fn floats<const KIND: u8>(
    weights: &[u8],
    input: &[f32],
    columns: usize,
    rows: usize,
    out: &GroupOutput,
) {
    by_tiles!(rows, |first, N| {
        // SAFETY: `first + N` is at most `rows`; the rest by this function's contract.
        unsafe {
            floats_tile::<KIND, N>(
                weights.as_ptr(),
                input.as_ptr().add(first * columns),
                columns,
                first,
                out,
            );
        }
    });
}

/// # Safety
/// As [`floats`], for `N` rows from `input` on.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,f16c")]
unsafe fn floats_tile<const KIND: u8, const N: usize>(
    weights: *const u8,
    input: *const f32,
    columns: usize,
    first: usize,
    out: &GroupOutput,
) {
    let mut sums = [_mm512_setzero_ps(); N];
    for column in 0..columns {
        // SAFETY: inside the group's numbers.
        let weight = unsafe {
            match KIND {
                0 => _mm512_loadu_ps(weights.add(column * GROUP * 4).cast()),
                1 => _mm512_cvtph_ps(_mm256_loadu_si256(
                    weights.add(column * GROUP * 2).cast::<__m256i>(),
                )),
                _ => {
                    let halves =
                        _mm256_loadu_si256(weights.add(column * GROUP * 2).cast::<__m256i>());
                    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)))
                }
            }
        };
        for (row, sum) in sums.iter_mut().enumerate() {
            // SAFETY: inside the tile's rows.
            let x = unsafe { *input.add(row * columns + column) };
            *sum = _mm512_fmadd_ps(weight, _mm512_set1_ps(x), *sum);
        }
    }
    // SAFETY: the instructions are there.
    unsafe { store(&sums, first, out) };
}

/// One group of a byte matrix.
///
/// # Safety
/// The processor has the instructions; the slices hold `input.blocks` blocks.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
pub(super) unsafe fn q8(quants: &[u8], scales: &[u8], input: &BlockInput<'_>, out: &GroupOutput) {
    by_tiles!(input.rows, |first, N| {
        // SAFETY: `first + N` is at most the number of rows; the rest by this function's contract.
        unsafe { q8_tile::<N>(quants, scales, input, first, out) }
    });
}

/// Four signed bytes of an input row, in every lane.
///
/// # Safety
/// `at` points to four readable bytes; the processor has AVX-512F.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn quad(at: *const i8) -> __m512i {
    // SAFETY: by this function's contract; alignment is not needed.
    _mm512_set1_epi32(unsafe { at.cast::<i32>().read_unaligned() })
}

/// `128 * high + low`, as floats.
#[inline]
#[target_feature(enable = "avx512f")]
fn joined(high: __m512i, low: __m512i) -> __m512 {
    _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32::<7>(high), low))
}

/// # Safety
/// As [`q8`], for `N` rows from `first` on.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
unsafe fn q8_tile<const N: usize>(
    quants: &[u8],
    scales: &[u8],
    input: &BlockInput<'_>,
    first: usize,
    out: &GroupOutput,
) {
    let blocks = input.blocks;
    let mut sums = [_mm512_setzero_ps(); N];
    for block in 0..blocks {
        // SAFETY: block, rows and lanes lie inside the slices by this function's contract.
        unsafe {
            let scale = _mm512_cvtph_ps(_mm256_loadu_si256(
                scales.as_ptr().add(block * 32).cast::<__m256i>(),
            ));
            let (mut highs, mut lows) = ([_mm512_setzero_si512(); N], [_mm512_setzero_si512(); N]);
            for (row, low) in lows.iter_mut().enumerate() {
                *low =
                    _mm512_set1_epi32(*input.offsets.as_ptr().add((first + row) * blocks + block));
            }
            for index in 0..8 {
                let weight = _mm512_loadu_si512(
                    quants
                        .as_ptr()
                        .add(block * 512 + index * 64)
                        .cast::<__m512i>(),
                );
                for row in 0..N {
                    let x = input
                        .quants
                        .as_ptr()
                        .add(((first + row) * blocks + block) * 2 * BLOCK + index * 4);
                    highs[row] = _mm512_dpbusd_epi32(highs[row], weight, quad(x));
                    lows[row] = _mm512_dpbusd_epi32(lows[row], weight, quad(x.add(BLOCK)));
                }
            }
            for (row, sum) in sums.iter_mut().enumerate() {
                let x = _mm512_set1_ps(*input.scales.as_ptr().add((first + row) * blocks + block));
                *sum =
                    _mm512_fmadd_ps(joined(highs[row], lows[row]), _mm512_mul_ps(scale, x), *sum);
            }
        }
    }
    // SAFETY: the instructions are there.
    unsafe { store(&sums, first, out) };
}

/// One group of a nibble matrix.
///
/// # Safety
/// The processor has the instructions; the slices hold `input.blocks` blocks.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
pub(super) unsafe fn q4(
    quants: &[u8],
    scales: &[u8],
    mins: &[u8],
    input: &BlockInput<'_>,
    out: &GroupOutput,
) {
    by_tiles!(input.rows, |first, N| {
        // SAFETY: `first + N` is at most the number of rows; the rest by this function's contract.
        unsafe { q4_tile::<N>(quants, scales, mins, input, first, out) }
    });
}

/// # Safety
/// As [`q4`], for `N` rows from `first` on.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
unsafe fn q4_tile<const N: usize>(
    quants: &[u8],
    scales: &[u8],
    mins: &[u8],
    input: &BlockInput<'_>,
    first: usize,
    out: &GroupOutput,
) {
    let blocks = input.blocks;
    let low = _mm512_set1_epi8(15);
    let mut sums = [_mm512_setzero_ps(); N];
    for block in 0..blocks {
        // SAFETY: block, rows and lanes lie inside the slices by this function's contract.
        unsafe {
            let scale = _mm512_cvtph_ps(_mm256_loadu_si256(
                scales.as_ptr().add(block * 32).cast::<__m256i>(),
            ));
            let min = _mm512_cvtph_ps(_mm256_loadu_si256(
                mins.as_ptr().add(block * 32).cast::<__m256i>(),
            ));
            let (mut highs, mut lows) = ([_mm512_setzero_si512(); N], [_mm512_setzero_si512(); N]);
            for index in 0..4 {
                let bytes = _mm512_loadu_si512(
                    quants
                        .as_ptr()
                        .add(block * 256 + index * 64)
                        .cast::<__m512i>(),
                );
                let lower = _mm512_and_si512(bytes, low);
                let upper = _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), low);
                for row in 0..N {
                    let x = input
                        .quants
                        .as_ptr()
                        .add(((first + row) * blocks + block) * 2 * BLOCK + index * 4);
                    highs[row] = _mm512_dpbusd_epi32(highs[row], lower, quad(x));
                    lows[row] = _mm512_dpbusd_epi32(lows[row], lower, quad(x.add(BLOCK)));
                    highs[row] = _mm512_dpbusd_epi32(highs[row], upper, quad(x.add(16)));
                    lows[row] = _mm512_dpbusd_epi32(lows[row], upper, quad(x.add(BLOCK + 16)));
                }
            }
            for (row, sum) in sums.iter_mut().enumerate() {
                let at = (first + row) * blocks + block;
                let x = _mm512_set1_ps(*input.scales.as_ptr().add(at));
                *sum =
                    _mm512_fmadd_ps(joined(highs[row], lows[row]), _mm512_mul_ps(scale, x), *sum);
                *sum = _mm512_fmadd_ps(min, _mm512_set1_ps(*input.sums.as_ptr().add(at)), *sum);
            }
        }
    }
    // SAFETY: the instructions are there.
    unsafe { store(&sums, first, out) };
}
