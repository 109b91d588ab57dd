//! `/v1/completions`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Usage;
use super::logprobs::{PromptLogprobs, TextLogprobs};
use super::options::{InvalidField, Options};

/// Tokens of an answer where the request names none, as OpenAI has it.
const DEFAULT_TOKENS: usize = 16;

/// The request.
#[derive(Clone, Debug, JsonSchema, Deserialize)]
pub struct CompletionRequest {
    /// A served name.
    pub model: String,
    /// What to continue.
    pub prompt: PromptInput,
    /// Report log probabilities, with so many rivals beside each token, 0 to 20.
    pub logprobs: Option<u32>,
    /// Whether the answer repeats the prompt.
    pub echo: Option<bool>,
    /// Not supported.
    pub suffix: Option<String>,
    /// Only 1 is supported.
    pub best_of: Option<u32>,
    /// What chat and plain completions share.
    #[serde(flatten)]
    pub options: Options,
}

/// Text or tokens; a list may hold one of them.
#[derive(Clone, Debug, JsonSchema, Deserialize)]
#[serde(
    untagged,
    expecting = "expected a string, a list of token numbers, or a list with one of these"
)]
pub enum PromptInput {
    /// Text.
    Text(String),
    /// Tokens.
    Tokens(Vec<u32>),
    /// Several texts.
    Texts(Vec<String>),
    /// Several lists of tokens.
    TokenLists(Vec<Vec<u32>>),
}

/// One prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OnePrompt {
    /// Text, to be encoded.
    Text(String),
    /// Tokens, taken as they are.
    Tokens(Vec<u32>),
}

impl CompletionRequest {
    /// Takes the one prompt out.
    ///
    /// # Errors
    /// When there is none or more than one.
    pub fn take_prompt(&mut self) -> Result<OnePrompt, InvalidField> {
        let one = |count: usize| {
            InvalidField::new(
                "prompt",
                format!("prompt has {count} entries, one prompt a request is supported"),
            )
        };
        let nothing = PromptInput::Tokens(Vec::new());
        match std::mem::replace(&mut self.prompt, nothing) {
            PromptInput::Text(text) => Ok(OnePrompt::Text(text)),
            PromptInput::Tokens(tokens) => Ok(OnePrompt::Tokens(tokens)),
            PromptInput::Texts(texts) => <[String; 1]>::try_from(texts)
                .map(|[text]| OnePrompt::Text(text))
                .map_err(|texts| one(texts.len())),
            PromptInput::TokenLists(lists) => <[Vec<u32>; 1]>::try_from(lists)
                .map(|[tokens]| OnePrompt::Tokens(tokens))
                .map_err(|lists| one(lists.len())),
        }
    }

    /// Refuses what is not supported rather than passing it over.
    ///
    /// # Errors
    /// When such a field asks for something.
    pub fn check_supported(&self) -> Result<(), InvalidField> {
        if self
            .suffix
            .as_ref()
            .is_some_and(|suffix| !suffix.is_empty())
        {
            return Err(InvalidField::unsupported("suffix"));
        }
        if self.best_of.is_some_and(|count| count != 1) {
            return Err(InvalidField::new(
                "best_of",
                "only a best_of of 1 is supported",
            ));
        }
        Ok(())
    }

    /// How many rivals are reported beside each token of the prompt: as many as beside the answer's where it is repeated.
    ///
    /// # Errors
    /// When they are too many, or the answer is streamed.
    pub fn prompt_logprobs_asked(&self) -> Result<Option<usize>, InvalidField> {
        let own = self.options.prompt_rivals()?;
        let echoed = (self.echo == Some(true)).then_some(self.logprobs).flatten();
        let echoed = Options::rivals("logprobs", echoed)?;
        if echoed.is_some() && self.options.streams() {
            let message =
                "logprobs of a repeated prompt (echo) cannot be streamed; leave out stream";
            return Err(InvalidField::new("logprobs", message));
        }
        Ok(own.max(echoed))
    }

    /// Tokens that the answer may have, as asked.
    ///
    /// # Errors
    /// When it is 0, unless the repeated prompt is all that is wanted.
    pub fn tokens_asked(&self) -> Result<Option<usize>, InvalidField> {
        if self.echo == Some(true) && self.options.max_tokens == Some(0) {
            return Ok(Some(0));
        }
        let asked = Options::tokens_asked("max_tokens", self.options.max_tokens)?;
        Ok(Some(asked.unwrap_or(DEFAULT_TOKENS)))
    }
}

/// The whole answer, or one event of it.
#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct CompletionResponse {
    /// `cmpl-…`.
    pub id: String,
    /// `text_completion`.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    /// The served name.
    pub model: String,
    /// As many as were asked for, or none in the event that holds the usage.
    pub choices: Vec<CompletionChoice>,
    /// In whole answers, and (perhaps null) in events where usage was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
}

/// The text.
#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct CompletionChoice {
    /// From 0.
    pub index: usize,
    /// What follows the prompt.
    pub text: String,
    /// Where they were asked for.
    pub logprobs: Option<TextLogprobs>,
    /// `stop` or `length`; absent in events before the last.
    pub finish_reason: Option<&'static str>,
    /// Of the prompt's tokens, where they were asked for (a field of vLLM).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<Vec<PromptLogprobs>>,
}
