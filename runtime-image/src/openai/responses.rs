//! `/v1/responses`: what it asks for, in the words of a chat. Nothing is kept between requests, and what would need that is refused.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::chat::{ChatRequest, TemplateArguments};
use super::options::{InvalidField, Options};
use super::structured::{NamedSchema, ResponseFormat};
use super::tools::{FunctionDefinition, FunctionName, NamedTool, Tool, ToolChoice};

pub mod answer;

/// Asks for the log probabilities of the answer's tokens.
const LOGPROBS: &str = "message.output_text.logprobs";

/// The request.
#[derive(Clone, Debug, JsonSchema, Deserialize)]
pub struct ResponsesRequest {
    /// A served name.
    pub model: String,
    /// A text of the user, or the conversation so far.
    pub input: Input,
    /// Stands before the conversation, as a message of the system.
    pub instructions: Option<String>,
    /// Tokens that the answer may have, thoughts and calls included.
    pub max_output_tokens: Option<u32>,
    /// 0 to 2; 1 by default.
    pub temperature: Option<f32>,
    /// Above 0, up to 1.
    pub top_p: Option<f32>,
    /// Whether the answer comes as events.
    pub stream: Option<bool>,
    /// The form of the answer.
    pub text: Option<TextOptions>,
    /// Functions that the model may call.
    pub tools: Option<Vec<ResponseTool>>,
    /// Whether it may, must, or must not.
    pub tool_choice: Option<ResponseToolChoice>,
    /// Whether it may call several at once; true by default.
    pub parallel_tool_calls: Option<bool>,
    /// What else the answer tells; `message.output_text.logprobs` is all that this server has.
    pub include: Option<Vec<String>>,
    /// How many of the likeliest tokens are reported beside each, 0 to 20.
    pub top_logprobs: Option<u32>,
    /// How much the model thinks: with an effort of `none`, not at all.
    pub reasoning: Option<Reasoning>,
    /// Comes back as it is.
    pub metadata: Option<Value>,
    /// Whether the response is kept: it is not, so only false is taken.
    pub store: Option<bool>,
    /// Not supported: no response is kept.
    pub previous_response_id: Option<String>,
    /// Not supported: no conversation is kept.
    pub conversation: Option<Value>,
    /// Not supported: no prompt is kept.
    pub prompt: Option<Value>,
    /// Not supported.
    pub background: Option<bool>,
    /// What becomes of a conversation that is too long: only `disabled` (it is refused) is supported.
    pub truncation: Option<String>,
    /// Start of the random numbers (a field of vLLM).
    pub seed: Option<i64>,
    /// Only so many of the likeliest tokens; 0 or -1 means all (a field of vLLM).
    pub top_k: Option<i64>,
    /// Prompts are kept for reuse apart from those with another salt (a field of vLLM).
    pub cache_salt: Option<String>,
}

/// A text, or items.
#[derive(Clone, Debug, JsonSchema, Deserialize)]
#[serde(untagged, expecting = "expected a string or a list of input items")]
pub enum Input {
    /// A message of the user.
    Text(String),
    /// What was said, called and answered so far.
    Items(Vec<Item>),
}

/// One item of a conversation. Items that an answer had may stand here as they came.
#[derive(Clone, Debug, JsonSchema, Deserialize)]
pub struct Item {
    /// `message` (also where it is absent), `function_call`, `function_call_output` or `reasoning`.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// Of a message: who speaks.
    pub role: Option<String>,
    /// Of a message, and of thoughts.
    pub content: Option<ItemContent>,
    /// Of a call and its output: which call it is.
    pub call_id: Option<String>,
    /// Of a call: the function.
    pub name: Option<String>,
    /// Of a call: JSON as text.
    pub arguments: Option<String>,
    /// Of a call's output.
    pub output: Option<ItemContent>,
}

/// Text, or parts.
#[derive(Clone, Debug, JsonSchema, Deserialize)]
#[serde(untagged, expecting = "expected a string or a list of content parts")]
pub enum ItemContent {
    /// Text.
    Text(String),
    /// Parts.
    Parts(Vec<ItemPart>),
}

/// One part of an item's content.
#[derive(Clone, Debug, JsonSchema, Deserialize)]
pub struct ItemPart {
    /// `input_text`, `output_text`, `reasoning_text`, or `input_image` for models that look at pictures.
    #[serde(rename = "type")]
    pub kind: String,
    /// The text of a text part.
    pub text: Option<String>,
    /// Where the picture of an image part is: `data:image/…;base64,…`.
    pub image_url: Option<String>,
}

/// `text`.
#[derive(Clone, Debug, JsonSchema, Deserialize)]
pub struct TextOptions {
    /// The form of the answer.
    pub format: Option<TextFormat>,
}

/// `text.format`.
#[derive(Clone, Debug, JsonSchema, Deserialize)]
pub struct TextFormat {
    /// `text`, `json_object` or `json_schema`.
    #[serde(rename = "type")]
    pub kind: String,
    /// For people.
    pub name: Option<String>,
    /// With `json_schema`: the schema.
    pub schema: Option<Value>,
    /// Whether the schema must be followed; it is in any case.
    pub strict: Option<bool>,
}

/// One of `tools`: a function's name, description and parameters beside its type.
#[derive(Clone, Debug, JsonSchema, Deserialize)]
pub struct ResponseTool {
    /// Only `function` is supported.
    #[serde(rename = "type")]
    pub kind: String,
    /// Up to 64 letters, digits, `_` and `-`.
    #[serde(default)]
    pub name: String,
    /// What it is good for.
    pub description: Option<String>,
    /// A JSON Schema of its arguments; none where it is absent.
    pub parameters: Option<Value>,
    /// Whether arguments must follow the schema. They do where a call is required.
    pub strict: Option<bool>,
}

/// `tool_choice`.
#[derive(Clone, Debug, JsonSchema, Deserialize)]
#[serde(
    untagged,
    expecting = "expected \"none\", \"auto\", \"required\" or an object that names a function"
)]
pub enum ResponseToolChoice {
    /// `none`, `auto` or `required`.
    Mode(String),
    /// This function.
    Named(NamedChoice),
}

/// The function that must be called.
#[derive(Clone, Debug, JsonSchema, Deserialize)]
pub struct NamedChoice {
    /// Always `function`.
    #[serde(rename = "type")]
    pub kind: String,
    /// One of `tools`.
    pub name: String,
}

/// `reasoning`.
#[derive(Clone, Debug, JsonSchema, Deserialize)]
pub struct Reasoning {
    /// `none` keeps the model from thinking; with others the template decides.
    pub effort: Option<String>,
}

impl ResponsesRequest {
    /// Refuses what would need something kept, rather than passing it over.
    ///
    /// # Errors
    /// When such a field asks for something.
    pub fn check_supported(&self) -> Result<(), InvalidField> {
        let kept = |field: &'static str, instead: &str| {
            let message = format!(
                "{field} is not supported: this server keeps nothing between requests; {instead}"
            );
            Err(InvalidField::new(field, message))
        };
        if self.previous_response_id.is_some() {
            return kept(
                "previous_response_id",
                "send the whole conversation in input",
            );
        }
        if self.conversation.is_some() {
            return kept("conversation", "send the whole conversation in input");
        }
        if self.prompt.is_some() {
            return kept("prompt", "send its text in instructions or input");
        }
        if self.store == Some(true) {
            return kept("store", "leave it out or send false");
        }
        if self.background == Some(true) {
            return kept("background", "leave it out or send false");
        }
        if let Some(other) = self
            .truncation
            .as_deref()
            .filter(|kind| *kind != "disabled")
        {
            let other: String = other.chars().take(40).collect();
            let message = format!("truncation is {other:?}, only \"disabled\" is supported");
            return Err(InvalidField::new("truncation", message));
        }
        let known = |name: &&String| name.as_str() != LOGPROBS;
        match self.include.iter().flatten().find(known) {
            Some(other) => {
                let other: String = other.chars().take(80).collect();
                let message =
                    format!("include asks for {other:?}, this server has {LOGPROBS:?} only");
                Err(InvalidField::new("include", message))
            }
            None => Ok(()),
        }
    }

    /// The same wish as a chat, and the item that each of its messages begins with; instructions are none.
    ///
    /// # Errors
    /// When an item or a tool is of a kind that this server does not have.
    pub fn into_chat(self) -> Result<(ChatRequest, Vec<Option<usize>>), InvalidField> {
        let logprobs = self.include.iter().flatten().any(|name| name == LOGPROBS);
        let mut messages = Vec::new();
        let mut places = Vec::new();
        if let Some(instructions) = self.instructions {
            messages.push(json!({ "role": "system", "content": instructions }));
            places.push(None);
        }
        match self.input {
            Input::Text(text) => messages.push(json!({ "role": "user", "content": text })),
            Input::Items(items) => {
                for (index, item) in items.into_iter().enumerate() {
                    item.append(index, &mut messages)?;
                    places.resize(messages.len(), Some(index));
                }
            }
        }
        let messages = serde_json::from_value(Value::Array(messages))
            .map_err(|error| InvalidField::new("input", format!("input: {error}")))?;
        let tools = self.tools.map(|tools| {
            let tools = tools.into_iter().enumerate();
            tools.map(|(index, tool)| tool.meant(index)).collect()
        });
        let effort = self.reasoning.and_then(|reasoning| reasoning.effort);
        let chat = ChatRequest {
            model: self.model,
            messages,
            max_completion_tokens: self.max_output_tokens,
            logprobs: Some(logprobs),
            top_logprobs: self.top_logprobs.filter(|_| logprobs),
            tools: tools.transpose()?,
            tool_choice: self.tool_choice.map(ResponseToolChoice::meant),
            parallel_tool_calls: self.parallel_tool_calls,
            response_format: self
                .text
                .and_then(|text| text.format)
                .map(TextFormat::meant),
            chat_template_kwargs: (effort.as_deref() == Some("none")).then_some(
                TemplateArguments {
                    enable_thinking: Some(false),
                },
            ),
            options: Options {
                temperature: self.temperature,
                top_p: self.top_p,
                stream: self.stream,
                seed: self.seed,
                top_k: self.top_k,
                cache_salt: self.cache_salt,
                ..Options::default()
            },
        };
        Ok((chat, places))
    }
}

impl Item {
    /// Adds itself to the messages of a chat. Calls join the assistant's message before them, as templates expect it.
    fn append(self, index: usize, messages: &mut Vec<Value>) -> Result<(), InvalidField> {
        let missing =
            |what: &str| InvalidField::new("input", format!("input[{index}].{what} is missing"));
        match self.kind.as_deref() {
            None | Some("message") => {
                let role = self.role.ok_or_else(|| missing("role"))?;
                let content = self.content.ok_or_else(|| missing("content"))?;
                messages.push(json!({ "role": role, "content": content.meant(index)? }));
            }
            Some("function_call") => {
                let call = json!({
                    "id": self.call_id.ok_or_else(|| missing("call_id"))?,
                    "type": "function",
                    "function": {
                        "name": self.name.ok_or_else(|| missing("name"))?,
                        "arguments": self.arguments.ok_or_else(|| missing("arguments"))?,
                    },
                });
                let last = messages
                    .last_mut()
                    .filter(|message| message["role"] == "assistant");
                let message = match last {
                    Some(message) => message,
                    None => {
                        messages.push(json!({ "role": "assistant", "content": "" }));
                        let last = messages.len() - 1;
                        &mut messages[last]
                    }
                };
                match message["tool_calls"].as_array_mut() {
                    Some(calls) => calls.push(call),
                    None => message["tool_calls"] = json!([call]),
                }
            }
            Some("function_call_output") => {
                let output = self.output.ok_or_else(|| missing("output"))?;
                messages.push(json!({
                    "role": "tool",
                    "tool_call_id": self.call_id.ok_or_else(|| missing("call_id"))?,
                    "content": output.meant(index)?,
                }));
            }
            // Models are told their earlier thoughts by nobody: templates leave them out as well.
            Some("reasoning") => {}
            Some(other) => {
                let other: String = other.chars().take(40).collect();
                let message = format!(
                    "input[{index}].type is {other:?}, expected message, function_call, function_call_output or reasoning"
                );
                return Err(InvalidField::new("input", message));
            }
        }
        Ok(())
    }
}

impl ItemContent {
    /// As chats have it.
    fn meant(self, index: usize) -> Result<Value, InvalidField> {
        let parts = match self {
            Self::Text(text) => return Ok(json!(text)),
            Self::Parts(parts) => parts,
        };
        let part = |(number, part): (usize, ItemPart)| match part.kind.as_str() {
            "input_text" | "output_text" | "text" => {
                Ok(json!({ "type": "text", "text": part.text }))
            }
            "input_image" => match part.image_url {
                Some(url) => Ok(json!({ "type": "image_url", "image_url": { "url": url } })),
                None => {
                    let message = format!(
                        "input[{index}].content[{number}].image_url is missing; this server keeps no files, a picture comes by its URL"
                    );
                    Err(InvalidField::new("input", message))
                }
            },
            other => {
                let other: String = other.chars().take(40).collect();
                let message = format!(
                    "input[{index}].content[{number}] is of type {other:?}, expected input_text, output_text or input_image"
                );
                Err(InvalidField::new("input", message))
            }
        };
        parts.into_iter().enumerate().map(part).collect()
    }
}

impl TextFormat {
    fn meant(self) -> ResponseFormat {
        let Self {
            kind,
            name,
            schema,
            strict,
        } = self;
        let json_schema = (kind == "json_schema").then_some(NamedSchema {
            name,
            description: None,
            schema,
            strict,
        });
        ResponseFormat { kind, json_schema }
    }
}

impl ResponseTool {
    fn meant(self, index: usize) -> Result<Tool, InvalidField> {
        let Self {
            kind,
            name,
            description,
            parameters,
            strict,
        } = self;
        if kind != "function" {
            let kind: String = kind.chars().take(40).collect();
            let message = format!(
                "tools[{index}].type is {kind:?}; this server runs no tools of its own, expected \"function\""
            );
            return Err(InvalidField::new("tools", message));
        }
        Ok(Tool {
            kind,
            function: FunctionDefinition {
                name,
                description,
                parameters,
                strict,
            },
        })
    }
}

impl ResponseToolChoice {
    fn meant(self) -> ToolChoice {
        match self {
            Self::Mode(mode) => ToolChoice::Mode(mode),
            Self::Named(NamedChoice { kind, name }) => ToolChoice::Named(NamedTool {
                kind,
                function: FunctionName { name },
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(more: Value) -> ResponsesRequest {
        let mut body = json!({ "model": "m", "input": "Hello" });
        body.as_object_mut()
            .expect("an object")
            .extend(more.as_object().expect("an object").clone());
        serde_json::from_value(body).expect("of the right types")
    }

    #[test]
    fn items_become_the_messages_of_a_chat() {
        let chat = request(json!({
            "instructions": "Be brief.",
            "input": [
                { "role": "user", "content": [{ "type": "input_text", "text": "a" }, { "type": "input_text", "text": "b" }] },
                { "type": "reasoning", "id": "rs_1", "summary": [], "content": [{ "type": "reasoning_text", "text": "hm" }] },
                { "type": "message", "role": "assistant", "content": [{ "type": "output_text", "text": "c", "annotations": [] }] },
                { "type": "function_call", "call_id": "1", "name": "f", "arguments": "{\"x\": 1}" },
                { "type": "function_call", "call_id": "2", "name": "g", "arguments": "{}" },
                { "type": "function_call_output", "call_id": "1", "output": "d" },
            ],
            "max_output_tokens": 5,
        }))
        .into_chat()
        .expect("valid");
        let (mut chat, places) = chat;
        assert_eq!(places, [None, Some(0), Some(2), Some(5)]);
        assert_eq!(chat.tokens_asked(), Ok(Some(5)));
        let none = super::super::chat::Pictures {
            read: false,
            most: None,
        };
        let (messages, _) = chat.take_conversation(none).expect("valid");
        let told: Vec<(&str, &str, usize)> = messages
            .iter()
            .map(|message| {
                let calls = message.tool_calls.len();
                (message.role.as_str(), message.content.as_str(), calls)
            })
            .collect();
        let expected = [
            ("system", "Be brief.", 0),
            ("user", "ab", 0),
            ("assistant", "c", 2),
            ("tool", "d", 0),
        ];
        assert_eq!(told, expected);
        assert_eq!(messages[2].tool_calls[0]["function"]["arguments"]["x"], 1);
        assert_eq!(messages[3].tool_call_id.as_deref(), Some("1"));
    }

    #[test]
    fn what_would_need_something_kept_is_refused_by_name() {
        for (field, value) in [
            ("previous_response_id", json!("resp_1")),
            ("conversation", json!("conv_1")),
            ("prompt", json!({ "id": "p" })),
            ("store", json!(true)),
            ("background", json!(true)),
            ("truncation", json!("auto")),
            ("include", json!(["reasoning.encrypted_content"])),
        ] {
            let error = request(json!({ field: value })).check_supported();
            assert_eq!(error.expect_err("refused").field, field);
        }
        let harmless = json!({ "store": false, "background": false, "truncation": "disabled", "previous_response_id": null, "include": [LOGPROBS] });
        assert_eq!(request(harmless).check_supported(), Ok(()));
    }

    #[test]
    fn tools_items_and_parts_of_other_kinds_are_refused() {
        for (field, value) in [
            ("tools", json!([{ "type": "web_search" }])),
            (
                "input",
                json!([{ "type": "item_reference", "id": "msg_1" }]),
            ),
            (
                "input",
                json!([{ "role": "user", "content": [{ "type": "input_file" }] }]),
            ),
            (
                "input",
                json!([{ "role": "user", "content": [{ "type": "input_image", "file_id": "file-1" }] }]),
            ),
            ("input", json!([{ "role": "user" }])),
            ("input", json!([{ "type": "function_call", "name": "f" }])),
        ] {
            let error = request(json!({ field: value })).into_chat();
            assert_eq!(error.expect_err("refused").field, field);
        }
    }

    #[test]
    fn log_probabilities_are_asked_for_by_what_is_included() {
        let asked = |more: Value| {
            let (chat, _) = request(more).into_chat().expect("valid");
            chat.logprobs_asked()
        };
        assert_eq!(asked(json!({ "top_logprobs": 2 })), Ok(None));
        let included = json!({ "include": [LOGPROBS], "top_logprobs": 2 });
        assert_eq!(asked(included), Ok(Some(2)));
    }
}
