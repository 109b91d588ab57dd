//! Random matrices of every kind, as they lie on the card by the words of the kernels' README.

use half::f16;

use crate::card::Memory;
use crate::numbers::{Kind, Numbers, Random, pitch};

/// A matrix as it lies on the card, and its numbers.
pub(crate) struct Matrix {
    pub(crate) kind: Kind,
    pub(crate) outputs: usize,
    pub(crate) columns: usize,
    pub(crate) weights: Memory<u8>,
    pub(crate) scales: Memory<u8>,
    pub(crate) numbers: Vec<f64>,
}

pub(crate) fn small_float(byte: u8) -> f64 {
    let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f64::from(byte & 7));
    let size = match exponent {
        0 => mantissa / 8.0 * 2_f64.powi(-6),
        _ => (1.0 + mantissa / 8.0) * 2_f64.powi(exponent - 7),
    };
    if byte & 128 == 0 { size } else { -size }
}

/// As kernels' names have it.
pub(crate) fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::F32 => "f32",
        Kind::Bf16 => "bf16",
        Kind::F16 => "f16",
        Kind::Q8 => "q8_0",
        Kind::Q4 => "q4_1",
        Kind::Q4K => "q4_k",
        Kind::Fp8 => "fp8",
    }
}

impl Matrix {
    /// Random numbers of a kind.
    pub(crate) fn random(kind: Kind, random: &mut Random, outputs: usize, width: usize) -> Self {
        let columns = pitch(width);
        let (weights, scales, numbers) = match kind {
            Kind::F32 | Kind::Bf16 | Kind::F16 => {
                let mut values = random.numbers(outputs * columns);
                for row in values.chunks_exact_mut(columns) {
                    row[width..].fill(0.0);
                }
                let numbers = values
                    .iter()
                    .map(|value| f64::from(kind.round(*value)))
                    .collect();
                (kind.bits(&values), Vec::new(), numbers)
            }
            _ => random_blocks(kind, random, outputs, columns),
        };
        Self {
            kind,
            outputs,
            columns,
            weights: Memory::of(&weights),
            scales: Memory::of(&scales),
            numbers,
        }
    }

    /// The products of rows, and the sums of the products' sizes.
    pub(crate) fn products(&self, x: &[f32], rows: usize) -> (Vec<f64>, Vec<f64>) {
        let (mut sums, mut sizes) = (Vec::new(), Vec::new());
        for row in x.chunks_exact(self.columns).take(rows) {
            for weights in self.numbers.chunks_exact(self.columns) {
                let parts = row
                    .iter()
                    .zip(weights)
                    .map(|(x, weight)| f64::from(*x) * weight);
                sums.push(parts.clone().sum());
                sizes.push(parts.map(f64::abs).sum());
            }
        }
        (sums, sizes)
    }
}

/// Weights, scales and numbers, by the words of the kernels' README.
fn random_blocks(
    kind: Kind,
    random: &mut Random,
    outputs: usize,
    columns: usize,
) -> (Vec<u8>, Vec<u8>, Vec<f64>) {
    let (mut weights, mut scales, mut numbers) = (Vec::new(), Vec::new(), Vec::new());
    let half = |random: &mut Random, scales: &mut Vec<u8>, size: f32| {
        let half = f16::from_f32(random.number() * size);
        scales.extend(half.to_le_bytes());
        half.to_f64()
    };
    for _ in 0..outputs {
        let scale = random.number();
        if kind == Kind::Fp8 {
            scales.extend(scale.to_le_bytes());
        }
        for _ in 0..columns / kind.multiple() {
            match kind {
                Kind::Q8 => {
                    let scale = half(random, &mut scales, 0.01);
                    for _ in 0..32 {
                        let byte = random.bits() as u8;
                        weights.push(byte);
                        numbers.push(scale * f64::from(byte.cast_signed()));
                    }
                }
                Kind::Q4 => {
                    let (scale, minimum) = (
                        half(random, &mut scales, 0.1),
                        half(random, &mut scales, 1.0),
                    );
                    let bytes: Vec<u8> = (0..16).map(|_| random.bits() as u8).collect();
                    for index in 0..32 {
                        let q = bytes[index % 16] >> (index / 16 * 4) & 15;
                        numbers.push(scale * f64::from(q) + minimum);
                    }
                    weights.extend(bytes);
                }
                Kind::Q4K => {
                    let (scale, minimum) = (
                        half(random, &mut scales, 0.002),
                        half(random, &mut scales, 0.02),
                    );
                    let packed: Vec<u8> = (0..12).map(|_| random.bits() as u8).collect();
                    let bytes: Vec<u8> = (0..128).map(|_| random.bits() as u8).collect();
                    for index in 0..256 {
                        let group = index / 32;
                        let (own, least) = match group {
                            0..4 => (packed[group] & 63, packed[group + 4] & 63),
                            _ => (
                                packed[group + 4] & 15 | packed[group - 4] >> 6 << 4,
                                packed[group + 4] >> 4 | packed[group] >> 6 << 4,
                            ),
                        };
                        let q = bytes[group / 2 * 32 + index % 32] >> (group % 2 * 4) & 15;
                        numbers.push(
                            scale * f64::from(own) * f64::from(q) - minimum * f64::from(least),
                        );
                    }
                    scales.extend(packed);
                    weights.extend(bytes);
                }
                _ => {
                    for _ in 0..16 {
                        let byte = random.bits() as u8;
                        let byte = if byte & 127 == 127 { 0 } else { byte };
                        weights.push(byte);
                        numbers.push(small_float(byte) * f64::from(scale));
                    }
                }
            }
        }
    }
    (weights, scales, numbers)
}
