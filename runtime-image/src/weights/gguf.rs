//! GGUF files: header by candle's reader, extents checked here, tensors repacked one by one.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use candle_core::quantized::{GgmlDType, QStorage, QTensor, gguf_file};
use candle_core::{DType, Device};

use super::rope::{Scaling, frequencies};
use super::{LlamaShape, LoadError, Weights, check_shape};
use crate::compute::matrix::{BLOCK, Blocks, Float, Matrix};

const NO_SCALING: &str = "none";
const LINEAR: &str = "linear";

/// The rotary scalings that a file may name in `rope.scaling.type`.
pub(crate) const GGUF_SCALINGS: [&str; 2] = [NO_SCALING, LINEAR];

/// An opened GGUF file whose header is whole and whose tensors all lie inside the file.
pub struct GgufFile {
    path: PathBuf,
    file: File,
    size: u64,
    content: gguf_file::Content,
    architecture: String,
}

impl GgufFile {
    /// Opens a file and checks its header and the extent of every tensor.
    ///
    /// # Errors
    /// When the file is no GGUF file, is cut short, or its header is damaged.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        let open = |source| LoadError::Open {
            path: path.to_owned(),
            source,
        };
        let damaged = |detail: String| LoadError::Damaged {
            path: path.to_owned(),
            detail,
        };
        let mut file = File::open(path).map_err(open)?;
        let size = file.metadata().map_err(open)?.len();
        let mut magic = [0; 4];
        if size < 24 || file.read_exact(&mut magic).is_err() {
            return Err(damaged(format!(
                "file has {size} bytes, a GGUF header needs at least 24"
            )));
        }
        if &magic != b"GGUF" {
            return Err(damaged(format!(
                "file starts with {:?}, a GGUF file starts with \"GGUF\"",
                Printable(&magic)
            )));
        }
        file.rewind().map_err(open)?;
        let content = gguf_file::Content::read(&mut BufReader::with_capacity(1 << 20, &mut file))
            .map_err(|error| {
            let error = error.to_string();
            let first = error.lines().next().unwrap_or_default().to_owned();
            damaged(format!(
                "file has {size} bytes and its header cannot be read to the end: {first}"
            ))
        })?;
        let mut gguf = Self {
            path: path.to_owned(),
            file,
            size,
            content,
            architecture: String::new(),
        };
        gguf.check_extents()?;
        gguf.architecture = gguf.text("general.architecture")?.to_owned();
        Ok(gguf)
    }

    /// Refuses a file that ends before its tensors do; names the first of them in file order.
    fn check_extents(&self) -> Result<(), LoadError> {
        let in_order: BTreeMap<u64, &String> = self
            .content
            .tensor_infos
            .iter()
            .map(|(name, info)| (info.offset, name))
            .collect();
        for name in in_order.values() {
            let info = &self.content.tensor_infos[*name];
            let elements = info
                .shape
                .dims()
                .iter()
                .try_fold(1_u64, |all, size| all.checked_mul(*size as u64));
            let bytes = elements.and_then(|elements| {
                let block = info.ggml_dtype.block_size() as u64;
                elements
                    .is_multiple_of(block)
                    .then(|| elements / block * info.ggml_dtype.type_size() as u64)
            });
            let end = bytes
                .and_then(|bytes| {
                    self.content
                        .tensor_data_offset
                        .checked_add(info.offset)?
                        .checked_add(bytes)
                })
                .ok_or_else(|| {
                    self.tensor_error(name, format!("its shape {:?} makes no sense", info.shape))
                })?;
            if end > self.size {
                let detail = format!(
                    "file has {} bytes, tensor {name} needs {end}: the file is cut short",
                    self.size
                );
                return Err(LoadError::Damaged {
                    path: self.path.clone(),
                    detail,
                });
            }
        }
        Ok(())
    }

    fn tensor_error(&self, tensor: &str, detail: String) -> LoadError {
        LoadError::Tensor {
            path: self.path.clone(),
            tensor: tensor.to_owned(),
            detail,
        }
    }

    fn description(&self, detail: String) -> LoadError {
        LoadError::Description {
            path: self.path.clone(),
            detail,
        }
    }

    /// The value of a key, if the file has it.
    #[must_use]
    pub fn value(&self, key: &str) -> Option<&gguf_file::Value> {
        self.content.metadata.get(key)
    }

    /// The text of a key.
    ///
    /// # Errors
    /// When the key is missing or no text.
    pub fn text(&self, key: &str) -> Result<&str, LoadError> {
        match self.value(key) {
            Some(gguf_file::Value::String(text)) => Ok(text),
            Some(other) => {
                Err(self.description(format!("{key} is {:?}, expected text", other.value_type())))
            }
            None => Err(self.description(format!("key {key} is missing"))),
        }
    }

    /// The whole number of a key, if the file has it.
    ///
    /// # Errors
    /// When it is no whole number.
    pub fn whole(&self, key: &str) -> Result<Option<u64>, LoadError> {
        use gguf_file::Value;
        let number = match self.value(key) {
            None => return Ok(None),
            Some(Value::U8(value)) => u64::from(*value),
            Some(Value::U16(value)) => u64::from(*value),
            Some(Value::U32(value)) => u64::from(*value),
            Some(Value::U64(value)) => *value,
            Some(Value::I32(value)) if *value >= 0 => u64::from(value.unsigned_abs()),
            Some(Value::I64(value)) if *value >= 0 => value.unsigned_abs(),
            Some(other) => {
                return Err(self.description(format!(
                    "{key} is {:?}, expected a whole number",
                    other.value_type()
                )));
            }
        };
        Ok(Some(number))
    }

    fn size_of(&self, part: &str) -> Result<usize, LoadError> {
        let key = format!("{}.{part}", self.architecture);
        match self.whole(&key)? {
            Some(value) => {
                usize::try_from(value).map_err(|_| self.description(format!("{key} is {value}")))
            }
            None => Err(self.description(format!("key {key} is missing"))),
        }
    }

    fn optional_size_of(&self, part: &str) -> Result<Option<usize>, LoadError> {
        if self
            .value(&format!("{}.{part}", self.architecture))
            .is_some()
        {
            self.size_of(part).map(Some)
        } else {
            Ok(None)
        }
    }

    fn number_of(&self, part: &str) -> Result<Option<f32>, LoadError> {
        use gguf_file::Value;
        let key = format!("{}.{part}", self.architecture);
        match self.value(&key) {
            None => Ok(None),
            Some(Value::F32(value)) if value.is_finite() => Ok(Some(*value)),
            Some(Value::F64(value)) if value.is_finite() => Ok(Some(*value as f32)),
            Some(other) => {
                Err(self.description(format!("{key} is {other:?}, expected a finite number")))
            }
        }
    }

    /// The type that most of the weights' bytes have: what people call the file's quantization.
    #[must_use]
    pub fn main_type(&self) -> String {
        let mut bytes: BTreeMap<String, usize> = BTreeMap::new();
        for info in self.content.tensor_infos.values() {
            let size = info.shape.elem_count() / info.ggml_dtype.block_size()
                * info.ggml_dtype.type_size();
            *bytes.entry(type_name(info.ggml_dtype)).or_default() += size;
        }
        bytes
            .into_iter()
            .max_by_key(|(_, bytes)| *bytes)
            .map(|(name, _)| name)
            .unwrap_or_default()
    }

    /// The bytes of a tensor, after its shape was compared.
    fn read(&mut self, name: &str, shape: &[usize]) -> Result<(GgmlDType, Vec<u8>), LoadError> {
        let Some(info) = self.content.tensor_infos.get(name) else {
            return Err(self.tensor_error(name, "the file has no such tensor".to_owned()));
        };
        if info.shape.dims() != shape {
            let found = info.shape.dims();
            return Err(
                self.tensor_error(name, format!("its shape is {found:?}, expected {shape:?}"))
            );
        }
        let (kind, offset) = (
            info.ggml_dtype,
            self.content.tensor_data_offset + info.offset,
        );
        let mut bytes = vec![0; info.shape.elem_count() / kind.block_size() * kind.type_size()];
        self.file
            .seek(SeekFrom::Start(offset))
            .and_then(|_| self.file.read_exact(&mut bytes))
            .map_err(|error| {
                self.tensor_error(
                    name,
                    format!("{error} while reading {} bytes at {offset}", bytes.len()),
                )
            })?;
        Ok((kind, bytes))
    }

    /// Values as floats, by candle's reader for the types that are not repacked bit for bit.
    fn dequantize(
        &self,
        name: &str,
        kind: GgmlDType,
        bytes: Vec<u8>,
        count: usize,
    ) -> Result<Vec<f32>, LoadError> {
        let read = || -> candle_core::Result<Vec<f32>> {
            let storage = QStorage::from_data(bytes.into(), &Device::Cpu, kind)?;
            QTensor::new(storage, count)?
                .dequantize(&Device::Cpu)?
                .to_dtype(DType::F32)?
                .to_vec1()
        };
        read().map_err(|error| {
            self.tensor_error(
                name,
                format!("cannot read type {}: {error}", type_name(kind)),
            )
        })
    }
}

impl Weights for GgufFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn architecture(&self) -> &str {
        &self.architecture
    }

    fn llama_shape(&self) -> Result<LlamaShape, LoadError> {
        if self.optional_size_of("expert_count")?.unwrap_or(0) > 0 {
            return Err(self.description("mixtures of experts are not supported".to_owned()));
        }
        let (hidden, heads) = (
            self.size_of("embedding_length")?,
            self.size_of("attention.head_count")?,
        );
        let width = match self.optional_size_of("attention.key_length")? {
            Some(width) => width,
            None => hidden.checked_div(heads).unwrap_or(0),
        };
        let rotated = self
            .optional_size_of("rope.dimension_count")?
            .unwrap_or(width);
        if rotated > width {
            return Err(self.description(format!(
                "{rotated} rotated numbers in heads of width {width}"
            )));
        }
        let key = format!("{}.rope.scaling.type", self.architecture);
        let scaling = match self.value(&key) {
            None => Scaling::None,
            Some(_) => match self.text(&key)? {
                NO_SCALING => Scaling::None,
                LINEAR => Scaling::Linear {
                    factor: self
                        .number_of("rope.scaling.factor")?
                        .unwrap_or(1.0)
                        .max(1.0),
                },
                other => {
                    return Err(self
                        .description(format!("{key} is {other}; supported are none and linear")));
                }
            },
        };
        let base = self.number_of("rope.freq_base")?.unwrap_or(10_000.0);
        let mut frequencies = frequencies(rotated, base, scaling);
        if let Some(info) = self.content.tensor_infos.get("rope_freqs.weight") {
            // Llama 3.1's scaling, computed by the converter: a divisor for each pair.
            let count = info.shape.elem_count();
            if count != frequencies.len() || info.ggml_dtype != GgmlDType::F32 {
                return Err(self.tensor_error(
                    "rope_freqs.weight",
                    format!("{count} divisors for {} pairs", frequencies.len()),
                ));
            }
            let mut bytes = vec![0; count * 4];
            let mut file = &self.file;
            file.seek(SeekFrom::Start(
                self.content.tensor_data_offset + info.offset,
            ))
            .and_then(|_| file.read_exact(&mut bytes))
            .map_err(|error| self.tensor_error("rope_freqs.weight", error.to_string()))?;
            for (frequency, divisor) in frequencies.iter_mut().zip(bytes.chunks_exact(4)) {
                *frequency /= f32::from_le_bytes([divisor[0], divisor[1], divisor[2], divisor[3]]);
            }
        }
        let Some(embedding) = self.content.tensor_infos.get("token_embd.weight") else {
            return Err(self.tensor_error(
                "token_embd.weight",
                "the file has no such tensor".to_owned(),
            ));
        };
        let shape = LlamaShape {
            layers: self.size_of("block_count")?,
            hidden,
            heads,
            key_heads: self
                .optional_size_of("attention.head_count_kv")?
                .unwrap_or(heads),
            width,
            inner: self.size_of("feed_forward_length")?,
            vocabulary: embedding.shape.dims().first().copied().unwrap_or(0),
            context_length: self.size_of("context_length")?,
            epsilon: self
                .number_of("attention.layer_norm_rms_epsilon")?
                .unwrap_or(1e-5),
            frequencies,
            neighbours: true,
        };
        check_shape(&self.path, &shape)?;
        Ok(shape)
    }

    fn has(&self, name: &str) -> bool {
        self.content.tensor_infos.contains_key(name)
    }

    fn matrix(&mut self, name: &str, rows: usize, columns: usize) -> Result<Matrix, LoadError> {
        let (kind, bytes) = self.read(name, &[rows, columns])?;
        let blocks = match kind {
            GgmlDType::Q8_0 => Some(Blocks::Q8_0),
            GgmlDType::Q4_0 => Some(Blocks::Q4_0),
            GgmlDType::Q4_1 => Some(Blocks::Q4_1),
            _ => None,
        };
        if let Some(blocks) = blocks {
            return if columns.is_multiple_of(BLOCK) {
                Ok(Matrix::from_blocks(rows, columns, &bytes, blocks))
            } else {
                Err(self.tensor_error(
                    name,
                    format!("{columns} columns are no multiple of {BLOCK}"),
                ))
            };
        }
        let values = self.dequantize(name, kind, bytes, rows * columns)?;
        Ok(match kind {
            GgmlDType::F32 => Matrix::from_floats(rows, columns, &values, Float::F32),
            GgmlDType::F16 => Matrix::from_floats(rows, columns, &values, Float::F16),
            GgmlDType::BF16 => Matrix::from_floats(rows, columns, &values, Float::Bf16),
            _ if columns.is_multiple_of(BLOCK) => Matrix::quantize(rows, columns, &values),
            _ => Matrix::from_floats(rows, columns, &values, Float::F16),
        })
    }

    fn vector(&mut self, name: &str, length: usize) -> Result<Vec<f32>, LoadError> {
        let (kind, bytes) = self.read(name, &[length])?;
        self.dequantize(name, kind, bytes, length)
    }
}

/// The name that people use: `Q4_1`, `Q4_K`, `BF16`.
fn type_name(kind: GgmlDType) -> String {
    let name = format!("{kind:?}");
    match name.strip_suffix('K') {
        Some(stem) if stem.len() == 2 => format!("{stem}_K"),
        _ => name,
    }
}

/// Bytes for a message: printable ones as they are.
struct Printable<'a>(&'a [u8]);

impl std::fmt::Debug for Printable<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "\"{}\"", self.0.escape_ascii())
    }
}
