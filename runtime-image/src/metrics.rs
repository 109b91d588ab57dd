//! What the process counts, under vLLM's names, so that existing dashboards and autoscalers work.

use std::collections::HashSet;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::engine::Finish;
use crate::model::Usage;

/// The form of the text that Prometheus reads.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

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

/// Names of keys that are counted apart: twice those of a full file, since keys are rotated while the process runs.
const MOST_KEY_NAMES: usize = 512;

/// Stands for all further names.
const OTHER_KEYS: &str = "other";

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

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StepPart {
    part: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct DeviceMemory {
    state: &'static str,
}

/// vLLM's words for the arena: the size and number of its blocks stand in labels.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Arena {
    block_size: usize,
    num_gpu_blocks: usize,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct KeyName {
    key_name: String,
}

/// Counts what is done for the holders of the keys of one name.
#[derive(Clone, Debug)]
pub struct KeyTokens {
    /// Prompt tokens, computed or found in the cache.
    pub prompt: Counter,
    /// Tokens generated.
    pub generation: Counter,
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
    /// Prompt tokens that were looked for in the cache.
    pub prefix_queries: Counter,
    /// Tokens that were found there.
    pub prefix_hits: Counter,
    /// Pictures that were put through the vision tower.
    pub pictures_encoded: Counter,
    /// Pictures whose keys and values were found in the cache.
    pub pictures_found: Counter,
    /// Tokens guessed.
    pub guessed: Counter,
    /// Guesses that were true.
    pub confirmed: Counter,
    /// Steps for which a device had no memory.
    pub device_faults: Counter,
    step_seconds: Family<StepPart, Counter<f64, AtomicU64>>,
    measured_steps: Counter,
    device_memory: Family<DeviceMemory, Gauge<f64, AtomicU64>>,
    /// Part of the cache's blocks that pictures use, 0 to 1.
    pub picture_cache_usage: Gauge<f64, AtomicU64>,
    /// Part of the cache's blocks that somebody uses, 0 to 1.
    pub cache_usage: Gauge<f64, AtomicU64>,
    request_prompt_tokens: Histogram,
    request_generation_tokens: Histogram,
    startup: Family<Startup, Gauge<f64, AtomicU64>>,
    whole_request: Histogram,
    success: Family<Finished, Counter>,
    preemptions: Counter,
    arena: Family<Arena, Gauge>,
    key_names: Mutex<HashSet<String>>,
    key_prompt_tokens: Family<KeyName, Counter>,
    key_generation_tokens: Family<KeyName, Counter>,
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
            prefix_queries: Counter::default(),
            prefix_hits: Counter::default(),
            pictures_encoded: Counter::default(),
            pictures_found: Counter::default(),
            guessed: Counter::default(),
            confirmed: Counter::default(),
            device_faults: Counter::default(),
            step_seconds: Family::default(),
            measured_steps: Counter::default(),
            device_memory: Family::default(),
            picture_cache_usage: Gauge::default(),
            cache_usage: Gauge::default(),
            request_prompt_tokens: Histogram::new(TOKEN_COUNTS),
            request_generation_tokens: Histogram::new(TOKEN_COUNTS),
            startup: Family::default(),
            whole_request: Histogram::new(WHOLE_REQUEST),
            success: Family::default(),
            preemptions: Counter::default(),
            arena: Family::default(),
            key_names: Mutex::default(),
            key_prompt_tokens: Family::default(),
            key_generation_tokens: Family::default(),
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
            "chandler_picture_cache_usage",
            "Part of the cache that keys and values of pictures use, 0 to 1",
            metrics.picture_cache_usage.clone(),
        );
        registry.register(
            "chandler_device_step_seconds",
            "Time of steps on the device by part, of those that were measured, and of the host beside, of all",
            metrics.step_seconds.clone(),
        );
        registry.register(
            "chandler_device_measured_steps",
            "Steps whose parts were measured",
            metrics.measured_steps.clone(),
        );
        registry.register(
            "chandler_device_memory_bytes",
            "Memory of the device, used and free",
            metrics.device_memory.clone(),
        );
        registry.register(
            "chandler_device_out_of_memory",
            "Steps for which the device had no memory",
            metrics.device_faults.clone(),
        );
        registry.register(
            "vllm:prefix_cache_queries",
            "Prompt tokens looked for in the cache of prefixes",
            metrics.prefix_queries.clone(),
        );
        registry.register(
            "vllm:prefix_cache_hits",
            "Prompt tokens found there",
            metrics.prefix_hits.clone(),
        );
        registry.register(
            "chandler_pictures_encoded",
            "Pictures put through the vision tower",
            metrics.pictures_encoded.clone(),
        );
        registry.register(
            "chandler_pictures_found",
            "Pictures whose keys and values were found in the cache",
            metrics.pictures_found.clone(),
        );
        registry.register(
            "vllm:spec_decode_num_draft_tokens",
            "Tokens guessed ahead",
            metrics.guessed.clone(),
        );
        registry.register(
            "vllm:spec_decode_num_accepted_tokens",
            "Guessed tokens that were true",
            metrics.confirmed.clone(),
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
        registry.register(
            "vllm:cache_config_info",
            "Tokens of a block of keys and values, and blocks of the arena",
            metrics.arena.clone(),
        );
        registry.register(
            "chandler_runtime_key_prompt_tokens",
            "Prompt tokens by the name of the API key",
            metrics.key_prompt_tokens.clone(),
        );
        registry.register(
            "chandler_runtime_key_generation_tokens",
            "Tokens generated by the name of the API key",
            metrics.key_generation_tokens.clone(),
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

    /// The counters of the keys of this name.
    #[must_use]
    pub fn key_tokens(&self, name: &str) -> KeyTokens {
        let mut names = self
            .key_names
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let known =
            names.contains(name) || (names.len() < MOST_KEY_NAMES && names.insert(name.to_owned()));
        let key_name = if known { name } else { OTHER_KEYS }.to_owned();
        let labels = KeyName { key_name };
        KeyTokens {
            prompt: self.key_prompt_tokens.get_or_create_owned(&labels),
            generation: self.key_generation_tokens.get_or_create_owned(&labels),
        }
    }

    /// Notes what a device tells of itself, and the time that the host took beside in one turn.
    pub fn used(&self, usage: &Usage, host: Duration) {
        let add = |part: &'static str, seconds: f64| {
            let counter = self.step_seconds.get_or_create(&StepPart { part });
            counter.inc_by(seconds);
        };
        add("host", host.as_secs_f64());
        if let Some(spent) = usage.spent {
            add("gemm", spent.products);
            add("attention", spent.attention);
            add("sampling", spent.choosing);
            add("other", spent.other);
            self.measured_steps.inc();
        }
        if let Some((free, total)) = usage.memory {
            let note = |state, bytes: u64| {
                let gauge = self.device_memory.get_or_create(&DeviceMemory { state });
                gauge.set(bytes as f64);
            };
            note("free", free);
            note("used", total.saturating_sub(free));
        }
    }

    /// Notes how many blocks there are for keys and values, and how many tokens one has.
    pub fn arena(&self, blocks: usize, tokens: usize) {
        let arena = Arena {
            block_size: tokens,
            num_gpu_blocks: blocks,
        };
        self.arena.get_or_create(&arena).set(1);
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
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        // Writing to a string cannot fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
        text
    }
}
