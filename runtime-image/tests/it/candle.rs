//! The same folders computed by candle-transformers, an oracle that shares no line with this runtime.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{llama, qwen2, qwen3};
use serde_json::Value;

/// The last token's logits, in single precision.
pub(crate) fn logits(folder: &Path, tokens: &[u32]) -> Vec<f32> {
    let mut tensors = HashMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|end| end == "safetensors") {
            tensors.extend(candle_core::safetensors::load(path, &Device::Cpu).unwrap());
        }
    }
    let weights = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
    let config = std::fs::read(folder.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    // It reads the older spelling alone.
    if let Some(rope) = config.get("rope_parameters").cloned() {
        config["rope_theta"] = rope["rope_theta"].clone();
        config["rope_scaling"] = rope;
    }
    let input = Tensor::new(tokens, &Device::Cpu).unwrap();
    let input = input.unsqueeze(0).unwrap();
    let architecture = config["architectures"][0].as_str().unwrap().to_owned();
    let output = match architecture.as_str() {
        "LlamaForCausalLM" => {
            let config: llama::LlamaConfig = serde_json::from_value(config).unwrap();
            let config = config.into_config(false);
            let mut cache = llama::Cache::new(false, DType::F32, &config, &Device::Cpu).unwrap();
            let model = llama::Llama::load(weights, &config).unwrap();
            model.forward(&input, 0, &mut cache)
        }
        "Qwen2ForCausalLM" => {
            let config: qwen2::Config = serde_json::from_value(config).unwrap();
            let mut model = qwen2::ModelForCausalLM::new(&config, weights).unwrap();
            model.forward(&input, 0)
        }
        "Qwen3ForCausalLM" => {
            let config: qwen3::Config = serde_json::from_value(config).unwrap();
            let mut model = qwen3::ModelForCausalLM::new(&config, weights).unwrap();
            model.forward(&input, 0)
        }
        other => panic!("candle is not asked for {other}"),
    };
    output.unwrap().flatten_all().unwrap().to_vec1().unwrap()
}
