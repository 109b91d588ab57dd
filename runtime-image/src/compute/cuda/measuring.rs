//! What the parts of a step take on the card. Only one step in many is measured: it is launched, not repeated as recorded, with
//! a noted time at each change from one part to another.

use super::Cuda;
use super::card::Mark;
use crate::compute::backend::Spent;

/// Of so many steps one is measured.
const EVERY: usize = 128;

/// A part of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Products with weights.
    Products,
    /// Attention.
    Attention,
    /// Choosing tokens.
    Choosing,
    /// Everything else.
    Other,
}

impl Part {
    /// The part to which a kernel belongs.
    pub(super) fn of(kernel: &str) -> Self {
        let begins = |words: &[&str]| words.iter().any(|word| kernel.starts_with(word));
        if begins(&["thin", "gemm", "dequantise"]) {
            Self::Products
        } else if begins(&["attend"]) {
            Self::Attention
        } else if begins(&["choose", "adjust", "restrict"]) {
            Self::Choosing
        } else {
            Self::Other
        }
    }
}

/// The step that is being measured.
#[derive(Default)]
pub(super) struct Measuring {
    steps: usize,
    on: bool,
    /// Where each part began.
    begun: Vec<(Part, Mark)>,
    spent: Option<Spent>,
}

impl Cuda {
    /// Begins a step; true when it is measured.
    pub(super) fn begin_measuring(&self) -> bool {
        let mut measuring = self.measuring.borrow_mut();
        measuring.steps += 1;
        measuring.on = measuring.steps.is_multiple_of(EVERY);
        if measuring.on {
            measuring.begun.clear();
        }
        measuring.on
    }

    /// Notes the time where a part begins.
    pub(super) fn measure(&self, part: Part) {
        let mut measuring = self.measuring.borrow_mut();
        if !measuring.on
            || measuring
                .begun
                .last()
                .is_some_and(|(last, _)| *last == part)
        {
            return;
        }
        if let Some(mark) = self.note(self.card.mark()) {
            measuring.begun.push((part, mark));
        }
    }

    /// Notes the time at the end of the step that is measured.
    pub(super) fn end_measuring(&self) {
        let on = std::mem::take(&mut self.measuring.borrow_mut().on);
        if on && let Some(mark) = self.note(self.card.mark()) {
            let end = (Part::Other, mark);
            self.measuring.borrow_mut().begun.push(end);
        }
    }

    /// Gives up a step that was being measured.
    pub(super) fn forget_measured(&self) {
        let mut measuring = self.measuring.borrow_mut();
        measuring.on = false;
        measuring.begun.clear();
    }

    /// Adds up what the card has done, once it has passed the last mark.
    pub(super) fn sum_up(&self) {
        let mut measuring = self.measuring.borrow_mut();
        let [first, .., last] = measuring.begun[..] else {
            return;
        };
        if measuring.on || self.card.seconds(first.1, last.1).is_err() {
            return;
        }
        let mut spent = Spent::default();
        for pair in measuring.begun.windows(2) {
            let Ok(seconds) = self.card.seconds(pair[0].1, pair[1].1) else {
                continue;
            };
            match pair[0].0 {
                Part::Products => spent.products += seconds,
                Part::Attention => spent.attention += seconds,
                Part::Choosing => spent.choosing += seconds,
                Part::Other => spent.other += seconds,
            }
        }
        measuring.begun.clear();
        measuring.spent = Some(spent);
    }

    /// What was measured since this was asked last.
    pub(super) fn take_spent(&self) -> Option<Spent> {
        self.measuring.borrow_mut().spent.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_belong_to_parts() {
        for (kernel, part) in [
            ("thin_bf16_8", Part::Products),
            ("gemm_f16", Part::Products),
            ("dequantise", Part::Products),
            ("attend_combine", Part::Attention),
            ("adjust", Part::Choosing),
            ("choose", Part::Choosing),
            ("add", Part::Other),
            ("rms_norm", Part::Other),
        ] {
            assert_eq!(Part::of(kernel), part, "{kernel}");
        }
    }
}
