//! `/v1/chat/completions`: parse → admit → prompt → request → submit → respond.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use uuid::Uuid;

use super::body::Wire;
use super::error::ApiError;
use super::lifecycle::seconds_since_1970;
use super::models::check_model;
use super::prepare::prepare;
use super::respond::{Deadline, Frames, collect, finish_reason, stream};
use super::{App, Service};
use crate::engine::Finish;
use crate::openai::Usage;
use crate::openai::chat::{
    AnswerMessage, ChatChoice, ChatChunk, ChatRequest, ChatResponse, ChunkChoice, Delta, Pictures,
};
use crate::request::{GenerateRequest, room};

/// Answers a conversation.
pub(super) async fn chat(
    State(app): State<App>,
    Wire(mut body, share): Wire<ChatRequest>,
) -> Result<Response, ApiError> {
    let deadline = Deadline::after(app.request_timeout);
    let service = app.service()?;
    check_model(&app, &body.model)?;
    body.check_supported()?;
    let sampling = body.options.sampling(Uuid::new_v4().as_u64_pair().0)?;
    let pictures = Pictures {
        read: service.reads_pictures,
        most: app.images_per_prompt,
    };
    let conversation = body.take_conversation(pictures)?;
    let asked = body.tokens_asked()?;
    let permit = app.admit(&service)?;

    let encode = move |service: &Service| {
        let _until_encoded = share;
        let template = service.template.as_ref().ok_or(ApiError::NoTemplate)?;
        service.check_length(conversation.iter().map(|message| message.content.as_str()))?;
        let prompt = template.render(&conversation, &service.tokenizer)?;
        Ok(service.tokenizer.encode(&prompt)?)
    };
    let (prompt, permit) = prepare(&service, permit, encode).await?;
    service.check_tokens("messages", &prompt)?;
    let room = room(prompt.len(), asked, service.engine.limits().context_length)?;
    let request = GenerateRequest {
        prompt,
        sampling,
        ending: body.options.ending(room, &app.stop_texts)?,
    };
    let generation = service.engine.submit(request, permit)?;

    let frames = ChatFrames {
        id: format!("chatcmpl-{}", Uuid::new_v4().simple()),
        created: seconds_since_1970(),
        model: body.model,
        includes_usage: body.options.includes_usage(),
    };
    if body.options.streams() {
        return Ok(stream(generation, deadline, frames));
    }
    let (content, finish, usage) = collect(generation, deadline).await?;
    let ChatFrames {
        id, created, model, ..
    } = frames;
    let message = AnswerMessage {
        role: "assistant",
        content,
        refusal: None,
    };
    let choice = ChatChoice {
        index: 0,
        message,
        logprobs: None,
        finish_reason: finish_reason(finish),
    };
    Ok(Json(ChatResponse {
        id,
        object: "chat.completion",
        created,
        model,
        choices: [choice],
        usage,
    })
    .into_response())
}

struct ChatFrames {
    id: String,
    created: u64,
    model: String,
    includes_usage: bool,
}

impl ChatFrames {
    fn chunk(&self, choices: Vec<ChunkChoice>, usage: Option<Usage>) -> ChatChunk {
        ChatChunk {
            id: self.id.clone(),
            object: "chat.completion.chunk",
            created: self.created,
            model: self.model.clone(),
            choices,
            usage: self.includes_usage.then_some(usage),
        }
    }

    fn delta(&self, delta: Delta, finish_reason: Option<&'static str>) -> ChatChunk {
        self.chunk(
            vec![ChunkChoice {
                index: 0,
                delta,
                logprobs: None,
                finish_reason,
            }],
            None,
        )
    }
}

impl Frames for ChatFrames {
    type Chunk = ChatChunk;

    fn opening(&self) -> Option<ChatChunk> {
        Some(self.delta(
            Delta {
                role: Some("assistant"),
                content: Some(String::new()),
            },
            None,
        ))
    }

    fn text(&self, text: String) -> ChatChunk {
        self.delta(
            Delta {
                role: None,
                content: Some(text),
            },
            None,
        )
    }

    fn finish(&self, finish: Finish) -> ChatChunk {
        self.delta(Delta::default(), Some(finish_reason(finish)))
    }

    fn usage(&self, usage: Usage) -> Option<ChatChunk> {
        self.includes_usage
            .then(|| self.chunk(Vec::new(), Some(usage)))
    }
}
