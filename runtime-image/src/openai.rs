//! Wire types of the OpenAI API. Unknown fields are tolerated, wrong types are not.

pub mod chat;
pub mod completions;
pub mod description;
pub mod error;
pub mod logprobs;
pub mod options;
pub mod responses;
pub mod structured;
pub mod tokens;
pub mod tools;

use schemars::JsonSchema;
use serde::Serialize;

/// Tokens that a request took.
#[derive(Clone, Copy, Debug, JsonSchema, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Of the prompt.
    pub prompt_tokens: usize,
    /// Of the answer.
    pub completion_tokens: usize,
    /// Of both.
    pub total_tokens: usize,
    /// More about the prompt's.
    pub prompt_tokens_details: PromptTokensDetails,
}

/// More about the tokens of a prompt.
#[derive(Clone, Copy, Debug, JsonSchema, Default, PartialEq, Eq, Serialize)]
pub struct PromptTokensDetails {
    /// Not computed anew, because a request before had the same beginning.
    pub cached_tokens: usize,
}

impl Usage {
    /// Adds up: a prompt, and the tokens of all answers to it.
    #[must_use]
    pub fn new(prompt_tokens: usize, cached_tokens: usize, completion_tokens: usize) -> Self {
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            prompt_tokens_details: PromptTokensDetails { cached_tokens },
        }
    }
}

/// One model of `/v1/models`.
#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct ModelObject {
    /// The served name.
    pub id: String,
    /// Always `model`.
    pub object: &'static str,
    /// Seconds since 1970 at which this process started.
    pub created: u64,
    /// Always `chandler`.
    pub owned_by: &'static str,
    /// Tokens of prompt and answer together (a field of vLLM).
    pub max_model_len: usize,
}

/// The answer of `/v1/models`.
#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct ModelList {
    /// Always `list`.
    pub object: &'static str,
    /// One entry a served name.
    pub data: Vec<ModelObject>,
}
