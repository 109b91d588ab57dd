//! `/v1/completions`: the same way as a chat, without a template.

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
use crate::openai::completions::{
    CompletionChoice, CompletionRequest, CompletionResponse, OnePrompt,
};
use crate::request::{GenerateRequest, room};

/// Continues a text.
pub(super) async fn completions(
    State(app): State<App>,
    Wire(mut body, share): Wire<CompletionRequest>,
) -> Result<Response, ApiError> {
    let deadline = Deadline::after(app.request_timeout);
    let service = app.service()?;
    check_model(&app, &body.model)?;
    body.check_supported()?;
    let sampling = body.options.sampling(Uuid::new_v4().as_u64_pair().0)?;
    let prompt = body.take_prompt()?;
    let asked = body.tokens_asked()?;
    let permit = app.admit(&service)?;

    let (prompt, permit) = match prompt {
        OnePrompt::Tokens(tokens) => {
            drop(share);
            (tokens, permit)
        }
        OnePrompt::Text(text) => {
            let encode = move |service: &Service| {
                let _until_encoded = share;
                service.check_length([text.as_str()])?;
                Ok(service.tokenizer.encode_completion(text)?)
            };
            prepare(&service, permit, encode).await?
        }
    };
    service.check_tokens("prompt", &prompt)?;
    let room = room(prompt.len(), asked, service.engine.limits().context_length)?;
    let request = GenerateRequest {
        prompt,
        sampling,
        ending: body.options.ending(room, &app.stop_texts)?,
    };
    let generation = service.engine.submit(request, permit)?;

    let frames = TextFrames {
        id: format!("cmpl-{}", Uuid::new_v4().simple()),
        created: seconds_since_1970(),
        model: body.model,
        includes_usage: body.options.includes_usage(),
    };
    if body.options.streams() {
        return Ok(stream(generation, deadline, frames));
    }
    let (text, finish, usage) = collect(generation, deadline).await?;
    let choice = CompletionChoice {
        index: 0,
        text,
        logprobs: None,
        finish_reason: Some(finish_reason(finish)),
    };
    Ok(Json(frames.response(vec![choice], Some(Some(usage)))).into_response())
}

struct TextFrames {
    id: String,
    created: u64,
    model: String,
    includes_usage: bool,
}

impl TextFrames {
    fn response(
        &self,
        choices: Vec<CompletionChoice>,
        usage: Option<Option<Usage>>,
    ) -> CompletionResponse {
        CompletionResponse {
            id: self.id.clone(),
            object: "text_completion",
            created: self.created,
            model: self.model.clone(),
            choices,
            usage,
        }
    }

    fn choice(&self, text: String, finish_reason: Option<&'static str>) -> CompletionResponse {
        let choice = CompletionChoice {
            index: 0,
            text,
            logprobs: None,
            finish_reason,
        };
        self.response(vec![choice], self.includes_usage.then_some(None))
    }
}

impl Frames for TextFrames {
    type Chunk = CompletionResponse;

    fn opening(&self) -> Option<CompletionResponse> {
        None
    }

    fn text(&self, text: String) -> CompletionResponse {
        self.choice(text, None)
    }

    fn finish(&self, finish: Finish) -> CompletionResponse {
        self.choice(String::new(), Some(finish_reason(finish)))
    }

    fn usage(&self, usage: Usage) -> Option<CompletionResponse> {
        self.includes_usage
            .then(|| self.response(Vec::new(), Some(Some(usage))))
    }
}
