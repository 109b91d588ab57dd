//! Weights as a file has them: a type, a shape and bytes. What a backend packs, and what is cut into shards before.

use std::fs::File;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use half::{bf16, f16};

use super::quants;

/// How the numbers of a tensor are stored. Names are those of GGUF files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(non_camel_case_types, reason = "the names that everybody knows")]
#[expect(missing_docs, reason = "the names say all; layouts stand in `quants`")]
pub enum Kind {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    IQ4_NL,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 14] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2_K,
        Self::Q3_K,
        Self::Q4_K,
        Self::Q5_K,
        Self::Q6_K,
        Self::IQ4_NL,
    ];

    /// The kind of a number in ggml's list of types (`ggml_type`), which GGUF files name; none for those that are not read.
    #[must_use]
    pub fn from_gguf(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            7 => Self::Q5_1,
            8 => Self::Q8_0,
            10 => Self::Q2_K,
            11 => Self::Q3_K,
            12 => Self::Q4_K,
            13 => Self::Q5_K,
            14 => Self::Q6_K,
            20 => Self::IQ4_NL,
            30 => Self::BF16,
            _ => return None,
        })
    }

    /// Numbers in one block, and its bytes.
    #[must_use]
    pub fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::BF16 => (1, 2),
            Self::Q4_0 | Self::IQ4_NL => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Q2_K => (256, 84),
            Self::Q3_K => (256, 110),
            Self::Q4_K => (256, 144),
            Self::Q5_K => (256, 176),
            Self::Q6_K => (256, 210),
        }
    }
}

/// A tensor that lies in a file.
#[derive(Clone, Debug)]
pub struct Source {
    /// How its numbers are stored.
    pub kind: Kind,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// Where it lies.
    pub file: Arc<File>,
    /// The file's name, for errors.
    pub path: PathBuf,
    /// The first byte.
    pub start: u64,
    /// Bytes.
    pub bytes: usize,
}

/// A matrix of row-major blocks.
#[derive(Clone, Debug)]
pub struct Tensor {
    kind: Kind,
    rows: usize,
    columns: usize,
    bytes: Vec<u8>,
}

impl Tensor {
    /// Takes bytes as they stand in a file.
    ///
    /// # Errors
    /// When the columns are no whole blocks or the bytes are not as many as the shape has.
    pub fn new(kind: Kind, rows: usize, columns: usize, bytes: Vec<u8>) -> Result<Self, String> {
        let (numbers, size) = kind.block();
        if !columns.is_multiple_of(numbers) {
            return Err(format!(
                "{columns} columns are no multiple of {numbers}, which type {kind:?} needs"
            ));
        }
        let expected = rows * (columns / numbers) * size;
        if bytes.len() != expected {
            return Err(format!("it has {} bytes, expected {expected}", bytes.len()));
        }
        Ok(Self {
            kind,
            rows,
            columns,
            bytes,
        })
    }

    /// How the numbers are stored.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The bytes of all blocks.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The numbers, row-major.
    #[must_use]
    pub fn floats(&self) -> Vec<f32> {
        self.floats_in(0..self.rows * self.columns)
    }

    /// Some of the numbers, row-major; a range of whole blocks.
    ///
    /// # Panics
    /// When the range ends beyond the tensor.
    #[must_use]
    pub fn floats_in(&self, range: Range<usize>) -> Vec<f32> {
        let (numbers, size) = self.kind.block();
        let bytes = &self.bytes[range.start / numbers * size..range.end / numbers * size];
        match self.kind {
            Kind::F32 => bytes
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect(),
            Kind::F16 => bytes
                .chunks_exact(2)
                .map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32())
                .collect(),
            Kind::BF16 => bytes
                .chunks_exact(2)
                .map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32())
                .collect(),
            kind => {
                let mut out = Vec::with_capacity(range.len());
                for block in bytes.chunks_exact(size) {
                    quants::read_block(kind, block, &mut out);
                }
                out
            }
        }
    }

    /// One of `count` equal parts of the rows: a shard of the outputs.
    ///
    /// # Errors
    /// When the rows cannot be cut so.
    pub fn rows_part(self, part: usize, count: usize) -> Result<Self, String> {
        if count == 1 {
            return Ok(self);
        }
        if !self.rows.is_multiple_of(count) {
            return Err(format!(
                "{} rows cannot be cut into {count} parts",
                self.rows
            ));
        }
        let rows = self.rows / count;
        let size = self.bytes.len() / count;
        Self::new(
            self.kind,
            rows,
            self.columns,
            self.bytes[part * size..][..size].to_vec(),
        )
    }

    /// One of `count` equal parts of the columns: a shard of the inputs. Types with wide blocks become floats first where a
    /// cut would go through a block.
    ///
    /// # Errors
    /// When the columns cannot be cut so.
    pub fn columns_part(self, part: usize, count: usize) -> Result<Self, String> {
        if count == 1 {
            return Ok(self);
        }
        if !self.columns.is_multiple_of(count) {
            return Err(format!(
                "{} columns cannot be cut into {count} parts",
                self.columns
            ));
        }
        let columns = self.columns / count;
        let (numbers, size) = self.kind.block();
        if !columns.is_multiple_of(numbers) {
            let bytes = self.floats().into_iter().flat_map(f32::to_le_bytes);
            let floats = Self::new(Kind::F32, self.rows, self.columns, bytes.collect())?;
            return floats.columns_part(part, count);
        }
        let width = columns / numbers * size;
        let bytes = self
            .bytes
            .chunks_exact(width * count)
            .flat_map(|row| &row[part * width..][..width])
            .copied()
            .collect();
        Self::new(self.kind, self.rows, columns, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_put_together_are_the_whole() {
        let bytes: Vec<u8> = (0..4 * 4 * 18_u32).map(|i| (i * 7) as u8 & 0x3f).collect();
        let whole = Tensor::new(Kind::Q4_0, 4, 128, bytes).unwrap();
        let floats = whole.floats();
        for part in 0..2 {
            let rows = whole.clone().rows_part(part, 2).unwrap().floats();
            assert_eq!(rows, floats[part * 256..][..256]);
        }
        // Two parts cut between blocks, eight through them.
        for count in [2, 8] {
            let parts: Vec<Vec<f32>> = (0..count)
                .map(|part| whole.clone().columns_part(part, count).unwrap().floats())
                .collect();
            let width = 128 / count;
            for row in 0..4 {
                for (part, floats_of_part) in parts.iter().enumerate() {
                    assert_eq!(
                        floats_of_part[row * width..][..width],
                        floats[row * 128 + part * width..][..width]
                    );
                }
            }
        }
        assert!(whole.clone().rows_part(0, 3).is_err());
        assert!(Tensor::new(Kind::Q8_0, 1, 33, vec![0; 34]).is_err());
    }
}
