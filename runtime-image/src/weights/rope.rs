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
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
