//! `/tokenize` and `/detokenize`: what the model reads, without asking it.

use axum::Json;
use axum::extract::State;

use super::App;
use super::body::Wire;
use super::error::ApiError;
use super::models::check_model;
use super::prepare::prepare;
use crate::openai::chat::conversation;
use crate::openai::tokens::{
    DetokenizeRequest, DetokenizeResponse, Source, TokenizeRequest, TokenizeResponse,
};
use crate::openai::tools::{shown, wanted};
use crate::prompt::Conversation;

/// Text or messages to tokens.
pub(super) async fn tokenize(
    State(app): State<App>,
    Wire(mut body, share): Wire<TokenizeRequest>,
) -> Result<Json<TokenizeResponse>, ApiError> {
    let service = app.service()?;
    if let Some(model) = &body.model {
        check_model(&app, model)?;
    }
    let source = body.take_source()?;
    let tools = body.tools.take().unwrap_or_default();
    wanted(&tools, None)?;
    let pictures = app.pictures(&service);
    let thinking = body
        .chat_template_kwargs
        .unwrap_or_default()
        .enable_thinking;
    let adds = body.add_special_tokens.unwrap_or(true);
    let permit = app.admit(&service, 1)?;
    let work = move |service: &super::Service| {
        let _until_encoded = share;
        match source {
            Source::Text(text) if adds => Ok(service.tokenizer.encode_completion(text)?),
            Source::Text(text) => Ok(service
                .tokenizer
                .encode(&crate::tokenizer::Prompt { text, guard: None })?),
            Source::Messages(messages) => {
                let (messages, _) = conversation(messages, pictures)?;
                let conversation = Conversation {
                    messages,
                    tools: shown(&tools),
                    thinking,
                };
                Ok(service.tokenizer.encode(&service.render(conversation)?)?)
            }
        }
    };
    let (tokens, _permit) = prepare(&service, permit, work).await?;
    let text = |token: &u32| String::from_utf8_lossy(service.tokenizer.shown(*token)).into_owned();
    Ok(Json(TokenizeResponse {
        count: tokens.len(),
        max_model_len: service.engine.limits().context_length,
        token_strs: (body.return_token_strs == Some(true))
            .then(|| tokens.iter().map(text).collect()),
        tokens,
    }))
}

/// Tokens to text.
pub(super) async fn detokenize(
    State(app): State<App>,
    Wire(body, _share): Wire<DetokenizeRequest>,
) -> Result<Json<DetokenizeResponse>, ApiError> {
    let service = app.service()?;
    if let Some(model) = &body.model {
        check_model(&app, model)?;
    }
    if !body.tokens.is_empty() {
        service.check_tokens("tokens", &body.tokens)?;
    }
    // A short list of numbers can stand for a long text.
    let most = service
        .tokenizer
        .longest_token()
        .saturating_mul(body.tokens.len());
    if most > super::body::LARGEST_BODY {
        let message = format!(
            "tokens has {} entries, which may be {most} bytes of text; at most {} are written",
            body.tokens.len(),
            super::body::LARGEST_BODY
        );
        return Err(crate::openai::options::InvalidField::new("tokens", message).into());
    }
    let bytes: Vec<u8> = body
        .tokens
        .iter()
        .flat_map(|token| service.tokenizer.shown(*token))
        .copied()
        .collect();
    Ok(Json(DetokenizeResponse {
        prompt: String::from_utf8_lossy(&bytes).into_owned(),
    }))
}
