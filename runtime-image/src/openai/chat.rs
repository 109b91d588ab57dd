//! `/v1/chat/completions`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Usage;
use super::logprobs::{ChatLogprobs, PromptLogprobs};
use super::options::{InvalidField, Options};
use super::structured::ResponseFormat;
use super::tools::{Tool, ToolCall, ToolCallDelta, ToolChoice};
use crate::prompt::Message;

/// Messages taken in one request.
const MOST_MESSAGES: usize = 4_096;

/// Calls taken in one message.
const MOST_CALLS: usize = 128;

/// Roles that templates know.
const ROLES: [&str; 5] = ["system", "developer", "user", "assistant", "tool"];

/// The request.
#[derive(Clone, Debug, JsonSchema, Deserialize)]
pub struct ChatRequest {
    /// A served name.
    pub model: String,
    /// The conversation.
    pub messages: Vec<ChatMessage>,
    /// OpenAI's newer name of `max_tokens`; wins over it.
    pub max_completion_tokens: Option<u32>,
    /// Whether log probabilities are reported.
    pub logprobs: Option<bool>,
    /// How many of the likeliest tokens are reported beside each, 0 to 20.
    pub top_logprobs: Option<u32>,
    /// Functions that the model may call.
    pub tools: Option<Vec<Tool>>,
    /// Whether it may, must, or must not.
    pub tool_choice: Option<ToolChoice>,
    /// Whether it may call several at once; true by default.
    pub parallel_tool_calls: Option<bool>,
    /// The form of the answer.
    pub response_format: Option<ResponseFormat>,
    /// What the chat template is told.
    pub chat_template_kwargs: Option<TemplateArguments>,
    /// What chat and plain completions share.
    #[serde(flatten)]
    pub options: Options,
}

/// `chat_template_kwargs`: what a request may tell the template. Anything else is refused: a template trusts its arguments.
#[derive(Clone, Copy, Debug, JsonSchema, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TemplateArguments {
    /// Whether the model thinks before it answers; the template decides where it is absent.
    pub enable_thinking: Option<bool>,
}

/// One message.
#[derive(Clone, Debug, JsonSchema, Deserialize)]
pub struct ChatMessage {
    /// One of [`ROLES`].
    pub role: String,
    /// Text; absent in some messages of assistants.
    pub content: Option<Content>,
    /// Who speaks.
    pub name: Option<String>,
    /// What an assistant thought before it answered.
    pub reasoning_content: Option<String>,
    /// What an assistant called.
    pub tool_calls: Option<Vec<ToolCall>>,
    /// The call that a tool's message answers.
    pub tool_call_id: Option<String>,
}

/// Text, or a list of parts.
#[derive(Clone, Debug, JsonSchema, Deserialize)]
#[serde(untagged, expecting = "expected a string or a list of content parts")]
pub enum Content {
    /// Text.
    Text(String),
    /// Parts.
    Parts(Vec<Part>),
}

/// One part of a message.
#[derive(Clone, Debug, JsonSchema, Deserialize)]
pub struct Part {
    /// `text`, or a kind that this model does not take.
    #[serde(rename = "type")]
    pub kind: String,
    /// The text of a text part.
    pub text: Option<String>,
    /// The picture of an `image_url` part.
    pub image_url: Option<ImageUrl>,
}

/// Where a picture is.
#[derive(Clone, Debug, JsonSchema, Deserialize)]
pub struct ImageUrl {
    /// `data:image/…;base64,…`: a PNG, JPEG, WebP or GIF (its first frame).
    #[serde(default)]
    pub url: String,
    /// Taken and passed over: the model has one way to look at a picture, by up to four tiles.
    pub detail: Option<String>,
}

impl ChatRequest {
    /// Takes the conversation out, as templates see it.
    ///
    /// # Errors
    /// When there is no message, a role is unknown, or a part is of a kind that this model does not read.
    pub fn take_conversation(
        &mut self,
        pictures: Pictures,
    ) -> Result<(Vec<Message>, Vec<PictureUrl>), InvalidField> {
        conversation(std::mem::take(&mut self.messages), pictures)
    }

    /// How many rivals are reported beside each token; absent where no log probabilities are asked for.
    ///
    /// # Errors
    /// When they are too many, or asked for without `logprobs`.
    pub fn logprobs_asked(&self) -> Result<Option<usize>, InvalidField> {
        let rivals = Options::rivals("top_logprobs", self.top_logprobs)?;
        match (self.logprobs, rivals) {
            (Some(true), rivals) => Ok(Some(rivals.unwrap_or(0))),
            (_, Some(1..)) => {
                let message = "top_logprobs is given without logprobs; set logprobs to true";
                Err(InvalidField::new("top_logprobs", message))
            }
            _ => Ok(None),
        }
    }

    /// How many rivals are reported beside each token of the prompt.
    ///
    /// # Errors
    /// When they are too many, or the answer is streamed.
    pub fn prompt_logprobs_asked(&self) -> Result<Option<usize>, InvalidField> {
        self.options.prompt_rivals()
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

/// A conversation as templates see it.
///
/// # Errors
/// When there is no message, a role is unknown, or a part is of a kind that this model does not read.
pub fn conversation(
    messages: Vec<ChatMessage>,
    pictures: Pictures,
) -> Result<(Vec<Message>, Vec<PictureUrl>), InvalidField> {
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
    let mut urls = Vec::new();
    let messages = messages.into_iter().enumerate();
    let meant = messages.map(|(index, message)| message.meant(index, &mut urls));
    Ok((meant.collect::<Result<_, _>>()?, urls))
}

/// A picture of a conversation, as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PictureUrl {
    /// The message, from 0.
    pub message: usize,
    /// The part of its content, from 0.
    pub part: usize,
    /// Unchecked.
    pub url: String,
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
    fn meant(self, index: usize, urls: &mut Vec<PictureUrl>) -> Result<Message, InvalidField> {
        let Self {
            role,
            content,
            name,
            reasoning_content,
            tool_calls,
            tool_call_id,
        } = self;
        if !ROLES.contains(&role.as_str()) {
            let role: String = role.chars().take(40).collect();
            let message = format!(
                "messages[{index}].role is {role:?}, expected one of {}",
                ROLES.join(", ")
            );
            return Err(InvalidField::new("messages", message));
        }
        let mut pictures = Vec::new();
        let content = match content {
            Some(Content::Text(text)) => text,
            Some(Content::Parts(parts)) => {
                let mut all = String::new();
                for (number, part) in parts.into_iter().enumerate() {
                    match (part.kind.as_str(), &part.text, part.image_url) {
                        ("text", Some(text), _) => all.push_str(text),
                        (PICTURE, _, Some(picture)) if role == "user" => {
                            pictures.push(all.len());
                            urls.push(PictureUrl {
                                message: index,
                                part: number,
                                url: picture.url,
                            });
                        }
                        (PICTURE, _, Some(_)) => {
                            let message = format!(
                                "messages[{index}].content[{number}] is a picture in a message of {role}; only users show pictures"
                            );
                            return Err(InvalidField::new("messages", message));
                        }
                        (PICTURE, _, None) => {
                            let message = format!(
                                "messages[{index}].content[{number}].image_url is missing, expected an object with url"
                            );
                            return Err(InvalidField::new("messages", message));
                        }
                        (kind, _, _) => {
                            let kind: String = kind.chars().take(40).collect();
                            let message = format!(
                                "messages[{index}].content[{number}] is of type {kind:?}, expected text or image_url"
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
        let tool_calls = tool_calls.unwrap_or_default();
        if tool_calls.len() > MOST_CALLS {
            let message = format!(
                "messages[{index}].tool_calls has {} entries, at most {MOST_CALLS} are taken",
                tool_calls.len()
            );
            return Err(InvalidField::new("messages", message));
        }
        Ok(Message {
            role,
            content,
            pictures,
            name,
            reasoning_content,
            tool_calls: tool_calls.into_iter().map(call_shown).collect(),
            tool_call_id,
        })
    }
}

/// A call as templates see it: arguments as an object, where they are one.
fn call_shown(call: ToolCall) -> Value {
    let ToolCall { id, kind, function } = call;
    let arguments =
        serde_json::from_str(&function.arguments).unwrap_or(Value::String(function.arguments));
    json!({ "id": id, "type": kind, "function": { "name": function.name, "arguments": arguments } })
}

/// The whole answer.
#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct ChatResponse {
    /// `chatcmpl-…`.
    pub id: String,
    /// `chat.completion`.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    /// The served name.
    pub model: String,
    /// As many as were asked for.
    pub choices: Vec<ChatChoice>,
    /// Tokens.
    pub usage: Usage,
    /// Of the prompt's tokens, where they were asked for (a field of vLLM).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<Vec<PromptLogprobs>>,
}

/// The answer itself.
#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct ChatChoice {
    /// From 0.
    pub index: usize,
    /// The text.
    pub message: AnswerMessage,
    /// Where they were asked for.
    pub logprobs: Option<ChatLogprobs>,
    /// `stop`, `length` or `tool_calls`.
    pub finish_reason: &'static str,
}

/// What the assistant says.
#[derive(Clone, Debug, JsonSchema, Default, Serialize)]
pub struct AnswerMessage {
    /// `assistant`.
    pub role: &'static str,
    /// The text; absent where there are only calls.
    pub content: Option<String>,
    /// Always absent.
    pub refusal: Option<()>,
    /// What the model thought before it answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// What it calls.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
}

/// One event of a streamed answer.
#[derive(Clone, Debug, JsonSchema, Serialize)]
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
#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct ChunkChoice {
    /// From 0.
    pub index: usize,
    /// What is new.
    pub delta: Delta,
    /// Where they were asked for.
    pub logprobs: Option<ChatLogprobs>,
    /// Set in the last event with a choice.
    pub finish_reason: Option<&'static str>,
}

/// What is new.
#[derive(Clone, Debug, JsonSchema, Default, Serialize)]
pub struct Delta {
    /// In the first event.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    /// Text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// Thoughts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// Pieces of calls.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCallDelta>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_are_refused_by_models_that_do_not_look_and_above_the_limit() {
        let picture = || Part {
            kind: PICTURE.to_owned(),
            text: None,
            image_url: None,
        };
        let text = || Part {
            kind: "text".to_owned(),
            text: Some("x".to_owned()),
            image_url: None,
        };
        let message = |parts: Vec<Part>| ChatMessage {
            role: "user".to_owned(),
            content: Some(Content::Parts(parts)),
            name: None,
            reasoning_content: None,
            tool_calls: None,
            tool_call_id: None,
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
