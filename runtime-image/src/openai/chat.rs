//! `/v1/chat/completions`.

use serde::{Deserialize, Serialize};

use super::Usage;
use super::options::{InvalidField, Options};
use crate::prompt::Message;

/// Messages taken in one request.
const MOST_MESSAGES: usize = 4_096;

/// Roles that templates know.
const ROLES: [&str; 5] = ["system", "developer", "user", "assistant", "tool"];

/// The request.
#[derive(Clone, Debug, Deserialize)]
pub struct ChatRequest {
    /// A served name.
    pub model: String,
    /// The conversation.
    pub messages: Vec<ChatMessage>,
    /// OpenAI's newer name of `max_tokens`; wins over it.
    pub max_completion_tokens: Option<u32>,
    /// Not supported yet.
    pub logprobs: Option<bool>,
    /// Not supported yet.
    pub top_logprobs: Option<u32>,
    /// Not supported yet unless empty.
    pub tools: Option<Vec<serde_json::Value>>,
    /// Only `{"type": "text"}` is supported so far.
    pub response_format: Option<ResponseFormat>,
    /// What chat and plain completions share.
    #[serde(flatten)]
    pub options: Options,
}

/// `response_format`.
#[derive(Clone, Debug, Deserialize)]
pub struct ResponseFormat {
    /// `text`, or a form that is not supported yet.
    #[serde(rename = "type")]
    pub kind: String,
}

/// One message.
#[derive(Clone, Debug, Deserialize)]
pub struct ChatMessage {
    /// One of [`ROLES`].
    pub role: String,
    /// Text; absent in some messages of assistants.
    pub content: Option<Content>,
    /// Who speaks.
    pub name: Option<String>,
}

/// Text, or a list of parts.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "expected a string or a list of content parts")]
pub enum Content {
    /// Text.
    Text(String),
    /// Parts.
    Parts(Vec<Part>),
}

/// One part of a message.
#[derive(Clone, Debug, Deserialize)]
pub struct Part {
    /// `text`, or a kind that this model does not take.
    #[serde(rename = "type")]
    pub kind: String,
    /// The text of a text part.
    pub text: Option<String>,
}

impl ChatRequest {
    /// The conversation as templates see it.
    ///
    /// # Errors
    /// When there is no message, a role is unknown or a part is no text.
    pub fn conversation(&self) -> Result<Vec<Message>, InvalidField> {
        if self.messages.is_empty() {
            return Err(InvalidField::new(
                "messages",
                "messages is empty, expected at least one message",
            ));
        }
        if self.messages.len() > MOST_MESSAGES {
            let message = format!(
                "messages has {} entries, at most {MOST_MESSAGES} are taken",
                self.messages.len()
            );
            return Err(InvalidField::new("messages", message));
        }
        self.messages
            .iter()
            .enumerate()
            .map(|(index, message)| message.meant(index))
            .collect()
    }

    /// Refuses what is not supported yet rather than passing it over.
    ///
    /// # Errors
    /// When such a field asks for something.
    pub fn check_supported(&self) -> Result<(), InvalidField> {
        if self.logprobs == Some(true) {
            return Err(InvalidField::unsupported("logprobs"));
        }
        if self.top_logprobs.is_some_and(|count| count > 0) {
            return Err(InvalidField::unsupported("top_logprobs"));
        }
        if self.tools.as_ref().is_some_and(|tools| !tools.is_empty()) {
            return Err(InvalidField::unsupported("tools"));
        }
        if let Some(format) = self
            .response_format
            .as_ref()
            .filter(|format| format.kind != "text")
        {
            let message = format!(
                "response_format of type {:?} is not supported yet, only \"text\" is",
                format.kind
            );
            return Err(InvalidField::new("response_format", message));
        }
        Ok(())
    }

    /// Tokens that the answer may have, as asked.
    ///
    /// # Errors
    /// When it is 0.
    pub fn tokens_asked(&self) -> Result<Option<usize>, InvalidField> {
        match self.max_completion_tokens {
            Some(_) => Options::tokens_asked("max_completion_tokens", self.max_completion_tokens),
            None => Options::tokens_asked("max_tokens", self.options.max_tokens),
        }
    }
}

impl ChatMessage {
    fn meant(&self, index: usize) -> Result<Message, InvalidField> {
        if !ROLES.contains(&self.role.as_str()) {
            let role: String = self.role.chars().take(40).collect();
            let message = format!(
                "messages[{index}].role is {role:?}, expected one of {}",
                ROLES.join(", ")
            );
            return Err(InvalidField::new("messages", message));
        }
        let content = match &self.content {
            Some(Content::Text(text)) => text.clone(),
            Some(Content::Parts(parts)) => {
                let mut all = String::new();
                for (number, part) in parts.iter().enumerate() {
                    match (part.kind.as_str(), &part.text) {
                        ("text", Some(text)) => all.push_str(text),
                        (kind, _) => {
                            let kind: String = kind.chars().take(40).collect();
                            let message = format!(
                                "messages[{index}].content[{number}] is of type {kind:?}; this model takes text only"
                            );
                            return Err(InvalidField::new("messages", message));
                        }
                    }
                }
                all
            }
            None if self.role == "assistant" => String::new(),
            None => {
                let message = format!("messages[{index}].content is missing");
                return Err(InvalidField::new("messages", message));
            }
        };
        Ok(Message {
            role: self.role.clone(),
            content,
            name: self.name.clone(),
        })
    }
}

/// The whole answer.
#[derive(Clone, Debug, Serialize)]
pub struct ChatResponse {
    /// `chatcmpl-…`.
    pub id: String,
    /// `chat.completion`.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    /// The served name.
    pub model: String,
    /// One.
    pub choices: [ChatChoice; 1],
    /// Tokens.
    pub usage: Usage,
}

/// The answer itself.
#[derive(Clone, Debug, Serialize)]
pub struct ChatChoice {
    /// 0.
    pub index: u32,
    /// The text.
    pub message: AnswerMessage,
    /// Always absent so far.
    pub logprobs: Option<()>,
    /// `stop` or `length`.
    pub finish_reason: &'static str,
}

/// What the assistant says.
#[derive(Clone, Debug, Serialize)]
pub struct AnswerMessage {
    /// `assistant`.
    pub role: &'static str,
    /// The text.
    pub content: String,
    /// Always absent so far.
    pub refusal: Option<()>,
}

/// One event of a streamed answer.
#[derive(Clone, Debug, Serialize)]
pub struct ChatChunk {
    /// As in the other events.
    pub id: String,
    /// `chat.completion.chunk`.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    /// The served name.
    pub model: String,
    /// One, or none in the event that holds the usage.
    pub choices: Vec<ChunkChoice>,
    /// Present (perhaps null) where usage was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
}

/// The part of the answer in one event.
#[derive(Clone, Debug, Serialize)]
pub struct ChunkChoice {
    /// 0.
    pub index: u32,
    /// What is new.
    pub delta: Delta,
    /// Always absent so far.
    pub logprobs: Option<()>,
    /// Set in the last event with a choice.
    pub finish_reason: Option<&'static str>,
}

/// What is new.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Delta {
    /// In the first event.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    /// Text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
}
