//! Folders as model hubs lay them out: `config.json` and safetensors files.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::Dtype;
use safetensors::tensor::Metadata;
use serde::Deserialize;

use super::rope::{Scaling, frequencies, yarn_scale};
use super::sight::{Sight, VisionConfig};
use super::{LoadError, Shape, Weights, check_shape, check_width};
use crate::answer::Memory;
use crate::compute::matrix::Float;
use crate::compute::tensor::{Kind, Source, Tensor};
use crate::model::{HUB_ARCHITECTURES, size};

/// Largest header that is read; real ones take some hundred bytes a tensor.
const LARGEST_HEADER: u64 = 64 << 20;

/// The rotary scalings that a configuration may name.
pub(crate) const HUB_SCALINGS: [&str; 4] = [NO_SCALING, LINEAR, LLAMA3, YARN];

const NO_SCALING: &str = "default";
const LINEAR: &str = "linear";
const LLAMA3: &str = "llama3";
const YARN: &str = "yarn";

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

impl Place {
    fn kind(&self) -> Result<Kind, String> {
        match self.kind {
            Dtype::F32 => Ok(Kind::F32),
            Dtype::F16 => Ok(Kind::F16),
            Dtype::BF16 => Ok(Kind::BF16),
            other => Err(format!(
                "type {other:?} is not supported; supported are F32, F16, BF16"
            )),
        }
    }
}

/// An opened folder whose safetensors headers are whole.
pub struct HubFiles {
    config_path: PathBuf,
    config: Config,
    pictures: Option<PictureConfig>,
    prefixes: Prefixes,
    files: Vec<(PathBuf, Arc<File>)>,
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
    hidden_act: Option<String>,
    #[serde(default)]
    use_sliding_window: bool,
    rope_theta: Option<f32>,
    rope_scaling: Option<Rope>,
    rope_parameters: Option<Rope>,
    #[serde(default)]
    tie_word_embeddings: bool,
    /// Layers in which text looks at pictures; none in models of text only.
    #[serde(skip)]
    cross_attention_layers: Vec<usize>,
}

/// What a model that looks at pictures says beside its text part.
#[derive(Deserialize)]
struct PictureConfig {
    image_token_index: u32,
    vision_config: VisionConfig,
}

/// So many rows more than logits the published embeddings have; the first of them stands for a picture.
const UNSAID: usize = 8;

/// What `serve` allocates for a model of this `config.json`, whose weights are as published; absent where it says too little.
#[must_use]
pub fn planned_memory(text: &[u8]) -> Option<Memory> {
    #[derive(Deserialize)]
    struct Type {
        #[serde(alias = "torch_dtype")]
        dtype: Option<String>,
        text_config: Option<Box<Type>>,
    }
    let told: Type = serde_json::from_slice(text).ok()?;
    let nested = told.text_config.and_then(|text| text.dtype);
    let float = match told.dtype.or(nested)?.as_str() {
        "float32" => Float::F32,
        "float16" => Float::F16,
        "bfloat16" => Float::Bf16,
        _ => return None,
    };
    let model = HubFiles::described(PathBuf::from("config.json"), text).ok()?;
    let (shape, sight) = (model.shape().ok()?, model.sight().ok()?);
    let tied = model.config.tie_word_embeddings;
    let weights = size::float_weights(&shape, sight.as_ref(), tied, float);
    Some(size::memory(&shape, sight.as_ref(), weights))
}

/// How such a model describes its text part.
#[derive(Deserialize)]
struct CrossConfig {
    cross_attention_layers: Vec<usize>,
}

/// What the names of tensors begin with: text layers, output matrix, and what belongs to pictures.
#[derive(Clone, Copy)]
struct Prefixes {
    text: &'static str,
    head: &'static str,
    pictures: &'static str,
}

/// Models of text only.
const TEXT: Prefixes = Prefixes {
    text: "model.",
    head: "",
    pictures: "",
};

/// As the hubs publish Llama 3.2 Vision.
const PUBLISHED: Prefixes = Prefixes {
    text: "language_model.model.",
    head: "language_model.",
    pictures: "",
};

/// As transformers saves it since 4.52.
const SAVED_ANEW: Prefixes = Prefixes {
    text: "model.language_model.",
    head: "",
    pictures: "model.",
};

#[derive(Deserialize)]
struct Rope {
    #[serde(alias = "type")]
    rope_type: Option<String>,
    rope_theta: Option<f32>,
    factor: Option<f32>,
    low_freq_factor: Option<f32>,
    high_freq_factor: Option<f32>,
    original_max_position_embeddings: Option<f32>,
    beta_fast: Option<f32>,
    beta_slow: Option<f32>,
    attention_factor: Option<f32>,
}

impl HubFiles {
    /// A model of this description whose files are not there yet: it has sizes and no tensors.
    fn described(config_path: PathBuf, text: &[u8]) -> Result<Self, LoadError> {
        let (config, pictures) = read_config(text).map_err(|error| LoadError::Description {
            path: config_path.clone(),
            detail: error.to_string(),
        })?;
        Ok(Self {
            config_path,
            config,
            prefixes: if pictures.is_some() { PUBLISHED } else { TEXT },
            pictures,
            files: Vec::new(),
            tensors: HashMap::new(),
        })
    }

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
        let mut hub = Self::described(config_path, &text)?;
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
        for path in paths {
            hub.add(path)?;
        }
        if hub.pictures.is_some() && !hub.has("token_embd.weight") {
            hub.prefixes = SAVED_ANEW;
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
        self.files.push((path, Arc::new(file)));
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

    /// The numbers of the layers that look at pictures.
    fn cross_layers(&self) -> Result<&[usize], LoadError> {
        let layers = &self.config.cross_attention_layers;
        let all = self.config.num_hidden_layers;
        if layers.windows(2).any(|pair| pair[0] >= pair[1])
            || layers.iter().any(|layer| *layer >= all)
            || (self.pictures.is_some() && layers.is_empty())
        {
            return Err(LoadError::Description {
                path: self.config_path.clone(),
                detail: format!(
                    "cross_attention_layers {layers:?} of {all} layers, expected ascending numbers below that"
                ),
            });
        }
        Ok(layers)
    }

    /// The name in the files of the tensor that goes by `name`, and what the files say of it, if it has this shape.
    fn find(&self, name: &str, shape: &[usize]) -> Result<(String, &Place), LoadError> {
        let name = hub_name(name, self.prefixes);
        let error = |path: &Path, detail: String| LoadError::Tensor {
            path: path.to_owned(),
            tensor: name.clone(),
            detail,
        };
        let Some(place) = self.tensors.get(&name) else {
            return Err(error(
                &self.config_path,
                "none of the safetensors files beside it has such a tensor".to_owned(),
            ));
        };
        // A convolution's weights are a matrix of as many rows as it has outputs.
        let flat = place.shape.len() > 2
            && place.shape.first() == shape.first()
            && place.shape.iter().product::<usize>() == shape.iter().product::<usize>();
        if place.shape != shape && !flat {
            return Err(error(
                &self.files[place.file].0,
                format!("its shape is {:?}, expected {shape:?}", place.shape),
            ));
        }
        Ok((name, place))
    }

    /// The name in the files of a tensor of this shape, which is not read.
    ///
    /// # Errors
    /// When the files have none, or it has another shape.
    pub fn named(&self, name: &str, shape: &[usize]) -> Result<String, LoadError> {
        Ok(self.find(name, shape)?.0)
    }

    /// Reads a tensor of this shape; a vector is a matrix of one row.
    fn read(
        &mut self,
        name: &str,
        shape: &[usize],
        rows: usize,
        columns: usize,
    ) -> Result<Tensor, LoadError> {
        let (name, place) = self.find(name, shape)?;
        let error = |path: &Path, detail: String| LoadError::Tensor {
            path: path.to_owned(),
            tensor: name.clone(),
            detail,
        };
        let (path, file) = &self.files[place.file];
        let mut file: &File = file;
        let mut bytes = vec![0; place.bytes];
        file.seek(SeekFrom::Start(place.start))
            .and_then(|_| file.read_exact(&mut bytes))
            .map_err(|source| error(path, source.to_string()))?;
        let kind = place.kind().map_err(|detail| error(path, detail))?;
        Tensor::new(kind, rows, columns, bytes).map_err(|detail| error(path, detail))
    }
}

impl Weights for HubFiles {
    fn path(&self) -> &Path {
        &self.config_path
    }

    fn architecture(&self) -> &str {
        self.config.architectures.first().map_or("", String::as_str)
    }

    fn known_architectures(&self) -> &'static [&'static str] {
        &HUB_ARCHITECTURES
    }

    fn shape(&self) -> Result<Shape, LoadError> {
        let Config {
            hidden_size: hidden,
            num_attention_heads: heads,
            ..
        } = self.config;
        let config = &self.config;
        let width = config
            .head_dim
            .unwrap_or(hidden.checked_div(heads).unwrap_or(0));
        check_width(&self.config_path, width)?;
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
        if let Some(other) = config.hidden_act.as_deref().filter(|act| *act != "silu") {
            return Err(fail(format!(
                "hidden_act {other} is not supported; supported is silu"
            )));
        }
        if config.use_sliding_window {
            return Err(fail("use_sliding_window is not supported".to_owned()));
        }
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
            Some((rope, YARN)) => {
                let trained = config.max_position_embeddings as f32;
                let original = rope.original_max_position_embeddings.unwrap_or(trained);
                Scaling::Yarn {
                    factor: rope.factor.unwrap_or(trained / original),
                    original,
                    fast: rope.beta_fast.unwrap_or(32.0),
                    slow: rope.beta_slow.unwrap_or(1.0),
                }
            }
            Some((_, other)) => {
                return Err(fail(format!(
                    "rope type {other} is not supported; supported are {}",
                    HUB_SCALINGS.join(", ")
                )));
            }
        };
        let shape = Shape {
            layers: config.num_hidden_layers - self.cross_layers()?.len(),
            hidden,
            heads,
            key_heads: config.num_key_value_heads.unwrap_or(heads),
            width,
            inner: config.intermediate_size,
            vocabulary: config.vocab_size,
            // A model that looks at pictures knows tokens that it never says.
            inputs: match (
                &self.pictures,
                self.tensors
                    .get(&hub_name("token_embd.weight", self.prefixes)),
            ) {
                (Some(_), Some(embedding)) => embedding.shape.first().copied().unwrap_or(0),
                (Some(_), None) => config.vocab_size + UNSAID,
                _ => config.vocab_size,
            },
            context_length: config.max_position_embeddings,
            epsilon: config.rms_norm_eps,
            frequencies: frequencies(width, base, scaling),
            rotation_scale: match scaling {
                Scaling::Yarn { factor, .. } => rope
                    .and_then(|rope| rope.attention_factor)
                    .unwrap_or_else(|| yarn_scale(factor)),
                Scaling::None | Scaling::Linear { .. } | Scaling::Llama3 { .. } => 1.0,
            },
            neighbours: false,
        };
        check_shape(&self.config_path, &shape)?;
        Ok(shape)
    }

    fn sight(&self) -> Result<Option<Sight>, LoadError> {
        let Some(pictures) = &self.pictures else {
            return Ok(None);
        };
        let sight = Sight::new(
            &self.config_path,
            &pictures.vision_config,
            pictures.image_token_index,
            self.cross_layers()?.to_vec(),
        )?;
        Ok(Some(sight))
    }

    fn packed_bytes(&self) -> u64 {
        let places = self.tensors.values();
        places.map(|place| place.bytes as u64).sum()
    }

    fn has(&self, name: &str) -> bool {
        // Some tied checkpoints carry a copy of the embedding as head; the configuration decides.
        (name != "output.weight" || !self.config.tie_word_embeddings)
            && self.tensors.contains_key(&hub_name(name, self.prefixes))
    }

    fn tensor(&mut self, name: &str, rows: usize, columns: usize) -> Result<Tensor, LoadError> {
        self.read(name, &[rows, columns], rows, columns)
    }

    fn source(&self, name: &str, rows: usize, columns: usize) -> Result<Option<Source>, LoadError> {
        let (name, place) = self.find(name, &[rows, columns])?;
        let (path, file) = &self.files[place.file];
        let kind = place.kind().map_err(|detail| LoadError::Tensor {
            path: path.clone(),
            tensor: name,
            detail,
        })?;
        Ok(Some(Source {
            kind,
            rows,
            columns,
            file: Arc::clone(file),
            path: path.clone(),
            start: place.start,
            bytes: place.bytes,
        }))
    }

    fn vector(&mut self, name: &str, length: usize) -> Result<Vec<f32>, LoadError> {
        Ok(self.read(name, &[length], 1, length)?.floats())
    }
}

/// Reads a description; models that look at pictures describe their text part under `text_config`.
fn read_config(text: &[u8]) -> Result<(Config, Option<PictureConfig>), serde_json::Error> {
    #[derive(Deserialize)]
    struct Outer {
        architectures: Option<Vec<String>>,
        text_config: Option<serde_json::Map<String, serde_json::Value>>,
    }
    let outer: Outer = serde_json::from_slice(text)?;
    let (Some(mut nested), Some(architectures)) = (outer.text_config, outer.architectures) else {
        return Ok((serde_json::from_slice(text)?, None));
    };
    nested.insert("architectures".to_owned(), architectures.into());
    let pictures: PictureConfig = serde_json::from_slice(text)?;
    let nested = serde_json::Value::Object(nested);
    let cross: CrossConfig = serde_json::from_value(nested.clone())?;
    let mut config: Config = serde_json::from_value(nested)?;
    config.cross_attention_layers = cross.cross_attention_layers;
    Ok((config, Some(pictures)))
}

/// Translates a tensor's name in GGUF files to its name in hub files. What belongs to pictures goes by its name in hub files.
fn hub_name(name: &str, prefixes: Prefixes) -> String {
    let Prefixes {
        text,
        head,
        pictures,
    } = prefixes;
    match name {
        "token_embd.weight" => return format!("{text}embed_tokens.weight"),
        "output_norm.weight" => return format!("{text}norm.weight"),
        "output.weight" => return format!("{head}lm_head.weight"),
        _ => {}
    }
    if name.starts_with("vision_model.") || name.starts_with("multi_modal_projector.") {
        return format!("{pictures}{name}");
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
        "attn_q_norm" => "self_attn.q_norm",
        "attn_k_norm" => "self_attn.k_norm",
        "attn_output" => "self_attn.o_proj",
        "cross_attn_q" => "cross_attn.q_proj",
        "cross_attn_k" => "cross_attn.k_proj",
        "cross_attn_v" => "cross_attn.v_proj",
        "cross_attn_q_norm" => "cross_attn.q_norm",
        "cross_attn_k_norm" => "cross_attn.k_norm",
        "cross_attn_output" => "cross_attn.o_proj",
        "ffn_norm" => "post_attention_layernorm",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        // The gates of cross-attention layers have the same names in both.
        other => other,
    };
    match kind {
        "" => format!("{text}layers.{index}.{part}"),
        kind => format!("{text}layers.{index}.{part}.{kind}"),
    }
}
