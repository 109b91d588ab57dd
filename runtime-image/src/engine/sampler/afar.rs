//! Tokens that whoever computes the logits chooses: by what, and what becomes of the sampler meanwhile.

use std::collections::BTreeMap;

use super::{STRIDE, SampleError, Sampler};
use crate::grammar::Constraint;
use crate::request::Sampling;
use crate::step::{Change, Choice};

impl Sampler {
    /// Whether what is chosen depends neither on tokens that were chosen before nor on a form.
    #[must_use]
    pub fn is_simple(&self) -> bool {
        self.constraint.is_none() && !self.sampling.penalizes()
    }

    /// How the next token is chosen by logits of a row, for whoever chooses in place of [`Self::sample`]. All tokens before it
    /// have come, or the sampler [is simple](Self::is_simple).
    ///
    /// # Errors
    /// When the form of the answer cannot be followed.
    pub fn choice(&mut self, row: usize) -> Result<Choice, SampleError> {
        let constraint = self.constraint.as_mut();
        let allowed = constraint.map(Constraint::allowed).transpose()?;
        let allowed = allowed.map(<[u32]>::to_vec);
        let draws = self.sampling.temperature > 0.0 && self.sampling.top_k != 1;
        self.drawn += u64::from(draws);
        let uniform = if draws { self.random() } else { 0.0 };
        let Sampling {
            temperature,
            top_k,
            top_p,
            min_p,
            ..
        } = self.sampling;
        Ok(Choice {
            row,
            temperature,
            top_k,
            top_p,
            min_p,
            uniform,
            changes: self.changes(),
            allowed,
        })
    }

    /// What [`Self::adjust`] does, token by token.
    fn changes(&self) -> Vec<Change> {
        let Sampling {
            repetition,
            presence,
            frequency,
            ref bias,
            ..
        } = self.sampling;
        let mut changes: BTreeMap<u32, Change> = BTreeMap::new();
        let mut change = |token: u32, how: &dyn Fn(&mut Change)| {
            how(changes.entry(token).or_insert(Change {
                token,
                bias: 0.0,
                repetition: 1.0,
                less: 0.0,
            }));
        };
        for (token, bias) in bias {
            change(*token, &|change| change.bias += bias);
        }
        for token in self.in_prompt.keys() {
            change(*token, &|change| change.repetition = repetition);
        }
        for (token, count) in &self.in_answer {
            change(*token, &|change| {
                change.repetition = repetition;
                change.less = presence + frequency * *count as f32;
            });
        }
        changes.into_values().collect()
    }

    /// Takes the token of the oldest [`Self::choice`].
    pub fn take_chosen(&mut self, token: u32) {
        self.drawn = self.drawn.saturating_sub(1);
        self.remember(token);
    }

    /// Gives up choices whose tokens have not come: they will be made again, with the same random numbers.
    pub fn give_up(&mut self) {
        let steps = std::mem::take(&mut self.drawn);
        self.random = self.random.wrapping_sub(STRIDE.wrapping_mul(steps));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warm() -> Sampling {
        Sampling {
            temperature: 1.0,
            seed: 7,
            ..Sampling::greedy()
        }
    }

    #[test]
    fn choices_that_are_given_up_are_made_again() {
        let (mut one, mut other) = (
            Sampler::new(warm(), &[], None),
            Sampler::new(warm(), &[], None),
        );
        let uniform = |sampler: &mut Sampler, row| sampler.choice(row).unwrap().uniform;
        let expected: Vec<f64> = (0..4).map(|row| uniform(&mut one, row)).collect();
        assert!(expected.windows(2).all(|pair| pair[0] != pair[1]));
        let mut found = vec![uniform(&mut other, 0), uniform(&mut other, 1)];
        other.take_chosen(5);
        uniform(&mut other, 2);
        other.give_up();
        found.truncate(1);
        found.extend((1..4).map(|row| uniform(&mut other, row)));
        assert_eq!(found, expected);
        // Greedy ones draw nothing.
        let mut greedy = Sampler::new(Sampling::greedy(), &[], None);
        assert_eq!(uniform(&mut greedy, 0), 0.0);
        assert!(one.is_simple() && greedy.is_simple());
        let repeats = Sampling {
            repetition: 1.1,
            ..warm()
        };
        assert!(!Sampler::new(repeats, &[], None).is_simple());
    }

    #[test]
    fn changes_are_what_is_done_to_logits_here() {
        let sampling = Sampling {
            bias: vec![(1, 0.5), (3, -2.0), (1, 0.25)],
            repetition: 1.5,
            presence: 0.25,
            frequency: 0.5,
            ..warm()
        };
        let mut sampler = Sampler::new(sampling, &[3, 4], None);
        for token in [4, 6, 6] {
            sampler.take_chosen(token);
        }
        let logits = [1.0, 2.0, 3.0, 1.5, -4.0, 5.0, 6.0, f32::NAN];
        let (mut expected, mut found) = (logits, logits);
        sampler.adjust(&mut expected);
        for change in sampler.choice(0).unwrap().changes {
            let logit = &mut found[change.token as usize];
            let biased = *logit + change.bias;
            let repeated = if biased > 0.0 {
                biased / change.repetition
            } else {
                biased * change.repetition
            };
            *logit = repeated - change.less;
        }
        assert_eq!(found[..7], expected[..7]);
        assert_ne!(found[..7], logits[..7]);
    }
}
