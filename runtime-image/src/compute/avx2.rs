//! Kernels for processors with AVX2, FMA and F16C: two registers hold one column quad of sixteen rows.
//!
//! `vpmaddubsw` adds pairs of products in 16 bits, which nibbles never overflow; bytes are multiplied as magnitude times
//! the input with the weight's sign, at most 2 * 128 * 127.

use std::arch::x86_64::{
    __m128i, __m256, __m256i, _mm_loadu_si128, _mm256_abs_epi8, _mm256_add_epi16, _mm256_add_epi32,
    _mm256_and_si256, _mm256_broadcastsi128_si256, _mm256_castsi256_ps, _mm256_cvtepi32_ps,
    _mm256_cvtph_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_loadu_si256, _mm256_madd_epi16,
    _mm256_maddubs_epi16, _mm256_mul_ps, _mm256_set1_epi8, _mm256_set1_epi16, _mm256_set1_epi32,
    _mm256_set1_ps, _mm256_setzero_ps, _mm256_setzero_si256, _mm256_shuffle_epi8, _mm256_sign_epi8,
    _mm256_slli_epi32, _mm256_srli_epi16, _mm256_storeu_ps, _mm256_xor_si256,
};

use super::activation::BlockInput;
use super::matmul::GroupOutput;
use super::matrix::{BLOCK, GROUP};
use super::quants::NON_LINEAR;

/// Input rows computed together; two registers each, of the sixteen that there are.
const TILE: usize = 2;

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
            _ => {}
        }
    }};
}

/// # Safety
/// The processor has AVX.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn store<const N: usize>(sums: &[[__m256; 2]; N], first: usize, out: &GroupOutput) {
    for (row, [low, high]) in sums.iter().enumerate() {
        let mut values = [0_f32; GROUP];
        // SAFETY: the array holds sixteen floats.
        unsafe {
            _mm256_storeu_ps(values.as_mut_ptr(), *low);
            _mm256_storeu_ps(values.as_mut_ptr().add(8), *high);
        }
        out.write(first + row, &values);
    }
}

/// Eight halves as floats.
///
/// # Safety
/// Sixteen bytes are readable; the processor has F16C.
#[inline]
#[target_feature(enable = "avx2,f16c")]
unsafe fn halves(at: *const u8) -> __m256 {
    // SAFETY: by this function's contract.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(at.cast::<__m128i>()) })
}

/// Four signed bytes of an input row, in every lane.
///
/// # Safety
/// Four bytes are readable; the processor has AVX2.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn quad(at: *const i8) -> __m256i {
    // SAFETY: by this function's contract.
    _mm256_set1_epi32(unsafe { at.cast::<i32>().read_unaligned() })
}

/// One group of a float matrix; `KIND` 0 is f32, 1 f16, 2 bf16.
///
/// # Safety
/// The processor has the instructions; `weights` holds the group's numbers, `input` `rows * columns`.
#[target_feature(enable = "avx2,fma,f16c")]
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
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn floats_tile<const KIND: u8, const N: usize>(
    weights: *const u8,
    input: *const f32,
    columns: usize,
    first: usize,
    out: &GroupOutput,
) {
    let odd = _mm256_set1_epi32(0xffff_0000_u32.cast_signed());
    let mut sums = [[_mm256_setzero_ps(); 2]; N];
    for column in 0..columns {
        let mut weight = [_mm256_setzero_ps(); 2];
        for (half, weight) in weight.iter_mut().enumerate() {
            let at = column * GROUP + half * 8;
            // SAFETY: inside the group's numbers.
            *weight = unsafe {
                match KIND {
                    0 => _mm256_loadu_ps(weights.add(at * 4).cast()),
                    1 => halves(weights.add(at * 2)),
                    // Pairs of columns: both are read twice, and once used.
                    _ => {
                        let at = (column / 2 * GROUP + half * 8) * 4;
                        let pairs = _mm256_loadu_si256(weights.add(at).cast::<__m256i>());
                        _mm256_castsi256_ps(if column % 2 == 0 {
                            _mm256_slli_epi32::<16>(pairs)
                        } else {
                            _mm256_and_si256(pairs, odd)
                        })
                    }
                }
            };
        }
        for (row, sums) in sums.iter_mut().enumerate() {
            // SAFETY: inside the tile's rows.
            let x = _mm256_set1_ps(unsafe { *input.add(row * columns + column) });
            for (half, sum) in sums.iter_mut().enumerate() {
                *sum = _mm256_fmadd_ps(weight[half], x, *sum);
            }
        }
    }
    // SAFETY: the instructions are there.
    unsafe { store(&sums, first, out) };
}

/// One group of a byte matrix; with `NAMED`, of a matrix whose nibbles name the bytes.
///
/// # Safety
/// The processor has the instructions; the slices hold `input.blocks` blocks.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn q8<const NAMED: bool>(
    quants: &[u8],
    scales: &[u8],
    input: &BlockInput<'_>,
    out: &GroupOutput,
) {
    by_tiles!(input.rows, |first, N| {
        // SAFETY: `first + N` is at most the number of rows; the rest by this function's contract.
        unsafe { q8_tile::<N, NAMED>(quants, scales, input, first, out) }
    });
}

/// `128 * high + low`, as floats.
#[inline]
#[target_feature(enable = "avx2")]
fn joined(high: __m256i, low: __m256i) -> __m256 {
    _mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_slli_epi32::<7>(high), low))
}

/// # Safety
/// As [`q8`], for `N` rows from `first` on.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn q8_tile<const N: usize, const NAMED: bool>(
    quants: &[u8],
    scales: &[u8],
    input: &BlockInput<'_>,
    first: usize,
    out: &GroupOutput,
) {
    let blocks = input.blocks;
    let (sign, ones) = (_mm256_set1_epi8(-128), _mm256_set1_epi16(1));
    let low = _mm256_set1_epi8(15);
    // SAFETY: the table has sixteen bytes.
    let codes = _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(NON_LINEAR.as_ptr().cast()) });
    let mut sums = [[_mm256_setzero_ps(); 2]; N];
    for block in 0..blocks {
        for half in 0..2 {
            // SAFETY: block, rows and lanes lie inside the slices by this function's contract.
            unsafe {
                let scale = halves(scales.as_ptr().add(block * 32 + half * 16));
                let (mut highs, mut lows) =
                    ([_mm256_setzero_si256(); N], [_mm256_setzero_si256(); N]);
                for index in 0..8 {
                    let at = if NAMED {
                        block * 256 + index % 4 * 64 + half * 32
                    } else {
                        block * 512 + index * 64 + half * 32
                    };
                    let bytes = _mm256_loadu_si256(quants.as_ptr().add(at).cast::<__m256i>());
                    let weight = match (NAMED, index / 4) {
                        (false, _) => _mm256_xor_si256(bytes, sign),
                        (true, 0) => _mm256_shuffle_epi8(codes, _mm256_and_si256(bytes, low)),
                        (true, _) => {
                            let upper = _mm256_srli_epi16::<4>(bytes);
                            _mm256_shuffle_epi8(codes, _mm256_and_si256(upper, low))
                        }
                    };
                    let magnitude = _mm256_abs_epi8(weight);
                    for row in 0..N {
                        let x = input
                            .quants
                            .as_ptr()
                            .add(input.at(first + row, block) * 2 * BLOCK + index * 4);
                        let high =
                            _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(quad(x), weight));
                        let low = _mm256_maddubs_epi16(
                            magnitude,
                            _mm256_sign_epi8(quad(x.add(BLOCK)), weight),
                        );
                        highs[row] = _mm256_add_epi32(highs[row], _mm256_madd_epi16(high, ones));
                        lows[row] = _mm256_add_epi32(lows[row], _mm256_madd_epi16(low, ones));
                    }
                }
                for (row, sums) in sums.iter_mut().enumerate() {
                    let head = &*input.heads.as_ptr().add(input.at(first + row, block));
                    sums[half] = _mm256_fmadd_ps(
                        joined(highs[row], lows[row]),
                        _mm256_mul_ps(scale, _mm256_set1_ps(head.scale)),
                        sums[half],
                    );
                }
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
#[target_feature(enable = "avx2,fma,f16c")]
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
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn q4_tile<const N: usize>(
    quants: &[u8],
    scales: &[u8],
    mins: &[u8],
    input: &BlockInput<'_>,
    first: usize,
    out: &GroupOutput,
) {
    let blocks = input.blocks;
    let (low, ones) = (_mm256_set1_epi8(15), _mm256_set1_epi16(1));
    let mut sums = [[_mm256_setzero_ps(); 2]; N];
    for block in 0..blocks {
        for half in 0..2 {
            // SAFETY: block, rows and lanes lie inside the slices by this function's contract.
            unsafe {
                let scale = halves(scales.as_ptr().add(block * 32 + half * 16));
                let min = halves(mins.as_ptr().add(block * 32 + half * 16));
                let (mut highs, mut lows) =
                    ([_mm256_setzero_si256(); N], [_mm256_setzero_si256(); N]);
                for index in 0..4 {
                    let bytes = quants
                        .as_ptr()
                        .add(block * 256 + index * 64 + half * 32)
                        .cast::<__m256i>();
                    let bytes = _mm256_loadu_si256(bytes);
                    let lower = _mm256_and_si256(bytes, low);
                    let upper = _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), low);
                    for row in 0..N {
                        let x = input
                            .quants
                            .as_ptr()
                            .add(input.at(first + row, block) * 2 * BLOCK + index * 4);
                        // Four products of a nibble and a byte fit 16 bits: 4 * 15 * 127.
                        let high = _mm256_add_epi16(
                            _mm256_maddubs_epi16(lower, quad(x)),
                            _mm256_maddubs_epi16(upper, quad(x.add(16))),
                        );
                        let low = _mm256_add_epi16(
                            _mm256_maddubs_epi16(lower, quad(x.add(BLOCK))),
                            _mm256_maddubs_epi16(upper, quad(x.add(BLOCK + 16))),
                        );
                        highs[row] = _mm256_add_epi32(highs[row], _mm256_madd_epi16(high, ones));
                        lows[row] = _mm256_add_epi32(lows[row], _mm256_madd_epi16(low, ones));
                    }
                }
                for (row, sums) in sums.iter_mut().enumerate() {
                    let head = &*input.heads.as_ptr().add(input.at(first + row, block));
                    let sum = &mut sums[half];
                    *sum = _mm256_fmadd_ps(
                        joined(highs[row], lows[row]),
                        _mm256_mul_ps(scale, _mm256_set1_ps(head.scale)),
                        *sum,
                    );
                    *sum = _mm256_fmadd_ps(min, _mm256_set1_ps(head.sum), *sum);
                }
            }
        }
    }
    // SAFETY: the instructions are there.
    unsafe { store(&sums, first, out) };
}
