//! Random weights in exactly the layout of the published Llama 3.2 Vision: names, shapes, several files with an index,
//! descriptions. Any widths and any number of layers, so that the real layout can be tried where the real weights are not.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use serde_json::{Map, Value, json};

/// The sizes of a model.
#[derive(Clone, Debug)]
pub(crate) struct Sizes {
    /// Width of the text's state.
    pub(crate) hidden: usize,
    /// Width inside its feed-forward layers.
    pub(crate) inner: usize,
    /// Its heads.
    pub(crate) heads: usize,
    /// Its heads of keys and values.
    pub(crate) key_heads: usize,
    /// Its layers, those that look at pictures included.
    pub(crate) layers: usize,
    /// The numbers of those that look at pictures.
    pub(crate) cross_layers: Vec<usize>,
    /// Tokens that may come next; one more stands for a picture.
    pub(crate) vocabulary: usize,
    /// Width of the tower's state.
    pub(crate) vision_hidden: usize,
    /// Width inside its feed-forward layers.
    pub(crate) vision_inner: usize,
    /// Its heads.
    pub(crate) vision_heads: usize,
    /// Layers of its first encoder.
    pub(crate) vision_layers: usize,
    /// Layers of its second encoder.
    pub(crate) global_layers: usize,
    /// Layers of the first encoder whose inputs are kept.
    pub(crate) saved: Vec<usize>,
    /// Pixels on a side of a tile.
    pub(crate) side: usize,
    /// Pixels on a side of a patch.
    pub(crate) patch: usize,
}

impl Sizes {
    /// The 11B model that follows instructions, as published.
    pub(crate) fn published_11b() -> Self {
        Self {
            hidden: 4_096,
            inner: 14_336,
            heads: 32,
            key_heads: 8,
            layers: 40,
            cross_layers: (3..40).step_by(5).collect(),
            vocabulary: 128_256,
            vision_hidden: 1_280,
            vision_inner: 5_120,
            vision_heads: 16,
            vision_layers: 32,
            global_layers: 8,
            saved: vec![3, 7, 15, 23, 30],
            side: 560,
            patch: 14,
        }
    }

    /// The 90B model that follows instructions, as published.
    pub(crate) fn published_90b() -> Self {
        Self {
            hidden: 8_192,
            inner: 28_672,
            heads: 64,
            layers: 100,
            cross_layers: (3..100).step_by(5).collect(),
            ..Self::published_11b()
        }
    }

    /// The same widths with few layers: so many of text, every fifth of which from number 3 on looks at pictures, and so many
    /// in the tower's encoders.
    pub(crate) fn with_layers(
        self,
        layers: usize,
        vision_layers: usize,
        global_layers: usize,
    ) -> Self {
        let mut saved = self.saved;
        saved.retain(|layer| *layer < vision_layers);
        if saved.is_empty() {
            saved.push(vision_layers.saturating_sub(1));
        }
        Self {
            layers,
            cross_layers: (3..layers).step_by(5).collect(),
            vision_layers,
            global_layers,
            saved,
            ..self
        }
    }
}

/// Arrangements of tiles in the published order.
const ARRANGEMENTS: [[usize; 2]; 8] = [
    [1, 1],
    [1, 2],
    [1, 3],
    [1, 4],
    [2, 1],
    [2, 2],
    [3, 1],
    [4, 1],
];

const TILES: usize = 4;

/// What the numbers of a tensor are like.
#[derive(Clone, Copy)]
enum Numbers {
    /// Around zero, so spread.
    Spread(f32),
    /// Around one.
    Norm,
    /// A table of tiles: rows of an arrangement's tiles that it lacks, and of number 0, are zeros.
    Tiles,
}

/// A tensor of the layout.
pub(crate) struct Tensor {
    /// Its name in the files.
    pub(crate) name: String,
    /// Its sizes, rows first.
    pub(crate) shape: Vec<usize>,
    numbers: Numbers,
}

/// What the numbers of all tensors are to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// As in trained weights: states neither grow nor vanish on their way through the layers.
    Random,
    /// The same in single precision, twice as large as published.
    RandomF32,
    /// Zeros that take no room where the file system knows holes: for what looks at names and shapes alone.
    Holes,
}

/// The names and shapes of all tensors.
pub(crate) fn tensors(sizes: &Sizes) -> Vec<Tensor> {
    let mut all = Vec::new();
    let mut add = |name: String, shape: &[usize], numbers: Numbers| {
        let shape = shape.to_vec();
        all.push(Tensor {
            name,
            shape,
            numbers,
        });
    };
    let matrix = |columns: usize| Numbers::Spread((1.0 / columns as f32).sqrt());
    let (hidden, inner) = (sizes.hidden, sizes.inner);
    let width = hidden / sizes.heads;
    let shared = sizes.key_heads * width;
    let text = "language_model.model";
    add(
        format!("{text}.embed_tokens.weight"),
        &[sizes.vocabulary + 8, hidden],
        Numbers::Spread(1.0),
    );
    for layer in 0..sizes.layers {
        let name = |part: &str| format!("{text}.layers.{layer}.{part}");
        let cross = sizes.cross_layers.contains(&layer);
        let attention = if cross { "cross_attn" } else { "self_attn" };
        for (part, outputs, inputs) in [
            ("q_proj", hidden, hidden),
            ("k_proj", shared, hidden),
            ("v_proj", shared, hidden),
            ("o_proj", hidden, hidden),
        ] {
            add(
                name(&format!("{attention}.{part}.weight")),
                &[outputs, inputs],
                matrix(inputs),
            );
        }
        if cross {
            add(name("cross_attn.q_norm.weight"), &[width], Numbers::Norm);
            add(name("cross_attn.k_norm.weight"), &[width], Numbers::Norm);
            add(name("cross_attn_attn_gate"), &[1], Numbers::Spread(1.0));
            add(name("cross_attn_mlp_gate"), &[1], Numbers::Spread(1.0));
        }
        for (part, outputs, inputs) in [
            ("gate_proj", inner, hidden),
            ("up_proj", inner, hidden),
            ("down_proj", hidden, inner),
        ] {
            add(
                name(&format!("mlp.{part}.weight")),
                &[outputs, inputs],
                matrix(inputs),
            );
        }
        add(name("input_layernorm.weight"), &[hidden], Numbers::Norm);
        add(
            name("post_attention_layernorm.weight"),
            &[hidden],
            Numbers::Norm,
        );
    }
    add(format!("{text}.norm.weight"), &[hidden], Numbers::Norm);
    add(
        "language_model.lm_head.weight".to_owned(),
        &[sizes.vocabulary, hidden],
        matrix(hidden),
    );

    let (hidden, inner, patch) = (sizes.vision_hidden, sizes.vision_inner, sizes.patch);
    let rows = (sizes.side / patch) * (sizes.side / patch) + 1;
    let name = |part: &str| format!("vision_model.{part}");
    add(
        name("patch_embedding.weight"),
        &[hidden, 3, patch, patch],
        matrix(3 * patch * patch),
    );
    add(name("class_embedding"), &[hidden], Numbers::Spread(0.5));
    let positions = "gated_positional_embedding";
    add(
        name(&format!("{positions}.embedding")),
        &[rows, hidden],
        Numbers::Spread(0.5),
    );
    add(
        name(&format!("{positions}.gate")),
        &[1],
        Numbers::Spread(1.0),
    );
    let numbers = ARRANGEMENTS.len() + 1;
    add(
        name(&format!("{positions}.tile_embedding.weight")),
        &[numbers, TILES * rows * hidden],
        Numbers::Tiles,
    );
    for part in [
        "pre_tile_positional_embedding",
        "post_tile_positional_embedding",
    ] {
        add(
            name(&format!("{part}.embedding.weight")),
            &[numbers, TILES * hidden],
            Numbers::Tiles,
        );
        add(name(&format!("{part}.gate")), &[1], Numbers::Spread(1.0));
    }
    let mut norm = |part: &str| {
        add(format!("{part}.weight"), &[hidden], Numbers::Norm);
        add(format!("{part}.bias"), &[hidden], Numbers::Spread(0.1));
    };
    norm("vision_model.layernorm_pre");
    norm("vision_model.layernorm_post");
    for (encoder, layers) in [
        ("transformer", sizes.vision_layers),
        ("global_transformer", sizes.global_layers),
    ] {
        for layer in 0..layers {
            let name = |part: &str| format!("vision_model.{encoder}.layers.{layer}.{part}");
            let mut norm = |part: &str| {
                add(name(&format!("{part}.weight")), &[hidden], Numbers::Norm);
                add(
                    name(&format!("{part}.bias")),
                    &[hidden],
                    Numbers::Spread(0.1),
                );
            };
            norm("input_layernorm");
            norm("post_attention_layernorm");
            for part in ["q_proj", "k_proj", "v_proj", "o_proj"] {
                add(
                    name(&format!("self_attn.{part}.weight")),
                    &[hidden, hidden],
                    matrix(hidden),
                );
            }
            for (part, outputs, inputs) in [("fc1", inner, hidden), ("fc2", hidden, inner)] {
                add(
                    name(&format!("mlp.{part}.weight")),
                    &[outputs, inputs],
                    matrix(inputs),
                );
                add(
                    name(&format!("mlp.{part}.bias")),
                    &[outputs],
                    Numbers::Spread(0.1),
                );
            }
            if encoder == "global_transformer" {
                add(name("gate_attn"), &[1], Numbers::Spread(1.0));
                add(name("gate_ffn"), &[1], Numbers::Spread(1.0));
            }
        }
    }
    let joined = hidden * (1 + sizes.saved.len());
    add(
        "multi_modal_projector.weight".to_owned(),
        &[sizes.hidden, joined],
        matrix(joined),
    );
    add(
        "multi_modal_projector.bias".to_owned(),
        &[sizes.hidden],
        Numbers::Spread(0.1),
    );
    all
}

/// A cheap source of numbers between -1 and 1 whose mean square is a third.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

impl Content {
    /// How safetensors names the type of its numbers, and their bytes.
    fn number(self) -> (&'static str, usize) {
        match self {
            Self::Random | Self::Holes => ("BF16", 2),
            Self::RandomF32 => ("F32", 4),
        }
    }

    /// The same type's name in `config.json`.
    fn torch_dtype(self) -> &'static str {
        match self {
            Self::Random | Self::Holes => "bfloat16",
            Self::RandomF32 => "float32",
        }
    }
}

impl Tensor {
    /// Numbers in it.
    pub(crate) fn count(&self) -> usize {
        self.shape.iter().product()
    }

    fn write(&self, content: Content, noise: &mut Noise, out: &mut impl Write) -> io::Result<()> {
        let tile = self
            .shape
            .last()
            .map_or(1, |columns| columns / TILES)
            .max(1);
        for at in 0..self.count() {
            let number = match self.numbers {
                // Uniform numbers have a third of the square.
                Numbers::Spread(spread) => noise.next() * spread * 3.0_f32.sqrt(),
                Numbers::Norm => 1.0 + noise.next() * 0.1,
                Numbers::Tiles => {
                    let (number, tile) = (at / tile / TILES, at / tile % TILES);
                    let shown = number
                        .checked_sub(1)
                        .map_or(0, |index| ARRANGEMENTS[index][0] * ARRANGEMENTS[index][1]);
                    let number = noise.next() * 0.5;
                    if tile < shown { number } else { 0.0 }
                }
            };
            if content == Content::RandomF32 {
                out.write_all(&number.to_le_bytes())?;
            } else {
                out.write_all(&half::bf16::from_f32(number).to_le_bytes())?;
            }
        }
        Ok(())
    }
}

/// One file of a checkpoint.
struct Part<'a> {
    name: String,
    header: Vec<u8>,
    tensors: &'a [Tensor],
    /// Bytes of the numbers.
    bytes: usize,
}

/// Divides tensors into so many files of about one size.
fn parts<'a>(tensors: &'a [Tensor], files: usize, content: Content) -> io::Result<Vec<Part<'a>>> {
    let (number, size) = content.number();
    let total: usize = tensors.iter().map(|tensor| tensor.count() * size).sum();
    let share = total.div_ceil(files);
    let mut left = tensors;
    let mut parts = Vec::new();
    for index in 1..=files {
        let mut bytes = 0;
        let end = left.iter().position(|tensor| {
            let full = bytes >= share;
            bytes += tensor.count() * size;
            full
        });
        let end = end.filter(|_| index < files).unwrap_or(left.len());
        let (tensors, rest) = left.split_at(end);
        left = rest;
        let mut header = Map::new();
        header.insert("__metadata__".to_owned(), json!({"format": "pt"}));
        let mut at = 0;
        for tensor in tensors {
            let after = at + tensor.count() * size;
            let info = json!({"dtype": number, "shape": tensor.shape, "data_offsets": [at, after]});
            header.insert(tensor.name.clone(), info);
            at = after;
        }
        let mut header = serde_json::to_vec(&header)?;
        header.resize(header.len().next_multiple_of(8), b' ');
        parts.push(Part {
            name: format!("model-{index:05}-of-{files:05}.safetensors"),
            header,
            tensors,
            bytes: at,
        });
    }
    Ok(parts)
}

impl Part<'_> {
    fn write(&self, folder: &Path, content: Content, mut noise: Noise) -> io::Result<()> {
        let mut file = BufWriter::with_capacity(1 << 20, File::create(folder.join(&self.name))?);
        file.write_all(&(self.header.len() as u64).to_le_bytes())?;
        file.write_all(&self.header)?;
        if content == Content::Holes {
            file.flush()?;
            let size = 8 + self.header.len() as u64 + self.bytes as u64;
            return file.get_ref().set_len(size);
        }
        for tensor in self.tensors {
            tensor.write(content, &mut noise, &mut file)?;
        }
        file.flush()
    }
}

/// Writes a checkpoint in so many files, all at once. The tokenizer's files are not part of it.
///
/// # Errors
/// When a file cannot be written.
pub(crate) fn write(
    folder: &Path,
    sizes: &Sizes,
    files: usize,
    content: Content,
) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let tensors = tensors(sizes);
    let parts = parts(&tensors, files, content)?;
    std::thread::scope(|scope| {
        let writers: Vec<_> = (1_u64..)
            .zip(&parts)
            .map(|(seed, part)| {
                let noise = Noise(seed.wrapping_mul(0x2545_f491_4f6c_dd1d));
                scope.spawn(move || part.write(folder, content, noise))
            })
            .collect();
        writers.into_iter().try_for_each(|writer| {
            let failed = || io::Error::other("a writer ended by an internal fault");
            writer.join().unwrap_or_else(|_| Err(failed()))
        })
    })?;
    let total: usize = parts.iter().map(|part| part.bytes).sum();
    let mut places = Map::new();
    for part in &parts {
        for tensor in part.tensors {
            places.insert(tensor.name.clone(), Value::String(part.name.clone()));
        }
    }
    let index = json!({"metadata": {"total_size": total}, "weight_map": places});
    let save = |name: &str, value: &Value| {
        std::fs::write(folder.join(name), serde_json::to_vec_pretty(value)?)
    };
    save("model.safetensors.index.json", &index)?;
    save("config.json", &config(sizes, content.torch_dtype()))?;
    save("generation_config.json", &generation(sizes))?;
    save("preprocessor_config.json", &preprocessor(sizes))
}

/// Numbers of special tokens follow the ordinary ones in Llama 3's order.
fn special(sizes: &Sizes, number: usize) -> usize {
    sizes.vocabulary - 256 + number
}

fn config(sizes: &Sizes, dtype: &str) -> Value {
    json!({
        "architectures": ["MllamaForConditionalGeneration"],
        "image_token_index": sizes.vocabulary,
        "model_type": "mllama",
        "torch_dtype": dtype,
        "text_config": {
            "model_type": "mllama_text_model",
            "vocab_size": sizes.vocabulary,
            "hidden_size": sizes.hidden,
            "hidden_act": "silu",
            "num_hidden_layers": sizes.layers,
            "num_attention_heads": sizes.heads,
            "num_key_value_heads": sizes.key_heads,
            "intermediate_size": sizes.inner,
            "cross_attention_layers": sizes.cross_layers,
            "dropout": 0,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 131_072,
            "rope_theta": 500_000.0,
            "rope_scaling": {
                "factor": 8.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8_192,
                "rope_type": "llama3",
            },
            "tie_word_embeddings": false,
            "torch_dtype": dtype,
            "bos_token_id": special(sizes, 0),
            "eos_token_id": [special(sizes, 1), special(sizes, 8), special(sizes, 9)],
            "pad_token_id": special(sizes, 4),
        },
        "vision_config": {
            "model_type": "mllama_vision_model",
            "hidden_size": sizes.vision_hidden,
            "hidden_act": "gelu",
            "attention_heads": sizes.vision_heads,
            "num_hidden_layers": sizes.vision_layers,
            "num_global_layers": sizes.global_layers,
            "intermediate_size": sizes.vision_inner,
            "intermediate_layers_indices": sizes.saved,
            "vision_output_dim": sizes.vision_hidden * (1 + sizes.saved.len()),
            "image_size": sizes.side,
            "patch_size": sizes.patch,
            "num_channels": 3,
            "max_num_tiles": TILES,
            "norm_eps": 1e-5,
            "supported_aspect_ratios": ARRANGEMENTS,
            "torch_dtype": dtype,
        },
    })
}

fn generation(sizes: &Sizes) -> Value {
    json!({
        "bos_token_id": special(sizes, 0),
        "do_sample": true,
        "eos_token_id": [special(sizes, 1), special(sizes, 8), special(sizes, 9)],
        "pad_token_id": special(sizes, 4),
        "temperature": 0.6,
        "top_p": 0.9,
    })
}

fn preprocessor(sizes: &Sizes) -> Value {
    json!({
        "do_convert_rgb": true,
        "do_normalize": true,
        "do_pad": true,
        "do_rescale": true,
        "do_resize": true,
        "image_mean": [0.481_454_66, 0.457_827_5, 0.408_210_73],
        "image_processor_type": "MllamaImageProcessor",
        "image_std": [0.268_629_54, 0.261_302_58, 0.275_777_11],
        "max_image_tiles": TILES,
        "resample": 2,
        "rescale_factor": 0.003_921_568_627_450_98,
        "size": { "height": sizes.side, "width": sizes.side },
    })
}
