//! Wire types of the OpenAI API. Unknown fields are tolerated, wrong types are not.

pub mod chat;
pub mod completions;
pub mod error;
pub mod options;

use serde::Serialize;

/// Tokens that a request took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Of the prompt.
    pub prompt_tokens: usize,
    /// Of the answer.
    pub completion_tokens: usize,
    /// Of both.
    pub total_tokens: usize,
}

impl Usage {
    /// Adds up.
    #[must_use]
    pub fn new(prompt_tokens: usize, completion_tokens: usize) -> Self {
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
        }
    }
}

/// One model of `/v1/models`.
#[derive(Clone, Debug, Serialize)]
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
#[derive(Clone, Debug, Serialize)]
pub struct ModelList {
    /// Always `list`.
    pub object: &'static str,
    /// One entry a served name.
    pub data: Vec<ModelObject>,
}
