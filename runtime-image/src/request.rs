//! What the engine is asked for: tokens and options, checked once and then taken as true.

/// How the next token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
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
    /// Start of the random numbers.
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
            seed: 0,
        }
    }

    /// Whether tokens already seen change the logits.
    #[must_use]
    pub fn penalizes(&self) -> bool {
        self.repetition != 1.0 || self.presence != 0.0 || self.frequency != 0.0
    }
}

/// When an answer ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    /// Tokens that the answer may have, at least 1.
    pub most_tokens: usize,
    /// Texts that end the answer and are not part of it.
    pub texts: Vec<String>,
    /// Whether the model's own end tokens are passed over.
    pub ignores_end_tokens: bool,
}

/// One generation.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateRequest {
    /// The prompt, at least one token.
    pub prompt: Vec<u32>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// When to end.
    pub ending: Ending,
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
