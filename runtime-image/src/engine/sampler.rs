//! Logits to a token. Knows nothing but numbers: the same logits, options and seed give the same token.

use std::cmp::Ordering;
use std::collections::HashMap;

use crate::request::Sampling;

/// Candidates that are sorted before all are: nearly always enough to reach `top_p`.
const FIRST_SORTED: usize = 256;

/// The logits are no numbers: a fault of the model or its weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("failed to choose a token: the model's logits are not finite")]
pub struct NotFinite;

/// Chooses the tokens of one sequence.
pub struct Sampler {
    sampling: Sampling,
    random: u64,
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
    pub fn new(sampling: Sampling, prompt: &[u32]) -> Self {
        let in_prompt = if sampling.repetition == 1.0 {
            HashMap::new()
        } else {
            prompt.iter().map(|token| (*token, ())).collect()
        };
        Self {
            sampling,
            random: sampling.seed,
            in_prompt,
            in_answer: HashMap::new(),
            adjusted: Vec::new(),
            candidates: Vec::new(),
        }
    }

    /// Chooses the next token and remembers it.
    ///
    /// # Errors
    /// When no logit is a number.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32, NotFinite> {
        let token = if self.sampling.penalizes() {
            let mut adjusted = std::mem::take(&mut self.adjusted);
            adjusted.clear();
            adjusted.extend_from_slice(logits);
            self.penalize(&mut adjusted);
            let token = self.choose(&adjusted);
            self.adjusted = adjusted;
            token?
        } else {
            self.choose(logits)?
        };
        if self.sampling.penalizes() {
            *self.in_answer.entry(token).or_default() += 1;
        }
        Ok(token)
    }

    fn penalize(&self, logits: &mut [f32]) {
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

    fn choose(&mut self, logits: &[f32]) -> Result<u32, NotFinite> {
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
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.random;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((bits ^ (bits >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// The first of the largest logits.
fn likeliest(logits: &[f32]) -> Result<u32, NotFinite> {
    let mut best = (0_u32, f32::NEG_INFINITY);
    for (token, logit) in (0_u32..).zip(logits) {
        if logit.partial_cmp(&best.1) == Some(Ordering::Greater) {
            best = (token, *logit);
        }
    }
    if best.1.is_finite() {
        Ok(best.0)
    } else {
        Err(NotFinite)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(sampling: Sampling, logits: &[f32], times: usize) -> Vec<usize> {
        let mut counts = vec![0; logits.len()];
        let mut sampler = Sampler::new(sampling, &[]);
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
            Sampler::new(warm(), &[]).sample(&[f32::NAN, f32::NEG_INFINITY]),
            Err(NotFinite)
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
    fn penalties_push_repeated_tokens_away() {
        let mut sampler = Sampler::new(
            Sampling {
                presence: 1.5,
                ..Sampling::greedy()
            },
            &[],
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
        );
        assert_eq!(sampler.sample(&logits), Ok(2));
    }
}
