//! Tiny weights with the reference's tokens and logits: prompt, tokenizer and model agree with transformers.

use std::path::PathBuf;

use chandler_runtime::compute::{Arithmetic, multiplies_bf16};
use chandler_runtime::model::{self, Capacity, Model, Setup};
use chandler_runtime::prompt::{Conversation, Message, Template};
use chandler_runtime::step::{BLOCK_TOKENS, Run, StepPlan};
use chandler_runtime::tokenizer::Prompt;
use chandler_runtime::weights::folder::{self, Opened};
use safetensors::SafeTensors;
use serde::Deserialize;

/// The reference's own two ways to compute differ by 2.2e-5.
const TOLERANCE: f32 = 1e-4;

/// How far logits may be off with rounded inputs.
const ROUNDED_TOLERANCE: f32 = 0.5;

/// Rows of one step, so that longer prompts take several.
const ROWS: usize = 48;

#[derive(Deserialize)]
pub(crate) struct Case {
    pub(crate) name: String,
    messages: Asked,
    prompt: String,
    pub(crate) prompt_tokens: Vec<u32>,
    pub(crate) greedy_ids: Vec<u32>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Asked {
    Text(String),
    Chat(Vec<Said>),
}

#[derive(Deserialize)]
struct Said {
    role: String,
    content: String,
}

pub(crate) fn fixture(name: &str) -> PathBuf {
    PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/fixtures/llama-tiny"
    ))
    .join(name)
}

pub(crate) fn cases() -> Vec<Case> {
    serde_json::from_slice(&std::fs::read(fixture("cases.json")).unwrap()).unwrap()
}

#[test]
fn prompts_have_the_reference_s_text_and_tokens() {
    let Opened {
        tokenizer,
        template,
        ..
    } = folder::open(&fixture("model")).unwrap();
    let template = template.unwrap();
    let template = Template::new(&template.text, &tokenizer, &template.path).unwrap();
    for Case {
        name,
        messages,
        prompt,
        prompt_tokens,
        ..
    } in cases()
    {
        let tokens = match messages {
            Asked::Text(text) => tokenizer.encode_completion(text).unwrap(),
            Asked::Chat(said) => {
                let messages: Vec<Message> = said
                    .into_iter()
                    .map(|Said { role, content }| Message::text(&role, content))
                    .collect();
                let conversation = Conversation {
                    messages,
                    ..Conversation::default()
                };
                let Prompt { text, guard } = template.render(&conversation, &tokenizer).unwrap();
                let plain = guard.map_or(text.clone(), |guard| text.replace(guard, ""));
                assert_eq!(plain, prompt, "{name}");
                tokenizer.encode(&Prompt { text, guard }).unwrap()
            }
        };
        assert_eq!(tokens, prompt_tokens, "{name}");
    }
}

#[test]
fn logits_and_greedy_tokens_are_the_reference_s() {
    // Two ranks add their parts in another order.
    for ranks in [1, 2] {
        let (equal, _) = played(ranks, Arithmetic::Float32, TOLERANCE);
        assert_eq!(equal, 7 * 32);
    }
}

#[test]
fn logits_of_rounded_inputs_are_close_to_the_reference_s() {
    if !multiplies_bf16() {
        println!("neither AVX512-BF16 nor AMX: rounded inputs are not tested");
        return;
    }
    for ranks in [1, 2] {
        let (equal, largest) = played(ranks, Arithmetic::Auto, ROUNDED_TOLERANCE);
        println!("rounded: logits are off by {largest:.3e} at most, {equal} tokens are equal");
    }
}

/// Plays the reference's tokens and compares logits; returns how often the largest is the reference's,
/// and how far one is off at most.
fn played(ranks: usize, dtype: Arithmetic, tolerance: f32) -> (usize, f32) {
    let golden = std::fs::read(fixture("decode_logits.safetensors")).unwrap();
    let golden = SafeTensors::deserialize(&golden).unwrap();
    let mut weights = folder::open(&fixture("model")).unwrap().weights;
    let capacity = Capacity {
        rows: ROWS,
        logits_rows: 1,
        blocks: 64,
    };
    let setup = Setup {
        threads: 2,
        ranks,
        dtype,
        capacity,
    };
    let mut model = model::load(weights.as_mut(), setup).unwrap();
    let (mut equal, mut largest) = (0, 0_f32);
    for case in cases() {
        let expected: Vec<f32> = golden
            .tensor(&case.name)
            .unwrap()
            .data()
            .chunks_exact(4)
            .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()))
            .collect();
        let mut tokens = case.prompt_tokens;
        let mut computed = 0;
        for (step, wanted) in case.greedy_ids.iter().enumerate() {
            let logits = advance(model.as_mut(), &tokens, &mut computed);
            let expected = &expected[step * logits.len()..][..logits.len()];
            let worst = logits
                .iter()
                .zip(expected)
                .map(|(one, other)| (one - other).abs())
                .fold(0.0, f32::max);
            assert!(
                worst <= tolerance && logits.iter().all(|logit| logit.is_finite()),
                "{} step {step}: a logit is off by {worst}",
                case.name
            );
            largest = largest.max(worst);
            let best = (0..logits.len())
                .max_by(|one, other| logits[*one].total_cmp(&logits[*other]))
                .unwrap();
            equal += usize::from(best == *wanted as usize);
            tokens.push(*wanted);
        }
    }
    (equal, largest)
}

/// Computes what is not computed yet, in steps of at most [`ROWS`] rows, and returns the last row's logits.
fn advance(model: &mut dyn Model, tokens: &[u32], computed: &mut usize) -> Vec<f32> {
    let mut logits = Vec::new();
    while *computed < tokens.len() {
        let to = (*computed + ROWS).min(tokens.len());
        let rows = to - *computed;
        // Not in order, so that a model that passes over the table is found out.
        let blocks = (0..to.div_ceil(BLOCK_TOKENS) as u32)
            .map(|block| (block * 7 + 3) % 64)
            .collect();
        let plan = StepPlan {
            tokens: tokens[*computed..to].to_vec(),
            positions: (*computed as u32..to as u32).collect(),
            runs: vec![Run {
                rows: 0..rows,
                blocks,
                ..Run::default()
            }],
            logits: (to == tokens.len())
                .then_some(rows - 1..rows)
                .into_iter()
                .collect(),
            ..StepPlan::default()
        };
        let answer = model.forward(&plan).unwrap();
        if to == tokens.len() {
            logits = answer.row(0).to_vec();
        }
        *computed = to;
    }
    logits
}
