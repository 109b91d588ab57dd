//! In the batch-invariant mode a row has the same bits alone, beside others and however its prompt was cut. Recorded decode
//! steps give the bits of launched ones.

use chandler_runtime::compute::cuda::Settings;
use chandler_runtime::compute::cuda::matrix::Floats;
use chandler_runtime::model::{Capacity, Model};
use chandler_runtime::step::{BLOCK_TOKENS, Run, StepPlan};

use crate::golden::fixture;
use crate::{card, load, settings};

const CAPACITY: Capacity = Capacity {
    rows: 64,
    logits_rows: 64,
    blocks: 64,
};

/// A sequence in blocks of its own.
struct Played {
    tokens: Vec<u32>,
    computed: usize,
    blocks: Vec<u32>,
}

impl Played {
    fn new(seed: u32, length: usize, first_block: u32) -> Self {
        Self {
            tokens: (0..length as u32)
                .map(|at| (at * 37 + seed * 101) % 500 + 4)
                .collect(),
            computed: 0,
            blocks: (0..8).map(|at| first_block + at * 5 % 8).collect(),
        }
    }
}

/// Computes more tokens of several sequences in one step; the logits of every row.
fn step(model: &mut dyn Model, parts: &mut [(&mut Played, usize)]) -> Vec<Vec<f32>> {
    let mut plan = StepPlan::default();
    for (played, count) in parts {
        let (first, range) = (plan.tokens.len(), played.computed..played.computed + *count);
        plan.tokens.extend(&played.tokens[range.clone()]);
        plan.positions.extend(range.clone().map(|at| at as u32));
        plan.runs.push(Run {
            rows: first..first + *count,
            blocks: played.blocks[..range.end.div_ceil(BLOCK_TOKENS)].to_vec(),
            ..Run::default()
        });
        played.computed = range.end;
    }
    let rows = plan.tokens.len();
    plan.logits.push(0..rows);
    let logits = model.forward(&plan).unwrap();
    (0..rows).map(|row| logits.row(row).to_vec()).collect()
}

#[test]
fn nothing_beside_a_row_and_no_cut_changes_a_bit_in_the_invariant_mode() {
    for floats in [Floats::F32, Floats::Bf16, Floats::F16, Floats::Fp8] {
        let invariant = Settings {
            invariant: true,
            ..settings(floats)
        };
        let card = card();
        let mut model = load(&card, invariant, &fixture("model"), CAPACITY);
        let model = model.as_mut();
        let mut alone = Played::new(1, 60, 0);
        let expected = step(model, &mut [(&mut alone, 60)]);
        assert!(expected.iter().flatten().all(|logit| logit.is_finite()));
        // In pieces, beside others that decode and prefill.
        let mut cut = Played::new(1, 60, 8);
        let mut other = Played::new(2, 60, 16);
        let mut third = Played::new(3, 60, 24);
        step(model, &mut [(&mut other, 33)]);
        let mut found = Vec::new();
        for (own, others) in [(1, 1), (2, 1), (5, 1), (30, 3), (17, 1), (5, 20)] {
            let mut parts = [(&mut other, others), (&mut cut, own), (&mut third, 2)];
            let rows = step(model, &mut parts);
            found.extend_from_slice(&rows[others..others + own]);
        }
        assert_eq!(found.len(), expected.len());
        for (row, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert!(found == expected, "{floats:?}: row {row} differs");
        }
    }
}

#[test]
fn recorded_steps_give_the_bits_of_launched_ones() {
    for floats in [Floats::F32, Floats::Bf16] {
        let mut all = Vec::new();
        for graphs in [true, false] {
            let settings = Settings {
                graphs,
                ..settings(floats)
            };
            let card = card();
            let mut model = load(&card, settings, &fixture("model"), CAPACITY);
            let model = model.as_mut();
            let mut one = Played::new(1, 250, 0);
            let mut other = Played::new(2, 250, 8);
            let mut third = Played::new(3, 250, 16);
            let mut logits = step(model, &mut [(&mut one, 31), (&mut other, 20)]);
            for at in 0..12 {
                logits.extend(step(model, &mut [(&mut one, 1), (&mut other, 1)]));
                // Another batch in between leaves the recorded one alone.
                if at == 6 {
                    logits.extend(step(model, &mut [(&mut third, 9)]));
                }
            }
            assert_eq!(card.replays() > 8, graphs, "{}", card.replays());
            all.push(logits);
        }
        assert!(all[0] == all[1], "{floats:?}");
    }
}
