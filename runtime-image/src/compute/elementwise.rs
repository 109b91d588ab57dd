//! Operations on one row: norm, rotation, gate, rounding to bytes.
//!
//! Each body is plain Rust written so that the compiler can use vectors; [`by_instructions`] compiles it once per
//! instruction set. Nothing is contracted into one rounding but what says so, so all sets give the same bits.

use super::activation::{Head, RowOutput};
use super::matrix::BLOCK;

/// Width of the partial sums in reductions; fixed, so that results do not depend on the processor.
pub(crate) const LANES: usize = 16;

/// Declares a function that runs `$body` compiled for the processor at hand.
macro_rules! by_instructions {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) = $body:ident) => {
        $(#[$doc])*
        #[expect(clippy::allow_attributes, reason = "the number of arguments differs between the uses of this macro")]
        #[allow(clippy::too_many_arguments, reason = "rows, shapes and results of one kernel")]
        $vis fn $name(instructions: $crate::compute::Instructions, $($arg: $type),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
                #[allow(clippy::too_many_arguments, reason = "as above")]
                fn with_avx512($($arg: $type),*) { $body($($arg),*) }
                #[target_feature(enable = "avx2,fma,f16c")]
                #[allow(clippy::too_many_arguments, reason = "as above")]
                fn with_avx2($($arg: $type),*) { $body($($arg),*) }
                match instructions {
                    // SAFETY: the variant exists only where these instructions were detected.
                    $crate::compute::Instructions::Avx512(_) => return unsafe { with_avx512($($arg),*) },
                    // SAFETY: as above.
                    $crate::compute::Instructions::Avx2 => return unsafe { with_avx2($($arg),*) },
                    $crate::compute::Instructions::Scalar => {}
                }
            }
            #[cfg(not(target_arch = "x86_64"))]
            let _ = instructions;
            $body($($arg),*);
        }
    };
}
pub(crate) use by_instructions;

by_instructions! {
    /// Root mean square norm: `out = x / sqrt(mean(x²) + epsilon) * weight`.
    pub fn rms_norm(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) = rms_norm_body
}

#[inline(always)]
fn rms_norm_body(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    let mut partial = [0_f32; LANES];
    let mut chunks = x.chunks_exact(LANES);
    for chunk in &mut chunks {
        for (partial, value) in partial.iter_mut().zip(chunk) {
            *partial += value * value;
        }
    }
    for (partial, value) in partial.iter_mut().zip(chunks.remainder()) {
        *partial += value * value;
    }
    let square = partial.iter().sum::<f32>() / x.len() as f32;
    let factor = 1.0 / (square + epsilon).sqrt();
    for ((out, value), weight) in out.iter_mut().zip(x).zip(weight) {
        *out = value * factor * weight;
    }
}

by_instructions! {
    /// Adds `x` to `sum`.
    pub fn add(sum: &mut [f32], x: &[f32]) = add_body
}

#[inline(always)]
fn add_body(sum: &mut [f32], x: &[f32]) {
    for (sum, value) in sum.iter_mut().zip(x) {
        *sum += value;
    }
}

by_instructions! {
    /// `out = gate / (1 + exp(-gate)) * up`: the activation of a Llama feed-forward layer.
    pub fn silu_times(gate: &[f32], up: &[f32], out: &mut [f32]) = silu_times_body
}

#[inline(always)]
fn silu_times_body(gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
        *out = gate / (1.0 + exp(-gate)) * up;
    }
}

/// A block has one byte a number where its largest is below so many root mean squares of its row.
const SHORT: f32 = 4.0;

by_instructions! {
    /// Rounds a row to blocks of 32 numbers of 15 bits in two bytes, or of one byte where a block is `short`; explained at
    /// [`super::activation::Activation`].
    pub(super) fn quantize(x: &[f32], out: &RowOutput<'_>) = quantize_body
}

#[inline(always)]
fn quantize_body(x: &[f32], out: &RowOutput<'_>) {
    /// The largest magnitude: high byte 127, low byte 0; in a short block low byte 127.
    const LARGEST: f32 = 127.0 * 128.0;
    const SHORT_LARGEST: f32 = 127.0;
    /// Adding and taking away 1.5 * 2^23 rounds to the nearest whole number, ties to even, for small numbers.
    const ROUNDER: f32 = 12_582_912.0;
    let mut squares = [0_f32; LANES];
    for x in x.as_chunks::<LANES>().0 {
        for (square, value) in squares.iter_mut().zip(x) {
            *square += value * value;
        }
    }
    let limit = SHORT * (squares.iter().sum::<f32>() / x.len() as f32).sqrt();
    for (index, x) in x.chunks_exact(BLOCK).enumerate() {
        // SAFETY: the output is as wide as the row.
        let (quants, head, short) = unsafe { out.block(index) };
        // The bits of magnitudes are in the order of the magnitudes.
        let mut partial = [0_u32; LANES];
        for half in x.as_chunks::<LANES>().0 {
            for (partial, value) in partial.iter_mut().zip(half) {
                *partial = (*partial).max(value.abs().to_bits());
            }
        }
        let largest = f32::from_bits(partial.into_iter().fold(0, u32::max));
        let is_short = largest < limit;
        let most = if is_short { SHORT_LARGEST } else { LARGEST };
        let scale = largest / most;
        let inverse = if largest > 0.0 { most / largest } else { 0.0 };
        let has_high = if is_short { 0 } else { !0 };
        let (high, low) = quants.split_at_mut(BLOCK);
        let mut totals = [0_i32; 2];
        for ((high, low), value) in high.iter_mut().zip(low).zip(x) {
            // The bits of a small whole number after adding 1.5 * 2^23 hold it in their low end, negative ones as well;
            // for a value that is no number they hold anything, and a byte of it is still a byte.
            let whole = (value * inverse + ROUNDER)
                .to_bits()
                .wrapping_sub(ROUNDER.to_bits())
                .cast_signed();
            let whole = whole.clamp(-16_256, 16_256);
            let upper = ((whole + 64) >> 7) & has_high;
            let lower = whole - (upper << 7);
            *high = upper as i8;
            *low = lower as i8;
            totals[0] += upper;
            totals[1] += lower;
        }
        *head = Head {
            scale,
            offsets: totals.map(|total| -128 * total),
            sum: scale * (128 * totals[0] + totals[1]) as f32,
        };
        *short = is_short;
    }
}

by_instructions! {
    /// Rounds numbers to bfloat16, ties to even; two bytes of each.
    pub fn round(x: &[f32], out: &mut [i8]) = round_body
}

#[inline(always)]
fn round_body(x: &[f32], out: &mut [i8]) {
    for (x, out) in x.iter().zip(out.as_chunks_mut::<2>().0) {
        let bits = x.to_bits();
        let rounded = if x.is_nan() {
            bits >> 16 | 0x40
        } else {
            bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16
        };
        *out = (rounded as u16).to_le_bytes().map(u8::cast_signed);
    }
}

/// The larger of two numbers in one instruction; the second where one is no number.
#[inline(always)]
pub(crate) fn higher(one: f32, other: f32) -> f32 {
    if one > other { one } else { other }
}

/// The largest of some numbers, found by halves: a chain of comparisons would be waited for one by one.
#[inline(always)]
pub(crate) fn highest(mut lanes: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] = higher(lanes[lane + half], lanes[lane]);
        }
        half /= 2;
    }
    lanes[0]
}

/// e to the power of `x`, within 2e-7 of the true value, in operations that vectorise.
/// Large arguments give infinity's neighbourhood (e^88), small ones zero's (e^-87).
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const ROUNDER: f32 = 12_582_912.0;
    let x = if x > 88.0 { 88.0 } else { x };
    let x = if x < -87.0 { -87.0 } else { x };
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUNDER);
    let whole = shifted - ROUNDER;
    // ln 2 in two parts, so that the remainder keeps its low bits (Cody and Waite).
    let rest = whole.mul_add(2.121_944_4e-4, whole.mul_add(-0.693_359_4, x));
    let mut sum = 1.987_569_1e-4_f32;
    for factor in [
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        0.166_666_66,
        0.5,
    ] {
        sum = sum.mul_add(rest, factor);
    }
    let power = (sum * rest).mul_add(rest, rest) + 1.0;
    // The low bits of `shifted` hold the whole number; moved to the exponent they multiply by 2^whole.
    f32::from_bits(power.to_bits().wrapping_add(shifted.to_bits() << 23))
}

/// Rotates one head's pairs by the angles of one position, in place.
/// `neighbours` says which numbers form a pair: 2i and 2i+1 (GGUF llama files) or i and i + half (hub files).
pub fn rotate(head: &mut [f32], cosines: &[f32], sines: &[f32], neighbours: bool) {
    let half = cosines.len();
    for index in 0..half {
        let (a, b) = if neighbours {
            (2 * index, 2 * index + 1)
        } else {
            (index, index + half)
        };
        let (x, y) = (head[a], head[b]);
        head[a] = x * cosines[index] - y * sines[index];
        head[b] = x * sines[index] + y * cosines[index];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::Instructions;
    use crate::compute::pool::Shares;

    #[test]
    fn exp_is_close_everywhere_it_is_used() {
        for step in -8_700..8_800 {
            let x = step as f32 / 100.0;
            let (ours, exact) = (f64::from(exp(x)), f64::from(x).exp());
            assert!(
                (ours / exact - 1.0).abs() < 3e-7,
                "exp({x}) = {ours}, not {exact}"
            );
        }
        assert!(exp(-1e9) < 1e-37 && exp(f32::NEG_INFINITY) < 1e-37);
    }

    #[test]
    fn numbers_are_rounded_to_bfloat16_as_everywhere() {
        let mut x: Vec<f32> = (0..0x1_0000_u32)
            .map(|i| f32::from_bits(i.wrapping_mul(0x9e37_79b9)))
            .collect();
        x.extend([f32::INFINITY, f32::NAN, f32::MAX, 1.003_906_2, 1.011_718_8]);
        for set in Instructions::available() {
            let mut out = vec![0; 2 * x.len()];
            round(set, &x, &mut out);
            for (x, out) in x.iter().zip(out.as_chunks::<2>().0) {
                let found = half::bf16::from_le_bytes(out.map(i8::cast_unsigned));
                let expected = half::bf16::from_f32(*x);
                let same = found.to_bits() == expected.to_bits();
                assert!(
                    same || (x.is_nan() && found.is_nan()),
                    "{x:e} with {}",
                    set.name()
                );
            }
        }
    }

    #[test]
    fn all_instruction_sets_round_to_the_same_bytes_within_half_a_step() {
        // Only the second block is not small beside the row.
        const BLOCKS: usize = 12;
        let mut sizes = [0.3; BLOCKS];
        (sizes[1], sizes[2]) = (30.0, 12.0);
        let x: Vec<f32> = (0..BLOCKS * BLOCK)
            .map(|i| (i as f32 * 0.77).sin().powi(9) * sizes[i / BLOCK])
            .collect();
        let run = |set| {
            let mut quants = vec![0; BLOCKS * 2 * BLOCK];
            let (mut heads, mut short) = (vec![Head::default(); BLOCKS], vec![false; BLOCKS]);
            let out = RowOutput {
                quants: &Shares::new(&mut quants),
                heads: &Shares::new(&mut heads),
                short: &Shares::new(&mut short),
                row: 0,
                rows: 1,
            };
            quantize(set, &x, &out);
            (quants, heads, short)
        };
        let plain = run(Instructions::Scalar);
        let expected: Vec<bool> = (0..BLOCKS).map(|block| block != 1).collect();
        assert_eq!(plain.2, expected);
        for (index, value) in x.iter().enumerate() {
            let (block, place) = (index / BLOCK, index % BLOCK);
            let [high, low] =
                [0, BLOCK].map(|half| i16::from(plain.0[block * 2 * BLOCK + half + place]));
            let read = f32::from(high * 128 + low) * plain.1[block].scale;
            let steps = if plain.2[block] { 127.0 } else { 16_256.0 };
            assert!(
                (value - read).abs() <= sizes[block] / steps * 0.51,
                "{read} for {value}"
            );
            assert!(high == 0 || !plain.2[block]);
        }
        for set in Instructions::available() {
            assert_eq!(run(set), plain, "{}", set.name());
        }
    }
}
