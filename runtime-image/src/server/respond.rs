//! A generation to an answer: collected, or as server-sent events. Chat and plain completions differ only in their frames.

use std::convert::Infallible;
use std::time::Duration;

use axum::response::sse::{Event as Frame, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::{Stream, stream};
use serde::Serialize;
use tokio::time::{Instant, timeout_at};

use super::error::ApiError;
use crate::engine::{Event, Finish, Generation};
use crate::openai::Usage;

/// Silence after which a comment is sent, so that proxies do not take a waiting stream for a dead one.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// The word of the API.
pub(super) fn finish_reason(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "stop",
        Finish::Length => "length",
    }
}

/// When the request's time is over.
#[derive(Clone, Copy)]
pub(super) struct Deadline {
    at: Instant,
    seconds: u64,
}

impl Deadline {
    pub(super) fn after(timeout: Duration) -> Self {
        Self {
            at: Instant::now() + timeout,
            seconds: timeout.as_secs(),
        }
    }

    async fn next(self, generation: &mut Generation) -> Result<Event, ApiError> {
        match timeout_at(self.at, generation.next()).await {
            Err(_) => Err(ApiError::TimedOut(self.seconds)),
            Ok(event) => Ok(event?),
        }
    }
}

/// Waits for the whole answer.
pub(super) async fn collect(
    mut generation: Generation,
    deadline: Deadline,
) -> Result<(String, Finish, Usage), ApiError> {
    let mut answer = String::new();
    loop {
        match deadline.next(&mut generation).await? {
            Event::Text { text } => answer.push_str(&text),
            Event::Finished {
                finish,
                prompt_tokens,
                completion_tokens,
            } => {
                return Ok((answer, finish, Usage::new(prompt_tokens, completion_tokens)));
            }
        }
    }
}

/// How one API frames its events.
pub(super) trait Frames: Send + 'static {
    type Chunk: Serialize;

    /// Sent before any text.
    fn opening(&self) -> Option<Self::Chunk>;
    /// More text.
    fn text(&self, text: String) -> Self::Chunk;
    /// The end.
    fn finish(&self, finish: Finish) -> Self::Chunk;
    /// The usage, if it was asked for.
    fn usage(&self, usage: Usage) -> Option<Self::Chunk>;
}

struct Streaming<F> {
    generation: Generation,
    deadline: Deadline,
    frames: F,
    opened: bool,
    ended: bool,
}

/// Sends the answer as it comes. When the client leaves, the stream is dropped and the generation with it.
pub(super) fn stream<F: Frames>(generation: Generation, deadline: Deadline, frames: F) -> Response {
    let state = Streaming {
        generation,
        deadline,
        frames,
        opened: false,
        ended: false,
    };
    Sse::new(frames_of(state))
        .keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
        .into_response()
}

fn frames_of<F: Frames>(state: Streaming<F>) -> impl Stream<Item = Result<Frame, Infallible>> {
    let batches = stream::unfold(state, |mut state| async move {
        if state.ended {
            return None;
        }
        let mut batch = Vec::new();
        if !state.opened {
            state.opened = true;
            batch.extend(state.frames.opening().map(|chunk| frame(&chunk)));
            if !batch.is_empty() {
                return Some((batch, state));
            }
        }
        match state.deadline.next(&mut state.generation).await {
            Ok(Event::Text { text }) => batch.push(frame(&state.frames.text(text))),
            Ok(Event::Finished {
                finish,
                prompt_tokens,
                completion_tokens,
            }) => {
                state.ended = true;
                batch.push(frame(&state.frames.finish(finish)));
                let usage = Usage::new(prompt_tokens, completion_tokens);
                batch.extend(state.frames.usage(usage).map(|chunk| frame(&chunk)));
                batch.push(Frame::default().data("[DONE]"));
            }
            Err(error) => {
                state.ended = true;
                tracing::warn!(%error, "ended a stream early");
                batch.push(frame(&error.body()));
            }
        }
        Some((batch, state))
    });
    futures::StreamExt::flat_map(batches, |batch| stream::iter(batch.into_iter().map(Ok)))
}

/// Wire types hold nothing that JSON cannot.
fn frame(chunk: &impl Serialize) -> Frame {
    Frame::default().data(serde_json::to_string(chunk).unwrap_or_default())
}
