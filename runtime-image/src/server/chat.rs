//! `/v1/chat/completions`: parse → admit → prompt → request → submit → respond.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::sse::Event as Frame;
use axum::response::{IntoResponse, Response};
use uuid::Uuid;

use super::body::{Share, Wire};
use super::error::ApiError;
use super::keys::Asker;
use super::lifecycle::seconds_since_1970;
use super::models::check_model;
use super::prepare::{Prepared, prepare};
use super::respond::{Answer, Deadline, Frames, collect, done, finish_reason, frame, stream};
use super::{App, Service};
use crate::dialect::THOUGHTS_BEGIN;
use crate::dialect::reader::{Part, Reader};
use crate::engine::{Finish, Generation, TokenLogprobs};
use crate::grammar::{Form, Thoughts};
use crate::openai::Usage;
use crate::openai::chat::{
    AnswerMessage, ChatChoice, ChatChunk, ChatRequest, ChatResponse, ChunkChoice, Delta,
};
use crate::openai::logprobs::{ChatLogprobs, prompt as prompt_logprobs_of};
use crate::openai::options::InvalidField;
use crate::openai::structured::Asked;
use crate::openai::tools::{
    FunctionCall, FunctionDelta, ToolCall, ToolCallDelta, ToolChoice, shown, wanted,
};
use crate::prompt::Conversation;
use crate::request::{GenerateRequest, room};
use crate::tokenizer::Tokenizer;

/// Answers a conversation.
pub(super) async fn chat(
    State(app): State<App>,
    asker: Asker,
    Wire(body, share): Wire<ChatRequest>,
) -> Result<Response, ApiError> {
    let model = body.model.clone();
    let (streams, includes_usage) = (body.options.streams(), body.options.includes_usage());
    let Begun {
        generation,
        choices,
        deadline,
        logprobs,
        tokenizer,
        readers,
    } = begin(app, asker, body, share).await?;
    let mut frames = ChatFrames {
        id: format!("chatcmpl-{}", Uuid::new_v4().simple()),
        created: seconds_since_1970(),
        model,
        includes_usage,
        logprobs,
        tokenizer,
        readers,
    };
    if streams {
        return Ok(stream(generation, choices, deadline, frames));
    }
    let collected = collect(generation, choices, deadline).await?;
    let choices = collected
        .answers
        .into_iter()
        .enumerate()
        .zip(std::mem::take(&mut frames.readers))
        .map(|((index, answer), reader)| frames.choice(index, answer, reader))
        .collect();
    let ChatFrames {
        id,
        created,
        model,
        tokenizer,
        ..
    } = frames;
    let prompt_logprobs = collected
        .prompt
        .map(|prompt| prompt_logprobs_of(&prompt, &tokenizer));
    Ok(Json(ChatResponse {
        id,
        object: "chat.completion",
        created,
        model,
        choices,
        usage: collected.usage,
        prompt_logprobs,
    })
    .into_response())
}

/// A conversation whose answers are under way.
pub(super) struct Begun {
    pub(super) generation: Generation,
    pub(super) choices: usize,
    pub(super) deadline: Deadline,
    /// Whether log probabilities were asked for.
    pub(super) logprobs: bool,
    pub(super) tokenizer: Arc<Tokenizer>,
    /// One an answer.
    pub(super) readers: Vec<Reader>,
}

/// Everything up to the first token, whatever the answer will look like.
pub(super) async fn begin(
    app: App,
    asker: Asker,
    mut body: ChatRequest,
    mut share: Share,
) -> Result<Begun, ApiError> {
    let deadline = Deadline::after(app.request_timeout);
    let service = app.service()?;
    check_model(&app, &body.model)?;
    let sampling = body
        .options
        .sampling(Uuid::new_v4().as_u64_pair().0, service.vocabulary)?;
    let choices = body.options.choices(service.engine.limits().sequences)?;
    let logprobs = body.logprobs_asked()?;
    let prompt_logprobs = body.prompt_logprobs_asked()?;
    let dialect = service
        .template
        .as_ref()
        .ok_or(ApiError::NoTemplate)?
        .dialect();
    let form = body.options.form(body.response_format.as_ref())?;
    let tools = body.tools.take().unwrap_or_default();
    let wanted = wanted(&tools, body.tool_choice.as_ref())?;
    let names: Vec<String> = wanted
        .offered
        .iter()
        .map(|function| function.name.clone())
        .collect();
    let form = if wanted.required.is_empty() {
        form
    } else if let Some(asked) = form {
        let message = format!(
            "tool_choice requires a call, but {} asks for another form of the answer",
            asked.field
        );
        return Err(InvalidField::new("tool_choice", message).into());
    } else {
        let several = body.parallel_tool_calls.unwrap_or(true)
            && matches!(body.tool_choice, Some(ToolChoice::Mode(_)));
        Some(Asked {
            field: "tools",
            form: Form::Calls(dialect.calls(wanted.required, several)),
        })
    };
    let pictures = app.pictures(&service);
    let thinking = body
        .chat_template_kwargs
        .unwrap_or_default()
        .enable_thinking;
    let (messages, urls) = body.take_conversation(pictures)?;
    let conversation = Conversation {
        messages,
        tools: if names.is_empty() {
            Vec::new()
        } else {
            shown(&tools)
        },
        thinking,
    };
    let asked = body.tokens_asked()?;
    let permit = app.admit(&service, choices)?;
    let permit = permit.counted(app.tokens_of(&asker));
    service.check_room(urls.len())?;
    let shown_pictures = app.fetch_pictures(urls, &mut share).await?;

    let work = move |service: &Service| {
        let _until_encoded = share;
        let prompt = service.render(conversation)?;
        let begun = dialect.thinks && prompt.text.trim_end().ends_with(THOUGHTS_BEGIN);
        let thoughts = match (begun, dialect.thinks && thinking != Some(false)) {
            (true, _) => Thoughts::Begun,
            (false, true) => Thoughts::Possible,
            (false, false) => Thoughts::None,
        };
        let form = form.as_ref();
        let grammar = form.map(|asked| service.compile(asked.field, &asked.form, thoughts));
        let tokens = service.tokenizer.encode(&prompt)?;
        Ok(Prepared {
            pictures: service.read_pictures(&shown_pictures, &tokens)?,
            tokens,
            grammar: grammar.transpose()?,
            thinking: begun,
        })
    };
    let (
        Prepared {
            tokens: prompt,
            pictures,
            grammar,
            thinking,
        },
        permit,
    ) = prepare(&service, permit, work).await?;
    service.check_prompt("messages", &prompt, &pictures)?;
    let room = room(prompt.len(), asked, service.context_beside(&pictures)?)?;
    let ending = body.options.ending(room, &app.stop_texts)?;
    let request = GenerateRequest {
        choices,
        logprobs,
        prompt_logprobs,
        salt: body.options.cache_salt.take().unwrap_or_default(),
        grammar,
        pictures,
        ..GenerateRequest::new(prompt, sampling, ending)
    };
    let generation = service.engine.submit(request, permit)?;

    let readers = std::iter::repeat_with(|| Reader::new(dialect, names.clone(), thinking));
    Ok(Begun {
        generation,
        choices,
        deadline,
        logprobs: logprobs.is_some(),
        tokenizer: Arc::clone(&service.tokenizer),
        readers: readers.take(choices).collect(),
    })
}

struct ChatFrames {
    id: String,
    created: u64,
    model: String,
    includes_usage: bool,
    logprobs: bool,
    tokenizer: Arc<Tokenizer>,
    /// One an answer.
    readers: Vec<Reader>,
}

/// `tool_calls` where the model wants an answer to its calls.
fn reason(finish: Finish, calls: usize) -> &'static str {
    match finish {
        Finish::Stop if calls > 0 => "tool_calls",
        other => finish_reason(other),
    }
}

pub(super) fn new_call_id() -> String {
    format!("call_{}", Uuid::new_v4().simple())
}

impl ChatFrames {
    fn logprobs_of(&self, tokens: &[TokenLogprobs]) -> Option<ChatLogprobs> {
        self.logprobs
            .then(|| ChatLogprobs::new(tokens, &self.tokenizer))
    }

    /// The whole answer.
    fn choice(&self, index: usize, answer: Answer, mut reader: Reader) -> ChatChoice {
        let mut parts = reader.push(&answer.text);
        parts.extend(reader.finish());
        let (mut content, mut thoughts) = (String::new(), String::new());
        let mut tool_calls: Vec<ToolCall> = Vec::new();
        for part in parts {
            match part {
                Part::Content(text) => content.push_str(&text),
                Part::Thought(text) => thoughts.push_str(&text),
                Part::Call { name } => tool_calls.push(ToolCall {
                    id: new_call_id(),
                    kind: "function".to_owned(),
                    function: FunctionCall {
                        name,
                        arguments: String::new(),
                    },
                }),
                Part::Arguments(text) => {
                    if let Some(call) = tool_calls.last_mut() {
                        call.function.arguments.push_str(&text);
                    }
                }
            }
        }
        let finish_reason = reason(answer.finish.unwrap_or(Finish::Length), tool_calls.len());
        ChatChoice {
            index,
            message: AnswerMessage {
                role: "assistant",
                content: (!content.is_empty() || tool_calls.is_empty()).then_some(content),
                refusal: None,
                reasoning_content: (!thoughts.is_empty()).then_some(thoughts),
                tool_calls,
            },
            logprobs: self.logprobs_of(&answer.tokens),
            finish_reason,
        }
    }

    fn chunk(&self, choices: Vec<ChunkChoice>, usage: Option<Usage>) -> Frame {
        frame(&ChatChunk {
            id: self.id.clone(),
            object: "chat.completion.chunk",
            created: self.created,
            model: self.model.clone(),
            choices,
            usage: self.includes_usage.then_some(usage),
        })
    }

    fn delta(
        &self,
        index: usize,
        delta: Delta,
        logprobs: Option<ChatLogprobs>,
        finish_reason: Option<&'static str>,
    ) -> Frame {
        self.chunk(
            vec![ChunkChoice {
                index,
                delta,
                logprobs,
                finish_reason,
            }],
            None,
        )
    }

    fn parts(
        &self,
        index: usize,
        parts: Vec<Part>,
        mut calls: usize,
        tokens: &[TokenLogprobs],
    ) -> Vec<Frame> {
        let mut logprobs = self
            .logprobs_of(tokens)
            .filter(|found| !found.content.is_empty());
        let mut frames: Vec<Frame> = parts
            .into_iter()
            .map(|part| {
                let delta = match part {
                    Part::Content(text) => Delta {
                        content: Some(text),
                        ..Delta::default()
                    },
                    Part::Thought(text) => Delta {
                        reasoning_content: Some(text),
                        ..Delta::default()
                    },
                    Part::Call { name } => {
                        calls += 1;
                        call_delta(calls, Some(name), String::new())
                    }
                    Part::Arguments(text) => call_delta(calls, None, text),
                };
                self.delta(index, delta, logprobs.take(), None)
            })
            .collect();
        // Tokens whose text is held back are told of all the same.
        if logprobs.is_some() {
            frames.push(self.delta(index, Delta::default(), logprobs, None));
        }
        frames
    }
}

/// A piece of the call with this number, from 1; the first piece has its name.
fn call_delta(number: usize, name: Option<String>, arguments: String) -> Delta {
    let first = name.is_some();
    Delta {
        tool_calls: vec![ToolCallDelta {
            index: number.saturating_sub(1),
            id: first.then(new_call_id),
            kind: first.then_some("function"),
            function: FunctionDelta { name, arguments },
        }],
        ..Delta::default()
    }
}

impl Frames for ChatFrames {
    fn opening(&mut self) -> Vec<Frame> {
        let first = || Delta {
            role: Some("assistant"),
            content: Some(String::new()),
            ..Delta::default()
        };
        (0..self.readers.len())
            .map(|index| self.delta(index, first(), None, None))
            .collect()
    }

    fn text(&mut self, choice: usize, text: String, tokens: Vec<TokenLogprobs>) -> Vec<Frame> {
        let Some(reader) = self.readers.get_mut(choice) else {
            return Vec::new();
        };
        let calls = reader.calls();
        let parts = reader.push(&text);
        self.parts(choice, parts, calls, &tokens)
    }

    fn finish(&mut self, choice: usize, finish: Finish) -> Vec<Frame> {
        let Some(reader) = self.readers.get_mut(choice) else {
            return Vec::new();
        };
        let before = reader.calls();
        let parts = reader.finish();
        let calls = reader.calls();
        let mut frames = self.parts(choice, parts, before, &[]);
        frames.push(self.delta(choice, Delta::default(), None, Some(reason(finish, calls))));
        frames
    }

    fn usage(&mut self, usage: Usage) -> Vec<Frame> {
        let usage = self
            .includes_usage
            .then(|| self.chunk(Vec::new(), Some(usage)));
        usage.into_iter().chain([done()]).collect()
    }
}
