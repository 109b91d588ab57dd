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
    /// Takes the conversation out, as templates see it.
    ///
    /// # Errors
    /// When there is no message, a role is unknown, or a part is of a kind that this model does not read.
    pub fn take_conversation(&mut self, pictures: Pictures) -> Result<Vec<Message>, InvalidField> {
        let messages = std::mem::take(&mut self.messages);
        if messages.is_empty() {
            return Err(InvalidField::new(
                "messages",
                "messages is empty, expected at least one message",
            ));
        }
        if messages.len() > MOST_MESSAGES {
            let message = format!(
                "messages has {} entries, at most {MOST_MESSAGES} are taken",
                messages.len()
            );
            return Err(InvalidField::new("messages", message));
        }
        check_pictures(&messages, pictures)?;
        messages
            .into_iter()
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

/// What becomes of pictures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pictures {
    /// Whether the model looks at them.
    pub read: bool,
    /// How many one prompt may have; absent for as many as fit.
    pub most: Option<usize>,
}

/// The kind of parts that are pictures.
const PICTURE: &str = "image_url";

/// Refuses pictures that the model would not see.
fn check_pictures(messages: &[ChatMessage], pictures: Pictures) -> Result<(), InvalidField> {
    let places = || {
        messages.iter().enumerate().flat_map(|(index, message)| {
            match &message.content {
                Some(Content::Parts(parts)) => parts.as_slice(),
                Some(Content::Text(_)) | None => &[],
            }
            .iter()
            .enumerate()
            .filter(|(_, part)| part.kind == PICTURE)
            .map(move |(number, _)| (index, number))
        })
    };
    let Some((index, number)) = places().next() else {
        return Ok(());
    };
    let message = match (pictures.most, places().count()) {
        _ if !pictures.read => format!(
            "messages[{index}].content[{number}] is a picture, and this model reads no pictures; send text only"
        ),
        (Some(most), found) if found > most => {
            format!("messages has {found} pictures, this server takes at most {most} in one prompt")
        }
        _ => return Ok(()),
    };
    Err(InvalidField::new("messages", message))
}

impl ChatMessage {
    fn meant(self, index: usize) -> Result<Message, InvalidField> {
        let Self {
            role,
            content,
            name,
        } = self;
        if !ROLES.contains(&role.as_str()) {
            let role: String = role.chars().take(40).collect();
            let message = format!(
                "messages[{index}].role is {role:?}, expected one of {}",
                ROLES.join(", ")
            );
            return Err(InvalidField::new("messages", message));
        }
        let content = match content {
            Some(Content::Text(text)) => text,
            Some(Content::Parts(parts)) => {
                let mut all = String::new();
                for (number, part) in parts.into_iter().enumerate() {
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
            None if role == "assistant" => String::new(),
            None => {
                let message = format!("messages[{index}].content is missing");
                return Err(InvalidField::new("messages", message));
            }
        };
        Ok(Message {
            role,
            content,
            name,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_are_refused_by_models_that_do_not_look_and_above_the_limit() {
        let picture = || Part {
            kind: PICTURE.to_owned(),
            text: None,
        };
        let text = || Part {
            kind: "text".to_owned(),
            text: Some("x".to_owned()),
        };
        let message = |parts: Vec<Part>| ChatMessage {
            role: "user".to_owned(),
            content: Some(Content::Parts(parts)),
            name: None,
        };
        let messages = [
            message(vec![text()]),
            message(vec![text(), picture()]),
            message(vec![picture(), picture()]),
        ];
        let refusal = |read, most| {
            check_pictures(&messages, Pictures { read, most })
                .err()
                .map(|refused| refused.message)
        };
        let blind = refusal(false, Some(1)).expect("refused");
        assert!(
            blind.starts_with("messages[1].content[1] is a picture"),
            "{blind}"
        );
        assert!(blind.contains("reads no pictures"), "{blind}");
        let many = refusal(true, Some(2)).expect("refused");
        assert!(
            many.contains("3 pictures") && many.contains("at most 2"),
            "{many}"
        );
        assert_eq!(refusal(true, Some(3)), None);
        assert_eq!(refusal(true, None), None);
        let blind = Pictures {
            read: false,
            most: Some(0),
        };
        assert_eq!(check_pictures(&messages[..1], blind), Ok(()));
    }
}
