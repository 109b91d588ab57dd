//! Files of weights and what is read of them before they are fetched. They come from whoever can publish a model.

use std::path::PathBuf;
use std::sync::OnceLock;

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use chandler_runtime::hub::choice::Format;
use chandler_runtime::hub::description::{config_description, gguf_description};
use chandler_runtime::model::size;
use chandler_runtime::prompt::Template;
use chandler_runtime::weights::hub_files::HubFiles;
use chandler_runtime::weights::{Weights, folder};
use safetensors::tensor::TensorView;
use serde_json::json;
use tempfile::TempDir;

use crate::{join, split};

/// Numbers in a tensor that is read; what a file may promise is more.
const MOST_READ: usize = 1 << 20;

/// A file of this name, in a folder that goes with the process; in memory where the system has such a place.
fn scratch(name: &str) -> PathBuf {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        tempfile::tempdir_in("/dev/shm")
            .or_else(|_| tempfile::tempdir())
            .expect("a folder can be made")
    });
    folder.path().join(name)
}

fn write(name: &str, bytes: &[u8]) -> PathBuf {
    let path = scratch(name);
    std::fs::write(&path, bytes).expect("an input can be written");
    path
}

/// A GGUF file: header, tokenizer, template, sizes, and the tensors that are read first.
pub(crate) fn gguf(bytes: &[u8]) -> bool {
    let path = write("model.gguf", bytes);
    let Ok(mut opened) = folder::open(&path) else {
        return false;
    };
    if let Some(template) = &opened.template {
        // Compiling is enough: what templates do is a target of its own.
        let _ = Template::new(&template.text, &opened.tokenizer, &template.path);
    }
    let _ = opened.tokenizer.encode_text("The quick brown fox, 42.");
    read(opened.weights.as_mut(), "token_embd.weight")
}

/// Header and configuration of a folder in the layout of hubs.
pub(crate) fn safetensors(bytes: &[u8]) -> bool {
    let (config, tensors) = split(bytes);
    let folder = scratch("hub");
    std::fs::create_dir_all(&folder).expect("a folder can be made");
    write("hub/config.json", config);
    write("hub/model.safetensors", tensors);
    let Ok(mut files) = HubFiles::open(&folder) else {
        return false;
    };
    let _ = files.main_type();
    read(&mut files, "token_embd.weight")
}

/// Sizes, and a matrix where it is small.
fn read(weights: &mut dyn Weights, name: &str) -> bool {
    let _ = weights.packed_bytes();
    let Ok(shape) = weights.shape() else {
        return false;
    };
    let _ = shape.block_numbers();
    let sight = weights.sight().ok().flatten();
    let _ = size::memory(&shape, sight.as_ref(), 0);
    let small = shape.inputs.saturating_mul(shape.hidden) <= MOST_READ;
    small && weights.tensor(name, shape.inputs, shape.hidden).is_ok()
}

/// The beginning of a GGUF file and a `config.json`, as a hub sends them.
pub(crate) fn description(bytes: &[u8]) -> bool {
    let (config, header) = split(bytes);
    let known = [
        gguf_description(header, 1),
        config_description(config, Format::Pytorch),
    ];
    known.iter().all(|known| known.architecture.is_some())
}

pub(crate) fn gguf_seeds() -> Vec<Vec<u8>> {
    let text = |text: &str| Value::String(text.to_owned());
    let number = Value::U32;
    let tokens = ["a", "b", "ab", "<|end|>"];
    let metadata = [
        ("general.architecture", text("llama")),
        ("llama.block_count", number(1)),
        ("llama.embedding_length", number(8)),
        ("llama.feed_forward_length", number(8)),
        ("llama.context_length", number(64)),
        ("llama.attention.head_count", number(2)),
        ("llama.attention.head_count_kv", number(1)),
        ("llama.attention.key_length", number(4)),
        ("llama.rope.dimension_count", number(4)),
        ("llama.rope.scaling.type", text("yarn")),
        ("llama.rope.scaling.factor", Value::F32(4.0)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
        ("tokenizer.ggml.model", text("gpt2")),
        ("tokenizer.ggml.pre", text("llama-bpe")),
        (
            "tokenizer.ggml.tokens",
            Value::Array(tokens.map(text).to_vec()),
        ),
        (
            "tokenizer.ggml.token_type",
            Value::Array([1, 1, 1, 3].map(Value::I32).to_vec()),
        ),
        ("tokenizer.ggml.merges", Value::Array(vec![text("a b")])),
        ("tokenizer.ggml.eos_token_id", number(3)),
        (
            "tokenizer.chat_template",
            text("{% for message in messages %}{{ message.content }}{% endfor %}"),
        ),
    ];
    let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(key, value)| (*key, value)).collect();
    let tensor = |shape: &[usize]| {
        let zeros = Tensor::zeros(shape, DType::F32, &Device::Cpu).expect("a small tensor");
        QTensor::quantize(&zeros, GgmlDType::F32).expect("floats stay floats")
    };
    let (embedding, divisors) = (tensor(&[4, 8]), tensor(&[2]));
    let tensors = [
        ("token_embd.weight", &embedding),
        ("rope_freqs.weight", &divisors),
    ];
    [&tensors[..], &tensors[..1]]
        .map(|tensors| {
            let mut bytes = std::io::Cursor::new(Vec::new());
            gguf_file::write(&mut bytes, &metadata, tensors).expect("a small file");
            bytes.into_inner()
        })
        .to_vec()
}

pub(crate) fn safetensors_seeds() -> Vec<Vec<u8>> {
    let config = |rope: serde_json::Value| {
        json!({
            "architectures": ["LlamaForCausalLM"], "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "vocab_size": 4,
            "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_parameters": rope,
        })
        .to_string()
    };
    let numbers = [0; 4 * 4 * 8];
    let view = TensorView::new(safetensors::Dtype::F32, vec![4, 8], &numbers).expect("a matrix");
    let tensors = safetensors::serialize([("model.embed_tokens.weight", view)], None);
    let tensors = tensors.expect("a small file");
    [
        json!({ "rope_type": "default", "rope_theta": 500_000.0 }),
        json!({ "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64 }),
        json!({ "rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 64 }),
    ]
    .map(|rope| join(config(rope).as_bytes(), &tensors))
    .to_vec()
}

pub(crate) fn description_seeds() -> Vec<Vec<u8>> {
    let config = crate::fixture("config.json");
    let joined = gguf_seeds().into_iter().map(|file| join(&config, &file));
    joined.collect()
}
