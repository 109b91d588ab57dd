//! Logits to a token. Knows nothing but numbers: the same logits, options and seed give the same token.

use std::collections::HashMap;

use crate::grammar::{Constraint, ConstraintError, Grammar};
use crate::request::Sampling;

mod afar;

/// Candidates that are sorted before all are: nearly always enough to reach `top_p`.
const FIRST_SORTED: usize = 256;

/// From one state of the random numbers to the next (SplitMix64).
const STRIDE: u64 = 0x9e37_79b9_7f4a_7c15;

/// Why no token can be chosen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SampleError {
    /// The logits are no numbers: a fault of the model or its weights.
    #[error("failed to choose a token: the model's logits are not finite")]
    NotFinite,
    /// The form of the answer cannot be followed.
    #[error(transparent)]
    Constraint(#[from] ConstraintError),
    /// The device has no memory for it.
    #[error("failed to compute the next token: {0}; try again later or with a shorter prompt")]
    Memory(String),
}

/// Chooses the tokens of one sequence.
pub struct Sampler {
    sampling: Sampling,
    /// Follows the form of the answer, if it has one.
    constraint: Option<Constraint>,
    random: u64,
    /// Random numbers of choices whose tokens have not come.
    drawn: u64,
    /// Prompt tokens, where the repetition penalty needs them.
    in_prompt: HashMap<u32, ()>,
    /// How often each token is in the answer, where a penalty needs it.
    in_answer: HashMap<u32, u32>,
    adjusted: Vec<f32>,
    candidates: Vec<(u32, f32)>,
}

impl Sampler {
    /// A sampler at the start of an answer.
    #[must_use]
    pub fn new(sampling: Sampling, prompt: &[u32], grammar: Option<&Grammar>) -> Self {
        let random = sampling.seed;
        let in_prompt = if sampling.repetition == 1.0 {
            HashMap::new()
        } else {
            prompt.iter().map(|token| (*token, ())).collect()
        };
        Self {
            sampling,
            constraint: grammar.map(Grammar::begin),
            random,
            drawn: 0,
            in_prompt,
            in_answer: HashMap::new(),
            adjusted: Vec::new(),
            candidates: Vec::new(),
        }
    }

    /// Chooses the next token and remembers it.
    ///
    /// # Errors
    /// When no logit is a number, or the form of the answer cannot be followed.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32, SampleError> {
        let token = if self.sampling.adjusts() || self.constraint.is_some() {
            let mut adjusted = std::mem::take(&mut self.adjusted);
            adjusted.clear();
            adjusted.extend_from_slice(logits);
            self.adjust(&mut adjusted);
            if let Some(constraint) = &mut self.constraint {
                constraint.restrict(&mut adjusted)?;
            }
            let token = self.choose(&adjusted);
            self.adjusted = adjusted;
            token?
        } else {
            self.choose(logits)?
        };
        self.remember(token);
        Ok(token)
    }

    /// Notes a token of the answer.
    fn remember(&mut self, token: u32) {
        if let Some(constraint) = &mut self.constraint {
            constraint.accept(token);
        }
        if self.sampling.penalizes() {
            *self.in_answer.entry(token).or_default() += 1;
        }
    }

    /// Bias first, then penalties, as vLLM has it.
    fn adjust(&self, logits: &mut [f32]) {
        for (token, bias) in &self.sampling.bias {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit += bias;
            }
        }
        let Sampling {
            repetition,
            presence,
            frequency,
            ..
        } = self.sampling;
        let mut repeat = |token: u32| {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = if *logit > 0.0 {
                    *logit / repetition
                } else {
                    *logit * repetition
                };
            }
        };
        if repetition != 1.0 {
            self.in_prompt.keys().copied().for_each(&mut repeat);
            self.in_answer
                .keys()
                .copied()
                .filter(|token| !self.in_prompt.contains_key(token))
                .for_each(&mut repeat);
        }
        for (token, count) in &self.in_answer {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit -= presence + frequency * *count as f32;
            }
        }
    }

    fn choose(&mut self, logits: &[f32]) -> Result<u32, SampleError> {
        let best = likeliest(logits)?;
        let Sampling {
            temperature,
            top_k,
            top_p,
            min_p,
            ..
        } = self.sampling;
        if temperature <= 0.0 || top_k == 1 {
            return Ok(best);
        }
        let top = logits[best as usize];
        // Weights relative to the likeliest token; those below e^-40 of it cannot matter to any sum.
        self.candidates.clear();
        for (token, logit) in (0_u32..).zip(logits) {
            let exponent = (logit - top) / temperature;
            if exponent > -40.0 {
                let weight = exponent.exp();
                if weight >= min_p {
                    self.candidates.push((token, weight));
                }
            }
        }
        let narrow = (top_k > 0 && top_k < self.candidates.len()) || top_p < 1.0;
        if narrow {
            self.narrow(top_k, top_p);
        }
        let total: f64 = self
            .candidates
            .iter()
            .map(|(_, weight)| f64::from(*weight))
            .sum();
        let mut target = self.random() * total;
        for (token, weight) in &self.candidates {
            target -= f64::from(*weight);
            if target < 0.0 {
                return Ok(*token);
            }
        }
        Ok(self.candidates.last().map_or(best, |(token, _)| *token))
    }

    /// Keeps the likeliest `top_k`, and of those the fewest that reach `top_p` of their sum.
    fn narrow(&mut self, top_k: usize, top_p: f32) {
        let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        let candidates = &mut self.candidates;
        if top_k > 0 && top_k < candidates.len() {
            candidates.select_nth_unstable_by(top_k - 1, order);
            candidates.truncate(top_k);
        }
        let total: f64 = candidates
            .iter()
            .map(|(_, weight)| f64::from(*weight))
            .sum();
        let wanted = total * f64::from(top_p);
        let mut sorted = candidates.len().min(FIRST_SORTED);
        loop {
            if sorted < candidates.len() {
                candidates.select_nth_unstable_by(sorted, order);
            }
            candidates[..sorted].sort_unstable_by(order);
            let mut sum = 0.0;
            let enough = candidates[..sorted].iter().position(|(_, weight)| {
                sum += f64::from(*weight);
                sum >= wanted
            });
            match enough {
                Some(last) => {
                    candidates.truncate(last + 1);
                    return;
                }
                None if sorted == candidates.len() => return,
                None => sorted = candidates.len(),
            }
        }
    }

    /// A number from 0 to below 1 (SplitMix64).
    fn random(&mut self) -> f64 {
        self.random = self.random.wrapping_add(STRIDE);
        let mut bits = self.random;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((bits ^ (bits >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// The first of the largest logits.
fn likeliest(logits: &[f32]) -> Result<u32, SampleError> {
    // Lanes apart, because the compiler turns that into vectors: this is done for every token of every answer.
    const LANES: usize = 16;
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (chunks, rest) = logits.as_chunks::<LANES>();
    let mut tops = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for (top, logit) in tops.iter_mut().zip(chunk) {
            *top = larger(*top, *logit);
        }
    }
    let top = tops
        .iter()
        .chain(rest)
        .copied()
        .fold(f32::NEG_INFINITY, larger);
    let first = (0_u32..).zip(logits).find(|(_, logit)| **logit == top);
    match first {
        Some((token, _)) if top.is_finite() => Ok(token),
        _ => Err(SampleError::NotFinite),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(sampling: Sampling, logits: &[f32], times: usize) -> Vec<usize> {
        let mut counts = vec![0; logits.len()];
        let mut sampler = Sampler::new(sampling, &[], None);
        for _ in 0..times {
            counts[sampler.sample(logits).expect("finite") as usize] += 1;
        }
        counts
    }

    fn warm() -> Sampling {
        Sampling {
            temperature: 1.0,
            seed: 7,
            ..Sampling::greedy()
        }
    }

    #[test]
    fn greedy_takes_the_first_of_equals() {
        assert_eq!(
            draw(Sampling::greedy(), &[1.0, 3.0, 3.0, f32::NAN], 3),
            [0, 3, 0, 0]
        );
    }

    #[test]
    fn no_number_is_an_error() {
        assert_eq!(
            Sampler::new(warm(), &[], None).sample(&[f32::NAN, f32::NEG_INFINITY]),
            Err(SampleError::NotFinite)
        );
    }

    #[test]
    fn draws_follow_the_probabilities() {
        // Probabilities 0.09, 0.24, 0.67.
        let counts = draw(warm(), &[0.0, 1.0, 2.0], 20_000);
        for (count, expected) in counts.iter().zip([0.0900, 0.2447, 0.6652]) {
            assert!(
                (*count as f64 / 20_000.0 - expected).abs() < 0.015,
                "{counts:?}"
            );
        }
    }

    #[test]
    fn the_seed_decides() {
        let logits: Vec<f32> = (0..64).map(|i| (i as f32).sin()).collect();
        assert_eq!(draw(warm(), &logits, 50), draw(warm(), &logits, 50));
        assert_ne!(
            draw(warm(), &logits, 50),
            draw(Sampling { seed: 8, ..warm() }, &logits, 50)
        );
    }

    #[test]
    fn top_k_top_p_and_min_p_leave_out_the_unlikely() {
        let logits = [0.0, 1.0, 2.0, -1.0];
        assert_eq!(
            draw(Sampling { top_k: 2, ..warm() }, &logits, 500)[..2],
            [0, draw(Sampling { top_k: 2, ..warm() }, &logits, 500)[1]]
        );
        let by_p = draw(
            Sampling {
                top_p: 0.6,
                ..warm()
            },
            &logits,
            500,
        );
        assert_eq!(by_p, [0, 0, 500, 0]);
        let by_ratio = draw(
            Sampling {
                min_p: 0.3,
                ..warm()
            },
            &logits,
            500,
        );
        assert!(by_ratio[0] == 0 && by_ratio[3] == 0 && by_ratio[1] > 0);
    }

    #[test]
    fn top_p_reaches_beyond_the_first_sorted() {
        let counts = draw(
            Sampling {
                top_p: 0.95,
                ..warm()
            },
            &vec![0.0; 2_000],
            20_000,
        );
        assert!(counts[1_999] == 0 && counts[1_800] > 0);
    }

    #[test]
    fn bias_forbids_and_prefers_tokens_and_passes_over_those_that_do_not_exist() {
        let bias = vec![(1, -100.0), (0, 1.5), (u32::MAX, 100.0)];
        let mut sampler = Sampler::new(
            Sampling {
                bias,
                ..Sampling::greedy()
            },
            &[],
            None,
        );
        assert_eq!(sampler.sample(&[1.0, 3.0, 2.0]), Ok(0));
    }

    #[test]
    fn penalties_push_repeated_tokens_away() {
        let mut sampler = Sampler::new(
            Sampling {
                presence: 1.5,
                ..Sampling::greedy()
            },
            &[],
            None,
        );
        let logits = [1.0, 2.0, 1.9];
        let tokens: Vec<u32> = (0..4)
            .map(|_| sampler.sample(&logits).expect("finite"))
            .collect();
        assert_eq!(tokens, [1, 2, 0, 1]);
        let mut sampler = Sampler::new(
            Sampling {
                repetition: 2.0,
                ..Sampling::greedy()
            },
            &[1],
            None,
        );
        assert_eq!(sampler.sample(&logits), Ok(2));
    }
}
