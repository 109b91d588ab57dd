//! Kernels for processors with AVX-512 and VNNI: one register holds one column quad of sixteen rows.
//!
//! `vpdpbusd` multiplies unsigned by signed bytes, so weights are kept unsigned and inputs signed.
//! A tile of some input rows shares each load of the weights, and two groups of sixteen outputs each load of the input.

use std::arch::x86_64::{
    __m256i, __m512, __m512i, _mm256_loadu_si256, _mm512_add_epi32, _mm512_and_si512,
    _mm512_castsi512_ps, _mm512_cvtepi32_ps, _mm512_cvtph_ps, _mm512_dpbusd_epi32, _mm512_fmadd_ps,
    _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mul_ps, _mm512_set1_epi8, _mm512_set1_epi32,
    _mm512_set1_ps, _mm512_setzero_ps, _mm512_setzero_si512, _mm512_shuffle_epi8,
    _mm512_slli_epi32, _mm512_srli_epi16, _mm512_storeu_ps,
};

pub(super) mod bf16;

use super::matmul::{BlockInput, GroupOutput};
use super::matrix::{BLOCK, GROUP};
use super::quants::NON_LINEAR;

/// Input rows that share each load of quantised weights. With two groups and two bytes a number they take sixteen registers
/// for a block's sums and eight for the row's.
const TILE: usize = 4;

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

/// Writes the sums of a tile: for each row those of `G` groups.
///
/// # Safety
/// The processor has AVX-512F.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store<const N: usize, const G: usize>(
    sums: &[[__m512; G]; N],
    first: usize,
    outs: &[GroupOutput; G],
) {
    for (row, sums) in sums.iter().enumerate() {
        for (sum, out) in sums.iter().zip(outs) {
            let mut values = [0_f32; GROUP];
            // SAFETY: the array holds sixteen floats.
            unsafe { _mm512_storeu_ps(values.as_mut_ptr(), *sum) };
            out.write(first + row, &values);
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

/// `G` neighbouring groups of a byte matrix; with `NAMED`, of a matrix whose nibbles name the bytes.
///
/// # Safety
/// The processor has the instructions; the slices hold `G * input.blocks` blocks.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
pub(super) unsafe fn q8<const NAMED: bool, const G: usize>(
    quants: &[u8],
    scales: &[u8],
    input: &BlockInput<'_>,
    outs: &[GroupOutput; G],
) {
    by_tiles!(TILE, input.rows, |first, N| {
        // SAFETY: `first + N` is at most the number of rows; the rest by this function's contract.
        unsafe { q8_tile::<N, NAMED, G>(quants, scales, input, first, outs) }
    });
}

/// [`NON_LINEAR`] from 0 to 255 around 128, in every quarter of a register.
const CODES: [u8; 64] = {
    let mut codes = [0; 64];
    let mut index = 0;
    while index < codes.len() {
        codes[index] = NON_LINEAR[index % 16].cast_unsigned() ^ 0x80;
        index += 1;
    }
    codes
};

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

/// `128 * high + low`, as floats.
#[inline]
#[target_feature(enable = "avx512f")]
fn joined(high: __m512i, low: __m512i) -> __m512 {
    _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32::<7>(high), low))
}

/// # Safety
/// As [`q8`], for `N` rows from `first` on.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
unsafe fn q8_tile<const N: usize, const NAMED: bool, const G: usize>(
    quants: &[u8],
    scales: &[u8],
    input: &BlockInput<'_>,
    first: usize,
    outs: &[GroupOutput; G],
) {
    let blocks = input.blocks;
    let nibble = _mm512_set1_epi8(15);
    // SAFETY: the table fills a register.
    let codes = unsafe { _mm512_loadu_si512(CODES.as_ptr().cast::<__m512i>()) };
    let mut sums = [[_mm512_setzero_ps(); G]; N];
    for block in 0..blocks {
        // SAFETY: block, rows and lanes lie inside the slices by this function's contract.
        unsafe {
            let mut highs = [[_mm512_setzero_si512(); G]; N];
            let mut lows = [[_mm512_setzero_si512(); G]; N];
            for (row, lows) in lows.iter_mut().enumerate() {
                let offset = *input.offsets.as_ptr().add((first + row) * blocks + block);
                lows.fill(_mm512_set1_epi32(offset));
            }
            for index in 0..8 {
                let mut weight = [_mm512_setzero_si512(); G];
                for (group, weight) in weight.iter_mut().enumerate() {
                    let at = if NAMED {
                        (group * blocks + block) * 256 + index % 4 * 64
                    } else {
                        (group * blocks + block) * 512 + index * 64
                    };
                    let bytes = _mm512_loadu_si512(quants.as_ptr().add(at).cast::<__m512i>());
                    *weight = match (NAMED, index / 4) {
                        (false, _) => bytes,
                        (true, 0) => _mm512_shuffle_epi8(codes, _mm512_and_si512(bytes, nibble)),
                        (true, _) => {
                            let upper = _mm512_srli_epi16::<4>(bytes);
                            _mm512_shuffle_epi8(codes, _mm512_and_si512(upper, nibble))
                        }
                    };
                }
                for row in 0..N {
                    let x = input
                        .quants
                        .as_ptr()
                        .add(((first + row) * blocks + block) * 2 * BLOCK + index * 4);
                    let (high, low) = (quad(x), quad(x.add(BLOCK)));
                    for group in 0..G {
                        highs[row][group] =
                            _mm512_dpbusd_epi32(highs[row][group], weight[group], high);
                        lows[row][group] =
                            _mm512_dpbusd_epi32(lows[row][group], weight[group], low);
                    }
                }
            }
            for group in 0..G {
                let scale = halves(scales.as_ptr().add((group * blocks + block) * 32));
                for row in 0..N {
                    let at = (first + row) * blocks + block;
                    let x = _mm512_set1_ps(*input.scales.as_ptr().add(at));
                    sums[row][group] = _mm512_fmadd_ps(
                        joined(highs[row][group], lows[row][group]),
                        _mm512_mul_ps(scale, x),
                        sums[row][group],
                    );
                }
            }
        }
    }
    // SAFETY: the instructions are there.
    unsafe { store(&sums, first, outs) };
}

/// `G` neighbouring groups of a nibble matrix.
///
/// # Safety
/// The processor has the instructions; the slices hold `G * input.blocks` blocks.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
pub(super) unsafe fn q4<const G: usize>(
    quants: &[u8],
    scales: &[u8],
    mins: &[u8],
    input: &BlockInput<'_>,
    outs: &[GroupOutput; G],
) {
    by_tiles!(TILE, input.rows, |first, N| {
        // SAFETY: `first + N` is at most the number of rows; the rest by this function's contract.
        unsafe { q4_tile::<N, G>(quants, scales, mins, input, first, outs) }
    });
}

/// # Safety
/// As [`q4`], for `N` rows from `first` on.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
unsafe fn q4_tile<const N: usize, const G: usize>(
    quants: &[u8],
    scales: &[u8],
    mins: &[u8],
    input: &BlockInput<'_>,
    first: usize,
    outs: &[GroupOutput; G],
) {
    let blocks = input.blocks;
    let nibble = _mm512_set1_epi8(15);
    let mut sums = [[_mm512_setzero_ps(); G]; N];
    for block in 0..blocks {
        // SAFETY: block, rows and lanes lie inside the slices by this function's contract.
        unsafe {
            let mut highs = [[_mm512_setzero_si512(); G]; N];
            let mut lows = [[_mm512_setzero_si512(); G]; N];
            for index in 0..4 {
                let mut bytes = [_mm512_setzero_si512(); G];
                for (group, bytes) in bytes.iter_mut().enumerate() {
                    let at = (group * blocks + block) * 256 + index * 64;
                    *bytes = _mm512_loadu_si512(quants.as_ptr().add(at).cast::<__m512i>());
                }
                let (mut lower, mut upper) = (bytes, bytes);
                for group in 0..G {
                    lower[group] = _mm512_and_si512(bytes[group], nibble);
                    upper[group] = _mm512_and_si512(_mm512_srli_epi16::<4>(bytes[group]), nibble);
                }
                for row in 0..N {
                    let x = input
                        .quants
                        .as_ptr()
                        .add(((first + row) * blocks + block) * 2 * BLOCK + index * 4);
                    let (high, low) = (quad(x), quad(x.add(BLOCK)));
                    for group in 0..G {
                        highs[row][group] =
                            _mm512_dpbusd_epi32(highs[row][group], lower[group], high);
                        lows[row][group] = _mm512_dpbusd_epi32(lows[row][group], lower[group], low);
                    }
                    let (high, low) = (quad(x.add(16)), quad(x.add(BLOCK + 16)));
                    for group in 0..G {
                        highs[row][group] =
                            _mm512_dpbusd_epi32(highs[row][group], upper[group], high);
                        lows[row][group] = _mm512_dpbusd_epi32(lows[row][group], upper[group], low);
                    }
                }
            }
            for group in 0..G {
                let at = (group * blocks + block) * 32;
                let scale = halves(scales.as_ptr().add(at));
                let min = halves(mins.as_ptr().add(at));
                for row in 0..N {
                    let at = (first + row) * blocks + block;
                    let x = _mm512_set1_ps(*input.scales.as_ptr().add(at));
                    let sum = &mut sums[row][group];
                    *sum = _mm512_fmadd_ps(
                        joined(highs[row][group], lows[row][group]),
                        _mm512_mul_ps(scale, x),
                        *sum,
                    );
                    *sum = _mm512_fmadd_ps(min, _mm512_set1_ps(*input.sums.as_ptr().add(at)), *sum);
                }
            }
        }
    }
    // SAFETY: the instructions are there.
    unsafe { store(&sums, first, outs) };
}
