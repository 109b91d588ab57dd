//! Flags and environment of `serve`: as typed ([`ServeArgs`]) and as meant ([`Config`]).

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::compute::Arithmetic;
use crate::compute::cuda::Settings;
use crate::compute::cuda::matrix::Floats;
use crate::openai::options::LONGEST_STOP;
use crate::picture_hosts::{Network, PictureHost, System};

/// Serve a model over an OpenAI-compatible API.
#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    /// Folder of weights (with or without a manifest) or one .gguf file.
    #[arg(long, env = "CHANDLER_MODEL")]
    pub model: PathBuf,

    /// Read every byte of the weights before they are loaded and compare it with the manifest; without it sizes and beginnings are compared.
    #[arg(long, env = "CHANDLER_VERIFY_WEIGHTS")]
    pub verify_weights: bool,

    /// Name under which requests ask for the model; may be repeated, the first is shown in answers.
    #[arg(
        long,
        env = "CHANDLER_SERVED_NAME",
        value_delimiter = ',',
        required = true
    )]
    pub served_name: Vec<String>,

    /// Where to compute.
    #[arg(long, env = "CHANDLER_DEVICE", value_enum, default_value_t = Device::Cpu)]
    pub device: Device,

    /// Arithmetic of products on the CPU.
    #[arg(long, env = "CHANDLER_DTYPE", value_enum, default_value_t = Arithmetic::Auto)]
    pub dtype: Arithmetic,

    /// How an NVIDIA GPU computes.
    #[command(flatten)]
    pub cuda: CudaArgs,

    /// Tokens of prompt and answer together; by default the model's own length, or what fits into memory.
    #[arg(long, env = "CHANDLER_CONTEXT_LENGTH", value_parser = clap::value_parser!(u32).range(2..))]
    pub context_length: Option<u32>,

    /// Requests that are computed at the same time.
    #[arg(long, env = "CHANDLER_MAX_SEQUENCES", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub max_sequences: u32,

    /// Requests that wait; one more gets status 429.
    #[arg(long, env = "CHANDLER_MAX_QUEUE", default_value_t = 64, value_parser = clap::value_parser!(u32).range(0..=65_536))]
    pub max_queue: u32,

    /// Seconds that one request may take, waiting included.
    #[arg(long, env = "CHANDLER_REQUEST_TIMEOUT_SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub request_timeout_seconds: u32,

    /// Address of the OpenAI API.
    #[arg(long, env = "CHANDLER_LISTEN", default_value = "0.0.0.0:8080")]
    pub listen: SocketAddr,

    /// Address of health, metrics and status.
    #[arg(
        long,
        env = "CHANDLER_MANAGEMENT_LISTEN",
        default_value = "0.0.0.0:8081"
    )]
    pub management_listen: SocketAddr,

    /// Seconds that running streams get to finish after SIGTERM.
    #[arg(long, env = "CHANDLER_DRAIN_SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(0..=86_400))]
    pub drain_seconds: u32,

    /// File with keys, one a line, one of which every request to the API must show; read again when it changes.
    #[arg(long, env = "CHANDLER_API_KEY_FILE")]
    pub api_key_file: Option<PathBuf>,

    /// Chat template (Jinja) in place of the weights' own.
    #[arg(long, env = "CHANDLER_CHAT_TEMPLATE", allow_hyphen_values = true)]
    pub chat_template: Option<String>,

    /// Text that ends every answer and is not part of it; may be repeated. The environment can give one.
    #[arg(long, env = "CHANDLER_STOP", value_parser = stop_text, allow_hyphen_values = true)]
    pub stop: Vec<String>,

    /// Token that ends every answer, besides the weights' own; may be repeated.
    #[arg(long, env = "CHANDLER_STOP_TOKEN_ID", value_delimiter = ',')]
    pub stop_token_id: Vec<u32>,

    /// Pictures that one prompt may have; as many as fit by default.
    #[arg(long, env = "CHANDLER_IMAGES_PER_PROMPT", value_parser = clap::value_parser!(u32).range(0..=1_024))]
    pub images_per_prompt: Option<u32>,

    /// Host that pictures may be fetched from by https: URLs (NAME or NAME:PORT); may be repeated, without one none is fetched.
    #[arg(long, env = "CHANDLER_IMAGE_HOST", value_delimiter = ',')]
    pub image_host: Vec<PictureHost>,

    /// Threads that compute; as many as this process may use at once by default (CPU limit of the pod included).
    #[arg(long, env = "CHANDLER_THREADS", value_parser = clap::value_parser!(u32).range(1..=1_024))]
    pub threads: Option<u32>,

    /// Bytes for keys and values; by default most of what this process may still take (memory limit of the pod included).
    #[arg(long, env = "CHANDLER_KV_CACHE_MEMORY_BYTES", value_parser = clap::value_parser!(u64).range(1..))]
    pub kv_cache_memory_bytes: Option<u64>,

    /// Tokens that are guessed ahead where an answer repeats its prompt or itself; answers stay the same, 0 turns it off.
    #[arg(long, env = "CHANDLER_SPECULATIVE_TOKENS", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=16))]
    pub speculative_tokens: u32,

    /// File that gets the reason when the model cannot be loaded; an absent folder is passed over.
    #[arg(
        long,
        env = "CHANDLER_RESULT_FILE",
        default_value = "/dev/termination-log"
    )]
    pub result_file: PathBuf,
}

/// How an NVIDIA GPU computes.
#[derive(Args, Clone, Debug, Default)]
pub struct CudaArgs {
    /// Fat binary of kernels in place of the built-in one.
    #[arg(long, env = "CHANDLER_CUDA_KERNELS")]
    pub cuda_kernels: Option<PathBuf>,

    /// On a GPU: compute every row of a step so that what is computed beside it changes no bit of it, which is slower.
    #[arg(long, env = "CHANDLER_BATCH_INVARIANT")]
    pub batch_invariant: bool,

    /// On a GPU: round weights that are floats to eight bits (E4M3, a scale for each output), which halves their memory.
    #[arg(long, env = "CHANDLER_FP8_WEIGHTS")]
    pub fp8_weights: bool,
}

impl CudaArgs {
    /// What a backend is to do with weights that are mostly of this type.
    #[must_use]
    pub fn settings(&self, main_type: &str) -> Settings {
        let settings = Settings::new(main_type);
        Settings {
            invariant: self.batch_invariant,
            floats: match settings.floats {
                Floats::F16 | Floats::Bf16 if self.fp8_weights => Floats::Fp8,
                floats => floats,
            },
            ..settings
        }
    }
}

/// Where to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Device {
    /// This machine's processor.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
}

impl Device {
    /// The word that `/status` shows.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        }
    }
}

/// A text that may end answers.
fn stop_text(text: &str) -> Result<String, String> {
    if (1..=LONGEST_STOP).contains(&text.len()) {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "it has {} bytes, expected 1 to {LONGEST_STOP}",
            text.len()
        ))
    }
}

/// What `serve` was asked to do.
#[derive(Clone, Debug)]
pub struct Config {
    /// Folder or file.
    pub model: PathBuf,
    /// Whether every byte is compared with the manifest before loading.
    pub verify_weights: bool,
    /// At least one.
    pub served_names: Vec<String>,
    /// Where to compute, as asked.
    pub device: Device,
    /// Arithmetic of products on the CPU.
    pub dtype: Arithmetic,
    /// How a GPU computes.
    pub cuda: CudaArgs,
    /// Absent: everybody may ask.
    pub api_key_file: Option<PathBuf>,
    /// Absent: the weights' own.
    pub chat_template: Option<String>,
    /// Texts that end every answer.
    pub stop_texts: Vec<String>,
    /// Tokens that end every answer, besides the weights' own.
    pub stop_tokens: Vec<u32>,
    /// Absent: as many as fit.
    pub images_per_prompt: Option<usize>,
    /// Hosts that pictures are fetched from; none where it is empty.
    pub picture_hosts: Vec<PictureHost>,
    /// Within which all pictures of a request must have come from there.
    pub picture_timeout: Duration,
    /// How these hosts are reached.
    pub network: Arc<dyn Network>,
    /// Absent: the model's own.
    pub context_length: Option<usize>,
    /// At least 1.
    pub max_sequences: usize,
    /// May be 0.
    pub max_queue: usize,
    /// For each request.
    pub request_timeout: Duration,
    /// For running streams after SIGTERM.
    pub drain: Duration,
    /// How long new requests are still taken after SIGTERM.
    pub drain_grace: Duration,
    /// Bytes of all requests' bodies together.
    pub body_budget: usize,
    /// At least 1.
    pub threads: usize,
    /// Absent: what memory allows.
    pub kv_cache_memory_bytes: Option<u64>,
    /// May be 0.
    pub speculative_tokens: usize,
    /// Where the reason of a failed start is written.
    pub result_file: PathBuf,
}

/// How long requests are still taken after SIGTERM: a client that has just resolved the endpoint gets an answer.
const DRAIN_GRACE: Duration = Duration::from_secs(2);

/// Within which all pictures of a request must have come from their hosts.
const PICTURE_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes of all requests' bodies together: sixteen of the largest.
const BODY_BUDGET: usize = 256 << 20;

impl From<&ServeArgs> for Config {
    fn from(args: &ServeArgs) -> Self {
        let available = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            model: args.model.clone(),
            verify_weights: args.verify_weights,
            served_names: args.served_name.clone(),
            device: args.device,
            dtype: args.dtype,
            cuda: args.cuda.clone(),
            api_key_file: args.api_key_file.clone(),
            chat_template: args.chat_template.clone(),
            stop_texts: args.stop.clone(),
            stop_tokens: args.stop_token_id.clone(),
            images_per_prompt: args.images_per_prompt.map(|images| images as usize),
            picture_hosts: args.image_host.clone(),
            picture_timeout: PICTURE_TIMEOUT,
            network: Arc::new(System),
            context_length: args.context_length.map(|length| length as usize),
            max_sequences: args.max_sequences as usize,
            max_queue: args.max_queue as usize,
            request_timeout: Duration::from_secs(args.request_timeout_seconds.into()),
            drain: Duration::from_secs(args.drain_seconds.into()),
            drain_grace: DRAIN_GRACE,
            body_budget: BODY_BUDGET,
            threads: args.threads.map_or(available, |threads| threads as usize),
            kv_cache_memory_bytes: args.kv_cache_memory_bytes,
            speculative_tokens: args.speculative_tokens as usize,
            result_file: args.result_file.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        serve: ServeArgs,
    }

    fn parse(more: &[&str]) -> Result<Config, clap::Error> {
        let all = ["serve", "--model", "/w", "--served-name", "n"];
        let line = Line::try_parse_from(all.iter().chain(more))?;
        Ok(Config::from(&line.serve))
    }

    #[test]
    fn stop_texts_may_hold_commas_and_begin_with_hyphens() {
        let config = parse(&["--stop", "a,b", "--stop=--", "--stop", "-x", "--stop=\n"]).unwrap();
        assert_eq!(config.stop_texts, ["a,b", "--", "-x", "\n"]);
        assert!(parse(&["--stop="]).is_err());
        let long = format!("--stop={}", "a".repeat(LONGEST_STOP + 1));
        assert!(parse(&[&long]).is_err());
    }

    #[test]
    fn stop_tokens_are_repeated_and_templates_taken_as_they_are() {
        let template = "{{- bos_token }}\n{% for m in messages %}, {% endfor %}";
        let config = parse(&[
            "--stop-token-id=1",
            "--stop-token-id",
            "128009",
            "--chat-template",
            template,
            "--images-per-prompt=2",
            "--api-key-file=/keys/api-keys",
        ])
        .unwrap();
        assert_eq!(config.stop_tokens, [1, 128_009]);
        assert_eq!(config.chat_template.as_deref(), Some(template));
        assert_eq!(config.images_per_prompt, Some(2));
        assert!(config.picture_hosts.is_empty());
        assert_eq!(config.api_key_file, Some(PathBuf::from("/keys/api-keys")));
        assert!(parse(&["--stop-token-id=-1"]).is_err());
        assert!(parse(&["--device=auto"]).is_err());
    }

    #[test]
    fn products_are_rounded_where_it_pays_unless_floats_are_asked_for() {
        assert_eq!(parse(&[]).unwrap().dtype, Arithmetic::Auto);
        let floats = parse(&["--dtype=float32"]).unwrap();
        assert_eq!(floats.dtype, Arithmetic::Float32);
        assert!(parse(&["--dtype=bfloat16"]).is_err());
    }

    #[test]
    fn hosts_of_pictures_are_names() {
        let config = parse(&[
            "--image-host=a.example,b.example:8443",
            "--image-host=c.example",
        ]);
        assert_eq!(config.unwrap().picture_hosts.len(), 3);
        for host in ["", "*", "10.0.0.1", "https://a.example"] {
            assert!(parse(&["--image-host", host]).is_err(), "{host}");
        }
    }
}
