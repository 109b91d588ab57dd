//! The choice of tokens, against the plain rule.

use crate::card::{Memory, arguments, card};
use crate::numbers::Random;

#[derive(Clone, Copy, Debug)]
struct Choice {
    temperature: f32,
    top_p: f32,
    min_p: f32,
    top_k: usize,
    uniform: f64,
}

const SHARED: usize = 16_656;

impl Choice {
    fn words(self, row: u32) -> [u32; 8] {
        let bits = self.uniform.to_bits();
        let floats = [self.temperature, self.top_p, self.min_p].map(f32::to_bits);
        [
            floats[0],
            floats[1],
            floats[2],
            self.top_k as u32,
            bits as u32,
            (bits >> 32) as u32,
            row,
            0,
        ]
    }

    /// The token, and how far the random number is from where another one would be chosen.
    fn expected(self, logits: &[f32]) -> (u32, f64) {
        let mut best = 0;
        for (token, logit) in logits.iter().enumerate() {
            if *logit > logits[best] || logits[best].is_nan() {
                best = token;
            }
        }
        if self.temperature <= 0.0 || self.top_k == 1 {
            return (best as u32, 1.0);
        }
        let weight = |logit: &f32| f64::from(((logit - logits[best]) / self.temperature).exp());
        let mut candidates: Vec<(usize, f64)> = logits
            .iter()
            .map(weight)
            .enumerate()
            .filter(|(_, weight)| *weight > 4.3e-18 && *weight >= f64::from(self.min_p))
            .collect();
        let mut margin = 1.0_f64;
        if (self.top_k > 0 && self.top_k < candidates.len()) || self.top_p < 1.0 {
            candidates.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            if self.top_k > 0 {
                candidates.truncate(self.top_k);
            }
            let total: f64 = candidates.iter().map(|(_, weight)| weight).sum();
            let mut sum = 0.0;
            let enough = candidates.iter().position(|(_, weight)| {
                sum += weight;
                margin = margin.min((sum / total - f64::from(self.top_p)).abs());
                sum >= total * f64::from(self.top_p)
            });
            candidates.truncate(enough.map_or(candidates.len(), |last| last + 1));
        }
        let total: f64 = candidates.iter().map(|(_, weight)| weight).sum();
        let mut sum = 0.0;
        for (token, weight) in &candidates {
            sum += weight / total;
            margin = margin.min((sum - self.uniform).abs());
            if sum > self.uniform {
                return (*token as u32, margin);
            }
        }
        (
            candidates.last().map_or(best, |(token, _)| *token) as u32,
            margin,
        )
    }
}

fn choose(logits: &[f32], vocabulary: usize, choices: &[[u32; 8]], in_place: bool) -> Vec<u32> {
    let (from, scratch) = (Memory::of(logits), Memory::<f32>::new(logits.len()));
    let told = Memory::of(choices.as_flattened());
    let tokens = Memory::<u32>::new(choices.len());
    let weights = if in_place { &from } else { &scratch };
    let arguments = arguments![&from, vocabulary, &told, weights, &tokens];
    card().launch("choose", [choices.len(), 1, 1], 512, SHARED, &arguments);
    tokens.read()
}

#[test]
fn tokens_are_those_of_the_plain_rule() {
    let mut random = Random(31);
    let (mut compared, mut other) = (0, 0);
    for (vocabulary, rows) in [(1, 16), (33, 16), (768, 16), (5_000, 16), (128_256, 6)] {
        for spread in [0.0, 3.0, 12.0] {
            let mut logits: Vec<f32> = random
                .numbers(rows * vocabulary)
                .iter()
                .map(|x| x * spread)
                .collect();
            // Equal ones, impossible ones and such as are no numbers.
            logits
                .iter_mut()
                .skip(5)
                .step_by(11)
                .for_each(|x| *x = (*x * 4.0).round() / 4.0);
            logits
                .iter_mut()
                .skip(7)
                .step_by(97)
                .for_each(|x| *x = f32::NEG_INFINITY);
            logits
                .iter_mut()
                .skip(9)
                .step_by(131)
                .for_each(|x| *x = f32::NAN);
            let choices: Vec<Choice> = (0..rows)
                .map(|_| Choice {
                    temperature: random.pick(&[0.0, 0.6, 1.0, 2.0]),
                    top_p: random.pick(&[1.0, 0.9, 0.3, 0.0]),
                    min_p: random.pick(&[0.0, 0.0, 0.05]),
                    top_k: random.pick(&[0, 0, 1, 2, 40, 5_000]),
                    uniform: (random.bits() >> 11) as f64 / (1_u64 << 53) as f64,
                })
                .collect();
            // The rows the other way round.
            let row = |number: usize| rows - 1 - number;
            let words: Vec<[u32; 8]> = choices
                .iter()
                .enumerate()
                .map(|(number, choice)| choice.words(row(number) as u32))
                .collect();
            let found = card().both_ways(|| choose(&logits, vocabulary, &words, false));
            for (number, (choice, token)) in choices.iter().zip(&found).enumerate() {
                let own = &logits[row(number) * vocabulary..][..vocabulary];
                if own.iter().all(|logit| !logit.is_finite()) {
                    assert_eq!(*token, u32::MAX);
                    continue;
                }
                let (expected, margin) = choice.expected(own);
                if margin > 1e-6 {
                    assert_eq!(
                        *token, expected,
                        "{choice:?} among {vocabulary}, spread {spread}"
                    );
                    compared += 1;
                }
                // With another random number, another token.
                let moved = Choice {
                    uniform: (choice.uniform + 0.5).fract(),
                    ..*choice
                };
                other += usize::from(moved.expected(own).0 != *token);
            }
            let in_place = choose(&logits, vocabulary, &words, true);
            assert_eq!(in_place, found, "in place of the logits");
        }
    }
    assert!(
        compared > 130 && other > 40,
        "{compared} compared, {other} differ"
    );
}

#[test]
fn rows_without_numbers_have_no_token() {
    let greedy = Choice {
        temperature: 0.0,
        top_p: 1.0,
        min_p: 0.0,
        top_k: 0,
        uniform: 0.5,
    };
    let warm = Choice {
        temperature: 1.0,
        ..greedy
    };
    let logits = [
        [f32::NAN; 40],
        [f32::NEG_INFINITY; 40],
        [1.0; 40],
        [f32::INFINITY; 40],
    ]
    .concat();
    let words = [
        warm.words(0),
        greedy.words(1),
        greedy.words(2),
        warm.words(3),
        warm.words(u32::MAX),
    ];
    assert_eq!(
        choose(&logits, 40, &words, false),
        [u32::MAX, u32::MAX, 0, u32::MAX, u32::MAX]
    );
}

#[test]
fn logits_are_adjusted_and_restricted() {
    let logits: Vec<f32> = (0..200).map(|number| number as f32 - 50.0).collect();
    let entry = |row: u32, token: u32, bias: f32, repetition: f32, less: f32| {
        [
            row,
            token,
            bias.to_bits(),
            repetition.to_bits(),
            less.to_bits(),
            0,
            0,
            0,
        ]
    };
    let entries = [
        entry(0, 3, 0.5, 1.0, 0.0),
        entry(1, 99, 0.0, 2.0, 0.25),
        entry(0, 0, 0.0, 2.0, 1.0),
    ];
    let (memory, told) = (Memory::of(&logits), Memory::of(entries.as_flattened()));
    card().launch(
        "adjust",
        [1, 1, 1],
        256,
        0,
        &arguments![&memory, 100_usize, &told, 3_usize],
    );
    let mut expected = logits;
    (expected[3], expected[199], expected[0]) = (-46.5, 74.25, -101.0);
    assert_eq!(memory.read(), expected);
    // Tokens 0, 33 and 64 of row 1; the mask ends before token 96.
    let (rows, masks) = (Memory::of(&[1_u32]), Memory::of(&[1_u32, 2, 1]));
    card().launch(
        "restrict_to",
        [1, 1, 1],
        256,
        0,
        &arguments![&memory, 100_usize, &rows, &masks, 3_usize],
    );
    for (token, logit) in expected.iter_mut().enumerate().skip(100) {
        if ![100, 133, 164].contains(&token) {
            *logit = f32::NEG_INFINITY;
        }
    }
    assert_eq!(memory.read(), expected);
}

#[test]
fn tokens_that_were_chosen_take_their_places() {
    let (tokens, chosen) = (Memory::of(&[1_u32; 5]), Memory::of(&[70_u32, 80, u32::MAX]));
    let pairs = Memory::of(&[4_u32, 0, 0, 2, 2, 1]);
    let arguments = arguments![&tokens, &pairs, &chosen, 3_usize];
    card().launch("take_tokens", [1, 1, 1], 256, 0, &arguments);
    assert_eq!(tokens.read(), [u32::MAX, 1, 80, 1, 70]);
    // A token that could not be chosen is no row of a table.
    let (table, out) = (Memory::of(&[0.5_f32; 81 * 8]), Memory::<f32>::new(2 * 8));
    let own = Memory::of(&[u32::MAX, 80]);
    let arguments = arguments![&table, (), 0_usize, &own, &out, 8_usize, 8_usize];
    card().launch("embed", [2, 1, 1], 256, 0, &arguments);
    assert_eq!(out.read(), [[0.0; 8], [0.5; 8]].concat());
}
