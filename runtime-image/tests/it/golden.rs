//! Tiny weights with the reference's tokens and logits: prompt, tokenizer and model agree with transformers.

use std::path::PathBuf;

use chandler_runtime::model::{self, BLOCK_TOKENS, Capacity, Model, Run, Setup, StepPlan};
use chandler_runtime::prompt::{Message, Template};
use chandler_runtime::tokenizer::Prompt;
use chandler_runtime::weights::folder::{self, Opened};
use safetensors::SafeTensors;
use serde::Deserialize;

/// The reference's own two ways to compute differ by 2.2e-5.
const TOLERANCE: f32 = 1e-4;

/// Rows of one step, so that longer prompts take several.
const ROWS: usize = 48;

#[derive(Deserialize)]
struct Case {
    name: String,
    messages: Asked,
    prompt: String,
    prompt_tokens: Vec<u32>,
    greedy_ids: Vec<u32>,
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

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/fixtures/llama-tiny"
    ))
    .join(name)
}

fn cases() -> Vec<Case> {
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
                    .map(|Said { role, content }| Message {
                        role,
                        content,
                        name: None,
                    })
                    .collect();
                let Prompt { text, guard } = template.render(&messages, &tokenizer).unwrap();
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
    let golden = std::fs::read(fixture("decode_logits.safetensors")).unwrap();
    let golden = SafeTensors::deserialize(&golden).unwrap();
    let mut weights = folder::open(&fixture("model")).unwrap().weights;
    let capacity = Capacity {
        rows: ROWS,
        logits_rows: 1,
        blocks: 64,
    };
    let mut model = model::load(
        weights.as_mut(),
        Setup {
            threads: 2,
            capacity,
        },
    )
    .unwrap();
    let mut count = 0;
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
                worst <= TOLERANCE,
                "{} step {step}: a logit is off by {worst}",
                case.name
            );
            let best = (0..logits.len())
                .max_by(|one, other| logits[*one].total_cmp(&logits[*other]))
                .unwrap();
            assert_eq!(best, *wanted as usize, "{} step {step}", case.name);
            tokens.push(*wanted);
            count += 1;
        }
    }
    assert_eq!(count, 7 * 32);
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
            }],
            logits_rows: if to == tokens.len() {
                vec![rows - 1]
            } else {
                Vec::new()
            },
        };
        let answer = model.forward(&plan).unwrap();
        if to == tokens.len() {
            logits = answer.row(0).to_vec();
        }
        *computed = to;
    }
    logits
}
