//! What `/v1/responses` answers: one object, or events that tell how it grows.

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Value, json};

use super::{ResponseToolChoice, ResponsesRequest};
use crate::openai::Usage;
use crate::openai::error::ErrorObject;
use crate::openai::logprobs::ChatLogprob;

/// The whole answer.
#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct ResponseObject {
    /// `resp_…`.
    pub id: String,
    /// `response`.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created_at: u64,
    /// `in_progress`, `completed`, `incomplete` or `failed`.
    pub status: &'static str,
    /// Why it failed.
    pub error: Option<ResponseError>,
    /// Why it is not complete.
    pub incomplete_details: Option<Incomplete>,
    /// As asked.
    pub instructions: Option<String>,
    /// As asked.
    pub max_output_tokens: Option<u32>,
    /// The served name.
    pub model: String,
    /// Thoughts, text and calls in their order.
    pub output: Vec<OutputItem>,
    /// As asked, true by default.
    pub parallel_tool_calls: bool,
    /// Always absent.
    pub previous_response_id: Option<()>,
    /// As asked.
    pub metadata: Value,
    /// Always false: nothing is kept.
    pub store: bool,
    /// As asked, 1 by default.
    pub temperature: f32,
    /// As asked, 1 by default.
    pub top_p: f32,
    /// As asked.
    pub text: Value,
    /// As asked, `auto` by default.
    pub tool_choice: Value,
    /// As asked.
    pub tools: Vec<Value>,
    /// Always `disabled`.
    pub truncation: &'static str,
    /// Tokens; absent until the end.
    pub usage: Option<ResponseUsage>,
}

/// Why a response failed.
#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct ResponseError {
    /// For a program.
    pub code: &'static str,
    /// For a person.
    pub message: String,
}

/// Why a response is not complete.
#[derive(Clone, Copy, Debug, JsonSchema, Serialize)]
pub struct Incomplete {
    /// `max_output_tokens`.
    pub reason: &'static str,
}

/// Tokens, in the words of this API.
#[derive(Clone, Copy, Debug, JsonSchema, PartialEq, Eq, Serialize)]
pub struct ResponseUsage {
    /// Of the conversation.
    pub input_tokens: usize,
    /// More about them.
    pub input_tokens_details: InputTokensDetails,
    /// Of the answer.
    pub output_tokens: usize,
    /// More about them.
    pub output_tokens_details: OutputTokensDetails,
    /// Of both.
    pub total_tokens: usize,
}

/// More about the tokens of a conversation.
#[derive(Clone, Copy, Debug, JsonSchema, PartialEq, Eq, Serialize)]
pub struct InputTokensDetails {
    /// Not computed anew, because a request before had the same beginning.
    pub cached_tokens: usize,
}

/// More about the tokens of an answer.
#[derive(Clone, Copy, Debug, JsonSchema, PartialEq, Eq, Serialize)]
pub struct OutputTokensDetails {
    /// Of thoughts: as many as their text has when it is encoded again.
    pub reasoning_tokens: usize,
}

impl ResponseUsage {
    /// The same tokens in other words.
    #[must_use]
    pub fn new(usage: Usage, reasoning_tokens: usize) -> Self {
        Self {
            input_tokens: usage.prompt_tokens,
            input_tokens_details: InputTokensDetails {
                cached_tokens: usage.prompt_tokens_details.cached_tokens,
            },
            output_tokens: usage.completion_tokens,
            output_tokens_details: OutputTokensDetails { reasoning_tokens },
            total_tokens: usage.total_tokens,
        }
    }
}

/// A part of the answer.
#[derive(Clone, Debug, JsonSchema, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum OutputItem {
    /// What the model thought.
    Reasoning {
        /// `rs_…`.
        id: String,
        /// Always empty.
        summary: Vec<Value>,
        /// The thoughts.
        content: Vec<Content>,
        /// `in_progress` or `completed`.
        status: &'static str,
    },
    /// What it says.
    Message {
        /// `msg_…`.
        id: String,
        /// `assistant`.
        role: &'static str,
        /// The text.
        content: Vec<Content>,
        /// `in_progress`, `completed` or `incomplete`.
        status: &'static str,
    },
    /// What it calls.
    FunctionCall {
        /// `fc_…`.
        id: String,
        /// `call_…`: what the output of the call names.
        call_id: String,
        /// The function.
        name: String,
        /// JSON as text.
        arguments: String,
        /// `in_progress`, `completed` or `incomplete`.
        status: &'static str,
    },
}

/// Text of an item.
#[derive(Clone, Debug, JsonSchema, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
// The document has one room for names, and a request's content is in it.
#[schemars(rename = "OutputContent")]
pub enum Content {
    /// Of a message.
    OutputText {
        /// The text.
        text: String,
        /// Always empty.
        annotations: Vec<Value>,
        /// Of its tokens, where they were asked for.
        logprobs: Vec<ChatLogprob>,
    },
    /// Of thoughts.
    ReasoningText {
        /// The text.
        text: String,
    },
}

/// An event and its number.
#[derive(Clone, Debug, Serialize)]
pub struct Numbered {
    /// What happened.
    #[serde(flatten)]
    pub event: StreamEvent,
    /// From 0.
    pub sequence_number: usize,
}

/// What happened, by the names of the API.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "type")]
pub enum StreamEvent {
    /// The answer has a name.
    #[serde(rename = "response.created")]
    Created {
        /// Without output.
        response: ResponseObject,
    },
    /// The model works on it.
    #[serde(rename = "response.in_progress")]
    InProgress {
        /// Without output.
        response: ResponseObject,
    },
    /// An item begins.
    #[serde(rename = "response.output_item.added")]
    ItemAdded {
        /// Its place, from 0.
        output_index: usize,
        /// Without content.
        item: OutputItem,
    },
    /// Its content begins.
    #[serde(rename = "response.content_part.added")]
    PartAdded {
        /// Whose.
        item_id: String,
        /// The item's place.
        output_index: usize,
        /// The content's place.
        content_index: usize,
        /// Without text.
        part: Content,
    },
    /// More text.
    #[serde(rename = "response.output_text.delta")]
    TextDelta {
        /// Whose.
        item_id: String,
        /// The item's place.
        output_index: usize,
        /// The content's place.
        content_index: usize,
        /// What is new.
        delta: String,
        /// Of its tokens, where they were asked for.
        logprobs: Vec<ChatLogprob>,
    },
    /// All of the text.
    #[serde(rename = "response.output_text.done")]
    TextDone {
        /// Whose.
        item_id: String,
        /// The item's place.
        output_index: usize,
        /// The content's place.
        content_index: usize,
        /// All of it.
        text: String,
        /// Of its tokens, where they were asked for.
        logprobs: Vec<ChatLogprob>,
    },
    /// More thoughts.
    #[serde(rename = "response.reasoning_text.delta")]
    ThoughtDelta {
        /// Whose.
        item_id: String,
        /// The item's place.
        output_index: usize,
        /// The content's place.
        content_index: usize,
        /// What is new.
        delta: String,
    },
    /// All of the thoughts.
    #[serde(rename = "response.reasoning_text.done")]
    ThoughtDone {
        /// Whose.
        item_id: String,
        /// The item's place.
        output_index: usize,
        /// The content's place.
        content_index: usize,
        /// All of them.
        text: String,
    },
    /// The content ends.
    #[serde(rename = "response.content_part.done")]
    PartDone {
        /// Whose.
        item_id: String,
        /// The item's place.
        output_index: usize,
        /// The content's place.
        content_index: usize,
        /// With its text.
        part: Content,
    },
    /// More of a call's arguments.
    #[serde(rename = "response.function_call_arguments.delta")]
    ArgumentsDelta {
        /// Whose.
        item_id: String,
        /// The item's place.
        output_index: usize,
        /// What is new.
        delta: String,
    },
    /// All of the arguments.
    #[serde(rename = "response.function_call_arguments.done")]
    ArgumentsDone {
        /// Whose.
        item_id: String,
        /// The item's place.
        output_index: usize,
        /// The function.
        name: String,
        /// JSON as text.
        arguments: String,
    },
    /// The item ends.
    #[serde(rename = "response.output_item.done")]
    ItemDone {
        /// Its place.
        output_index: usize,
        /// With its content.
        item: OutputItem,
    },
    /// The end.
    #[serde(rename = "response.completed")]
    Completed {
        /// All of it.
        response: ResponseObject,
    },
    /// The end, because the tokens are spent.
    #[serde(rename = "response.incomplete")]
    Incomplete {
        /// All that came.
        response: ResponseObject,
    },
    /// Something went wrong.
    #[serde(rename = "error")]
    Error {
        /// What.
        #[serde(flatten)]
        error: ErrorEvent,
    },
    /// The end, because something went wrong.
    #[serde(rename = "response.failed")]
    Failed {
        /// All that came.
        response: ResponseObject,
    },
}

/// What went wrong, without the class, whose name events have for themselves.
#[derive(Clone, Debug, Serialize)]
pub struct ErrorEvent {
    /// For a program.
    pub code: Option<&'static str>,
    /// For a person.
    pub message: String,
    /// The field that is wrong.
    pub param: Option<String>,
}

impl From<ErrorObject> for ErrorEvent {
    fn from(error: ErrorObject) -> Self {
        let ErrorObject {
            message,
            kind: _,
            param,
            code,
        } = error;
        Self {
            code,
            message,
            param,
        }
    }
}

impl StreamEvent {
    /// The name under which it is sent.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Created { .. } => "response.created",
            Self::InProgress { .. } => "response.in_progress",
            Self::ItemAdded { .. } => "response.output_item.added",
            Self::PartAdded { .. } => "response.content_part.added",
            Self::TextDelta { .. } => "response.output_text.delta",
            Self::TextDone { .. } => "response.output_text.done",
            Self::ThoughtDelta { .. } => "response.reasoning_text.delta",
            Self::ThoughtDone { .. } => "response.reasoning_text.done",
            Self::PartDone { .. } => "response.content_part.done",
            Self::ArgumentsDelta { .. } => "response.function_call_arguments.delta",
            Self::ArgumentsDone { .. } => "response.function_call_arguments.done",
            Self::ItemDone { .. } => "response.output_item.done",
            Self::Completed { .. } => "response.completed",
            Self::Incomplete { .. } => "response.incomplete",
            Self::Error { .. } => "error",
            Self::Failed { .. } => "response.failed",
        }
    }
}

impl ResponseObject {
    /// The answer to a request before its first token.
    #[must_use]
    pub fn begun(request: &ResponsesRequest, id: String, created_at: u64) -> Self {
        let tool_choice = match &request.tool_choice {
            None => json!("auto"),
            Some(ResponseToolChoice::Mode(mode)) => json!(mode),
            Some(ResponseToolChoice::Named(named)) => {
                json!({ "type": named.kind, "name": named.name })
            }
        };
        let tools = request.tools.iter().flatten().map(|tool| {
            json!({
                "type": tool.kind, "name": tool.name, "description": tool.description,
                "parameters": tool.parameters, "strict": tool.strict,
            })
        });
        let format = request.text.as_ref().and_then(|text| text.format.as_ref());
        let format = match format {
            Some(format) if format.kind == "json_schema" => json!({
                "type": format.kind, "name": format.name, "schema": format.schema, "strict": format.strict,
            }),
            Some(format) => json!({ "type": format.kind }),
            None => json!({ "type": "text" }),
        };
        Self {
            id,
            object: "response",
            created_at,
            status: "in_progress",
            error: None,
            incomplete_details: None,
            instructions: request.instructions.clone(),
            max_output_tokens: request.max_output_tokens,
            model: request.model.clone(),
            output: Vec::new(),
            parallel_tool_calls: request.parallel_tool_calls.unwrap_or(true),
            previous_response_id: None,
            metadata: request.metadata.clone().unwrap_or_else(|| json!({})),
            store: false,
            temperature: request.temperature.unwrap_or(1.0),
            top_p: request.top_p.unwrap_or(1.0),
            text: json!({ "format": format }),
            tool_choice,
            tools: tools.collect(),
            truncation: "disabled",
            usage: None,
        }
    }
}
