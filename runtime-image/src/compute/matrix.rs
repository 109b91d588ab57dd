//! Weight matrices, repacked once at load into the order in which the kernels read them.
//!
//! Sixteen rows form a group, so that one vector register holds the same column of sixteen rows.
//! Block formats keep the values of the file bit for bit where kernels read them (Q8_0, Q4_0, Q4_1, IQ4_NL);
//! other quantised types are rounded to Q8_0 by the loader.

use half::{bf16, f16};

use super::pages::{self, Aligned};
use super::quants::NON_LINEAR;

/// Rows that are computed together.
pub const GROUP: usize = 16;
/// Columns that share a scale in the block formats.
pub const BLOCK: usize = 32;

/// How the numbers of a matrix are stored. Group, block and column are counted from 0 below.
pub(crate) enum Storage {
    /// `f32`: `[group][column][16 rows]`.
    F32(Aligned),
    /// IEEE half: the same order.
    F16(Aligned),
    /// bfloat16: `[group][pair of columns][16 rows][2 columns]`, zeros up to whole blocks of columns: as products of bfloat16 read it.
    Bf16(Aligned),
    /// `w = scale * (byte - 128)`. Quants `[group][block][8][16 rows][4 columns]`, scales as halves `[group][block][16 rows]`.
    Q8 { quants: Aligned, scales: Aligned },
    /// `w = scale * nibble + min`. Quants `[group][block][4][16 rows][4]`, column `4 q + i` of a block in the low nibble of
    /// quad `q`, column `16 + 4 q + i` in the high one; scales and mins as in `Q8`.
    Q4 {
        quants: Aligned,
        scales: Aligned,
        mins: Aligned,
    },
    /// `w = scale * NON_LINEAR[nibble]`. Quants as in `Q4`, scales as in `Q8`.
    Iq4 { quants: Aligned, scales: Aligned },
}

/// Which 16-bit or 32-bit float a float matrix keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Float {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// bfloat16.
    Bf16,
}

impl Float {
    /// Bytes of one number.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// Bytes of a packed group of so many columns.
    pub(crate) fn group_bytes(self, columns: usize) -> usize {
        let columns = match self {
            Self::F32 | Self::F16 => columns,
            Self::Bf16 => columns.next_multiple_of(BLOCK),
        };
        GROUP * columns * self.bytes()
    }
}

/// Which blocks of 32 a tensor of a GGUF file is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocks {
    /// Half scale, 32 signed bytes.
    Q8_0,
    /// Half scale, 32 nibbles around 8.
    Q4_0,
    /// Half scale, half minimum, 32 nibbles.
    Q4_1,
    /// Half scale, 32 nibbles that name one of sixteen values.
    Iq4Nl,
}

impl Blocks {
    /// Bytes of one block in the file.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::Q8_0 => 34,
            Self::Q4_0 | Self::Iq4Nl => 18,
            Self::Q4_1 => 20,
        }
    }
}

/// A matrix of `rows` outputs and `columns` inputs.
pub struct Matrix {
    rows: usize,
    columns: usize,
    storage: Storage,
}

impl Matrix {
    /// Bytes that packed floats take.
    #[must_use]
    pub fn float_bytes(rows: usize, columns: usize, float: Float) -> usize {
        (rows.div_ceil(GROUP) * float.group_bytes(columns)).next_multiple_of(pages::LINE)
    }

    /// Packs row-major floats.
    ///
    /// # Panics
    /// When `values` is not `rows * columns` long.
    #[must_use]
    pub fn from_floats(rows: usize, columns: usize, values: &[f32], float: Float) -> Self {
        assert_eq!(
            values.len(),
            rows * columns,
            "a matrix has rows * columns values"
        );
        let size = float.group_bytes(columns);
        let mut packed = Aligned::zeroed(Self::float_bytes(rows, columns, float));
        let bytes = packed.bytes_mut();
        for row in 0..rows {
            let (group, lane) = (&mut bytes[row / GROUP * size..], row % GROUP);
            for (column, value) in values[row * columns..][..columns].iter().enumerate() {
                let at = column * GROUP + lane;
                let (at, half) = match float {
                    Float::F32 => {
                        group[at * 4..][..4].copy_from_slice(&value.to_le_bytes());
                        continue;
                    }
                    Float::F16 => (at, f16::from_f32(*value).to_le_bytes()),
                    Float::Bf16 => (in_pairs(column, lane), bf16::from_f32(*value).to_le_bytes()),
                };
                group[at * 2..][..2].copy_from_slice(&half);
            }
        }
        let storage = match float {
            Float::F32 => Storage::F32(packed),
            Float::F16 => Storage::F16(packed),
            Float::Bf16 => Storage::Bf16(packed),
        };
        Self {
            rows,
            columns,
            storage,
        }
    }

    /// Rounds row-major floats to blocks of 32 signed bytes.
    ///
    /// # Panics
    /// When `values` is not `rows * columns` long or `columns` is no multiple of 32.
    #[must_use]
    pub fn quantize(rows: usize, columns: usize, values: &[f32]) -> Self {
        assert_eq!(
            values.len(),
            rows * columns,
            "a matrix has rows * columns values"
        );
        let mut blocks = Vec::with_capacity(values.len() / BLOCK * Blocks::Q8_0.bytes());
        for block in values.chunks_exact(BLOCK) {
            let largest = block
                .iter()
                .fold(0_f32, |largest, value| largest.max(value.abs()));
            let scale = largest / 127.0;
            let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
            blocks.extend_from_slice(&f16::from_f32(scale).to_le_bytes());
            blocks.extend(
                block
                    .iter()
                    .map(|value| ((value * inverse).round_ties_even() as i8).to_le_bytes()[0]),
            );
        }
        Self::from_blocks(rows, columns, &blocks, Blocks::Q8_0)
    }

    /// Repacks the blocks of a GGUF tensor without changing a value.
    ///
    /// # Panics
    /// When `bytes` is not the tensor's size or `columns` is no multiple of 32.
    #[must_use]
    pub fn from_blocks(rows: usize, columns: usize, bytes: &[u8], kind: Blocks) -> Self {
        assert_eq!(
            columns % BLOCK,
            0,
            "block formats need columns in multiples of 32"
        );
        let per_row = columns / BLOCK;
        assert_eq!(
            bytes.len(),
            rows * per_row * kind.bytes(),
            "a tensor has the bytes of its blocks"
        );
        let slots = rows.div_ceil(GROUP) * GROUP * per_row;
        let mut scales = Aligned::zeroed(slots * 2);
        let has_mins = matches!(kind, Blocks::Q4_0 | Blocks::Q4_1);
        let mut mins = Aligned::zeroed(if has_mins { slots * 2 } else { 0 });
        let mut quants = Aligned::zeroed(slots * if kind == Blocks::Q8_0 { 32 } else { 16 });
        for (index, block) in bytes.chunks_exact(kind.bytes()).enumerate() {
            let (row, column) = (index / per_row, index % per_row);
            let tile = row / GROUP * per_row + column;
            let lane = row % GROUP;
            let slot = (tile * GROUP + lane) * 2;
            scales.bytes_mut()[slot..slot + 2].copy_from_slice(&block[..2]);
            match kind {
                Blocks::Q8_0 => {
                    let tile = &mut quants.bytes_mut()[tile * 512..][..512];
                    let tile = tile.as_chunks_mut::<4>().0.iter_mut().skip(lane);
                    for (quad, tile) in block[2..]
                        .as_chunks::<4>()
                        .0
                        .iter()
                        .zip(tile.step_by(GROUP))
                    {
                        *tile = quad.map(|byte| byte ^ 0x80);
                    }
                }
                Blocks::Q4_0 | Blocks::Q4_1 | Blocks::Iq4Nl => {
                    let nibbles = match kind {
                        Blocks::Q4_1 => &block[4..],
                        _ => &block[2..],
                    };
                    let min = match kind {
                        Blocks::Q4_1 => Some([block[2], block[3]]),
                        Blocks::Q4_0 => {
                            let scale = f16::from_le_bytes([block[0], block[1]]).to_f32();
                            Some(f16::from_f32(-8.0 * scale).to_le_bytes())
                        }
                        _ => None,
                    };
                    if let Some(min) = min {
                        mins.bytes_mut()[slot..slot + 2].copy_from_slice(&min);
                    }
                    let tile = &mut quants.bytes_mut()[tile * 256..][..256];
                    let tile = tile.as_chunks_mut::<4>().0.iter_mut().skip(lane);
                    for (quad, tile) in nibbles.as_chunks::<4>().0.iter().zip(tile.step_by(GROUP)) {
                        *tile = *quad;
                    }
                }
            }
        }
        let storage = match kind {
            Blocks::Q8_0 => Storage::Q8 { quants, scales },
            Blocks::Q4_0 | Blocks::Q4_1 => Storage::Q4 {
                quants,
                scales,
                mins,
            },
            Blocks::Iq4Nl => Storage::Iq4 { quants, scales },
        };
        Self {
            rows,
            columns,
            storage,
        }
    }

    /// Outputs.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Groups of sixteen rows, the last one perhaps not full.
    #[must_use]
    pub fn groups(&self) -> usize {
        self.rows.div_ceil(GROUP)
    }

    /// Whether the kernels want their input rounded to bytes.
    #[must_use]
    pub fn is_quantized(&self) -> bool {
        match self.storage {
            Storage::Q8 { .. } | Storage::Q4 { .. } | Storage::Iq4 { .. } => true,
            Storage::F32(_) | Storage::F16(_) | Storage::Bf16(_) => false,
        }
    }

    /// Whether the numbers are bfloat16.
    #[must_use]
    pub fn is_bf16(&self) -> bool {
        matches!(self.storage, Storage::Bf16(_))
    }

    /// Bytes that the packed numbers take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match &self.storage {
            Storage::F32(values) | Storage::F16(values) | Storage::Bf16(values) => {
                values.bytes().len()
            }
            Storage::Q8 { quants, scales } | Storage::Iq4 { quants, scales } => {
                quants.bytes().len() + scales.bytes().len()
            }
            Storage::Q4 {
                quants,
                scales,
                mins,
            } => quants.bytes().len() + scales.bytes().len() + mins.bytes().len(),
        }
    }

    pub(crate) fn storage(&self) -> &Storage {
        &self.storage
    }

    /// Writes one row as floats: how an embedding is looked up.
    ///
    /// # Panics
    /// When there is no such row or `out` is not `columns` long.
    pub fn read_row(&self, row: usize, out: &mut [f32]) {
        assert!(
            row < self.rows && out.len() == self.columns,
            "row {row} of {} into {}",
            self.rows,
            out.len()
        );
        let (group, lane) = (row / GROUP, row % GROUP);
        let half = |bytes: &[u8], at: usize| {
            f16::from_le_bytes([bytes[at * 2], bytes[at * 2 + 1]]).to_f32()
        };
        let nibble = |bytes: &[u8], tile: usize, k: usize| {
            let byte = bytes[tile * 256 + k % 16 / 4 * 64 + lane * 4 + k % 4];
            if k < 16 { byte & 15 } else { byte >> 4 }
        };
        match &self.storage {
            Storage::F32(values) => {
                let bytes = values.bytes();
                for (column, out) in out.iter_mut().enumerate() {
                    let at = ((group * self.columns + column) * GROUP + lane) * 4;
                    *out = f32::from_le_bytes([
                        bytes[at],
                        bytes[at + 1],
                        bytes[at + 2],
                        bytes[at + 3],
                    ]);
                }
            }
            Storage::F16(values) => {
                for (column, out) in out.iter_mut().enumerate() {
                    *out = half(
                        values.bytes(),
                        (group * self.columns + column) * GROUP + lane,
                    );
                }
            }
            Storage::Bf16(values) => {
                let bytes = &values.bytes()[group * Float::Bf16.group_bytes(self.columns)..];
                for (column, out) in out.iter_mut().enumerate() {
                    let at = in_pairs(column, lane) * 2;
                    *out = bf16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32();
                }
            }
            Storage::Q8 { quants, scales } => {
                for (column, out) in out.iter_mut().enumerate() {
                    let (tile, k) = (
                        group * (self.columns / BLOCK) + column / BLOCK,
                        column % BLOCK,
                    );
                    let byte = quants.bytes()[tile * 512 + k / 4 * 64 + lane * 4 + k % 4];
                    *out = half(scales.bytes(), tile * GROUP + lane)
                        * f32::from(i16::from(byte) - 128);
                }
            }
            Storage::Q4 {
                quants,
                scales,
                mins,
            } => {
                for (column, out) in out.iter_mut().enumerate() {
                    let (tile, k) = (
                        group * (self.columns / BLOCK) + column / BLOCK,
                        column % BLOCK,
                    );
                    let slot = tile * GROUP + lane;
                    *out = half(scales.bytes(), slot) * f32::from(nibble(quants.bytes(), tile, k))
                        + half(mins.bytes(), slot);
                }
            }
            Storage::Iq4 { quants, scales } => {
                for (column, out) in out.iter_mut().enumerate() {
                    let (tile, k) = (
                        group * (self.columns / BLOCK) + column / BLOCK,
                        column % BLOCK,
                    );
                    let value = NON_LINEAR[usize::from(nibble(quants.bytes(), tile, k))];
                    *out = half(scales.bytes(), tile * GROUP + lane) * f32::from(value);
                }
            }
        }
    }
}

/// Which of its group's numbers one is in [`Storage::Bf16`].
pub(crate) fn in_pairs(column: usize, lane: usize) -> usize {
    (column / 2 * GROUP + lane) * 2 + column % 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_blocks_read_back_as_the_file_has_them() {
        // Two blocks in one row, then a second row: scale 0.5, minimum -1, nibbles counting up.
        let mut bytes = Vec::new();
        for seed in 0..4_u8 {
            bytes.extend_from_slice(&f16::from_f32(0.5).to_le_bytes());
            bytes.extend_from_slice(&f16::from_f32(-1.0).to_le_bytes());
            bytes.extend((0..16).map(|k: u8| ((k + seed) % 16) | (((k * 3 + seed) % 16) << 4)));
        }
        let matrix = Matrix::from_blocks(2, 64, &bytes, Blocks::Q4_1);
        let mut row = vec![0.0; 64];
        matrix.read_row(1, &mut row);
        for k in 0..16_u8 {
            assert_eq!(row[usize::from(k)], 0.5 * f32::from((k + 2) % 16) - 1.0);
            assert_eq!(
                row[16 + usize::from(k)],
                0.5 * f32::from((k * 3 + 2) % 16) - 1.0
            );
        }
    }

    #[test]
    fn rounding_to_bytes_stays_within_half_a_step() {
        let values: Vec<f32> = (0..17 * 64)
            .map(|i| ((i * 37 % 101) as f32 - 50.0) / 25.0)
            .collect();
        let matrix = Matrix::quantize(17, 64, &values);
        let mut row = vec![0.0; 64];
        for index in 0..17 {
            matrix.read_row(index, &mut row);
            for (read, written) in row.iter().zip(&values[index * 64..]) {
                assert!(
                    (read - written).abs() <= 2.0 / 127.0 * 0.51,
                    "{read} for {written}"
                );
            }
        }
    }
}
