//! Flags and environment of `chandler-operator run`: as typed → as meant.
//!
//! Every flag can also be given as `CHANDLER_<FLAG>`; lists are then separated by commas.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use jiff::SignedDuration;
use thiserror::Error;

use crate::api::{Hub, PullPolicy};
use crate::model_cache::collection;
use crate::quantity;

/// What was typed.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// Namespace that the operator itself runs in: of its Lease, and named in logs and metrics.
    #[arg(
        long,
        env = "CHANDLER_NAMESPACE",
        default_value = "chandler-system",
        value_name = "NAMESPACE"
    )]
    pub namespace: String,

    /// Serve only these namespaces, separated by commas; empty means all.
    #[arg(
        long,
        env = "CHANDLER_NAMESPACES",
        value_delimiter = ',',
        value_name = "NAMESPACES"
    )]
    pub namespaces: Vec<String>,

    /// Whether replicas agree on one leader by a Lease in --namespace. Without it, run one replica only.
    #[arg(long, env = "CHANDLER_LEADER_ELECT", default_value_t = true, action = clap::ArgAction::Set, value_name = "true|false")]
    pub leader_elect: bool,

    /// Image of the Jobs and of the serving pods.
    #[arg(long, env = "CHANDLER_RUNTIME_IMAGE", default_value = DEFAULT_RUNTIME_IMAGE, value_name = "REF")]
    pub runtime_image: String,

    /// Image of serving pods with an accelerator: the same runtime with code for NVIDIA's GPUs.
    #[arg(long, env = "CHANDLER_RUNTIME_CUDA_IMAGE", default_value = DEFAULT_RUNTIME_CUDA_IMAGE, value_name = "REF")]
    pub runtime_cuda_image: String,

    /// Image of serving pods with spec.runtime.engine VLLM. Version 0.10.2 is the last one that serves Llama 3.2 Vision.
    #[arg(long, env = "CHANDLER_VLLM_IMAGE", default_value = DEFAULT_VLLM_IMAGE, value_name = "REF")]
    pub vllm_image: String,

    /// Image of serving pods with spec.runtime.engine Transformers; version 5, as 4 loads on the first request only.
    #[arg(long, env = "CHANDLER_TRANSFORMERS_IMAGE", default_value = DEFAULT_TRANSFORMERS_IMAGE, value_name = "REF")]
    pub transformers_image: String,

    /// When the kubelet pulls that image: Always, IfNotPresent or Never.
    #[arg(
        long,
        env = "CHANDLER_IMAGE_PULL_POLICY",
        default_value = "IfNotPresent",
        value_name = "POLICY"
    )]
    pub image_pull_policy: String,

    /// Secret with a registry login, in the namespace of each ModelDeployment. Repeatable.
    #[arg(
        long,
        env = "CHANDLER_IMAGE_PULL_SECRET",
        value_delimiter = ',',
        value_name = "NAME"
    )]
    pub image_pull_secret: Vec<String>,

    /// Address of a hub, such as huggingface=https://huggingface.co. Repeatable.
    #[arg(
        long,
        env = "CHANDLER_HUB_ENDPOINT",
        value_delimiter = ',',
        value_name = "HUB=URL"
    )]
    pub hub_endpoint: Vec<String>,

    /// Proxy of the Jobs for plain HTTP.
    #[arg(long, env = "CHANDLER_HTTP_PROXY", value_name = "URL")]
    pub http_proxy: Option<String>,

    /// Proxy of the Jobs for HTTPS.
    #[arg(long, env = "CHANDLER_HTTPS_PROXY", value_name = "URL")]
    pub https_proxy: Option<String>,

    /// Hosts that the Jobs reach without a proxy, separated by commas.
    #[arg(long, env = "CHANDLER_NO_PROXY", value_name = "HOSTS")]
    pub no_proxy: Option<String>,

    /// File with more trusted certificates (PEM) for the Jobs.
    #[arg(long, env = "CHANDLER_CA_BUNDLE_FILE", value_name = "PATH")]
    pub ca_bundle_file: Option<PathBuf>,

    /// Group that owns the files of volumes, or `none` where the cluster assigns one (OpenShift).
    #[arg(
        long,
        env = "CHANDLER_FS_GROUP",
        default_value = "65532",
        value_name = "N|none"
    )]
    pub fs_group: String,

    /// How long a ModelCache that the operator made, and its volume, stay when nobody uses it, such as 168h; without it, for ever.
    #[arg(long, env = "CHANDLER_CACHE_UNUSED_FOR", value_name = "DURATION")]
    pub cache_unused_for: Option<String>,

    /// What the ModelCaches of one namespace may hold together, such as 500Gi; when it is more, those that nobody uses go,
    /// the one that was left first before the others. Without it, they stay.
    #[arg(long, env = "CHANDLER_CACHE_NAMESPACE_QUOTA", value_name = "QUANTITY")]
    pub cache_namespace_quota: Option<String>,

    /// Whether to apply the built-in ModelCards at start.
    #[arg(long, env = "CHANDLER_BUILTIN_CARDS", default_value_t = true, action = clap::ArgAction::Set, value_name = "true|false")]
    pub builtin_cards: bool,

    /// Address of /healthz, /readyz and /metrics.
    #[arg(
        long,
        env = "CHANDLER_LISTEN_PROBES",
        default_value = "0.0.0.0:8081",
        value_name = "ADDRESS"
    )]
    pub listen_probes: SocketAddr,

    /// Which log lines to write, such as `info` or `chandler_operator=debug,kube=warn`.
    #[arg(
        long,
        env = "CHANDLER_LOG",
        default_value = "info",
        value_name = "FILTER"
    )]
    pub log: String,
}

const DEFAULT_RUNTIME_IMAGE: &str =
    concat!("chandler.dev/chandler-runtime:", env!("CARGO_PKG_VERSION"));

const DEFAULT_RUNTIME_CUDA_IMAGE: &str = concat!(
    "chandler.dev/chandler-runtime-cuda:",
    env!("CARGO_PKG_VERSION")
);

const DEFAULT_VLLM_IMAGE: &str = "docker.io/vllm/vllm-openai:v0.10.2";

const DEFAULT_TRANSFORMERS_IMAGE: &str = "docker.io/huggingface/transformers-pytorch-gpu:5.24.0";

/// What is meant.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Namespace of the operator itself.
    pub namespace: String,
    /// The namespaces to serve, each once; all when empty.
    pub namespaces: Vec<String>,
    /// Whether to write only as the leader.
    pub leader_elect: bool,
    /// What every pod is built from.
    pub pods: PodDefaults,
    /// Which caches go although nobody asked for it.
    pub caches: collection::Policy,
    /// Whether to apply the built-in ModelCards.
    pub builtin_cards: bool,
    /// Address of the probes.
    pub listen_probes: SocketAddr,
}

/// What the installation says about every pod that the operator makes.
#[derive(Clone, Debug, PartialEq)]
pub struct PodDefaults {
    /// Image of the Jobs and of serving pods.
    pub image: String,
    /// Image of serving pods with engine Chandler and an accelerator.
    pub cuda_image: String,
    /// Image of serving pods with engine VLLM.
    pub vllm_image: String,
    /// Image of serving pods with engine Transformers.
    pub transformers_image: String,
    /// When it is pulled.
    pub pull_policy: PullPolicy,
    /// Names of Secrets with registry logins.
    pub pull_secrets: Vec<String>,
    /// Address of each hub.
    pub endpoints: BTreeMap<Hub, String>,
    /// Environment of the Jobs: proxies and trusted certificates.
    pub job_env: Vec<(String, String)>,
    /// Group that owns volumes' files.
    pub fs_group: Option<i64>,
}

impl Default for PodDefaults {
    fn default() -> Self {
        Self {
            image: DEFAULT_RUNTIME_IMAGE.to_owned(),
            cuda_image: DEFAULT_RUNTIME_CUDA_IMAGE.to_owned(),
            vllm_image: DEFAULT_VLLM_IMAGE.to_owned(),
            transformers_image: DEFAULT_TRANSFORMERS_IMAGE.to_owned(),
            pull_policy: PullPolicy::IfNotPresent,
            pull_secrets: Vec::new(),
            endpoints: default_endpoints(),
            job_env: Vec::new(),
            fs_group: Some(65_532),
        }
    }
}

fn default_endpoints() -> BTreeMap<Hub, String> {
    [
        (Hub::Huggingface, "https://huggingface.co".to_owned()),
        (Hub::Modelscope, "https://modelscope.cn".to_owned()),
    ]
    .into()
}

/// Why the flags cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// A flag has a value that it does not know.
    #[error("--{flag} is {value:?}: {hint}")]
    Value {
        /// The flag without dashes.
        flag: &'static str,
        /// What was given.
        value: String,
        /// What is possible.
        hint: &'static str,
    },
    /// The certificates cannot be read.
    #[error("failed to read the certificates of --ca-bundle-file {path}")]
    CaBundle {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Largest bundle of certificates: each Job carries it as an environment variable, and the kernel allows 128 KiB for one.
const MAX_CA_BUNDLE: usize = 120 * 1024;

/// Most namespaces that can be named: each one takes a watch of its own for every kind.
const MAX_NAMESPACES: usize = 64;

impl RunArgs {
    /// Reads what was typed as what is meant.
    ///
    /// # Errors
    ///
    /// When a value is unusable or the certificates cannot be read.
    pub fn resolve(self) -> Result<Config, ConfigError> {
        let pull_policy = match self.image_pull_policy.as_str() {
            "Always" => PullPolicy::Always,
            "IfNotPresent" => PullPolicy::IfNotPresent,
            "Never" => PullPolicy::Never,
            _ => {
                return Err(bad(
                    "image-pull-policy",
                    &self.image_pull_policy,
                    "use Always, IfNotPresent or Never",
                ));
            }
        };
        let fs_group = match self.fs_group.as_str() {
            "none" => None,
            number => match number.parse::<i64>() {
                Ok(group) if group > 0 => Some(group),
                _ => return Err(bad("fs-group", number, "use a number above 0, or none")),
            },
        };
        let endpoints = endpoints(&self.hub_endpoint)?;
        let mut job_env = Vec::new();
        for (name, value) in [
            ("HTTP_PROXY", self.http_proxy),
            ("HTTPS_PROXY", self.https_proxy),
            ("NO_PROXY", self.no_proxy),
        ] {
            if let Some(value) = value.filter(|value| !value.is_empty()) {
                job_env.push((name.to_owned(), value));
            }
        }
        if let Some(path) = self
            .ca_bundle_file
            .filter(|path| !path.as_os_str().is_empty())
        {
            job_env.push(("CHANDLER_CA_BUNDLE".to_owned(), ca_bundle(path)?));
        }
        let caches = collection::Policy {
            unused_for: self
                .cache_unused_for
                .filter(|time| !time.is_empty())
                .map(|time| unused_for(&time))
                .transpose()?,
            namespace_quota: self
                .cache_namespace_quota
                .filter(|quota| !quota.is_empty())
                .map(|quota| namespace_quota(&quota))
                .transpose()?,
        };
        Ok(Config {
            namespace: self.namespace,
            namespaces: namespaces(&self.namespaces)?,
            leader_elect: self.leader_elect,
            pods: PodDefaults {
                image: self.runtime_image,
                cuda_image: self.runtime_cuda_image,
                vllm_image: self.vllm_image,
                transformers_image: self.transformers_image,
                pull_policy,
                pull_secrets: self
                    .image_pull_secret
                    .into_iter()
                    .filter(|n| !n.is_empty())
                    .collect(),
                endpoints,
                job_env,
                fs_group,
            },
            caches,
            builtin_cards: self.builtin_cards,
            listen_probes: self.listen_probes,
        })
    }
}

fn unused_for(text: &str) -> Result<Duration, ConfigError> {
    let parsed = text.parse::<SignedDuration>().ok();
    parsed
        .and_then(|time| Duration::try_from(time).ok())
        .ok_or_else(|| {
            bad(
                "cache-unused-for",
                text,
                "use a duration such as 168h or 30m",
            )
        })
}

fn namespace_quota(text: &str) -> Result<i64, ConfigError> {
    quantity::parse(text)
        .filter(|bytes| *bytes >= 0.0)
        .map(|bytes| bytes as i64)
        .ok_or_else(|| {
            bad(
                "cache-namespace-quota",
                text,
                "use a quantity such as 500Gi",
            )
        })
}

fn namespaces(typed: &[String]) -> Result<Vec<String>, ConfigError> {
    let mut names = Vec::new();
    for name in typed.iter().map(|name| name.trim()) {
        let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if name.len() > 63 || !name.chars().all(is_plain) {
            return Err(bad(
                "namespaces",
                name,
                "use names of namespaces, separated by commas",
            ));
        }
        if !name.is_empty() {
            names.push(name.to_owned());
        }
    }
    names.sort();
    names.dedup();
    if names.len() > MAX_NAMESPACES {
        let count = format!("a list of {} names", names.len());
        return Err(bad(
            "namespaces",
            &count,
            "name at most 64, or none to serve all",
        ));
    }
    Ok(names)
}

fn endpoints(typed: &[String]) -> Result<BTreeMap<Hub, String>, ConfigError> {
    const HINT: &str = "use HUB=URL with huggingface, modelscope, openmind_hub or csghub, and an http or https address";
    let mut endpoints = default_endpoints();
    for entry in typed.iter().filter(|entry| !entry.is_empty()) {
        let parsed = entry.split_once('=').and_then(|(name, url)| {
            let hub = Hub::ALL
                .into_iter()
                .find(|hub| hub.as_str() == name.trim())?;
            let url = url.trim().trim_end_matches('/');
            (url.starts_with("https://") || url.starts_with("http://"))
                .then(|| (hub, url.to_owned()))
        });
        let (hub, url) = parsed.ok_or_else(|| bad("hub-endpoint", entry, HINT))?;
        endpoints.insert(hub, url);
    }
    Ok(endpoints)
}

fn ca_bundle(path: PathBuf) -> Result<String, ConfigError> {
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(source) => return Err(ConfigError::CaBundle { path, source }),
    };
    if !text.contains("-----BEGIN CERTIFICATE-----") || text.len() > MAX_CA_BUNDLE {
        return Err(bad(
            "ca-bundle-file",
            &path.display().to_string(),
            "the file must hold certificates as PEM text, 120 KiB at most",
        ));
    }
    Ok(text)
}

fn bad(flag: &'static str, value: &str, hint: &'static str) -> ConfigError {
    ConfigError::Value {
        flag,
        value: value.to_owned(),
        hint,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        run: RunArgs,
    }

    fn parse(flags: &[&str]) -> Result<Config, ConfigError> {
        Cli::parse_from([&["run"], flags].concat()).run.resolve()
    }

    #[test]
    fn no_flag_means_the_public_hubs_and_a_group() {
        let config = parse(&[]).unwrap();
        assert_eq!(
            config.pods.endpoints[&Hub::Huggingface],
            "https://huggingface.co"
        );
        assert_eq!(config.pods.fs_group, Some(65_532));
        assert!(config.builtin_cards);
        assert!(config.namespaces.is_empty());
        assert!(config.leader_elect);
    }

    #[test]
    fn flags_replace_defaults() {
        let config = parse(&[
            "--hub-endpoint=huggingface=http://hub.test:80/",
            "--fs-group=none",
            "--builtin-cards=false",
            "--image-pull-secret=a,b",
            "--namespaces=team-b,team-a,,team-b",
            "--https-proxy=http://proxy.test:3128",
            "--cache-unused-for=168h",
            "--cache-namespace-quota=1Ki",
        ])
        .unwrap();
        assert_eq!(
            config.pods.endpoints[&Hub::Huggingface],
            "http://hub.test:80"
        );
        assert_eq!(config.caches.unused_for, Some(Duration::from_secs(604_800)));
        assert_eq!(config.caches.namespace_quota, Some(1024));
        assert_eq!(config.pods.fs_group, None);
        assert_eq!(config.pods.pull_secrets, ["a", "b"]);
        assert_eq!(config.namespaces, ["team-a", "team-b"]);
        assert_eq!(
            config.pods.job_env,
            [(
                "HTTPS_PROXY".to_owned(),
                "http://proxy.test:3128".to_owned()
            )]
        );
        assert!(!config.builtin_cards);
    }

    #[test]
    fn unusable_values_name_the_flag_and_what_is_possible() {
        for (flag, words) in [
            ("--cache-unused-for=soon", "--cache-unused-for is \"soon\""),
            ("--cache-namespace-quota=much", "use a quantity"),
            (
                "--hub-endpoint=elsewhere=http://x",
                "--hub-endpoint is \"elsewhere=http://x\": use HUB=URL",
            ),
            ("--fs-group=0", "--fs-group is \"0\": use a number above 0"),
            (
                "--image-pull-policy=Sometimes",
                "use Always, IfNotPresent or Never",
            ),
            (
                "--namespaces=a,B_c",
                "--namespaces is \"B_c\": use names of namespaces",
            ),
            (
                "--ca-bundle-file=/nonexistent.pem",
                "failed to read the certificates",
            ),
        ] {
            let message = parse(&[flag]).unwrap_err().to_string();
            assert!(message.contains(words), "{message}");
        }
    }
}
