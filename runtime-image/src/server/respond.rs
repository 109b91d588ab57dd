//! A generation to an answer: collected, or as server-sent events. The APIs differ only in their frames.

use std::convert::Infallible;
use std::time::Duration;

use axum::response::sse::{Event as Frame, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::{Stream, stream};
use serde::Serialize;
use tokio::time::{Instant, timeout_at};

use super::error::ApiError;
use crate::engine::{Event, Finish, Generation, TokenLogprobs};
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

/// Adds up what the answers of one generation took, and knows when all have ended.
#[derive(Clone, Copy, Debug)]
struct Tally {
    running: usize,
    prompt: usize,
    cached: usize,
    completion: usize,
}

impl Tally {
    fn new(choices: usize) -> Self {
        Self {
            running: choices,
            prompt: 0,
            cached: 0,
            completion: 0,
        }
    }

    /// One answer ended; the usage of all with the last one.
    fn ended(&mut self, prompt: usize, cached: usize, completion: usize) -> Option<Usage> {
        self.running = self.running.saturating_sub(1);
        self.prompt = prompt;
        self.cached = self.cached.max(cached);
        self.completion += completion;
        (self.running == 0).then(|| Usage::new(self.prompt, self.cached, self.completion))
    }
}

/// One answer, whole.
#[derive(Debug, Default)]
pub(super) struct Answer {
    pub(super) text: String,
    /// Where log probabilities were asked for.
    pub(super) tokens: Vec<TokenLogprobs>,
    pub(super) finish: Option<Finish>,
}

/// All answers to one prompt.
pub(super) struct Collected {
    pub(super) answers: Vec<Answer>,
    /// Of the prompt's tokens, where they were asked for.
    pub(super) prompt: Option<Vec<Option<TokenLogprobs>>>,
    pub(super) usage: Usage,
}

/// Waits for all answers.
pub(super) async fn collect(
    mut generation: Generation,
    choices: usize,
    deadline: Deadline,
) -> Result<Collected, ApiError> {
    let mut answers: Vec<Answer> = std::iter::repeat_with(Answer::default)
        .take(choices)
        .collect();
    let mut prompt = None;
    let mut tally = Tally::new(choices);
    loop {
        match deadline.next(&mut generation).await? {
            Event::Prompt { logprobs } => prompt = Some(logprobs),
            Event::Text {
                choice,
                text,
                tokens,
            } => {
                if let Some(answer) = answers.get_mut(choice) {
                    answer.text.push_str(&text);
                    answer.tokens.extend(tokens);
                }
            }
            Event::Finished {
                choice,
                finish,
                prompt_tokens,
                cached_tokens,
                completion_tokens,
            } => {
                if let Some(answer) = answers.get_mut(choice) {
                    answer.finish = Some(finish);
                }
                if let Some(usage) = tally.ended(prompt_tokens, cached_tokens, completion_tokens) {
                    return Ok(Collected {
                        answers,
                        prompt,
                        usage,
                    });
                }
            }
        }
    }
}

/// How one API frames its events. Each call may give any number of events, in their order.
pub(super) trait Frames: Send + 'static {
    /// Sent before any text.
    fn opening(&mut self) -> Vec<Frame>;
    /// Of the prompt's tokens.
    fn prompt(&mut self, _logprobs: Vec<Option<TokenLogprobs>>) -> Vec<Frame> {
        Vec::new()
    }
    /// More of an answer.
    fn text(&mut self, choice: usize, text: String, tokens: Vec<TokenLogprobs>) -> Vec<Frame>;
    /// The end of an answer.
    fn finish(&mut self, choice: usize, finish: Finish) -> Vec<Frame>;
    /// The end of all.
    fn usage(&mut self, usage: Usage) -> Vec<Frame>;
    /// What went wrong after the stream has begun.
    fn error(&mut self, error: &ApiError) -> Vec<Frame> {
        vec![frame(&error.body())]
    }
}

struct Streaming<F> {
    generation: Generation,
    deadline: Deadline,
    frames: F,
    tally: Tally,
    opened: bool,
    ended: bool,
}

/// Sends the answers as they come. When the client leaves, the stream is dropped and the generation with it.
pub(super) fn stream<F: Frames>(
    generation: Generation,
    choices: usize,
    deadline: Deadline,
    frames: F,
) -> Response {
    let state = Streaming {
        generation,
        deadline,
        frames,
        tally: Tally::new(choices),
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
        if !state.opened {
            state.opened = true;
            return Some((state.frames.opening(), state));
        }
        let batch = match state.deadline.next(&mut state.generation).await {
            Ok(Event::Prompt { logprobs }) => state.frames.prompt(logprobs),
            Ok(Event::Text {
                choice,
                text,
                tokens,
            }) => state.frames.text(choice, text, tokens),
            Ok(Event::Finished {
                choice,
                finish,
                prompt_tokens,
                cached_tokens,
                completion_tokens,
            }) => {
                let mut batch = state.frames.finish(choice, finish);
                if let Some(usage) =
                    state
                        .tally
                        .ended(prompt_tokens, cached_tokens, completion_tokens)
                {
                    state.ended = true;
                    batch.extend(state.frames.usage(usage));
                }
                batch
            }
            Err(error) => {
                state.ended = true;
                tracing::warn!(%error, "ended a stream early");
                state.frames.error(&error)
            }
        };
        Some((batch, state))
    });
    futures::StreamExt::flat_map(batches, |batch| stream::iter(batch.into_iter().map(Ok)))
}

/// The last event of OpenAI's older streams.
pub(super) fn done() -> Frame {
    Frame::default().data("[DONE]")
}

/// Wire types hold nothing that JSON cannot.
pub(super) fn frame(chunk: &impl Serialize) -> Frame {
    Frame::default().data(serde_json::to_string(chunk).unwrap_or_default())
}
