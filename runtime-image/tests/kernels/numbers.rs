//! Random numbers, numbers of 16 bits, and how far results are from what they should be.

use half::{bf16, f16};

use crate::card::Memory;

pub(crate) use chandler_runtime::compute::cuda::launches::{Kind, pitch};

/// Random numbers that a seed decides (SplitMix64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// From 0 to below `end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.bits() % end as u64) as usize
    }

    pub(crate) fn pick<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len())]
    }

    /// From -1 to 1, about a bell.
    pub(crate) fn number(&mut self) -> f32 {
        let part = |bits: u64| (bits >> 40) as f32 / (1 << 24) as f32;
        part(self.bits()) + part(self.bits()) - 1.0
    }

    pub(crate) fn numbers(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.number()).collect()
    }
}

/// What an Input holds.
pub(crate) const KINDS: [Kind; 3] = [Kind::F32, Kind::Bf16, Kind::F16];

/// No infinity comes of rounding to a half.
fn within_half(value: f32) -> f32 {
    value.clamp(f16::MIN.to_f32(), f16::MAX.to_f32())
}

/// Numbers of a kind that an Input holds.
pub(crate) trait Numbers: Copy {
    /// How far a number may be from the one that was rounded to it.
    fn precision(self) -> f64;
    fn round(self, value: f32) -> f32;
    fn bits(self, values: &[f32]) -> Vec<u8>;
    fn floats(self, bytes: &[u8]) -> Vec<f32>;
    /// Room for an Input.
    fn room(self, rows: usize, width: usize) -> Memory<u8>;
    /// Rows of an Input without what fills them up, which must be zeros.
    fn rows(self, input: &Memory<u8>, width: usize) -> Vec<f32>;
}

impl Numbers for Kind {
    fn precision(self) -> f64 {
        match self {
            Self::F32 => 2e-6,
            Self::F16 => 1.0 / 2048.0,
            _ => 1.0 / 256.0,
        }
    }

    fn round(self, value: f32) -> f32 {
        match self {
            Self::F32 => value,
            Self::F16 => f16::from_f32(within_half(value)).to_f32(),
            _ => bf16::from_f32(value).to_f32(),
        }
    }

    fn bits(self, values: &[f32]) -> Vec<u8> {
        let bytes = |value: &f32| match self {
            Self::F32 => value.to_le_bytes().to_vec(),
            Self::F16 => f16::from_f32(within_half(*value)).to_le_bytes().to_vec(),
            _ => bf16::from_f32(*value).to_le_bytes().to_vec(),
        };
        values.iter().flat_map(bytes).collect()
    }

    fn floats(self, bytes: &[u8]) -> Vec<f32> {
        let float = |bytes: &[u8]| match (self, bytes) {
            (Self::F32, [a, b, c, d]) => f32::from_le_bytes([*a, *b, *c, *d]),
            (Self::F16, [a, b]) => f16::from_le_bytes([*a, *b]).to_f32(),
            (Self::Bf16, [a, b]) => bf16::from_le_bytes([*a, *b]).to_f32(),
            _ => unreachable!("as many bytes as the kind has"),
        };
        bytes.chunks_exact(self.bytes()).map(float).collect()
    }

    fn room(self, rows: usize, width: usize) -> Memory<u8> {
        Memory::new(rows * pitch(width) * self.bytes())
    }

    fn rows(self, input: &Memory<u8>, width: usize) -> Vec<f32> {
        let numbers = self.floats(&input.read());
        let rows = numbers.chunks_exact(pitch(width));
        assert!(
            rows.clone()
                .all(|row| row[width..].iter().all(|number| *number == 0.0))
        );
        rows.flat_map(|row| row[..width].to_vec()).collect()
    }
}

/// The largest difference, in parts of what each number may be off.
pub(crate) fn worst(found: &[f32], expected: &[f64], allowed: impl Fn(f64) -> f64) -> f64 {
    assert_eq!(found.len(), expected.len());
    let parts = found.iter().zip(expected).map(|(found, expected)| {
        let part = (f64::from(*found) - expected).abs() / allowed(*expected);
        if part.is_nan() { f64::INFINITY } else { part }
    });
    parts.fold(0.0, f64::max)
}

/// `found` is right, and what is wrong would be seen.
pub(crate) fn check(
    what: &str,
    found: &[f32],
    right: &[f64],
    wrong: &[f64],
    allowed: impl Fn(f64) -> f64,
) {
    let off = worst(found, right, &allowed);
    assert!(off <= 1.0, "{what}: off by {off} of what is allowed");
    let off = worst(found, wrong, &allowed);
    assert!(
        off > 2.0,
        "{what}: a wrong reference is off by no more than {off} of what is allowed"
    );
}
