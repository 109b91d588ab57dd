//! What the process is doing: loading, ready, draining. Requests are turned away by it, probes and status show it.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use axum::extract::{Request, State};
use axum::http::{HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tokio::sync::{Semaphore, watch};

use super::error::ApiError;
use super::keys::Asker;
use super::{ApiKeys, App};
use crate::answer::{self, Reason};
use crate::config::Config;
use crate::device::Settled;
use crate::engine::{Engine, EngineLimits, Permit};
use crate::grammar::{GrammarError, Grammars};
use crate::metrics::{KeyTokens, Metrics, StartupPhase};
use crate::model::PictureFacts;
use crate::openai::chat::Pictures;
use crate::picture_hosts::PictureHosts;
use crate::pictures::Preparation;
use crate::prompt::Template;
use crate::tokenizer::Tokenizer;

/// Bytes of an error's message in `/status`, so that the whole stays below a kilobyte.
const STATUS_MESSAGE: usize = 512;

/// Where the process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Phase {
    /// Reading weights.
    Loading,
    /// Taking a first step.
    Warming,
    /// Answering.
    Ready,
    /// Finishing what runs.
    Draining,
    /// Not able to answer any more.
    Failed,
}

impl Phase {
    /// The word that probes show.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Loading => "Loading",
            Self::Warming => "Warming",
            Self::Ready => "Ready",
            Self::Draining => "Draining",
            Self::Failed => "Failed",
        }
    }
}

/// Everything that a loaded model needs to answer.
pub struct Service {
    /// Runs generations.
    pub engine: Engine,
    /// Text to tokens.
    pub tokenizer: Arc<Tokenizer>,
    /// Messages to text; absent for models that are not made for chat.
    pub template: Option<Template>,
    /// Forms of answers; prepared with the first request that wants one.
    pub grammars: OnceLock<Result<Grammars, GrammarError>>,
    /// Tokens that prompts may have: those below this number, which tokenizer and model both know.
    pub vocabulary: usize,
    /// How pictures are read; absent where the model looks at none.
    pub sight: Option<Sight>,
}

/// How a model's pictures are read, and what they take.
pub struct Sight {
    /// Bytes to pixels.
    pub preparation: Preparation,
    /// What they take of the arena.
    pub facts: PictureFacts,
    /// Blocks of the arena.
    pub blocks: usize,
}

/// What is true of a model from the moment that it is in memory, for `/status`.
#[derive(Clone, Debug)]
pub struct Facts {
    /// What the weights are stored as.
    pub main_type: String,
    /// Bytes of memory for weights.
    pub bytes_resident: usize,
    /// Bytes of the files that they were read from; 0 where there are none.
    pub bytes_read: u64,
    /// What requests may take.
    pub limits: EngineLimits,
}

/// Facts about the start, for `/status`.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Times {
    #[serde(skip_serializing_if = "Option::is_none")]
    loaded_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    loaded_megabytes_per_second: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    warm_seconds: Option<f64>,
}

/// Why the process failed.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Failure {
    reason: Reason,
    message: String,
}

/// The life of the process, shared by all handlers.
pub struct Lifecycle {
    phase: watch::Sender<Phase>,
    /// While draining: whether new requests are still taken.
    grace: watch::Sender<bool>,
    facts: OnceLock<Facts>,
    service: OnceLock<Arc<Service>>,
    times: Mutex<Times>,
    failure: Mutex<Option<Failure>>,
    /// Names under which requests may ask for the model.
    pub served_names: Vec<String>,
    /// For each request.
    pub request_timeout: Duration,
    /// Where the model is computed, which need not be what was asked for.
    pub device: Settled,
    /// Who may ask; absent for everybody.
    pub keys: Option<Arc<ApiKeys>>,
    /// Texts that end every answer.
    pub stop_texts: Vec<String>,
    /// Pictures that one prompt may have; absent for as many as fit.
    pub images_per_prompt: Option<usize>,
    /// The hosts that pictures are fetched from; absent where none are.
    pub(super) picture_hosts: Option<PictureHosts>,
    /// Within which all pictures of a request must have come from there.
    pub(super) picture_timeout: Duration,
    /// A permit for each byte that requests' bodies may take together.
    pub(super) body_budget: Arc<Semaphore>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Seconds since 1970 at which the process started.
    pub started: u64,
}

impl Lifecycle {
    /// A process that begins to load.
    #[must_use]
    pub fn new(
        config: &Config,
        device: Settled,
        keys: Option<Arc<ApiKeys>>,
        picture_hosts: Option<PictureHosts>,
    ) -> Arc<Self> {
        let name = config.served_names.first().map_or("", String::as_str);
        let metrics = Arc::new(Metrics::new(name));
        Arc::new(Self {
            phase: watch::Sender::new(Phase::Loading),
            grace: watch::Sender::new(false),
            facts: OnceLock::new(),
            service: OnceLock::new(),
            times: Mutex::default(),
            failure: Mutex::default(),
            served_names: config.served_names.clone(),
            request_timeout: config.request_timeout,
            device,
            keys,
            stop_texts: config.stop_texts.clone(),
            images_per_prompt: config.images_per_prompt,
            picture_hosts,
            picture_timeout: config.picture_timeout,
            body_budget: Arc::new(Semaphore::new(config.body_budget)),
            metrics,
            started: seconds_since_1970(),
        })
    }

    /// The phase now.
    #[must_use]
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Weights are in memory.
    pub fn loaded(&self, facts: Facts, took: Duration) {
        let speed = facts.bytes_read as f64 / took.as_secs_f64();
        // A model is loaded once.
        let _ = self.facts.set(facts);
        self.metrics.started(StartupPhase::Load, took);
        let mut times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        times.loaded_seconds = Some(took.as_secs_f64());
        times.loaded_megabytes_per_second =
            (speed.is_finite() && speed > 0.0).then(|| (speed / 1e5).round() / 10.0);
        drop(times);
        self.advance(Phase::Warming);
    }

    /// The model has taken its first step and answers now.
    pub fn ready(&self, service: Service, took: Duration) {
        self.metrics.started(StartupPhase::Warm, took);
        self.times
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .warm_seconds = Some(took.as_secs_f64());
        if self.service.set(Arc::new(service)).is_ok() {
            self.advance(Phase::Ready);
        }
    }

    /// No new requests after the grace.
    pub fn drain(&self, in_grace: bool) {
        self.grace.send_replace(in_grace);
        self.advance(Phase::Draining);
    }

    /// The process cannot go on.
    pub fn fail(&self, reason: Reason, message: String) {
        let message = answer::shortened(&message, STATUS_MESSAGE);
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Failure { reason, message });
        self.phase.send_replace(Phase::Failed);
    }

    /// Phases only go forward: a model that becomes ready while the process drains stays unready.
    fn advance(&self, to: Phase) {
        self.phase.send_if_modified(|phase| {
            let forward = (*phase as u8) < (to as u8);
            if forward {
                *phase = to;
            }
            forward
        });
    }

    /// The loaded model.
    ///
    /// # Errors
    /// While there is none.
    pub(super) fn service(&self) -> Result<Arc<Service>, ApiError> {
        self.service
            .get()
            .map(Arc::clone)
            .ok_or_else(|| self.unavailable())
    }

    /// What becomes of pictures in a request.
    pub(super) fn pictures(&self, service: &Service) -> Pictures {
        Pictures {
            read: service.sight.is_some(),
            most: self.images_per_prompt,
        }
    }

    /// Takes a place for each answer among those that run or wait.
    ///
    /// # Errors
    /// When too few are free, or kept back because the process is about to end.
    pub(super) fn admit(&self, service: &Service, choices: usize) -> Result<Permit, ApiError> {
        service
            .engine
            .admit_choices(choices)
            .map_err(|full| match self.phase() {
                Phase::Draining => self.unavailable(),
                _ => full.into(),
            })
    }

    /// The counters of whoever asks.
    pub(super) fn tokens_of(&self, asker: &Asker) -> Option<KeyTokens> {
        asker.0.as_deref().map(|name| self.metrics.key_tokens(name))
    }

    /// Returns when a loaded model has neither running nor waiting requests.
    pub async fn idle(&self) {
        if let Some(service) = self.service.get() {
            service.engine.idle().await;
        }
    }

    pub(super) fn service_if_loaded(&self) -> Option<&Arc<Service>> {
        self.service.get()
    }

    pub(super) fn facts(&self) -> Option<&Facts> {
        self.facts.get()
    }

    pub(super) fn times(&self) -> Times {
        self.times
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(super) fn failure(&self) -> Option<Failure> {
        self.failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn unavailable(&self) -> ApiError {
        ApiError::Unavailable(match self.phase() {
            Phase::Loading | Phase::Warming | Phase::Ready => {
                "the model is still loading; try again soon".to_owned()
            }
            Phase::Draining => {
                "this server is shutting down; try again, another one will answer".to_owned()
            }
            Phase::Failed => "this server has failed and will be restarted".to_owned(),
        })
    }
}

/// Answers with 503 what cannot be answered in this phase, and says with each answer of a process that goes away
/// that its connection is not to be used again: a request sent on a connection that is just being closed would be lost.
pub(super) async fn turn_away(State(app): State<App>, request: Request, next: Next) -> Response {
    let takes = match app.phase() {
        Phase::Ready => true,
        Phase::Draining => *app.grace.borrow() && app.service_if_loaded().is_some(),
        Phase::Loading | Phase::Warming | Phase::Failed => false,
    };
    let mut response = if takes {
        next.run(request).await
    } else {
        app.unavailable().into_response()
    };
    if matches!(app.phase(), Phase::Draining | Phase::Failed) {
        response
            .headers_mut()
            .insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// The wall clock, for fields of the API.
pub(super) fn seconds_since_1970() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
