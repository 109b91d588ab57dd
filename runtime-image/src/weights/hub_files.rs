//! Folders as model hubs lay them out: `config.json` and safetensors files.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::Metadata;
use serde::Deserialize;

use super::rope::{Scaling, frequencies};
use super::{LlamaShape, LoadError, Weights, check_shape};
use crate::compute::matrix::{Float, Matrix};

/// Largest header that is read; real ones take some hundred bytes a tensor.
const LARGEST_HEADER: u64 = 64 << 20;

/// The rotary scalings that a configuration may name.
pub(crate) const HUB_SCALINGS: [&str; 3] = [NO_SCALING, LINEAR, LLAMA3];

const NO_SCALING: &str = "default";
const LINEAR: &str = "linear";
const LLAMA3: &str = "llama3";

/// The types of weights that are read, as a configuration names them.
pub(crate) const HUB_FLOATS: [&str; 3] = ["float32", "float16", "bfloat16"];

/// Where a tensor lies.
struct Place {
    file: usize,
    kind: Dtype,
    shape: Vec<usize>,
    start: u64,
    bytes: usize,
}

/// An opened folder whose safetensors headers are whole.
pub struct HubFiles {
    config_path: PathBuf,
    config: Config,
    files: Vec<(PathBuf, File)>,
    tensors: HashMap<String, Place>,
}

/// The part of `config.json` that matters here; both spellings of the rotary settings.
#[derive(Deserialize)]
struct Config {
    architectures: Vec<String>,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: usize,
    max_position_embeddings: usize,
    rms_norm_eps: f32,
    rope_theta: Option<f32>,
    rope_scaling: Option<Rope>,
    rope_parameters: Option<Rope>,
    #[serde(default)]
    tie_word_embeddings: bool,
}

#[derive(Deserialize)]
struct Rope {
    #[serde(alias = "type")]
    rope_type: Option<String>,
    rope_theta: Option<f32>,
    factor: Option<f32>,
    low_freq_factor: Option<f32>,
    high_freq_factor: Option<f32>,
    original_max_position_embeddings: Option<f32>,
}

impl HubFiles {
    /// Opens a folder's configuration and the headers of its safetensors files.
    ///
    /// # Errors
    /// When a file is missing, damaged or cut short.
    pub fn open(folder: &Path) -> Result<Self, LoadError> {
        let config_path = folder.join("config.json");
        let text = std::fs::read(&config_path).map_err(|source| LoadError::Open {
            path: config_path.clone(),
            source,
        })?;
        let config: Config =
            serde_json::from_slice(&text).map_err(|error| LoadError::Description {
                path: config_path.clone(),
                detail: error.to_string(),
            })?;
        let open_folder = |source| LoadError::Open {
            path: folder.to_owned(),
            source,
        };
        let mut paths = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(open_folder)? {
            let path = entry.map_err(open_folder)?.path();
            if path
                .extension()
                .is_some_and(|extension| extension == "safetensors")
            {
                paths.push(path);
            }
        }
        paths.sort();
        let mut hub = Self {
            config_path,
            config,
            files: Vec::new(),
            tensors: HashMap::new(),
        };
        for path in paths {
            hub.add(path)?;
        }
        Ok(hub)
    }

    fn add(&mut self, path: PathBuf) -> Result<(), LoadError> {
        let open = |source| LoadError::Open {
            path: path.clone(),
            source,
        };
        let damaged = |detail: String| LoadError::Damaged {
            path: path.clone(),
            detail,
        };
        let mut file = File::open(&path).map_err(open)?;
        let size = file.metadata().map_err(open)?.len();
        let mut length = [0; 8];
        file.read_exact(&mut length)
            .map_err(|_| damaged(format!("file has {size} bytes, a header needs at least 8")))?;
        let length = u64::from_le_bytes(length);
        if length > LARGEST_HEADER || length + 8 > size {
            return Err(damaged(format!(
                "file has {size} bytes, its header says it has {length}"
            )));
        }
        let mut header = vec![0; length as usize];
        file.read_exact(&mut header).map_err(open)?;
        // Checks that the tensors follow one another; that the file has them all is checked below.
        let metadata: Metadata = serde_json::from_slice(&header)
            .map_err(|error| damaged(format!("its header is damaged: {error}")))?;
        let index = self.files.len();
        for (name, info) in metadata.tensors() {
            let (start, end) = info.data_offsets;
            let last = 8 + length + end as u64;
            if last > size {
                return Err(damaged(format!(
                    "file has {size} bytes, tensor {name} needs {last}: the file is cut short"
                )));
            }
            self.tensors.insert(
                name,
                Place {
                    file: index,
                    kind: info.dtype,
                    shape: info.shape.clone(),
                    start: 8 + length + start as u64,
                    bytes: end - start,
                },
            );
        }
        self.files.push((path, file));
        Ok(())
    }

    /// The type that the first matrix has.
    #[must_use]
    pub fn main_type(&self) -> String {
        self.tensors
            .values()
            .max_by_key(|place| place.bytes)
            .map(|place| format!("{:?}", place.kind))
            .unwrap_or_default()
    }

    fn read(&mut self, name: &str, shape: &[usize]) -> Result<(Dtype, Vec<f32>), LoadError> {
        let name = hub_name(name);
        let first = self.config_path.clone();
        let error = |path: &Path, detail: String| LoadError::Tensor {
            path: path.to_owned(),
            tensor: name.clone(),
            detail,
        };
        let Some(place) = self.tensors.get(&name) else {
            return Err(error(
                &first,
                "none of the safetensors files beside it has such a tensor".to_owned(),
            ));
        };
        let (path, file) = &mut self.files[place.file];
        if place.shape != shape {
            return Err(error(
                path,
                format!("its shape is {:?}, expected {shape:?}", place.shape),
            ));
        }
        let mut bytes = vec![0; place.bytes];
        file.seek(SeekFrom::Start(place.start))
            .and_then(|_| file.read_exact(&mut bytes))
            .map_err(|source| error(path, source.to_string()))?;
        let halves = || bytes.chunks_exact(2).map(|pair| [pair[0], pair[1]]);
        let values: Vec<f32> = match place.kind {
            Dtype::F32 => bytes
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect(),
            Dtype::F16 => halves()
                .map(|pair| f16::from_le_bytes(pair).to_f32())
                .collect(),
            Dtype::BF16 => halves()
                .map(|pair| bf16::from_le_bytes(pair).to_f32())
                .collect(),
            other => {
                return Err(error(
                    path,
                    format!("type {other:?} is not supported; supported are F32, F16, BF16"),
                ));
            }
        };
        Ok((place.kind, values))
    }
}

impl Weights for HubFiles {
    fn path(&self) -> &Path {
        &self.config_path
    }

    fn architecture(&self) -> &str {
        self.config.architectures.first().map_or("", String::as_str)
    }

    fn llama_shape(&self) -> Result<LlamaShape, LoadError> {
        let Config {
            hidden_size: hidden,
            num_attention_heads: heads,
            ..
        } = self.config;
        let config = &self.config;
        let width = config
            .head_dim
            .unwrap_or(hidden.checked_div(heads).unwrap_or(0));
        let rope = config
            .rope_parameters
            .as_ref()
            .or(config.rope_scaling.as_ref());
        let base = rope
            .and_then(|rope| rope.rope_theta)
            .or(config.rope_theta)
            .unwrap_or(10_000.0);
        let fail = |detail: String| LoadError::Description {
            path: self.config_path.clone(),
            detail,
        };
        let scaling = match rope.and_then(|rope| Some((rope, rope.rope_type.as_deref()?))) {
            None | Some((_, NO_SCALING)) => Scaling::None,
            Some((rope, LINEAR)) => Scaling::Linear {
                factor: rope.factor.unwrap_or(1.0),
            },
            Some((rope, LLAMA3)) => Scaling::Llama3 {
                factor: rope
                    .factor
                    .ok_or_else(|| fail("llama3 rope without factor".to_owned()))?,
                low: rope.low_freq_factor.unwrap_or(1.0),
                high: rope.high_freq_factor.unwrap_or(4.0),
                original: rope.original_max_position_embeddings.unwrap_or(8192.0),
            },
            Some((_, other)) => {
                return Err(fail(format!(
                    "rope type {other} is not supported; supported are {}",
                    HUB_SCALINGS.join(", ")
                )));
            }
        };
        let shape = LlamaShape {
            layers: config.num_hidden_layers,
            hidden,
            heads,
            key_heads: config.num_key_value_heads.unwrap_or(heads),
            width,
            inner: config.intermediate_size,
            vocabulary: config.vocab_size,
            context_length: config.max_position_embeddings,
            epsilon: config.rms_norm_eps,
            frequencies: frequencies(width, base, scaling),
            neighbours: false,
        };
        check_shape(&self.config_path, &shape)?;
        Ok(shape)
    }

    fn has(&self, name: &str) -> bool {
        // Some tied checkpoints carry a copy of the embedding as head; the configuration decides.
        (name != "output.weight" || !self.config.tie_word_embeddings)
            && self.tensors.contains_key(&hub_name(name))
    }

    fn matrix(&mut self, name: &str, rows: usize, columns: usize) -> Result<Matrix, LoadError> {
        let (kind, values) = self.read(name, &[rows, columns])?;
        let float = match kind {
            Dtype::F16 => Float::F16,
            Dtype::BF16 => Float::Bf16,
            _ => Float::F32,
        };
        Ok(Matrix::from_floats(rows, columns, &values, float))
    }

    fn vector(&mut self, name: &str, length: usize) -> Result<Vec<f32>, LoadError> {
        self.read(name, &[length]).map(|(_, values)| values)
    }
}

/// Translates a tensor's name in GGUF files to its name in hub files.
fn hub_name(name: &str) -> String {
    match name {
        "token_embd.weight" => return "model.embed_tokens.weight".to_owned(),
        "output_norm.weight" => return "model.norm.weight".to_owned(),
        "output.weight" => return "lm_head.weight".to_owned(),
        _ => {}
    }
    let mut parts = name.splitn(3, '.');
    let (_, index, rest) = (
        parts.next(),
        parts.next().unwrap_or_default(),
        parts.next().unwrap_or_default(),
    );
    let (part, kind) = rest.rsplit_once('.').unwrap_or((rest, ""));
    let part = match part {
        "attn_norm" => "input_layernorm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "ffn_norm" => "post_attention_layernorm",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        other => other,
    };
    format!("model.layers.{index}.{part}.{kind}")
}
