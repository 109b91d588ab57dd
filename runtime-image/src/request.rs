//! What the engine is asked for: tokens and options, checked once and then taken as true.

use std::sync::Arc;

use crate::grammar::Grammar;
use crate::pictures::Picture;

/// How the next token is chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// 0 takes the likeliest token; otherwise logits are divided by this.
    pub temperature: f32,
    /// Only so many of the likeliest tokens; 0 means all.
    pub top_k: usize,
    /// Only the likeliest tokens that together reach this probability; 1 means all.
    pub top_p: f32,
    /// Only tokens at least this fraction as likely as the likeliest; 0 means all.
    pub min_p: f32,
    /// Divides (or multiplies, when negative) the logits of tokens seen in prompt or answer; 1 means no change.
    pub repetition: f32,
    /// Taken from the logits of tokens already in the answer.
    pub presence: f32,
    /// Taken from the logits of tokens once for each time they are in the answer.
    pub frequency: f32,
    /// Added to the logits of single tokens before the penalties; tokens beyond the vocabulary are passed over.
    pub bias: Vec<(u32, f32)>,
    /// Start of the random numbers; choice `i` of a request starts at `seed + i`.
    pub seed: u64,
}

impl Sampling {
    /// The likeliest token each time.
    #[must_use]
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition: 1.0,
            presence: 0.0,
            frequency: 0.0,
            bias: Vec::new(),
            seed: 0,
        }
    }

    /// Whether tokens already seen change the logits.
    #[must_use]
    pub fn penalizes(&self) -> bool {
        self.repetition != 1.0 || self.presence != 0.0 || self.frequency != 0.0
    }

    /// Whether logits are changed before a token is chosen.
    #[must_use]
    pub fn adjusts(&self) -> bool {
        self.penalizes() || !self.bias.is_empty()
    }
}

/// When an answer ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    /// Tokens that the answer may have; with 0 only the prompt is computed.
    pub most_tokens: usize,
    /// Texts that end the answer and are not part of it.
    pub texts: Vec<String>,
    /// Tokens that end the answer besides the model's own, whatever `ignores_end_tokens` says; their text is not part of it.
    pub tokens: Vec<u32>,
    /// Whether the model's own end tokens are passed over.
    pub ignores_end_tokens: bool,
}

/// A picture in a prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PromptPicture {
    /// Place of its token in the prompt.
    pub position: usize,
    /// Its pixels, kept until the request ends: keys and values that were forgotten are computed anew.
    pub picture: Arc<Picture>,
}

/// One prompt and what is wanted of it.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateRequest {
    /// The prompt, at least one token.
    pub prompt: Vec<u32>,
    /// Its pictures, ascending by position; none for a model that looks at none.
    pub pictures: Vec<PromptPicture>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// When each answer ends.
    pub ending: Ending,
    /// Answers wanted, at least 1; the permit that goes with the request has as many places.
    pub choices: usize,
    /// Report the log probability of each token of the answers, and of so many of the likeliest in its place.
    pub logprobs: Option<usize>,
    /// The same for each token of the prompt but the first; the prompt is computed anew for it.
    pub prompt_logprobs: Option<usize>,
    /// Computed prefixes are shared only among requests of the same salt: what tells tenants apart.
    pub salt: String,
    /// The form of each answer; absent for any.
    pub grammar: Option<Grammar>,
}

impl GenerateRequest {
    /// One answer without log probabilities, its prefix shared with everybody.
    #[must_use]
    pub fn new(prompt: Vec<u32>, sampling: Sampling, ending: Ending) -> Self {
        Self {
            prompt,
            pictures: Vec::new(),
            sampling,
            ending,
            choices: 1,
            logprobs: None,
            prompt_logprobs: None,
            salt: String::new(),
            grammar: None,
        }
    }
}

/// The prompt leaves no room for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this model's maximum context length is {context} tokens, your prompt has at least {prompt}; shorten it to {} or less",
    context - 1
)]
pub struct PromptTooLong {
    /// Tokens of the prompt, or fewer where its text is too long whatever its tokens are.
    pub prompt: usize,
    /// Tokens that prompt and answer may have together.
    pub context: usize,
}

/// Tokens that an answer may have: what was asked for, as far as the context allows.
///
/// # Errors
/// When the context allows none.
pub fn room(prompt: usize, asked: Option<usize>, context: usize) -> Result<usize, PromptTooLong> {
    if prompt >= context {
        return Err(PromptTooLong { prompt, context });
    }
    Ok(asked.unwrap_or(usize::MAX).min(context - prompt))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_gets_what_the_prompt_leaves() {
        assert_eq!(room(10, None, 16), Ok(6));
        assert_eq!(room(10, Some(4), 16), Ok(4));
        assert_eq!(room(10, Some(400), 16), Ok(6));
        assert_eq!(
            room(16, Some(1), 16),
            Err(PromptTooLong {
                prompt: 16,
                context: 16
            })
        );
    }
}
