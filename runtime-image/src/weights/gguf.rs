//! GGUF files: the header, the extents of all tensors checked before one is read, tensors read one by one.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;

use header::{Described, Header, Value};
use pairs::Pairs;

use super::rope::{Scaling, frequencies, yarn_scale};
use super::{LoadError, Shape, Weights, check_shape, check_width};
use crate::compute::tensor::{Kind, Source, Tensor};
use crate::model::GGUF_ARCHITECTURES;

pub mod header;
pub mod pairs;

const NO_SCALING: &str = "none";
const LINEAR: &str = "linear";
const YARN: &str = "yarn";

/// The rotary scalings that a file may name in `rope.scaling.type`.
pub(crate) const GGUF_SCALINGS: [&str; 3] = [NO_SCALING, LINEAR, YARN];

/// An opened GGUF file whose header is whole and whose tensors all lie inside the file.
pub struct GgufFile {
    file: Arc<File>,
    pairs: Pairs,
    tensors: HashMap<String, Extent>,
    architecture: String,
}

/// A tensor of a known type that lies inside the file.
struct Extent {
    kind: Kind,
    shape: Vec<usize>,
    /// Its first byte in the file.
    begin: u64,
    /// Its bytes.
    length: usize,
}

impl Extent {
    /// Checks what the header says; the error is the tensor's.
    fn of(described: &Described, data: u64) -> Result<Self, String> {
        let kind = Kind::from_gguf(described.kind).ok_or_else(|| {
            format!(
                "type {} is not supported; supported are {:?}",
                other_type(described.kind),
                Kind::ALL
            )
        })?;
        let (numbers, size) = kind.block();
        let whole = |value: u64| usize::try_from(value).ok();
        let shape: Option<Vec<usize>> = described.shape.iter().copied().map(whole).collect();
        let extent = shape.and_then(|shape| {
            let all = shape
                .iter()
                .try_fold(1_usize, |all, size| all.checked_mul(*size))?;
            let blocks = all.is_multiple_of(numbers).then_some(all / numbers)?;
            Some(Self {
                kind,
                begin: data.checked_add(described.offset)?,
                length: blocks.checked_mul(size)?,
                shape,
            })
        });
        extent.ok_or_else(|| format!("its shape {:?} makes no sense", described.shape))
    }

    fn numbers(&self) -> usize {
        self.shape.iter().product()
    }
}

/// The name of a type that is not read, by its number in ggml's list.
fn other_type(kind: u32) -> String {
    let names = [
        (9, "Q8_1"),
        (15, "Q8_K"),
        (16, "IQ2_XXS"),
        (17, "IQ2_XS"),
        (18, "IQ3_XXS"),
        (19, "IQ1_S"),
        (21, "IQ3_S"),
        (22, "IQ2_S"),
        (23, "IQ4_XS"),
        (24, "I8"),
        (25, "I16"),
        (26, "I32"),
        (27, "I64"),
        (28, "F64"),
        (29, "IQ1_M"),
        (34, "TQ1_0"),
        (35, "TQ2_0"),
        (39, "MXFP4"),
    ];
    let name = names.iter().find(|(number, _)| *number == kind);
    name.map_or_else(|| kind.to_string(), |(_, name)| (*name).to_owned())
}

impl GgufFile {
    /// Opens a file and checks its header and the extent of every tensor.
    ///
    /// # Errors
    /// When the file is no GGUF file, is cut short, its header is damaged or a tensor has a type that is not read.
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
        let header =
            Header::read(BufReader::with_capacity(1 << 20, &mut file), size).map_err(|detail| {
                damaged(format!(
                    "file has {size} bytes and its header cannot be read to the end: {detail}"
                ))
            })?;
        let mut gguf = Self {
            file: Arc::new(file),
            pairs: Pairs::new(path, header.pairs),
            tensors: HashMap::with_capacity(header.tensors.len()),
            architecture: String::new(),
        };
        gguf.take_extents(header.tensors, header.data, size)?;
        gguf.architecture = gguf.pairs.text("general.architecture")?.to_owned();
        Ok(gguf)
    }

    /// Refuses a file that ends before its tensors do; names the first of them in file order.
    fn take_extents(
        &mut self,
        tensors: HashMap<String, Described>,
        data: u64,
        size: u64,
    ) -> Result<(), LoadError> {
        let mut in_order: Vec<(String, Described)> = tensors.into_iter().collect();
        // Several may claim to begin at the same place.
        in_order.sort_by(|(name, one), (other, two)| (one.offset, name).cmp(&(two.offset, other)));
        for (name, described) in in_order {
            let extent =
                Extent::of(&described, data).map_err(|detail| self.tensor_error(&name, detail))?;
            let end = extent.begin.saturating_add(extent.length as u64);
            if end > size {
                let detail = format!(
                    "file has {size} bytes, tensor {name} needs {end}: the file is cut short"
                );
                return Err(LoadError::Damaged {
                    path: self.path().to_owned(),
                    detail,
                });
            }
            self.tensors.insert(name, extent);
        }
        Ok(())
    }

    fn tensor_error(&self, tensor: &str, detail: String) -> LoadError {
        LoadError::Tensor {
            path: self.path().to_owned(),
            tensor: tensor.to_owned(),
            detail,
        }
    }

    /// Takes out what the file says of its tokenizer and of chats.
    pub fn take_tokenizer(&mut self) -> Pairs {
        self.pairs.take("tokenizer.")
    }

    fn size_of(&self, part: &str) -> Result<usize, LoadError> {
        let key = format!("{}.{part}", self.architecture);
        match self.pairs.whole(&key)? {
            Some(value) => {
                usize::try_from(value).map_err(|_| self.pairs.error(format!("{key} is {value}")))
            }
            None => Err(self.pairs.error(format!("key {key} is missing"))),
        }
    }

    fn optional_size_of(&self, part: &str) -> Result<Option<usize>, LoadError> {
        if self
            .pairs
            .value(&format!("{}.{part}", self.architecture))
            .is_some()
        {
            self.size_of(part).map(Some)
        } else {
            Ok(None)
        }
    }

    fn number_of(&self, part: &str) -> Result<Option<f32>, LoadError> {
        let key = format!("{}.{part}", self.architecture);
        match self.pairs.value(&key) {
            None => Ok(None),
            Some(Value::Float(value)) if value.is_finite() => Ok(Some(*value as f32)),
            Some(Value::Float(value)) => Err(self
                .pairs
                .error(format!("{key} is {value}, expected a finite number"))),
            Some(other) => Err(self.pairs.error(format!(
                "{key} is {}, expected a number with a fraction",
                other.what()
            ))),
        }
    }

    /// The type that most of the weights' bytes have: what people call the file's quantization.
    #[must_use]
    pub fn main_type(&self) -> String {
        let mut bytes: BTreeMap<String, usize> = BTreeMap::new();
        for extent in self.tensors.values() {
            *bytes.entry(format!("{:?}", extent.kind)).or_default() += extent.length;
        }
        bytes
            .into_iter()
            .max_by_key(|(_, bytes)| *bytes)
            .map(|(name, _)| name)
            .unwrap_or_default()
    }

    /// A tensor of this shape.
    fn find(&self, name: &str, shape: &[usize]) -> Result<&Extent, LoadError> {
        let Some(extent) = self.tensors.get(name) else {
            return Err(self.tensor_error(name, "the file has no such tensor".to_owned()));
        };
        if extent.shape != shape {
            let found = &extent.shape;
            return Err(
                self.tensor_error(name, format!("its shape is {found:?}, expected {shape:?}"))
            );
        }
        Ok(extent)
    }

    /// The type and bytes of a tensor, after its shape was compared.
    fn read(&self, name: &str, shape: &[usize]) -> Result<(Kind, Vec<u8>), LoadError> {
        let extent = self.find(name, shape)?;
        let mut bytes = vec![0; extent.length];
        let mut file = &*self.file;
        file.seek(SeekFrom::Start(extent.begin))
            .and_then(|_| file.read_exact(&mut bytes))
            .map_err(|error| {
                let (length, begin) = (extent.length, extent.begin);
                self.tensor_error(
                    name,
                    format!("{error} while reading {length} bytes at {begin}"),
                )
            })?;
        Ok((extent.kind, bytes))
    }

    /// Reads a tensor of this shape; a vector is a matrix of one row.
    fn tensor_of(
        &self,
        name: &str,
        shape: &[usize],
        rows: usize,
        columns: usize,
    ) -> Result<Tensor, LoadError> {
        let (kind, bytes) = self.read(name, shape)?;
        Tensor::new(kind, rows, columns, bytes).map_err(|detail| self.tensor_error(name, detail))
    }
}

impl Weights for GgufFile {
    fn path(&self) -> &Path {
        self.pairs.path()
    }

    fn architecture(&self) -> &str {
        &self.architecture
    }

    fn known_architectures(&self) -> &'static [&'static str] {
        &GGUF_ARCHITECTURES
    }

    fn shape(&self) -> Result<Shape, LoadError> {
        if self.optional_size_of("expert_count")?.unwrap_or(0) > 0 {
            return Err(self
                .pairs
                .error("mixtures of experts are not supported".to_owned()));
        }
        let (hidden, heads) = (
            self.size_of("embedding_length")?,
            self.size_of("attention.head_count")?,
        );
        let width = match self.optional_size_of("attention.key_length")? {
            Some(width) => width,
            None => hidden.checked_div(heads).unwrap_or(0),
        };
        check_width(self.path(), width)?;
        let rotated = self
            .optional_size_of("rope.dimension_count")?
            .unwrap_or(width);
        if rotated > width {
            return Err(self.pairs.error(format!(
                "{rotated} rotated numbers in heads of width {width}"
            )));
        }
        let key = format!("{}.rope.scaling.type", self.architecture);
        let scaling = match self.pairs.value(&key) {
            None => Scaling::None,
            Some(_) => match self.pairs.text(&key)? {
                NO_SCALING => Scaling::None,
                LINEAR => Scaling::Linear {
                    factor: self
                        .number_of("rope.scaling.factor")?
                        .unwrap_or(1.0)
                        .max(1.0),
                },
                YARN => Scaling::Yarn {
                    factor: self
                        .number_of("rope.scaling.factor")?
                        .unwrap_or(1.0)
                        .max(1.0),
                    original: match self.optional_size_of("rope.scaling.original_context_length")? {
                        Some(length) => length as f32,
                        None => self.size_of("context_length")? as f32,
                    },
                    fast: 32.0,
                    slow: 1.0,
                },
                other => {
                    return Err(self.pairs.error(format!(
                        "{key} is {other}; supported are {}",
                        GGUF_SCALINGS.join(", ")
                    )));
                }
            },
        };
        let base = self.number_of("rope.freq_base")?.unwrap_or(10_000.0);
        let mut frequencies = frequencies(rotated, base, scaling);
        if let Some(extent) = self.tensors.get("rope_freqs.weight") {
            // Llama 3.1's scaling, computed by the converter: a divisor for each pair.
            let count = extent.numbers();
            if count != frequencies.len() || extent.kind != Kind::F32 {
                return Err(self.tensor_error(
                    "rope_freqs.weight",
                    format!("{count} divisors for {} pairs", frequencies.len()),
                ));
            }
            let divisors = self.tensor_of("rope_freqs.weight", &extent.shape, 1, count)?;
            for (frequency, divisor) in frequencies.iter_mut().zip(divisors.floats()) {
                *frequency /= divisor;
            }
        }
        let Some(embedding) = self.tensors.get("token_embd.weight") else {
            return Err(self.tensor_error(
                "token_embd.weight",
                "the file has no such tensor".to_owned(),
            ));
        };
        let vocabulary = embedding.shape.first().copied().unwrap_or(0);
        let shape = Shape {
            layers: self.size_of("block_count")?,
            hidden,
            heads,
            key_heads: self
                .optional_size_of("attention.head_count_kv")?
                .unwrap_or(heads),
            width,
            inner: self.size_of("feed_forward_length")?,
            vocabulary,
            inputs: vocabulary,
            context_length: self.size_of("context_length")?,
            epsilon: self
                .number_of("attention.layer_norm_rms_epsilon")?
                .unwrap_or(1e-5),
            frequencies,
            rotation_scale: match scaling {
                Scaling::Yarn { factor, .. } => yarn_scale(factor),
                Scaling::None | Scaling::Linear { .. } | Scaling::Llama3 { .. } => 1.0,
            },
            // Converters permute the rows of llama's query and key for this; other families keep their order.
            neighbours: self.architecture == "llama",
        };
        check_shape(self.path(), &shape)?;
        Ok(shape)
    }

    fn packed_bytes(&self) -> u64 {
        let packed = |extent: &Extent| match extent.kind {
            Kind::F32
            | Kind::F16
            | Kind::BF16
            | Kind::Q4_0
            | Kind::Q4_1
            | Kind::Q8_0
            | Kind::IQ4_NL => extent.length as u64,
            // Rounded to blocks of 32 bytes with a scale.
            Kind::Q5_0
            | Kind::Q5_1
            | Kind::Q2_K
            | Kind::Q3_K
            | Kind::Q4_K
            | Kind::Q5_K
            | Kind::Q6_K => extent.numbers() as u64 / 32 * 34,
        };
        self.tensors.values().map(packed).sum()
    }

    fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    fn tensor(&mut self, name: &str, rows: usize, columns: usize) -> Result<Tensor, LoadError> {
        self.tensor_of(name, &[rows, columns], rows, columns)
    }

    fn source(&self, name: &str, rows: usize, columns: usize) -> Result<Option<Source>, LoadError> {
        let extent = self.find(name, &[rows, columns])?;
        Ok(Some(Source {
            kind: extent.kind,
            rows,
            columns,
            file: Arc::clone(&self.file),
            path: self.path().to_owned(),
            start: extent.begin,
            bytes: extent.length,
        }))
    }

    fn vector(&mut self, name: &str, length: usize) -> Result<Vec<f32>, LoadError> {
        Ok(self.tensor_of(name, &[length], 1, length)?.floats())
    }
}

/// Bytes for a message: printable ones as they are.
struct Printable<'a>(&'a [u8]);

impl std::fmt::Debug for Printable<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "\"{}\"", self.0.escape_ascii())
    }
}
