//! A model without weights, for tests: it answers by a rule that a test can know.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use super::{Capacity, Logits, Model, StepError, check};
use crate::step::StepPlan;

/// Answers with the alphabet: each token is followed by its [`Fake::successor`].
pub struct Fake {
    capacity: Capacity,
    vocabulary: usize,
    logits: Vec<f32>,
    control: Arc<FakeControl>,
}

/// What a test can see and change while the model runs.
#[derive(Default)]
pub struct FakeControl {
    /// Steps taken.
    pub steps: AtomicUsize,
    /// Milliseconds that each step takes.
    pub delay_milliseconds: AtomicUsize,
    /// Panic at the next step.
    pub panics: AtomicBool,
    /// Give logits that are no numbers.
    pub gives_nonsense: AtomicBool,
}

impl Fake {
    /// A model over the bytes and the control tokens after them.
    #[must_use]
    pub fn new(capacity: Capacity, vocabulary: usize, control: Arc<FakeControl>) -> Self {
        Self {
            capacity,
            vocabulary,
            logits: vec![0.0; capacity.logits_rows * vocabulary],
            control,
        }
    }

    /// What follows a token: the next letter; after `z` the last token of the vocabulary; after anything else `a`.
    #[must_use]
    pub fn successor(token: u32, vocabulary: usize) -> usize {
        match u8::try_from(token) {
            Ok(letter @ b'a'..=b'y') => usize::from(letter) + 1,
            Ok(b'z') => vocabulary - 1,
            _ => usize::from(b'a'),
        }
    }
}

impl Model for Fake {
    fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    fn capacity(&self) -> Capacity {
        self.capacity
    }

    fn weight_bytes(&self) -> usize {
        0
    }

    fn forward(&mut self, plan: &StepPlan) -> Result<Logits<'_>, StepError> {
        check(plan, self.capacity, self.vocabulary, None)?;
        self.control.steps.fetch_add(1, Ordering::SeqCst);
        let delay = self.control.delay_milliseconds.load(Ordering::SeqCst);
        if delay > 0 {
            thread::sleep(Duration::from_millis(delay as u64));
        }
        assert!(
            !self.control.panics.load(Ordering::SeqCst),
            "the fake model was told to panic"
        );
        let count = plan.logits_rows().count();
        let nonsense = self.control.gives_nonsense.load(Ordering::SeqCst);
        for (logits, row) in self
            .logits
            .chunks_exact_mut(self.vocabulary)
            .zip(plan.logits_rows())
        {
            logits.fill(if nonsense { f32::NAN } else { 0.0 });
            if !nonsense {
                logits[Self::successor(plan.tokens[row], self.vocabulary)] = 50.0;
            }
        }
        Ok(Logits::new(
            &self.logits[..count * self.vocabulary],
            self.vocabulary,
        ))
    }
}
