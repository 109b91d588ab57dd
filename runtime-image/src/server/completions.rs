//! `/v1/completions`: the same way as a chat, without a template.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::sse::Event as Frame;
use axum::response::{IntoResponse, Response};
use uuid::Uuid;

use super::body::Wire;
use super::error::ApiError;
use super::keys::Asker;
use super::lifecycle::seconds_since_1970;
use super::models::check_model;
use super::prepare::{Prepared, prepare};
use super::respond::{Deadline, Frames, collect, done, finish_reason, frame, stream};
use super::{App, Service};
use crate::engine::{Finish, TokenLogprobs};
use crate::grammar::Thoughts;
use crate::openai::Usage;
use crate::openai::completions::{
    CompletionChoice, CompletionRequest, CompletionResponse, OnePrompt,
};
use crate::openai::logprobs::{TextLogprobs, prompt as prompt_logprobs_of};
use crate::openai::options::Options;
use crate::request::{GenerateRequest, room};
use crate::tokenizer::Tokenizer;

/// Continues a text.
pub(super) async fn completions(
    State(app): State<App>,
    asker: Asker,
    Wire(mut body, share): Wire<CompletionRequest>,
) -> Result<Response, ApiError> {
    let deadline = Deadline::after(app.request_timeout);
    let service = app.service()?;
    check_model(&app, &body.model)?;
    body.check_supported()?;
    let sampling = body
        .options
        .sampling(Uuid::new_v4().as_u64_pair().0, service.vocabulary)?;
    let choices = body.options.choices(service.engine.limits().sequences)?;
    let logprobs = Options::rivals("logprobs", body.logprobs)?;
    let echo = body.echo == Some(true);
    let prompt_logprobs = body.prompt_logprobs_asked()?;
    let form = body.options.form(None)?;
    let prompt = body.take_prompt()?;
    let asked = body.tokens_asked()?;
    let permit = app.admit(&service, choices)?;
    let permit = permit.counted(app.tokens_of(&asker));

    let work = move |service: &Service| {
        let _until_encoded = share;
        let tokens = match prompt {
            OnePrompt::Tokens(tokens) => tokens,
            OnePrompt::Text(text) => {
                service.check_length([text.as_str()])?;
                service.tokenizer.encode_completion(text)?
            }
        };
        let form = form.as_ref();
        let grammar = form.map(|asked| service.compile(asked.field, &asked.form, Thoughts::None));
        Ok(Prepared {
            tokens,
            pictures: Vec::new(),
            grammar: grammar.transpose()?,
            thinking: false,
        })
    };
    let (
        Prepared {
            tokens: prompt,
            grammar,
            ..
        },
        permit,
    ) = prepare(&service, permit, work).await?;
    service.check_tokens("prompt", &prompt)?;
    let room = room(prompt.len(), asked, service.engine.limits().context_length)?;
    let ending = body.options.ending(room, &app.stop_texts)?;
    let repeated = if echo { prompt.clone() } else { Vec::new() };
    let request = GenerateRequest {
        choices,
        logprobs,
        prompt_logprobs,
        salt: body.options.cache_salt.take().unwrap_or_default(),
        grammar,
        ..GenerateRequest::new(prompt, sampling, ending)
    };
    let generation = service.engine.submit(request, permit)?;

    let mut frames = TextFrames {
        id: format!("cmpl-{}", Uuid::new_v4().simple()),
        created: seconds_since_1970(),
        model: body.model,
        includes_usage: body.options.includes_usage(),
        logprobs: logprobs.is_some(),
        repeated: String::new(),
        offsets: vec![0; choices],
        tokenizer: Arc::clone(&service.tokenizer),
    };
    frames.repeat(&repeated);
    if body.options.streams() {
        return Ok(stream(generation, choices, deadline, frames));
    }
    let collected = collect(generation, choices, deadline).await?;
    let all = collected
        .answers
        .into_iter()
        .enumerate()
        .map(|(index, answer)| {
            let mut logprobs = TextLogprobs::default();
            let mut offset = 0;
            let of_prompt = collected.prompt.iter().flatten().map(Option::as_ref);
            for (token, found) in repeated
                .iter()
                .zip(of_prompt.chain(std::iter::repeat(None)))
            {
                offset = logprobs.add(*token, found, offset, &service.tokenizer);
            }
            for found in &answer.tokens {
                offset = logprobs.add(found.token, Some(found), offset, &service.tokenizer);
            }
            CompletionChoice {
                index,
                text: format!("{}{}", frames.repeated, answer.text),
                logprobs: frames.logprobs.then_some(logprobs),
                finish_reason: answer.finish.map(finish_reason),
                prompt_logprobs: body
                    .options
                    .prompt_logprobs
                    .and(collected.prompt.as_deref())
                    .map(|prompt| prompt_logprobs_of(prompt, &service.tokenizer)),
            }
        });
    let all = all.collect();
    Ok(Json(frames.response(all, Some(Some(collected.usage)))).into_response())
}

struct TextFrames {
    id: String,
    created: u64,
    model: String,
    includes_usage: bool,
    logprobs: bool,
    /// The prompt, where it is wanted back.
    repeated: String,
    /// Where the next token of each answer begins, in characters.
    offsets: Vec<usize>,
    tokenizer: Arc<Tokenizer>,
}

impl TextFrames {
    fn repeat(&mut self, prompt: &[u32]) {
        let bytes: Vec<u8> = prompt
            .iter()
            .flat_map(|token| self.tokenizer.bytes(*token))
            .copied()
            .collect();
        self.repeated = String::from_utf8_lossy(&bytes).into_owned();
    }

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

    fn choice(
        &self,
        index: usize,
        text: String,
        logprobs: Option<TextLogprobs>,
        finish_reason: Option<&'static str>,
    ) -> Frame {
        let choice = CompletionChoice {
            index,
            text,
            logprobs,
            finish_reason,
            prompt_logprobs: None,
        };
        frame(&self.response(vec![choice], self.includes_usage.then_some(None)))
    }
}

impl Frames for TextFrames {
    fn opening(&mut self) -> Vec<Frame> {
        if self.repeated.is_empty() {
            return Vec::new();
        }
        let all = 0..self.offsets.len();
        all.map(|index| self.choice(index, self.repeated.clone(), None, None))
            .collect()
    }

    fn text(&mut self, choice: usize, text: String, tokens: Vec<TokenLogprobs>) -> Vec<Frame> {
        let mut logprobs = self.logprobs.then(TextLogprobs::default);
        if let (Some(logprobs), Some(offset)) = (&mut logprobs, self.offsets.get_mut(choice)) {
            for found in &tokens {
                *offset = logprobs.add(found.token, Some(found), *offset, &self.tokenizer);
            }
        }
        vec![self.choice(choice, text, logprobs, None)]
    }

    fn finish(&mut self, choice: usize, finish: Finish) -> Vec<Frame> {
        vec![self.choice(choice, String::new(), None, Some(finish_reason(finish)))]
    }

    fn usage(&mut self, usage: Usage) -> Vec<Frame> {
        let usage = self
            .includes_usage
            .then(|| frame(&self.response(Vec::new(), Some(Some(usage)))));
        usage.into_iter().chain([done()]).collect()
    }
}
