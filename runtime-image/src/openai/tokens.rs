//! `/tokenize` and `/detokenize`, as vLLM has them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::chat::{ChatMessage, TemplateArguments};
use super::options::InvalidField;
use super::tools::Tool;

/// The request of `/tokenize`: a text or a conversation.
#[derive(Clone, Debug, JsonSchema, Deserialize)]
pub struct TokenizeRequest {
    /// A served name.
    pub model: Option<String>,
    /// A text, as `/v1/completions` takes it.
    pub prompt: Option<String>,
    /// A conversation, as `/v1/chat/completions` takes it.
    pub messages: Option<Vec<ChatMessage>>,
    /// Functions that the conversation offers.
    pub tools: Option<Vec<Tool>>,
    /// What the chat template is told.
    pub chat_template_kwargs: Option<TemplateArguments>,
    /// Whether a text gets the opening token where the model wants one; true by default.
    pub add_special_tokens: Option<bool>,
    /// Whether the answer also names each token's text.
    pub return_token_strs: Option<bool>,
}

/// What `/tokenize` is asked for.
pub enum Source {
    /// A text.
    Text(String),
    /// A conversation.
    Messages(Vec<ChatMessage>),
}

impl TokenizeRequest {
    /// Takes the one source out.
    ///
    /// # Errors
    /// When there is none or both.
    pub fn take_source(&mut self) -> Result<Source, InvalidField> {
        match (self.prompt.take(), self.messages.take()) {
            (Some(text), None) => Ok(Source::Text(text)),
            (None, Some(messages)) => Ok(Source::Messages(messages)),
            (Some(_), Some(_)) => Err(InvalidField::new(
                "messages",
                "prompt and messages are both given, expected one",
            )),
            (None, None) => Err(InvalidField::new(
                "prompt",
                "prompt and messages are both missing, expected one",
            )),
        }
    }
}

/// The answer of `/tokenize`.
#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct TokenizeResponse {
    /// How many.
    pub count: usize,
    /// Tokens of prompt and answer together.
    pub max_model_len: usize,
    /// Their numbers.
    pub tokens: Vec<u32>,
    /// Their texts, where they were asked for.
    pub token_strs: Option<Vec<String>>,
}

/// The request of `/detokenize`.
#[derive(Clone, Debug, JsonSchema, Deserialize)]
pub struct DetokenizeRequest {
    /// A served name.
    pub model: Option<String>,
    /// Numbers of tokens.
    pub tokens: Vec<u32>,
}

/// The answer of `/detokenize`.
#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct DetokenizeResponse {
    /// Their text; control tokens as their names.
    pub prompt: String,
}
