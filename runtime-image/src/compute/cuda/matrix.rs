//! Weights as the kernels read them: numbers, and their scales apart where they have any, so that both are read in whole
//! lines.

use std::borrow::Cow;

use half::{bf16, f16};

use super::launches::{Kind, pitch};
use crate::compute::quants::NON_LINEAR;
use crate::compute::tensor::{self, Tensor};

/// Numbers that share a scale in the formats of eight and four bits.
const BLOCK: usize = 32;
/// The largest number of E4M3.
const LARGEST_E4M3: f32 = 448.0;

/// What floats become on a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Floats {
    /// All weights are f32, quantised ones too: what references are compared in.
    F32,
    /// f16, and quantised ones as they are.
    F16,
    /// bf16, and quantised ones as they are.
    Bf16,
    /// E4M3 with a scale for each row, and quantised ones as they are.
    Fp8,
}

impl Floats {
    /// What products take.
    #[must_use]
    pub fn input(self) -> Kind {
        self.kind().input()
    }

    /// What keys and values are.
    #[must_use]
    pub fn arena(self) -> Kind {
        match self {
            Self::F32 => Kind::F32,
            _ => Kind::Bf16,
        }
    }

    fn kind(self) -> Kind {
        match self {
            Self::F32 => Kind::F32,
            Self::F16 => Kind::F16,
            Self::Bf16 => Kind::Bf16,
            Self::Fp8 => Kind::Fp8,
        }
    }
}

/// Packed weights of the host.
#[derive(Debug, PartialEq)]
pub struct Packed<'a> {
    /// How they lie.
    pub kind: Kind,
    /// Numbers of a row, those included that fill it up.
    pub columns: usize,
    /// The numbers.
    pub weights: Cow<'a, [u8]>,
    /// Their scales.
    pub scales: Vec<u8>,
}

/// What a tensor of this kind and so many columns becomes.
#[must_use]
pub fn kind_of(kind: tensor::Kind, columns: usize, floats: Floats) -> Kind {
    use tensor::Kind as Of;
    match kind {
        // Kernels read sixteen of them at once.
        Of::F32 | Of::F16 | Of::BF16 if floats == Floats::Fp8 && !columns.is_multiple_of(16) => {
            Kind::Bf16
        }
        Of::F32 | Of::F16 | Of::BF16 => floats.kind(),
        _ if matches!(floats, Floats::F32 | Floats::F16) => floats.kind(),
        Of::Q4_0 | Of::Q4_1 => Kind::Q4,
        Of::Q4_K => Kind::Q4K,
        Of::Q8_0 | Of::IQ4_NL | Of::Q5_0 | Of::Q5_1 | Of::Q2_K | Of::Q3_K | Of::Q5_K | Of::Q6_K => {
            Kind::Q8
        }
    }
}

/// Whether the bytes of such a tensor are those of the card.
#[must_use]
pub fn as_they_are(kind: tensor::Kind, columns: usize, floats: Floats) -> bool {
    let same = matches!(
        (kind, kind_of(kind, columns, floats)),
        (tensor::Kind::F32, Kind::F32)
            | (tensor::Kind::F16, Kind::F16)
            | (tensor::Kind::BF16, Kind::Bf16)
    );
    same && pitch(columns) == columns
}

/// Packs a tensor.
#[must_use]
pub fn pack(tensor: &Tensor, floats: Floats) -> Packed<'_> {
    let columns = tensor.columns();
    let kind = kind_of(tensor.kind(), columns, floats);
    if as_they_are(tensor.kind(), columns, floats) {
        return Packed {
            kind,
            columns,
            weights: Cow::Borrowed(tensor.bytes()),
            scales: Vec::new(),
        };
    }
    match kind {
        Kind::F32 => widened(tensor, kind, |number, out| {
            out.extend(number.to_le_bytes());
        }),
        Kind::F16 => widened(tensor, kind, |number, out| {
            out.extend(f16::from_f32(number).to_le_bytes());
        }),
        Kind::Bf16 => widened(tensor, kind, |number, out| {
            out.extend(bf16::from_f32(number).to_le_bytes());
        }),
        Kind::Fp8 => eight_bit_floats(tensor),
        Kind::Q4 => four_bits(tensor),
        Kind::Q4K => four_bits_of_256(tensor),
        Kind::Q8 => match tensor.kind() {
            tensor::Kind::Q8_0 => split(tensor, kind, 34, |block, weights, scales| {
                scales.extend(&block[..2]);
                weights.extend(&block[2..]);
            }),
            tensor::Kind::IQ4_NL => split(tensor, kind, 18, |block, weights, scales| {
                scales.extend(&block[..2]);
                let low = block[2..].iter().map(|byte| byte & 15);
                let all = low.chain(block[2..].iter().map(|byte| byte >> 4));
                weights.extend(all.map(|at| NON_LINEAR[usize::from(at)].cast_unsigned()));
            }),
            _ => eight_bits(tensor),
        },
    }
}

/// Rows of floats, filled up with zeros.
fn widened(tensor: &Tensor, kind: Kind, put: impl Fn(f32, &mut Vec<u8>)) -> Packed<'static> {
    let (rows, columns) = (tensor.rows(), pitch(tensor.columns()));
    let mut weights = Vec::with_capacity(rows * columns * kind.bytes());
    for row in rows_of(tensor) {
        let filler = columns - row.len();
        for number in row.into_iter().chain(std::iter::repeat_n(0.0, filler)) {
            put(number, &mut weights);
        }
    }
    Packed {
        kind,
        columns,
        weights: Cow::Owned(weights),
        scales: Vec::new(),
    }
}

fn rows_of(tensor: &Tensor) -> impl Iterator<Item = Vec<f32>> + '_ {
    let columns = tensor.columns();
    (0..tensor.rows()).map(move |row| tensor.floats_in(row * columns..(row + 1) * columns))
}

/// Blocks taken apart one by one.
fn split(
    tensor: &Tensor,
    kind: Kind,
    size: usize,
    take: impl Fn(&[u8], &mut Vec<u8>, &mut Vec<u8>),
) -> Packed<'static> {
    let (mut weights, mut scales) = (Vec::new(), Vec::new());
    for block in tensor.bytes().chunks_exact(size) {
        take(block, &mut weights, &mut scales);
    }
    Packed {
        kind,
        columns: tensor.columns(),
        weights: Cow::Owned(weights),
        scales,
    }
}

fn four_bits(tensor: &Tensor) -> Packed<'static> {
    if tensor.kind() == tensor::Kind::Q4_1 {
        return split(tensor, Kind::Q4, 20, |block, weights, scales| {
            scales.extend(&block[..4]);
            weights.extend(&block[4..]);
        });
    }
    // Eight less is a minimum of minus eight scales, which is exact.
    split(tensor, Kind::Q4, 18, |block, weights, scales| {
        let scale = f16::from_le_bytes([block[0], block[1]]).to_f32();
        scales.extend(&block[..2]);
        scales.extend(f16::from_f32(-8.0 * scale).to_le_bytes());
        weights.extend(&block[2..]);
    })
}

fn four_bits_of_256(tensor: &Tensor) -> Packed<'static> {
    split(tensor, Kind::Q4K, 144, |block, weights, scales| {
        scales.extend(&block[..16]);
        weights.extend(&block[16..]);
    })
}

/// Rounds to blocks of signed bytes, as the CPU does.
fn eight_bits(tensor: &Tensor) -> Packed<'static> {
    let (mut weights, mut scales) = (Vec::new(), Vec::new());
    for row in rows_of(tensor) {
        for block in row.chunks_exact(BLOCK) {
            let scale = largest(block) / 127.0;
            let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
            scales.extend(f16::from_f32(scale).to_le_bytes());
            let bytes = block
                .iter()
                .map(|number| ((number * inverse).round_ties_even() as i8).cast_unsigned());
            weights.extend(bytes);
        }
    }
    Packed {
        kind: Kind::Q8,
        columns: tensor.columns(),
        weights: Cow::Owned(weights),
        scales,
    }
}

fn largest(numbers: &[f32]) -> f32 {
    numbers
        .iter()
        .fold(0.0, |largest, number| largest.max(number.abs()))
}

/// Rounds to E4M3, a scale for each row.
fn eight_bit_floats(tensor: &Tensor) -> Packed<'static> {
    let (mut weights, mut scales) = (Vec::new(), Vec::new());
    for row in rows_of(tensor) {
        let scale = largest(&row) / LARGEST_E4M3;
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        scales.extend(scale.to_le_bytes());
        weights.extend(row.iter().map(|number| e4m3(number * inverse)));
    }
    Packed {
        kind: Kind::Fp8,
        columns: tensor.columns(),
        weights: Cow::Owned(weights),
        scales,
    }
}

/// The nearest E4M3 of a number, halves to the even one; at most 448 in size.
#[must_use]
pub fn e4m3(number: f32) -> u8 {
    const MANTISSA: i32 = 3;
    /// The exponent of the smallest normal number.
    const LEAST: i32 = -6;
    let sign = u8::from(number.is_sign_negative()) << 7;
    let size = number.abs().min(LARGEST_E4M3);
    let exponent = ((size.to_bits() >> 23).cast_signed() - 127).max(LEAST);
    let steps = (size * f32::exp2((MANTISSA - exponent) as f32)).round_ties_even() as i32;
    // A mantissa that is rounded up to the next power of two carries into the exponent.
    let bits = ((exponent - LEAST) << MANTISSA) + steps;
    sign | u8::try_from(bits).unwrap_or(0x7e)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(bits: u8) -> f32 {
        let sign = if bits & 0x80 == 0 { 1.0 } else { -1.0 };
        let (exponent, mantissa) = (i32::from(bits >> 3 & 15), f32::from(bits & 7));
        let size = if exponent == 0 {
            mantissa / 8.0 * f32::exp2(-6.0)
        } else {
            (1.0 + mantissa / 8.0) * f32::exp2((exponent - 7) as f32)
        };
        sign * size
    }

    #[test]
    fn numbers_become_the_nearest_of_eight_bits() {
        let all: Vec<u8> = (0..=0x7e).collect();
        for bits in &all {
            assert_eq!(e4m3(value(*bits)), *bits);
            assert_eq!(e4m3(-value(*bits)), *bits | 0x80);
        }
        for pair in all.windows(2) {
            let (low, high) = (value(pair[0]), value(pair[1]));
            let middle = (low + high) / 2.0;
            let even = if pair[0] & 1 == 0 { pair[0] } else { pair[1] };
            assert_eq!(e4m3(middle), even, "{middle}");
            assert_eq!(e4m3(middle + (high - low) / 16.0), pair[1]);
            assert_eq!(e4m3(middle - (high - low) / 16.0), pair[0]);
        }
        assert_eq!(e4m3(1e9), 0x7e);
    }

    fn tensor(kind: tensor::Kind, rows: usize, columns: usize) -> Tensor {
        let (numbers, size) = kind.block();
        let mut bytes: Vec<u8> = (0..rows * columns / numbers * size)
            .map(|index| (index * 37 % 251) as u8)
            .collect();
        // Scales that are ordinary numbers.
        for block in bytes.chunks_exact_mut(size) {
            match kind {
                tensor::Kind::F32 => {
                    block.copy_from_slice(&(f32::from(block[0]) - 99.0).to_le_bytes());
                }
                tensor::Kind::F16 => {
                    block.copy_from_slice(&f16::from_f32(f32::from(block[0]) / 8.0).to_le_bytes());
                }
                tensor::Kind::BF16 => {
                    block.copy_from_slice(&bf16::from_f32(f32::from(block[0]) / 8.0).to_le_bytes());
                }
                tensor::Kind::Q2_K => block[80..].copy_from_slice(&[0, 40, 0, 36]),
                tensor::Kind::Q3_K => block[108..].copy_from_slice(&[0, 40]),
                tensor::Kind::Q6_K => block[208..].copy_from_slice(&[0, 40]),
                tensor::Kind::Q4_1
                | tensor::Kind::Q5_1
                | tensor::Kind::Q4_K
                | tensor::Kind::Q5_K => {
                    block[..4].copy_from_slice(&[0, 40, 0, 36]);
                }
                _ => block[..2].copy_from_slice(&[0, 40]),
            }
        }
        Tensor::new(kind, rows, columns, bytes).unwrap()
    }

    fn half(bytes: &[u8], at: usize) -> f32 {
        f16::from_le_bytes([bytes[2 * at], bytes[2 * at + 1]]).to_f32()
    }

    /// One number of packed weights.
    fn read(packed: &Packed<'_>, row: usize, column: usize) -> f32 {
        let at = row * packed.columns + column;
        let (weights, scales) = (&packed.weights, &packed.scales);
        match packed.kind {
            Kind::F32 => f32::from_le_bytes(weights[4 * at..][..4].try_into().unwrap()),
            Kind::F16 => half(weights, at),
            Kind::Bf16 => bf16::from_le_bytes([weights[2 * at], weights[2 * at + 1]]).to_f32(),
            Kind::Q8 => half(scales, at / 32) * f32::from(weights[at].cast_signed()),
            Kind::Q4 => {
                let (block, place) = (at / 32, at % 32);
                let byte = weights[block * 16 + place % 16];
                let nibble = if place < 16 { byte & 15 } else { byte >> 4 };
                half(scales, 2 * block) * f32::from(nibble) + half(scales, 2 * block + 1)
            }
            Kind::Q4K => {
                let block = at / 256;
                let mut bytes = scales[block * 16..][..16].to_vec();
                bytes.extend(&weights[block * 128..][..128]);
                let mut out = Vec::new();
                crate::compute::quants::read_block(tensor::Kind::Q4_K, &bytes, &mut out);
                out[at % 256]
            }
            Kind::Fp8 => {
                let scale = f32::from_le_bytes(scales[4 * row..][..4].try_into().unwrap());
                scale * value(weights[at])
            }
        }
    }

    #[test]
    fn every_kind_keeps_its_numbers() {
        for kind in tensor::Kind::ALL {
            let tensor = tensor(kind, 3, 512);
            let floats = tensor.floats();
            for target in [Floats::F32, Floats::F16, Floats::Bf16, Floats::Fp8] {
                let packed = pack(&tensor, target);
                let largest = largest(&floats);
                // Half a step of the coarsest number, and half a step of its scale.
                let tolerance = match packed.kind {
                    Kind::F32 | Kind::Q4 | Kind::Q4K => 0.0,
                    Kind::F16 => largest / 2048.0,
                    Kind::Bf16 => largest / 256.0,
                    Kind::Q8 => largest / 127.0 * (0.5 + 127.0 / 4096.0),
                    Kind::Fp8 => largest / 27.9,
                };
                for (index, number) in floats.iter().enumerate() {
                    let found = read(&packed, index / 512, index % 512);
                    let error = (found - number).abs();
                    assert!(
                        error <= tolerance,
                        "{kind:?} {target:?}: {found} for {number}"
                    );
                }
            }
        }
    }

    #[test]
    fn rows_are_filled_up_with_zeros() {
        let tensor = tensor(tensor::Kind::BF16, 2, 13);
        for floats in [Floats::F32, Floats::F16, Floats::Bf16, Floats::Fp8] {
            let packed = pack(&tensor, floats);
            assert_eq!(packed.columns, 16);
            for row in 0..2 {
                assert!((13..16).all(|column| read(&packed, row, column) == 0.0));
            }
        }
    }
}
