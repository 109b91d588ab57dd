//! What the process counts, under vLLM's names, so that existing dashboards and autoscalers work.

use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::engine::Finish;

/// Upper bounds of time to first token, in seconds.
const FIRST_TOKEN: [f64; 19] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0,
];

/// Upper bounds of whole requests, in seconds.
const WHOLE_REQUEST: [f64; 18] = [
    0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0, 240.0, 480.0,
    960.0,
];

/// Upper bounds of the time between two tokens, in seconds.
const NEXT_TOKEN: [f64; 16] = [
    0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5,
];

/// Upper bounds of tokens in a prompt or an answer.
const TOKEN_COUNTS: [f64; 17] = [
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5,
];

/// A part of the start.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub enum StartupPhase {
    /// Reading weights.
    Load,
    /// Taking a first step.
    Warm,
}

impl EncodeLabelValue for StartupPhase {
    fn encode(
        &self,
        encoder: &mut prometheus_client::encoding::LabelValueEncoder,
    ) -> Result<(), std::fmt::Error> {
        let word = match self {
            Self::Load => "load",
            Self::Warm => "warm",
        };
        EncodeLabelValue::encode(&word, encoder)
    }
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Startup {
    phase: StartupPhase,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Finished {
    finished_reason: &'static str,
}

/// Tokens of one generation.
#[derive(Clone, Copy, Debug)]
pub struct Tokens {
    /// Of the prompt.
    pub prompt: usize,
    /// Of the answer.
    pub answer: usize,
}

/// All metrics of one process.
pub struct Metrics {
    registry: Mutex<Registry>,
    /// Generations in the model.
    pub running: Gauge,
    /// Generations in the queue.
    pub waiting: Gauge,
    /// Prompt tokens computed.
    pub prompt_tokens: Counter,
    /// Tokens generated.
    pub generation_tokens: Counter,
    /// From arrival to the first token.
    pub time_to_first_token: Histogram,
    /// From one token to the next.
    pub next_token: Histogram,
    /// From arrival to the model.
    pub queue_time: Histogram,
    /// Part of the cache's blocks that hold something, 0 to 1.
    pub cache_usage: Gauge<f64, AtomicU64>,
    request_prompt_tokens: Histogram,
    request_generation_tokens: Histogram,
    startup: Family<Startup, Gauge<f64, AtomicU64>>,
    whole_request: Histogram,
    success: Family<Finished, Counter>,
    preemptions: Counter,
}

impl Metrics {
    /// Metrics of a process that serves a model under this name.
    #[must_use]
    pub fn new(model_name: &str) -> Self {
        let mut registry = Registry::with_labels(
            [("model_name".into(), model_name.to_owned().into())].into_iter(),
        );
        let metrics = Self {
            registry: Mutex::new(Registry::default()),
            running: Gauge::default(),
            waiting: Gauge::default(),
            prompt_tokens: Counter::default(),
            generation_tokens: Counter::default(),
            time_to_first_token: Histogram::new(FIRST_TOKEN),
            next_token: Histogram::new(NEXT_TOKEN),
            queue_time: Histogram::new(WHOLE_REQUEST),
            cache_usage: Gauge::default(),
            request_prompt_tokens: Histogram::new(TOKEN_COUNTS),
            request_generation_tokens: Histogram::new(TOKEN_COUNTS),
            startup: Family::default(),
            whole_request: Histogram::new(WHOLE_REQUEST),
            success: Family::default(),
            preemptions: Counter::default(),
        };
        // Present from the start, so that a rate over the first request is a rate.
        for finished_reason in ["stop", "length", "abort"] {
            drop(metrics.success.get_or_create(&Finished { finished_reason }));
        }
        registry.register(
            "vllm:num_requests_running",
            "Requests in the model",
            metrics.running.clone(),
        );
        registry.register(
            "vllm:num_requests_waiting",
            "Requests in the queue",
            metrics.waiting.clone(),
        );
        registry.register(
            "vllm:prompt_tokens",
            "Prompt tokens computed",
            metrics.prompt_tokens.clone(),
        );
        registry.register(
            "vllm:generation_tokens",
            "Tokens generated",
            metrics.generation_tokens.clone(),
        );
        registry.register(
            "vllm:time_to_first_token_seconds",
            "Time from arrival to the first token",
            metrics.time_to_first_token.clone(),
        );
        registry.register(
            "vllm:e2e_request_latency_seconds",
            "Time from arrival to the last token",
            metrics.whole_request.clone(),
        );
        registry.register(
            "vllm:inter_token_latency_seconds",
            "Time from one token to the next",
            metrics.next_token.clone(),
        );
        registry.register(
            "vllm:request_queue_time_seconds",
            "Time from arrival to the model",
            metrics.queue_time.clone(),
        );
        registry.register(
            "vllm:kv_cache_usage_perc",
            "Part of the cache of keys and values in use, 0 to 1",
            metrics.cache_usage.clone(),
        );
        registry.register(
            "vllm:request_prompt_tokens",
            "Tokens of a request's prompt",
            metrics.request_prompt_tokens.clone(),
        );
        registry.register(
            "vllm:request_generation_tokens",
            "Tokens of a request's answer",
            metrics.request_generation_tokens.clone(),
        );
        registry.register(
            "chandler_runtime_startup_seconds",
            "Time that a part of the start took",
            metrics.startup.clone(),
        );
        registry.register(
            "vllm:request_success",
            "Requests ended, by reason",
            metrics.success.clone(),
        );
        registry.register(
            "vllm:num_preemptions",
            "Requests computed again for lack of blocks",
            metrics.preemptions.clone(),
        );
        Self {
            registry: Mutex::new(registry),
            ..metrics
        }
    }

    /// Counts a generation that ended by itself.
    pub fn finished(&self, finish: Finish, tokens: Tokens, seconds: f64) {
        let finished_reason = match finish {
            Finish::Stop => "stop",
            Finish::Length => "length",
        };
        self.success
            .get_or_create(&Finished { finished_reason })
            .inc();
        self.whole_request.observe(seconds);
        self.request_prompt_tokens.observe(tokens.prompt as f64);
        self.request_generation_tokens.observe(tokens.answer as f64);
    }

    /// Notes how long a part of the start took.
    pub fn started(&self, phase: StartupPhase, took: Duration) {
        self.startup
            .get_or_create(&Startup { phase })
            .set(took.as_secs_f64());
    }

    /// Counts a generation whose client left.
    pub fn aborted(&self) {
        self.success
            .get_or_create(&Finished {
                finished_reason: "abort",
            })
            .inc();
    }

    /// Counts a generation that is computed again.
    pub fn preempted(&self) {
        self.preemptions.inc();
    }

    /// All metrics as text.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        let registry = self
            .registry
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        // Writing to a string cannot fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
        text
    }
}
