//! Operations on one row: norm with a mean, GELU.

use crate::compute::elementwise::{by_instructions, exp};

/// Width of the partial sums; fixed, so that results do not depend on the processor.
const LANES: usize = 16;

fn sum(x: &[f32], part: impl Fn(f32) -> f32) -> f32 {
    let mut partial = [0_f32; LANES];
    let mut chunks = x.chunks_exact(LANES);
    for chunk in &mut chunks {
        for (partial, value) in partial.iter_mut().zip(chunk) {
            *partial += part(*value);
        }
    }
    for (partial, value) in partial.iter_mut().zip(chunks.remainder()) {
        *partial += part(*value);
    }
    partial.iter().sum()
}

by_instructions! {
    /// `out = (x - mean) / sqrt(variance + epsilon) * weight + bias`.
    pub(super) fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], epsilon: f32, out: &mut [f32]) = layer_norm_body
}

#[inline(always)]
fn layer_norm_body(x: &[f32], weight: &[f32], bias: &[f32], epsilon: f32, out: &mut [f32]) {
    let count = x.len() as f32;
    let mean = sum(x, |value| value) / count;
    let variance = sum(x, |value| (value - mean) * (value - mean)) / count;
    let factor = 1.0 / (variance + epsilon).sqrt();
    for (((out, value), weight), bias) in out.iter_mut().zip(x).zip(weight).zip(bias) {
        *out = (value - mean) * factor * weight + bias;
    }
}

by_instructions! {
    /// `out = x / 2 * (1 + erf(x / sqrt 2))`.
    pub(super) fn gelu(x: &[f32], out: &mut [f32]) = gelu_body
}

#[inline(always)]
fn gelu_body(x: &[f32], out: &mut [f32]) {
    for (out, x) in out.iter_mut().zip(x) {
        // Half the complementary error function of |x| / sqrt 2, which has no cancellation in the tails.
        let tail = 0.5 * x.abs() * erfc(x.abs() * std::f32::consts::FRAC_1_SQRT_2);
        *out = if *x > 0.0 { x - tail } else { -tail };
    }
}

/// The complementary error function of a number that is not negative, within 2e-7.
/// Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26.
#[inline(always)]
fn erfc(x: f32) -> f32 {
    let t = 1.0 / (1.0 + 0.327_591_1 * x);
    let mut polynomial = 1.061_405_4_f32;
    for factor in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
        polynomial = polynomial * t + factor;
    }
    polynomial * t * exp(-x * x)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::Instructions;

    #[test]
    fn gelu_is_the_exact_one_on_every_instruction_set() {
        // By the definition in double precision; the tanh form is off by up to 4.7e-4 at these points.
        let expected = [
            (-4.0_f32, -0.000_126_684_97_f64),
            (-2.0, -0.045_500_263_9),
            (-1.0, -0.158_655_253_9),
            (-0.5, -0.154_268_769_4),
            (0.0, 0.0),
            (0.5, 0.345_731_230_6),
            (1.0, 0.841_344_746_1),
            (3.0, 2.995_950_306_0),
            (40.0, 40.0),
        ];
        for set in Instructions::available() {
            for (x, expected) in expected {
                let mut out = [9.0];
                gelu(set, &[x], &mut out);
                assert!(
                    (f64::from(out[0]) - expected).abs() < 4e-7,
                    "{x}: {}",
                    out[0]
                );
            }
        }
    }

    #[test]
    fn a_norm_takes_the_mean_away_and_a_row_of_zeros_becomes_the_bias() {
        for set in Instructions::available() {
            let mut out = [0.0; 4];
            layer_norm(
                set,
                &[1.0, 2.0, 3.0, 4.0],
                &[1.0; 4],
                &[0.0; 4],
                0.0,
                &mut out,
            );
            for (found, expected) in
                out.iter()
                    .zip([-1.341_640_8, -0.447_213_6, 0.447_213_6, 1.341_640_8])
            {
                assert!((found - expected).abs() < 1e-6, "{found}");
            }
            layer_norm(set, &[0.0; 4], &[2.0; 4], &[0.5; 4], 1e-5, &mut out);
            assert_eq!(out, [0.5; 4]);
        }
    }
}
