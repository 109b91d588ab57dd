//! The end of a token's way: from logits, or from the device that chose it, into its answer and to the client.

use std::sync::Arc;
use std::time::Instant;

use super::active::Active;
use super::cache::Blocks;
use super::flight::Part;
use super::logprobs::logprobs;
use super::{Event, Finish, SampleError};
use crate::metrics::{Metrics, Tokens};
use crate::model::Logits;
use crate::tokenizer::Tokenizer;

/// What the end of a token's way needs.
pub(super) struct Outlet {
    pub(super) tokenizer: Arc<Tokenizer>,
    pub(super) metrics: Arc<Metrics>,
}

impl Outlet {
    /// Takes what a step brought for one sequence; returns the other answers to a prompt that is complete now.
    pub(super) fn take_logits(
        &self,
        active: &mut Active,
        part: &Part,
        logits: &Logits<'_>,
        blocks: &mut Blocks,
    ) -> Vec<Active> {
        active.note_prompt(part.logits.clone(), logits);
        let mut siblings = Vec::new();
        if part.completes {
            if part.begins {
                self.begin_answer(active);
                if let Some(event) = active.prompt_event() {
                    let _ = active.events.send(Ok(event));
                }
                siblings = active.split(blocks);
            }
            let first = part.logits.end - 1 - part.guessed.len();
            for active in std::iter::once(&mut *active).chain(&mut siblings) {
                self.take_tokens(active, first, &part.guessed, logits);
                active.settle(blocks);
                if active.ended {
                    active.give_blocks(blocks);
                }
            }
        } else {
            active.settle(blocks);
        }
        siblings
    }

    /// Counts a prompt that is computed.
    pub(super) fn begin_answer(&self, active: &Active) {
        let tokens = active.prompt_tokens as u64;
        self.metrics.prompt_tokens.inc_by(tokens);
        if let Some(counted) = active.counted() {
            counted.prompt.inc_by(tokens);
        }
    }

    /// Ends an answer that cannot go on; others do.
    pub(super) fn break_off(&self, active: &mut Active, error: SampleError) {
        self.metrics.aborted();
        let _ = active.events.send(Err(error));
        active.ended = true;
    }

    /// Chooses the next token, and those after it as long as the guesses are true.
    fn take_tokens(&self, active: &mut Active, first: usize, guessed: &[u32], logits: &Logits<'_>) {
        if active.sequence.most_tokens() == 0 {
            self.finish(active, Finish::Length);
            return;
        }
        let mut confirmed = 0;
        loop {
            let logits = logits.row(first + confirmed);
            let token = match active.sampler.sample(logits) {
                Ok(token) => token,
                Err(error) => {
                    self.break_off(active, error);
                    return;
                }
            };
            self.advance(active, token, logits);
            if active.ended || guessed.get(confirmed) != Some(&token) {
                break;
            }
            confirmed += 1;
            active.computed += 1;
        }
        active.guesser.learn(guessed.len(), confirmed);
        self.metrics.guessed.inc_by(guessed.len() as u64);
        self.metrics.confirmed.inc_by(confirmed as u64);
    }

    /// Takes a token into its answer and tells the client.
    pub(super) fn advance(&self, active: &mut Active, token: u32, logits: &[f32]) {
        active.tokens.push(token);
        self.metrics.generation_tokens.inc();
        if let Some(tokens) = active.counted() {
            tokens.generation.inc();
        }
        let now = Instant::now();
        match active.last_token.replace(now) {
            None => {
                let took = now.duration_since(active.arrived);
                self.metrics.time_to_first_token.observe(took.as_secs_f64());
            }
            Some(before) => {
                let took = now.duration_since(before);
                self.metrics.next_token.observe(took.as_secs_f64());
            }
        }
        let advance = active.sequence.advance(token, &self.tokenizer);
        let tokens: Vec<_> = active
            .logprobs
            .map(|top| logprobs(logits, token, top))
            .into_iter()
            .collect();
        // A client that has left is noticed at the next turn.
        if !advance.text.is_empty() || !tokens.is_empty() {
            let _ = active.events.send(Ok(Event::Text {
                choice: active.choice,
                text: advance.text,
                tokens,
            }));
        }
        if let Some(finish) = advance.finish {
            self.finish(active, finish);
        }
    }

    /// Tells the end of one answer.
    fn finish(&self, active: &mut Active, finish: Finish) {
        let tokens = Tokens {
            prompt: active.prompt_tokens,
            answer: active.sequence.generated(),
        };
        let seconds = active.arrived.elapsed().as_secs_f64();
        self.metrics.finished(finish, tokens, seconds);
        let _ = active.events.send(Ok(Event::Finished {
            choice: active.choice,
            finish,
            prompt_tokens: active.prompt_tokens,
            cached_tokens: active.cached_tokens,
            completion_tokens: active.sequence.generated(),
        }));
        active.ended = true;
    }
}
