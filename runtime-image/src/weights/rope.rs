//! Rotary positions: how fast each pair of a head turns.

/// How the frequencies of a longer context are derived from those the model was first trained with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scaling {
    /// As trained.
    None,
    /// All positions divided by a factor.
    Linear {
        /// At least 1.
        factor: f32,
    },
    /// Llama 3.1's rule: slow pairs are divided, fast ones kept, those between blended.
    Llama3 {
        /// Divisor of the slow pairs.
        factor: f32,
        /// Wavelengths above `original / low` count as slow.
        low: f32,
        /// Wavelengths below `original / high` count as fast.
        high: f32,
        /// Context length of the first training.
        original: f32,
    },
    /// YaRN (arXiv 2309.00071): slow pairs are divided, fast ones kept, those between blended by their number.
    Yarn {
        /// Divisor of the slow pairs.
        factor: f32,
        /// Context length of the first training.
        original: f32,
        /// Pairs that turn more often than this over the original context are fast.
        fast: f32,
        /// Pairs that turn less often than this are slow.
        slow: f32,
    },
}

/// By how much YaRN multiplies cosines and sines where a model names no factor of its own.
#[must_use]
pub fn yarn_scale(factor: f32) -> f32 {
    if factor > 1.0 {
        0.1 * factor.ln() + 1.0
    } else {
        1.0
    }
}

/// The pairs between which YaRN blends: the last fast one and the first slow one.
fn yarn_bounds(rotated: usize, base: f32, scaling: (f32, f32, f32)) -> (f32, f32) {
    let (original, fast, slow) = scaling;
    let pair = |turns: f32| {
        rotated as f32 * (original / (turns * 2.0 * std::f32::consts::PI)).ln() / (2.0 * base.ln())
    };
    let low = pair(fast).floor().max(0.0);
    let high = pair(slow).ceil().min(rotated as f32 - 1.0);
    // Equal bounds would divide by zero; the reference widens them by the same amount.
    (low, if low == high { high + 0.001 } else { high })
}

/// Radians per position for each of `rotated / 2` pairs.
#[must_use]
pub fn frequencies(rotated: usize, base: f32, scaling: Scaling) -> Vec<f32> {
    (0..rotated / 2)
        .map(|pair| {
            let plain = 1.0 / base.powf((2 * pair) as f32 / rotated as f32);
            match scaling {
                Scaling::None => plain,
                Scaling::Linear { factor } => plain / factor,
                Scaling::Llama3 {
                    factor,
                    low,
                    high,
                    original,
                } => {
                    let wavelength = 2.0 * std::f32::consts::PI / plain;
                    if wavelength > original / low {
                        plain / factor
                    } else if wavelength < original / high {
                        plain
                    } else {
                        let smooth = (original / wavelength - low) / (high - low);
                        (1.0 - smooth) * plain / factor + smooth * plain
                    }
                }
                Scaling::Yarn {
                    factor,
                    original,
                    fast,
                    slow,
                } => {
                    let (low, high) = yarn_bounds(rotated, base, (original, fast, slow));
                    let slowness = ((pair as f32 - low) / (high - low)).clamp(0.0, 1.0);
                    plain / factor * slowness + plain * (1.0 - slowness)
                }
            }
        })
        .collect()
}

/// Cosine and sine of a pair that turns by `frequency` radians a position. The angle is a single-precision product, as in
/// the models' reference code: exact angles would be other numbers than those the models were trained with.
#[must_use]
pub fn turned(position: u32, frequency: f32) -> (f32, f32) {
    let angle = f64::from(position as f32 * frequency);
    (angle.cos() as f32, angle.sin() as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Llama 3.1's rule (`apply_scaling` in `models/llama3/model.py` of github.com/meta-llama/llama-models) computed in double
    /// precision with Python: base 500,000, heads of 128, factor 8, low 1, high 4, 8,192 tokens of first training.
    /// Pair, frequency, cosine and sine at position 131,071, the last of a full context, and at 65,536.
    const FAR: [(usize, f64, [f64; 2], [f64; 2]); 10] = [
        (
            0,
            1.0,
            [-0.817983499388, -0.575241683755],
            [-0.721834750913, 0.692065453823],
        ),
        (
            1,
            0.8146172338565447,
            [-0.817316150023, 0.576189474836],
            [0.100111262056, -0.994976248566],
        ),
        (
            13,
            0.06956594961416032,
            [0.383972873431, 0.923344373714],
            [-0.812053758313, -0.583582636487],
        ),
        (
            28,
            0.003211445994752591,
            [0.998943216204, -0.045961405546],
            [-0.999771390690, 0.021381448929],
        ),
        (
            29,
            0.002166570763503359,
            [0.333052075999, 0.942908433875],
            [-0.815784413333, -0.578356110855],
        ),
        (
            31,
            0.0008567514129196321,
            [0.695219509708, -0.718797491176],
            [0.920824382074, -0.389977508809],
        ),
        (
            34,
            0.0001785078127679964,
            [-0.164003131430, -0.986459818179],
            [0.646596072509, -0.762832562897],
        ),
        (
            35,
            9.556212353964683e-5,
            [0.999161767439, -0.040936078073],
            [0.999791396946, -0.020424558558],
        ),
        (
            48,
            6.647869871181235e-6,
            [0.643799509083, 0.765194218552],
            [0.906585468160, 0.422022261168],
        ),
        (
            63,
            3.068925988914511e-7,
            [0.999191095035, 0.040213873252],
            [0.999797750221, 0.020111157426],
        ),
    ];

    #[test]
    fn a_full_context_of_131_072_tokens_turns_as_the_rule_says_up_to_its_last() {
        let scaling = Scaling::Llama3 {
            factor: 8.0,
            low: 1.0,
            high: 4.0,
            original: 8_192.0,
        };
        let scaled = frequencies(128, 500_000.0, scaling);
        let plain = frequencies(128, 500_000.0, Scaling::None);
        let mut unscaled_is_off = 0;
        for (pair, frequency, last, middle) in FAR {
            let relative = f64::from(scaled[pair]) / frequency - 1.0;
            assert!(relative.abs() < 5e-7, "{pair}: {}", scaled[pair]);
            for (position, [cosine, sine]) in [(131_071, last), (65_536, middle)] {
                // What rounding frequency and product to single precision may turn the angle by.
                let allowed =
                    1e-6 + f64::from(position) * frequency * 2.0 * f64::from(f32::EPSILON);
                let error = |(cos, sin): (f32, f32)| {
                    (f64::from(cos) - cosine)
                        .abs()
                        .max((f64::from(sin) - sine).abs())
                };
                let found = error(turned(position, scaled[pair]));
                assert!(found <= allowed, "{pair} at {position}: off by {found}");
                unscaled_is_off += usize::from(error(turned(position, plain[pair])) > allowed);
            }
        }
        // The pairs that the rule slows down.
        assert_eq!(unscaled_is_off, 12);
    }

    #[test]
    fn llama3_keeps_fast_pairs_and_slows_slow_ones() {
        let scaling = Scaling::Llama3 {
            factor: 32.0,
            low: 1.0,
            high: 4.0,
            original: 8192.0,
        };
        let plain = frequencies(64, 500_000.0, Scaling::None);
        let scaled = frequencies(64, 500_000.0, scaling);
        assert_eq!(plain[0], scaled[0]);
        assert!((plain[31] / scaled[31] - 32.0).abs() < 1e-3);
        assert!(scaled.windows(2).all(|pair| pair[0] > pair[1]));
    }

    const YARN: [(usize, f64); 9] = [
        (0, 1.000000000e+00),
        (10, 1.154781985e-01),
        (23, 6.978305849e-03),
        (24, 5.375321491e-03),
        (30, 1.064360981e-03),
        (35, 2.462584069e-04),
        (39, 6.490394321e-05),
        (40, 4.445698525e-05),
        (63, 3.102344402e-07),
    ];

    #[test]
    fn yarn_gives_the_paper_s_numbers() {
        // Computed by the paper's formulas in double precision: Qwen2.5's settings, heads of 128.
        let scaling = Scaling::Yarn {
            factor: 4.0,
            original: 32_768.0,
            fast: 32.0,
            slow: 1.0,
        };
        let scaled = frequencies(128, 1_000_000.0, scaling);
        for (pair, expected) in YARN {
            let relative = f64::from(scaled[pair]) / expected - 1.0;
            assert!(relative.abs() < 1e-5, "{pair}: {}", scaled[pair]);
        }
        assert!((yarn_scale(4.0) - 1.138_629_4).abs() < 1e-6);
    }
}
