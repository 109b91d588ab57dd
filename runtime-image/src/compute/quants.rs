//! Blocks of the quantised types of GGUF files, as floats. The layouts are ggml's; the numbers are bit for bit those of the
//! `gguf` package on PyPI, which the tests compare with.

use half::f16;

use super::tensor::Kind;

/// The sixteen values of IQ4_NL, which its nibbles name.
pub const NON_LINEAR: [i8; 16] = [
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
];

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// The two nibbles of sixteen bytes: all low ones, then all high ones.
fn nibbles(bytes: &[u8]) -> impl Iterator<Item = u8> + '_ {
    let low = bytes.iter().map(|byte| byte & 15);
    low.chain(bytes.iter().map(|byte| byte >> 4))
}

/// Numbers of five bits: nibbles, with the fifth bits in one word.
fn five_bits(high: &[u8], bytes: &[u8]) -> impl Iterator<Item = u8> {
    let word = u32::from_le_bytes([high[0], high[1], high[2], high[3]]);
    let nibbles: Vec<u8> = nibbles(bytes).collect();
    (0..32).map(move |k| nibbles[k] | ((word >> k & 1) as u8) << 4)
}

/// The eight scales and minima of six bits in Q4_K and Q5_K.
fn scales_and_minima(packed: &[u8]) -> [(f32, f32); 8] {
    std::array::from_fn(|index| {
        let (scale, minimum) = if index < 4 {
            (packed[index] & 63, packed[index + 4] & 63)
        } else {
            let both = packed[index + 4];
            (
                both & 15 | packed[index - 4] >> 2 & 48,
                both >> 4 | packed[index] >> 2 & 48,
            )
        };
        (f32::from(scale), f32::from(minimum))
    })
}

/// Appends the numbers of one block.
///
/// # Panics
/// When `block` is shorter than the kind's blocks, or the kind is a float.
pub fn read_block(kind: Kind, block: &[u8], out: &mut Vec<f32>) {
    match kind {
        Kind::F32 | Kind::F16 | Kind::BF16 => unreachable!("floats have no blocks"),
        Kind::Q8_0 => {
            let scale = half_at(block, 0);
            let bytes = block[2..34].iter();
            out.extend(bytes.map(|byte| scale * f32::from(byte.cast_signed())));
        }
        Kind::Q4_0 => {
            let scale = half_at(block, 0);
            out.extend(nibbles(&block[2..18]).map(|q| scale * (f32::from(q) - 8.0)));
        }
        Kind::Q4_1 => {
            let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
            out.extend(nibbles(&block[4..20]).map(|q| scale * f32::from(q) + minimum));
        }
        Kind::Q5_0 => {
            let scale = half_at(block, 0);
            let numbers = five_bits(&block[2..6], &block[6..22]);
            out.extend(numbers.map(|q| scale * (f32::from(q) - 16.0)));
        }
        Kind::Q5_1 => {
            let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
            let numbers = five_bits(&block[4..8], &block[8..24]);
            out.extend(numbers.map(|q| scale * f32::from(q) + minimum));
        }
        Kind::IQ4_NL => {
            let scale = half_at(block, 0);
            let values = nibbles(&block[2..18]).map(|q| f32::from(NON_LINEAR[usize::from(q)]));
            out.extend(values.map(|value| scale * value));
        }
        Kind::Q2_K => {
            let (scale, minimum) = (half_at(block, 80), half_at(block, 82));
            for index in 0..256 {
                let packed = block[index / 16];
                let byte = block[16 + index / 128 * 32 + index % 32];
                let q = f32::from(byte >> (index / 32 % 4 * 2) & 3);
                let (scale, minimum) = (
                    scale * f32::from(packed & 15),
                    minimum * f32::from(packed >> 4),
                );
                out.push(scale * q - minimum);
            }
        }
        Kind::Q3_K => {
            let (high, low, packed) = (&block[..32], &block[32..96], &block[96..108]);
            let scale = half_at(block, 108);
            for index in 0..256 {
                let group = index / 16;
                let low_scale = packed[group % 8] >> (group / 8 * 4) & 15;
                let high_scale = packed[8 + group % 4] >> (group / 4 * 2) & 3;
                let own = f32::from(low_scale | high_scale << 4) - 32.0;
                let q = low[index / 128 * 32 + index % 32] >> (index / 32 % 4 * 2) & 3;
                let set = high[index % 32] >> (index / 32) & 1;
                let q = f32::from(q) - if set == 1 { 0.0 } else { 4.0 };
                out.push(scale * own * q);
            }
        }
        Kind::Q4_K => {
            let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
            for (group, (own, least)) in scales_and_minima(&block[4..16]).into_iter().enumerate() {
                let (scale, minimum) = (scale * own, minimum * least);
                for byte in &block[16 + group / 2 * 32..][..32] {
                    let q = byte >> (group % 2 * 4) & 15;
                    out.push(scale * f32::from(q) - minimum);
                }
            }
        }
        Kind::Q5_K => {
            let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
            let high = &block[16..48];
            for (group, (own, least)) in scales_and_minima(&block[4..16]).into_iter().enumerate() {
                let (scale, minimum) = (scale * own, minimum * least);
                for (byte, high) in block[48 + group / 2 * 32..][..32].iter().zip(high) {
                    let q = byte >> (group % 2 * 4) & 15 | (high >> group & 1) << 4;
                    out.push(scale * f32::from(q) - minimum);
                }
            }
        }
        Kind::Q6_K => {
            let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
            let scale = half_at(block, 208);
            for index in 0..256 {
                let (part, within) = (index / 128, index % 128);
                let q = low[part * 64 + within % 64] >> (within / 64 * 4) & 15;
                let upper = high[part * 32 + within % 32] >> (within / 32 * 2) & 3;
                let own = f32::from(scales[index / 16].cast_signed());
                out.push(scale * own * (f32::from(q | upper << 4) - 32.0));
            }
        }
    }
}
