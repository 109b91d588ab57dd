//! Families of decoders on random weights, against the definition written down plainly and in double precision:
//! biases, norms of heads, tied embeddings, both spellings of rotary settings, sharded files, whole and in ranks.

use std::collections::HashMap;
use std::path::Path;

use chandler_runtime::compute::Arithmetic;
use chandler_runtime::model::{self, Capacity, Setup};
use chandler_runtime::step::{Run, StepPlan};
use chandler_runtime::weights::folder;
use half::{bf16, f16};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};

use crate::candle;
use crate::golden::{cases, fixture};

const HIDDEN: usize = 32;
const HEADS: usize = 4;
const KEY_HEADS: usize = 2;
const INNER: usize = 48;
const VOCABULARY: usize = 768;
const LAYERS: usize = 2;
const BASE: f64 = 10_000.0;
const MOST_ROWS: usize = 96;

#[derive(Clone, Copy, PartialEq)]
struct Family {
    architecture: &'static str,
    biases: &'static [&'static str],
    head_norms: bool,
    tied: bool,
    yarn: bool,
    /// Numbers of one head.
    width: usize,
    kind: Dtype,
}

type Weights = HashMap<String, Vec<f64>>;

/// Random weights, as the file's type rounds them.
fn weights(family: Family) -> Weights {
    let (queries, shared) = (HEADS * family.width, KEY_HEADS * family.width);
    let mut sizes = vec![
        ("model.embed_tokens.weight".to_owned(), VOCABULARY * HIDDEN),
        ("model.norm.weight".to_owned(), HIDDEN),
    ];
    if !family.tied {
        sizes.push(("lm_head.weight".to_owned(), VOCABULARY * HIDDEN));
    }
    for layer in 0..LAYERS {
        let mut add = |name: &str, size| sizes.push((format!("model.layers.{layer}.{name}"), size));
        add("input_layernorm.weight", HIDDEN);
        add("post_attention_layernorm.weight", HIDDEN);
        for (name, outputs, inputs) in [
            ("self_attn.q_proj", queries, HIDDEN),
            ("self_attn.k_proj", shared, HIDDEN),
            ("self_attn.v_proj", shared, HIDDEN),
            ("self_attn.o_proj", HIDDEN, queries),
            ("mlp.gate_proj", INNER, HIDDEN),
            ("mlp.up_proj", INNER, HIDDEN),
            ("mlp.down_proj", HIDDEN, INNER),
        ] {
            add(&format!("{name}.weight"), outputs * inputs);
            if family.biases.contains(&name) {
                add(&format!("{name}.bias"), outputs);
            }
        }
        if family.head_norms {
            add("self_attn.q_norm.weight", family.width);
            add("self_attn.k_norm.weight", family.width);
        }
    }
    let mut seed = 1_u64;
    let mut random = || {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (seed >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    let round = |value: f32| match family.kind {
        Dtype::F16 => f16::from_f32(value).to_f64(),
        Dtype::BF16 => bf16::from_f32(value).to_f64(),
        _ => f64::from(value),
    };
    let mut value = |name: &str| {
        let offset = if name.contains("norm") { 1.0 } else { 0.0 };
        round(random() * 0.3 + offset)
    };
    sizes
        .into_iter()
        .map(|(name, size)| {
            let values = (0..size).map(|_| value(&name)).collect();
            (name, values)
        })
        .collect()
}

fn shape_of(name: &str, size: usize) -> Vec<usize> {
    let columns = match name {
        _ if name.contains("norm") || name.ends_with("bias") => return vec![size],
        _ if name.contains("o_proj") || name.contains("down_proj") => size / HIDDEN,
        _ => HIDDEN,
    };
    vec![size / columns, columns]
}

/// Writes a folder as hubs have it, the tensors in two files.
fn write(folder: &Path, family: Family, weights: &Weights) {
    let mut bytes: Vec<(String, Vec<usize>, Vec<u8>)> = weights
        .iter()
        .map(|(name, values)| {
            let bytes = values
                .iter()
                .flat_map(|value| match family.kind {
                    Dtype::F16 => f16::from_f64(*value).to_le_bytes().to_vec(),
                    Dtype::BF16 => bf16::from_f64(*value).to_le_bytes().to_vec(),
                    _ => (*value as f32).to_le_bytes().to_vec(),
                })
                .collect();
            (name.clone(), shape_of(name, values.len()), bytes)
        })
        .collect();
    bytes.sort();
    let halves = bytes.split_at(bytes.len() / 2);
    for (index, part) in [halves.0, halves.1].into_iter().enumerate() {
        let views = part.iter().map(|(name, shape, bytes)| {
            (
                name.clone(),
                TensorView::new(family.kind, shape.clone(), bytes).unwrap(),
            )
        });
        let path = folder.join(format!("model-0000{}-of-00002.safetensors", index + 1));
        std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
    }
    let yarn =
        json!({ "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64 });
    let mut config = json!({
        "architectures": [family.architecture], "hidden_size": HIDDEN, "intermediate_size": INNER,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KEY_HEADS, "head_dim": family.width,
        "vocab_size": VOCABULARY, "max_position_embeddings": 256, "rms_norm_eps": 1e-6, "hidden_act": "silu",
        "tie_word_embeddings": family.tied,
        // What Qwen's files say besides.
        "attention_bias": false, "max_window_layers": LAYERS, "sliding_window": 4096, "use_sliding_window": false,
    });
    // The older spelling for one, the newer one for the other.
    if family.head_norms {
        let mut parameters = if family.yarn {
            yarn
        } else {
            json!({ "rope_type": "default" })
        };
        parameters["rope_theta"] = json!(BASE);
        config["rope_parameters"] = parameters;
    } else {
        config["rope_theta"] = json!(BASE);
        config["rope_scaling"] = if family.yarn { yarn } else { Value::Null };
    }
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(fixture("model").join(name), folder.join(name)).unwrap();
    }
}

fn product(matrix: &[f64], bias: Option<&Vec<f64>>, x: &[f64]) -> Vec<f64> {
    let rows = matrix.chunks_exact(x.len());
    let sums = rows.map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum::<f64>());
    let add = |(index, sum): (usize, f64)| sum + bias.map_or(0.0, |bias| bias[index]);
    sums.enumerate().map(add).collect()
}

fn norm(x: &[f64], weight: &[f64]) -> Vec<f64> {
    let square = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    let factor = 1.0 / (square + 1e-6).sqrt();
    x.iter().zip(weight).map(|(x, w)| x * factor * w).collect()
}

/// Radians per position of each pair and what cosines and sines are multiplied by.
fn rotation(family: Family) -> (Vec<f64>, f64) {
    let width = family.width as f64;
    let plain = |pair: usize| BASE.powf(-2.0 * pair as f64 / width);
    if !family.yarn {
        return ((0..family.width / 2).map(plain).collect(), 1.0);
    }
    let bound =
        |turns: f64| width * (64.0 / (turns * 2.0 * std::f64::consts::PI)).ln() / (2.0 * BASE.ln());
    let (low, high) = (bound(32.0).floor().max(0.0), bound(1.0).ceil());
    let frequencies = (0..family.width / 2)
        .map(|pair| {
            let slow = ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0);
            plain(pair) * (slow / 4.0 + 1.0 - slow)
        })
        .collect();
    (frequencies, 0.1 * 4_f64.ln() + 1.0)
}

/// Logits of the last token, by the definition.
fn reference(family: Family, weights: &Weights, tokens: &[u32]) -> Vec<f64> {
    let (frequencies, scale) = rotation(family);
    let width = family.width;
    let embedding = &weights["model.embed_tokens.weight"];
    let mut states: Vec<Vec<f64>> = tokens
        .iter()
        .map(|token| embedding[*token as usize * HIDDEN..][..HIDDEN].to_vec())
        .collect();
    for layer in 0..LAYERS {
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        let linear = |part: &str, x: &[f64]| {
            let bias = weights.get(&name(&format!("{part}.bias")));
            product(&weights[&name(&format!("{part}.weight"))], bias, x)
        };
        let turn = |part: &str, heads: Vec<f64>, position: usize| -> Vec<f64> {
            let mut all = Vec::new();
            for head in heads.chunks_exact(width) {
                let head = match weights.get(&name(part)) {
                    Some(weight) => norm(head, weight),
                    None => head.to_vec(),
                };
                let mut out = head.clone();
                for (pair, frequency) in frequencies.iter().enumerate() {
                    let (sin, cos) = (frequency * position as f64).sin_cos();
                    let (x, y) = (head[pair], head[pair + width / 2]);
                    out[pair] = (x * cos - y * sin) * scale;
                    out[pair + width / 2] = (y * cos + x * sin) * scale;
                }
                all.extend(out);
            }
            all
        };
        let normed: Vec<_> = states
            .iter()
            .map(|state| norm(state, &weights[&name("input_layernorm.weight")]))
            .collect();
        let keys: Vec<_> = (0..tokens.len())
            .map(|at| {
                turn(
                    "self_attn.k_norm.weight",
                    linear("self_attn.k_proj", &normed[at]),
                    at,
                )
            })
            .collect();
        let values: Vec<_> = normed
            .iter()
            .map(|x| linear("self_attn.v_proj", x))
            .collect();
        for at in 0..tokens.len() {
            let query = turn(
                "self_attn.q_norm.weight",
                linear("self_attn.q_proj", &normed[at]),
                at,
            );
            let mut attended = Vec::new();
            for (head, query) in query.chunks_exact(width).enumerate() {
                let own = head / (HEADS / KEY_HEADS) * width;
                let scores: Vec<f64> = keys[..=at]
                    .iter()
                    .map(|key| {
                        let dot: f64 = query.iter().zip(&key[own..]).map(|(q, k)| q * k).sum();
                        (dot / (width as f64).sqrt()).exp()
                    })
                    .collect();
                let total: f64 = scores.iter().sum();
                attended.extend((0..width).map(|d| {
                    let parts = scores.iter().zip(&values);
                    parts
                        .map(|(score, value)| score / total * value[own + d])
                        .sum::<f64>()
                }));
            }
            for (state, delta) in states[at]
                .iter_mut()
                .zip(linear("self_attn.o_proj", &attended))
            {
                *state += delta;
            }
        }
        for state in &mut states {
            let normed = norm(state, &weights[&name("post_attention_layernorm.weight")]);
            let (gate, up) = (
                linear("mlp.gate_proj", &normed),
                linear("mlp.up_proj", &normed),
            );
            let inner: Vec<f64> = gate
                .iter()
                .zip(up)
                .map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up)
                .collect();
            for (state, delta) in state.iter_mut().zip(linear("mlp.down_proj", &inner)) {
                *state += delta;
            }
        }
    }
    let last = norm(states.last().unwrap(), &weights["model.norm.weight"]);
    let head = weights.get("lm_head.weight").unwrap_or(embedding);
    product(head, None, &last)
}

#[test]
fn llama_and_qwen_with_biases_norms_and_yarn_are_what_their_definition_says() {
    const QKV: &[&str] = &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"];
    const ALL: &[&str] = &[
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    ];
    let plain = Family {
        architecture: "LlamaForCausalLM",
        biases: &[],
        head_norms: false,
        tied: false,
        yarn: false,
        width: 16,
        kind: Dtype::F32,
    };
    let qwen2 = Family {
        architecture: "Qwen2ForCausalLM",
        biases: QKV,
        width: HIDDEN / HEADS,
        kind: Dtype::BF16,
        ..plain
    };
    let qwen3 = Family {
        architecture: "Qwen3ForCausalLM",
        head_norms: true,
        tied: true,
        ..plain
    };
    for family in [
        Family {
            width: HIDDEN / HEADS,
            ..plain
        },
        Family {
            biases: ALL,
            kind: Dtype::F16,
            ..plain
        },
        qwen2,
        Family {
            yarn: true,
            ..qwen2
        },
        qwen3,
        Family {
            yarn: true,
            ..qwen3
        },
    ] {
        let folder = tempfile::tempdir().unwrap();
        let weights = weights(family);
        write(folder.path(), family, &weights);
        let tokens: Vec<u32> = (0..90).map(|at| at * 37 % 700).collect();
        let expected = reference(family, &weights, &tokens);
        for ranks in [1, 2] {
            let worst = furthest(&compute(folder.path(), ranks, &tokens), &expected);
            let name = family.architecture;
            assert!(worst < 1e-4, "{name} in {ranks} ranks is off by {worst}");
        }
        // candle knows neither YaRN nor biases in Llama.
        if !family.yarn && family.biases != ALL {
            let theirs = candle::logits(folder.path(), &tokens);
            let worst = furthest(&theirs, &expected);
            assert!(
                worst < 1e-4,
                "candle's {} is off by {worst}",
                family.architecture
            );
        }
    }
}

fn furthest(logits: &[f32], exact: &[f64]) -> f64 {
    assert_eq!(logits.len(), exact.len());
    let pairs = logits.iter().zip(exact);
    pairs
        .map(|(logit, exact)| (f64::from(*logit) - exact).abs())
        .fold(0.0, f64::max)
}

#[test]
fn the_prompts_of_a_llama_3_mean_to_candle_what_they_mean_here() {
    let folder = fixture("model");
    let mut compared = 0;
    for case in cases() {
        if case.prompt_tokens.len() <= MOST_ROWS {
            let theirs = candle::logits(&folder, &case.prompt_tokens);
            let theirs: Vec<f64> = theirs.into_iter().map(f64::from).collect();
            let worst = furthest(&compute(&folder, 1, &case.prompt_tokens), &theirs);
            assert!(worst < 1e-4, "{} is off by {worst}", case.name);
            compared += 1;
        }
    }
    assert_eq!(compared, 5);
}

/// The last token's logits; all tokens in one step.
fn compute(folder: &Path, ranks: usize, tokens: &[u32]) -> Vec<f32> {
    let mut weights = folder::open(folder).unwrap().weights;
    let capacity = Capacity {
        rows: MOST_ROWS,
        logits_rows: 1,
        blocks: 4,
    };
    let setup = Setup {
        threads: 2,
        ranks,
        dtype: Arithmetic::Float32,
        capacity,
    };
    let mut model = model::load(weights.as_mut(), setup).unwrap();
    let rows = tokens.len();
    let plan = StepPlan {
        tokens: tokens.to_vec(),
        positions: (0..rows as u32).collect(),
        runs: vec![Run {
            rows: 0..rows,
            blocks: vec![1, 0, 3],
            ..Run::default()
        }],
        logits: std::iter::once(rows - 1..rows).collect(),
        ..StepPlan::default()
    };
    model.forward(&plan).unwrap().row(0).to_vec()
}

#[test]
fn an_unknown_architecture_is_refused_with_those_that_work() {
    let folder = tempfile::tempdir().unwrap();
    let family = Family {
        architecture: "Gemma9ForCausalLM",
        biases: &[],
        head_norms: false,
        tied: true,
        yarn: false,
        width: 16,
        kind: Dtype::F32,
    };
    write(folder.path(), family, &weights(family));
    let opened = folder::open(folder.path()).unwrap();
    let error = model::shape(opened.weights.as_ref()).unwrap_err();
    let message = error.to_string();
    assert!(
        message.contains("Gemma9ForCausalLM")
            && message.contains(
                "LlamaForCausalLM, MllamaForConditionalGeneration, Qwen2ForCausalLM, Qwen3ForCausalLM"
            ),
        "{message}"
    );
}
