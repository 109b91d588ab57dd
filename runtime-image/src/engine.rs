//! The engine's handle: admit, submit, receive. One thread owns the model; everything else talks to it through here.
//!
//! The engine knows no HTTP and the handle no tensors. Dropping a [`Generation`] cancels it within one step.

use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError, oneshot};

use crate::compute::backend::Fault;
use crate::metrics::{KeyTokens, Metrics};
use crate::model::{Model, StepError};
use crate::request::GenerateRequest;
use crate::tokenizer::Tokenizer;

mod active;
mod beside;
pub mod cache;
mod flight;
mod guess;
pub mod logprobs;
mod outlet;
mod pictures;
pub mod sampler;
pub mod scheduler;
pub mod sequence;
mod worker;

pub use logprobs::TokenLogprobs;
pub use sampler::SampleError;
pub use sequence::Finish;

/// How many generations the engine takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineLimits {
    /// Tokens of prompt and answer together.
    pub context_length: usize,
    /// Generations that run at once.
    pub sequences: usize,
    /// Generations that wait.
    pub queue: usize,
    /// Tokens that are guessed at most after each sequence's next one; 0 guesses none.
    pub guesses: usize,
    /// Whether a step is planned before the tokens of the one before it are known, as a device wants it that computes while
    /// the host plans. Nothing is guessed then: a guess begins with the last token.
    pub ahead: bool,
}

/// All places are taken: come back later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{running} requests are running and {queue} are waiting, which is all this server takes; try again later"
)]
pub struct Overloaded {
    /// Generations that run at once.
    pub running: usize,
    /// Generations that wait.
    pub queue: usize,
}

/// Why the engine's thread ended although nobody had left it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Death {
    /// The device does not go on; a new process may find it well.
    #[error("{0}")]
    Device(String),
    /// A fault of the program.
    #[error("{0}")]
    Fault(String),
}

impl From<StepError> for Death {
    fn from(error: StepError) -> Self {
        match error {
            StepError::Device(Fault::Lost(detail)) => Self::Device(detail),
            other => Self::Fault(other.to_string()),
        }
    }
}

/// The thread that owns the model is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the engine has stopped after an internal fault")]
pub struct Stopped;

/// Why an answer ends before its end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Interrupted {
    /// Nothing goes on.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// This answer cannot go on; others do.
    #[error(transparent)]
    Sample(#[from] SampleError),
}

/// A place among those that run or wait; freed when dropped.
#[derive(Debug)]
pub struct Permit {
    #[expect(dead_code, reason = "held for its drop")]
    places: OwnedSemaphorePermit,
    tokens: Option<KeyTokens>,
}

impl Permit {
    /// The same place, its tokens counted for somebody.
    #[must_use]
    pub fn counted(self, tokens: Option<KeyTokens>) -> Self {
        Self { tokens, ..self }
    }
}

/// What a generation reports.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Before anything else, where log probabilities of the prompt were asked for.
    Prompt {
        /// One a token; the first token follows nothing and has none.
        logprobs: Vec<Option<TokenLogprobs>>,
    },
    /// More of one answer.
    Text {
        /// Which answer, from 0.
        choice: usize,
        /// Whole characters; may be empty where log probabilities were asked for.
        text: String,
        /// The tokens since the last event, where log probabilities were asked for. A token's text may come later than
        /// the token, and that of a token that ends the answer never comes.
        tokens: Vec<TokenLogprobs>,
    },
    /// The end of one answer; the generation ends when each of its answers has ended.
    Finished {
        /// Which answer, from 0.
        choice: usize,
        /// Why.
        finish: Finish,
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// Those of them that were not computed, because a request before had the same prefix.
        cached_tokens: usize,
        /// Tokens of the answer, an end token included.
        completion_tokens: usize,
    },
}

/// A running or waiting generation.
#[derive(Debug)]
pub struct Generation {
    events: tokio::sync::mpsc::UnboundedReceiver<Result<Event, SampleError>>,
}

impl Generation {
    /// The next event.
    ///
    /// # Errors
    /// When the engine died, or the model cannot go on with this answer.
    pub async fn next(&mut self) -> Result<Event, Interrupted> {
        Ok(self.events.recv().await.ok_or(Stopped)??)
    }
}

struct Submission {
    arrived: Instant,
    request: GenerateRequest,
    permit: Permit,
    events: tokio::sync::mpsc::UnboundedSender<Result<Event, SampleError>>,
}

/// Hands requests to the thread that owns the model.
#[derive(Clone)]
pub struct Engine {
    places: Arc<Semaphore>,
    /// Bounded by `places`: every message carries a permit.
    submissions: mpsc::Sender<Submission>,
    limits: EngineLimits,
}

impl Engine {
    /// Starts the thread. The receiver hears when it ends: with nothing after the last handle was dropped,
    /// with a message after a fault.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(
        model: Box<dyn Model>,
        tokenizer: Arc<Tokenizer>,
        limits: EngineLimits,
        metrics: Arc<Metrics>,
    ) -> std::io::Result<(Self, oneshot::Receiver<Option<Death>>)> {
        let (submissions, receiver) = mpsc::channel();
        let (ended, end) = oneshot::channel();
        thread::Builder::new()
            .name("engine".to_owned())
            .spawn(move || {
                let worker = worker::Worker::new(model, tokenizer, limits, metrics, receiver);
                let outcome =
                    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| worker.run()));
                let death = match outcome {
                    Ok(Ok(())) => None,
                    Ok(Err(error)) => Some(error.into()),
                    Err(panic) => Some(Death::Fault(describe(panic.as_ref()))),
                };
                // Nobody may be listening any more while the process ends.
                let _ = ended.send(death);
            })?;
        let places = Arc::new(Semaphore::new(limits.sequences + limits.queue));
        Ok((
            Self {
                places,
                submissions,
                limits,
            },
            end,
        ))
    }

    /// Takes a place.
    ///
    /// # Errors
    /// When all are taken.
    pub fn admit(&self) -> Result<Permit, Overloaded> {
        self.admit_choices(1)
    }

    /// Takes a place for each of several answers to one prompt.
    ///
    /// # Errors
    /// When fewer are free, or there are not so many.
    pub fn admit_choices(&self, choices: usize) -> Result<Permit, Overloaded> {
        let places = u32::try_from(choices).unwrap_or(u32::MAX);
        match Arc::clone(&self.places).try_acquire_many_owned(places) {
            Ok(places) => Ok(Permit {
                places,
                tokens: None,
            }),
            Err(TryAcquireError::NoPermits | TryAcquireError::Closed) => Err(Overloaded {
                running: self.limits.sequences,
                queue: self.limits.queue,
            }),
        }
    }

    /// Hands a request over.
    ///
    /// # Errors
    /// When the engine has stopped.
    pub fn submit(&self, request: GenerateRequest, permit: Permit) -> Result<Generation, Stopped> {
        // Unbounded, so that the engine never waits for a client; at most one event a token of the answer is in it.
        let (events, receiver) = tokio::sync::mpsc::unbounded_channel();
        self.submissions
            .send(Submission {
                arrived: Instant::now(),
                request,
                permit,
                events,
            })
            .map_err(|_| Stopped)?;
        Ok(Generation { events: receiver })
    }

    /// What this engine takes.
    #[must_use]
    pub fn limits(&self) -> EngineLimits {
        self.limits
    }

    /// Returns when nobody runs or waits; no new place is given while this is awaited.
    pub async fn idle(&self) {
        let all = u32::try_from(self.limits.sequences + self.limits.queue).unwrap_or(u32::MAX);
        // The semaphore is never closed.
        drop(self.places.acquire_many(all).await);
    }
}

/// The text of a panic.
fn describe(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!(
        "the engine's thread panicked: {}",
        text.unwrap_or("without a message")
    )
}
