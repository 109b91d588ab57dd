//! `/v1/responses`: a chat in other words. Its answer is put together item by item; a stream tells each step of that.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::sse::Event as Frame;
use axum::response::{IntoResponse, Response};
use uuid::Uuid;

use super::App;
use super::body::Wire;
use super::chat::{Begun, begin, new_call_id};
use super::error::ApiError;
use super::keys::Asker;
use super::lifecycle::seconds_since_1970;
use super::respond::{Frames, collect, stream};
use crate::dialect::reader::{Part, Reader};
use crate::engine::{Finish, TokenLogprobs};
use crate::openai::Usage;
use crate::openai::logprobs::{ChatLogprob, ChatLogprobs};
use crate::openai::options::InvalidField;
use crate::openai::responses::ResponsesRequest;
use crate::openai::responses::answer::{
    Content, Incomplete, Numbered, OutputItem, ResponseError, ResponseObject, ResponseUsage,
    StreamEvent,
};
use crate::tokenizer::Tokenizer;

/// Answers a conversation.
pub(super) async fn responses(
    State(app): State<App>,
    asker: Asker,
    Wire(body, share): Wire<ResponsesRequest>,
) -> Result<Response, ApiError> {
    body.check_supported()?;
    let id = format!("resp_{}", Uuid::new_v4().simple());
    let response = ResponseObject::begun(&body, id, seconds_since_1970());
    let streams = body.stream == Some(true);
    let (chat, places) = body.into_chat()?;
    let Begun {
        generation,
        choices,
        deadline,
        logprobs,
        tokenizer,
        mut readers,
    } = begin(app, asker, chat, share)
        .await
        .map_err(|error| in_own_words(error, &places))?;
    let reader = readers.pop();
    let reader = reader.ok_or_else(|| ApiError::Internal("no answer was begun".to_owned()))?;
    let mut frames = ResponseFrames {
        response,
        open: None,
        reader,
        logprobs,
        tokenizer,
        untold: Vec::new(),
        thoughts: 0,
        finish: Finish::Stop,
        sent: 0,
    };
    if streams {
        return Ok(stream(generation, choices, deadline, frames));
    }
    let collected = collect(generation, choices, deadline).await?;
    for answer in collected.answers {
        frames.take(&answer.text, &answer.tokens);
        frames.end(answer.finish.unwrap_or(Finish::Length));
    }
    frames.complete(collected.usage);
    Ok(Json(frames.response).into_response())
}

/// Names fields as this API has them. `places` are the items of the chat's messages.
fn in_own_words(error: ApiError, places: &[Option<usize>]) -> ApiError {
    match error {
        ApiError::Field(InvalidField { field, message }) => {
            if let Some(message) = of_item(&message, places) {
                return ApiError::Field(InvalidField::new("input", message));
            }
            let (field, theirs) = match field {
                "messages" => ("input", "messages"),
                "max_completion_tokens" => ("max_output_tokens", "max_completion_tokens"),
                "response_format" => ("text", "response_format"),
                other => (other, other),
            };
            ApiError::Field(InvalidField::new(field, message.replace(theirs, field)))
        }
        other => other,
    }
}

/// What is said of a message, said of its item.
fn of_item(message: &str, places: &[Option<usize>]) -> Option<String> {
    let (number, rest) = message.strip_prefix("messages[")?.split_once(']')?;
    let item = places.get(number.parse::<usize>().ok()?)?.as_ref()?;
    Some(format!("input[{item}]{rest}"))
}

/// An item that is being written.
enum Open {
    Thoughts {
        id: String,
        text: String,
    },
    Message {
        id: String,
        text: String,
        logprobs: Vec<ChatLogprob>,
    },
    Call {
        id: String,
        call_id: String,
        name: String,
        arguments: String,
    },
}

struct ResponseFrames {
    /// Its output holds the items that are complete.
    response: ResponseObject,
    open: Option<Open>,
    reader: Reader,
    logprobs: bool,
    tokenizer: Arc<Tokenizer>,
    /// Of tokens whose text is held back.
    untold: Vec<ChatLogprob>,
    /// Tokens of thoughts.
    thoughts: usize,
    finish: Finish,
    /// Events sent.
    sent: usize,
}

fn new_id(kind: &str) -> String {
    format!("{kind}_{}", Uuid::new_v4().simple())
}

impl ResponseFrames {
    /// Takes more of the answer's text; tells what that did.
    fn take(&mut self, text: &str, tokens: &[TokenLogprobs]) -> Vec<StreamEvent> {
        if self.logprobs {
            let new = ChatLogprobs::new(tokens, &self.tokenizer);
            self.untold.extend(new.content);
        }
        let parts = self.reader.push(text).into_iter();
        parts.flat_map(|part| self.add(part)).collect()
    }

    /// Adds a part to the open item, or opens one of its kind.
    fn add(&mut self, part: Part) -> Vec<StreamEvent> {
        let mut events = Vec::new();
        // Only texts of messages have a place for them.
        if !matches!(part, Part::Content(_)) {
            self.untold.clear();
        }
        match part {
            Part::Thought(delta) => {
                if !matches!(self.open, Some(Open::Thoughts { .. })) {
                    let (id, text) = (new_id("rs"), String::new());
                    events.extend(self.begin(Open::Thoughts { id, text }));
                }
                let output_index = self.response.output.len();
                if let Some(Open::Thoughts { id, text }) = &mut self.open {
                    text.push_str(&delta);
                    events.push(StreamEvent::ThoughtDelta {
                        item_id: id.clone(),
                        output_index,
                        content_index: 0,
                        delta,
                    });
                }
            }
            Part::Content(delta) => {
                if !matches!(self.open, Some(Open::Message { .. })) {
                    events.extend(self.begin(Open::Message {
                        id: new_id("msg"),
                        text: String::new(),
                        logprobs: Vec::new(),
                    }));
                }
                let output_index = self.response.output.len();
                let new = std::mem::take(&mut self.untold);
                if let Some(Open::Message { id, text, logprobs }) = &mut self.open {
                    text.push_str(&delta);
                    logprobs.extend_from_slice(&new);
                    events.push(StreamEvent::TextDelta {
                        item_id: id.clone(),
                        output_index,
                        content_index: 0,
                        delta,
                        logprobs: new,
                    });
                }
            }
            Part::Call { name } => events.extend(self.begin(Open::Call {
                id: new_id("fc"),
                call_id: new_call_id(),
                name,
                arguments: String::new(),
            })),
            Part::Arguments(delta) => {
                let output_index = self.response.output.len();
                if let Some(Open::Call { id, arguments, .. }) = &mut self.open {
                    arguments.push_str(&delta);
                    events.push(StreamEvent::ArgumentsDelta {
                        item_id: id.clone(),
                        output_index,
                        delta,
                    });
                }
            }
        }
        events
    }

    /// Ends the item before and opens this one.
    fn begin(&mut self, open: Open) -> Vec<StreamEvent> {
        let mut events = self.close("completed");
        let output_index = self.response.output.len();
        let (item, part) = match &open {
            Open::Thoughts { id, .. } => {
                let item = OutputItem::Reasoning {
                    id: id.clone(),
                    summary: Vec::new(),
                    content: Vec::new(),
                    status: "in_progress",
                };
                let text = String::new();
                (item, Some((id, Content::ReasoningText { text })))
            }
            Open::Message { id, .. } => {
                let item = OutputItem::Message {
                    id: id.clone(),
                    role: "assistant",
                    content: Vec::new(),
                    status: "in_progress",
                };
                (item, Some((id, output_text(String::new(), Vec::new()))))
            }
            Open::Call {
                id, call_id, name, ..
            } => {
                let item = OutputItem::FunctionCall {
                    id: id.clone(),
                    call_id: call_id.clone(),
                    name: name.clone(),
                    arguments: String::new(),
                    status: "in_progress",
                };
                (item, None)
            }
        };
        events.push(StreamEvent::ItemAdded { output_index, item });
        events.extend(part.map(|(id, part)| StreamEvent::PartAdded {
            item_id: id.clone(),
            output_index,
            content_index: 0,
            part,
        }));
        self.open = Some(open);
        events
    }

    /// Ends the open item.
    fn close(&mut self, status: &'static str) -> Vec<StreamEvent> {
        let output_index = self.response.output.len();
        let (item, mut events) = match self.open.take() {
            None => return Vec::new(),
            Some(Open::Thoughts { id, text }) => {
                // A text that has been read cannot fail to be encoded.
                let encoded = self.tokenizer.encode_text(&text);
                self.thoughts += encoded.map_or(0, |tokens| tokens.len());
                let part = Content::ReasoningText { text: text.clone() };
                let events = vec![
                    StreamEvent::ThoughtDone {
                        item_id: id.clone(),
                        output_index,
                        content_index: 0,
                        text,
                    },
                    StreamEvent::PartDone {
                        item_id: id.clone(),
                        output_index,
                        content_index: 0,
                        part: part.clone(),
                    },
                ];
                let item = OutputItem::Reasoning {
                    id,
                    summary: Vec::new(),
                    content: vec![part],
                    status,
                };
                (item, events)
            }
            Some(Open::Message {
                id,
                text,
                mut logprobs,
            }) => {
                logprobs.append(&mut self.untold);
                let part = output_text(text.clone(), logprobs.clone());
                let events = vec![
                    StreamEvent::TextDone {
                        item_id: id.clone(),
                        output_index,
                        content_index: 0,
                        text,
                        logprobs,
                    },
                    StreamEvent::PartDone {
                        item_id: id.clone(),
                        output_index,
                        content_index: 0,
                        part: part.clone(),
                    },
                ];
                let item = OutputItem::Message {
                    id,
                    role: "assistant",
                    content: vec![part],
                    status,
                };
                (item, events)
            }
            Some(Open::Call {
                id,
                call_id,
                name,
                arguments,
            }) => {
                let events = vec![StreamEvent::ArgumentsDone {
                    item_id: id.clone(),
                    output_index,
                    name: name.clone(),
                    arguments: arguments.clone(),
                }];
                let item = OutputItem::FunctionCall {
                    id,
                    call_id,
                    name,
                    arguments,
                    status,
                };
                (item, events)
            }
        };
        self.response.output.push(item.clone());
        events.push(StreamEvent::ItemDone { output_index, item });
        events
    }

    /// The model has ended its answer; one without any item becomes an empty message.
    fn end(&mut self, finish: Finish) -> Vec<StreamEvent> {
        self.finish = finish;
        let parts = self.reader.finish();
        let parts = parts.into_iter();
        let mut events: Vec<StreamEvent> = parts.flat_map(|part| self.add(part)).collect();
        if self.open.is_none() && self.response.output.is_empty() {
            events.extend(self.begin(Open::Message {
                id: new_id("msg"),
                text: String::new(),
                logprobs: Vec::new(),
            }));
        }
        events.extend(self.close(match finish {
            Finish::Stop => "completed",
            Finish::Length => "incomplete",
        }));
        events
    }

    /// The answer's tokens are known; nothing comes after it.
    fn complete(&mut self, usage: Usage) -> StreamEvent {
        self.response.usage = Some(ResponseUsage::new(usage, self.thoughts));
        match self.finish {
            Finish::Stop => {
                self.response.status = "completed";
                let response = self.response.clone();
                StreamEvent::Completed { response }
            }
            Finish::Length => {
                self.response.status = "incomplete";
                self.response.incomplete_details = Some(Incomplete {
                    reason: "max_output_tokens",
                });
                let response = self.response.clone();
                StreamEvent::Incomplete { response }
            }
        }
    }

    fn frames(&mut self, events: Vec<StreamEvent>) -> Vec<Frame> {
        events
            .into_iter()
            .map(|event| {
                let frame = Frame::default().event(event.name());
                let numbered = Numbered {
                    event,
                    sequence_number: self.sent,
                };
                self.sent += 1;
                // Wire types hold nothing that JSON cannot.
                frame.data(serde_json::to_string(&numbered).unwrap_or_default())
            })
            .collect()
    }
}

fn output_text(text: String, logprobs: Vec<ChatLogprob>) -> Content {
    Content::OutputText {
        text,
        annotations: Vec::new(),
        logprobs,
    }
}

impl Frames for ResponseFrames {
    fn opening(&mut self) -> Vec<Frame> {
        let response = self.response.clone();
        let created = StreamEvent::Created { response };
        let response = self.response.clone();
        self.frames(vec![created, StreamEvent::InProgress { response }])
    }

    fn text(&mut self, _choice: usize, text: String, tokens: Vec<TokenLogprobs>) -> Vec<Frame> {
        let events = self.take(&text, &tokens);
        self.frames(events)
    }

    fn finish(&mut self, _choice: usize, finish: Finish) -> Vec<Frame> {
        let events = self.end(finish);
        self.frames(events)
    }

    fn usage(&mut self, usage: Usage) -> Vec<Frame> {
        let end = self.complete(usage);
        self.frames(vec![end])
    }

    fn error(&mut self, error: &ApiError) -> Vec<Frame> {
        let body = error.body().error;
        let message = body.message.clone();
        self.response.status = "failed";
        self.response.error = Some(ResponseError {
            code: "server_error",
            message,
        });
        let response = self.response.clone();
        let failed = StreamEvent::Failed { response };
        self.frames(vec![StreamEvent::Error { error: body.into() }, failed])
    }
}
