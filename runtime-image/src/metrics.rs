//! What the process counts, under vLLM's names, so that existing dashboards and autoscalers work.

use std::sync::Mutex;

use prometheus_client::encoding::EncodeLabelSet;
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

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Finished {
    finished_reason: &'static str,
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
    pub fn finished(&self, finish: Finish, seconds: f64) {
        let finished_reason = match finish {
            Finish::Stop => "stop",
            Finish::Length => "length",
        };
        self.success
            .get_or_create(&Finished { finished_reason })
            .inc();
        self.whole_request.observe(seconds);
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
