//! Flags and environment of `serve`: as typed ([`ServeArgs`]) and as meant ([`Config`]).

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::openai::options::LONGEST_STOP;

/// Serve a model over an OpenAI-compatible API.
#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    /// Folder of weights (with or without a manifest) or one .gguf file.
    #[arg(long, env = "CHANDLER_MODEL")]
    pub model: PathBuf,

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

    /// Tokens of prompt and answer together; the model's own length by default.
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

    /// Threads that compute; as many as this process may use at once by default (CPU limit of the pod included).
    #[arg(long, env = "CHANDLER_THREADS", value_parser = clap::value_parser!(u32).range(1..=1_024))]
    pub threads: Option<u32>,

    /// File that gets the reason when the model cannot be loaded; an absent folder is passed over.
    #[arg(
        long,
        env = "CHANDLER_RESULT_FILE",
        default_value = "/dev/termination-log"
    )]
    pub result_file: PathBuf,
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
    /// At least one.
    pub served_names: Vec<String>,
    /// Where to compute, as asked.
    pub device: Device,
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
    /// Where the reason of a failed start is written.
    pub result_file: PathBuf,
}

/// How long requests are still taken after SIGTERM: a client that has just resolved the endpoint gets an answer.
const DRAIN_GRACE: Duration = Duration::from_secs(2);

/// Bytes of all requests' bodies together: sixteen of the largest.
const BODY_BUDGET: usize = 256 << 20;

impl From<&ServeArgs> for Config {
    fn from(args: &ServeArgs) -> Self {
        let available = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            model: args.model.clone(),
            served_names: args.served_name.clone(),
            device: args.device,
            api_key_file: args.api_key_file.clone(),
            chat_template: args.chat_template.clone(),
            stop_texts: args.stop.clone(),
            stop_tokens: args.stop_token_id.clone(),
            images_per_prompt: args.images_per_prompt.map(|images| images as usize),
            context_length: args.context_length.map(|length| length as usize),
            max_sequences: args.max_sequences as usize,
            max_queue: args.max_queue as usize,
            request_timeout: Duration::from_secs(args.request_timeout_seconds.into()),
            drain: Duration::from_secs(args.drain_seconds.into()),
            drain_grace: DRAIN_GRACE,
            body_budget: BODY_BUDGET,
            threads: args.threads.map_or(available, |threads| threads as usize),
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
        assert_eq!(config.api_key_file, Some(PathBuf::from("/keys/api-keys")));
        assert!(parse(&["--stop-token-id=-1"]).is_err());
        assert!(parse(&["--device=auto"]).is_err());
    }
}
