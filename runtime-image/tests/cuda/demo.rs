//! The demonstration model in four bits: the card's greedy tokens are the processor's.

use std::path::PathBuf;

use chandler_runtime::compute::Arithmetic;
use chandler_runtime::compute::cuda::Settings;
use chandler_runtime::model::{self, Capacity, Model, Setup};
use chandler_runtime::step::{Run, StepPlan};
use chandler_runtime::weights::folder;

use crate::{card, load};

const CAPACITY: Capacity = Capacity {
    rows: 16,
    logits_rows: 1,
    blocks: 2,
};

fn greedy(model: &mut dyn Model, prompt: &[u32], count: usize) -> Vec<u32> {
    let (mut tokens, mut computed) = (prompt.to_vec(), 0);
    while tokens.len() < prompt.len() + count {
        let rows = tokens.len() - computed;
        let plan = StepPlan {
            tokens: tokens[computed..].to_vec(),
            positions: (computed..tokens.len()).map(|at| at as u32).collect(),
            runs: vec![Run {
                rows: 0..rows,
                blocks: vec![0, 1],
                ..Run::default()
            }],
            logits: std::iter::once(rows - 1..rows).collect(),
            ..StepPlan::default()
        };
        computed = tokens.len();
        let logits = model.forward(&plan).unwrap();
        let row = logits.row(0);
        let best = (0..row.len()).max_by(|one, other| row[*one].total_cmp(&row[*other]));
        tokens.push(best.unwrap() as u32);
    }
    tokens.split_off(prompt.len())
}

#[test]
fn four_bits_say_on_the_card_what_they_say_on_the_processor() {
    let path =
        std::env::var_os("CHANDLER_DEMO_MODEL").expect("CHANDLER_DEMO_MODEL: run `make cuda-test`");
    let path = PathBuf::from(path);
    let opened = folder::open(&path).unwrap();
    let prompt = opened
        .tokenizer
        .encode_completion("The capital of France is".to_owned())
        .unwrap();
    let mut weights = opened.weights;
    let setup = Setup {
        threads: 2,
        ranks: 1,
        dtype: Arithmetic::Float32,
        capacity: CAPACITY,
    };
    let mut cpu = model::load(weights.as_mut(), setup).unwrap();
    let expected = greedy(cpu.as_mut(), &prompt, 6);
    let mut cuda = load(&card(), Settings::new(&opened.main_type), &path, CAPACITY);
    let found = greedy(cuda.as_mut(), &prompt, 6);
    assert_eq!(found, expected);
}
