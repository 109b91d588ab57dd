//! ModelDeployment: a model that answers.

#![expect(
    unreachable_pub,
    reason = "KubeSchema expands to a public type inside a function"
)]

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::card::{Hub, ModelCardSpec, ModelFormat};
use super::model_cache::ClaimSource;
use super::pod::{
    EnvVar, LABEL_KEYS, LocalReference, PodOptions, PullPolicy, Resources, SecretKey,
};
use super::storage::{AccessMode, ReclaimPolicy};

/// A model that answers behind a Service with the OpenAI API.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "chandler.dev",
    version = "v1alpha1",
    kind = "ModelDeployment",
    plural = "modeldeployments",
    namespaced,
    shortname = "chmd",
    category = "chandler",
    status = "ModelDeploymentStatus",
    derive = "PartialEq",
    doc = "A ModelDeployment is a model that answers: the operator fetches the weights, starts the runtime and offers the OpenAI API behind a Service of the same name.",
    scale(spec_replicas_path = ".spec.replicas", status_replicas_path = ".status.replicas", label_selector_path = ".status.selector"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status", description = "Whether all replicas of this revision are ready"),
    printcolumn(name = "Replicas", type_ = "integer", json_path = ".status.readyReplicas", description = "Replicas that are ready"),
    printcolumn(name = "Model", type_ = "string", json_path = ".status.model.id", description = "Repository of the weights"),
    printcolumn(name = "Size", type_ = "string", json_path = ".status.model.sizeInBillions", description = "Billions of parameters"),
    printcolumn(name = "Device", type_ = "string", json_path = ".status.device.type", description = "What a replica computes on"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason", description = "Why it is ready or not"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Endpoint", type_ = "string", json_path = ".status.endpoint", priority = "1", description = "Base address of the OpenAI API inside the cluster"),
    printcolumn(name = "Commit", type_ = "string", json_path = ".status.model.commit", priority = "1", description = "Commit of the weights"),
    printcolumn(name = "Cache", type_ = "string", json_path = ".status.cache", priority = "1", description = "ModelCache that holds the weights"),
    validation = Rule::new("size(self.metadata.name) <= 44 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')").message("metadata.name must be at most 44 characters: a lower-case letter first, then lower-case letters, digits or '-', no '-' at the end"),
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.limits) || !has(self.limits.contextLength) || !has(self.model.inline) || !has(self.model.inline.contextLength) || self.limits.contextLength <= self.model.inline.contextLength").message("limits.contextLength must not be greater than model.inline.contextLength"),
    validation = Rule::new("!has(self.accelerators) || !has(self.model.inline) || !has(self.model.inline.contextLength) || self.accelerators.all(option, !has(option.limits) || !has(option.limits.contextLength) || option.limits.contextLength <= self.model.inline.contextLength)").message("accelerators[].limits.contextLength must not be greater than model.inline.contextLength"),
    validation = Rule::new("!has(self.access) || !has(self.runtime) || !has(self.runtime.engine) || self.runtime.engine != 'Transformers'").message("access is not for engine Transformers, which takes no API keys"),
)]
pub struct ModelDeploymentSpec {
    /// Which model, and in which form.
    pub model: ModelSelection,

    /// How the weights get here. Default: a ModelCache is made, or shared with others of this namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<Weights>,

    /// Number of pods that serve. 0 suspends: nothing runs, the weights stay.
    /// Leave it out of version control where an autoscaler owns it. Default: 1.
    #[schemars(range(min = 0, max = 1000))]
    #[serde(default = "one")]
    pub replicas: i32,

    /// Limits of one replica.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,

    /// What one replica computes on, the preferred option first. All replicas use one option;
    /// they move to the next together when none of them finds a node in time, and back only when the spec changes.
    /// Default: as many `nvidia.com/gpu` as the plan says, one where it cannot say. It is never the CPU unless it says so.
    #[schemars(length(min = 1, max = 8))]
    #[x_kube(validation = Rule::new("self.all(one, self.exists_one(other, other == one))").message("two options are the same; leave one out"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accelerators: Option<Vec<Accelerator>>,

    /// How a new revision takes the place of the old one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<Rollout>,

    /// The program that serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<Runtime>,

    /// Who may ask the model. Default: everybody who reaches the Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<Access>,

    /// Where and as whom the pods run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodOptions>,

    /// The Service in front of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<Service>,
}

fn one() -> i32 {
    1
}

/// What is left out when written stands in no schema either: a default inside a list makes `kubectl apply` see a change each time.
#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde asks for a reference"
)]
fn is_one(number: &i32) -> bool {
    *number == one()
}

/// An inline model offers what is selected of it, as `variant::pick` reads it. Of a card only the operator can say so.
const OFFERED_INLINE: &str = "!has(self.inline) || self.inline.variants.exists(variant, \
(!has(self.sizeInBillions) || double(variant.sizeInBillions.replace('_', '.')) == double(self.sizeInBillions.replace('_', '.'))) && \
(!has(self.format) || variant.format == self.format) && \
(!has(self.quantization) || (has(variant.quantizations) ? variant.quantizations : ['none']).exists(name, name.lowerAscii() == self.quantization.lowerAscii())) && \
(!has(self.hub) || variant.sources.exists(source, source.hub == self.hub)))";

/// Which model: exactly one of `card` and `inline`; the other fields pick the variant where more than one is left.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.card) != has(self.inline)").message("exactly one of card and inline must be given"),
    validation = Rule::new(OFFERED_INLINE).message("none of inline.variants has this sizeInBillions, format, quantization and hub together; correct these fields or add such a variant"),
)]
pub struct ModelSelection {
    /// Name of a ModelCard. Default: none; then `inline` is given.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
    )]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub card: Option<String>,

    /// A model that no card describes: what a ModelCard has as its spec.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inline: Option<ModelCardSpec>,

    /// Billions of parameters as text, such as `11` or `1.5`. Default: the only size that is left.
    #[schemars(length(max = 13), regex(pattern = r"^[0-9]{1,6}([._][0-9]{1,6})?$"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_in_billions: Option<String>,

    /// How the weights are stored. Default: the only format that is left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<ModelFormat>,

    /// Quantization, in any case. Default: the first that the variant names.
    #[schemars(length(min = 1, max = 64))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantization: Option<String>,

    /// Hub to fetch from. Default: the first that the variant names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hub: Option<Hub>,

    /// Branch, tag or commit. A branch or tag is looked up once for a spec; it moves only when the spec changes. Default: the card's, else `main`, which on ModelScope means `master`.
    #[schemars(length(min = 1, max = 256))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,

    /// Names under which the API offers the model. Default: the name of this object.
    #[schemars(
        length(min = 1, max = 8),
        inner(length(min = 1, max = 256), regex(pattern = r"^[^\s]+$"))
    )]
    #[x_kube(validation = Rule::new("self.all(one, self.exists_one(other, other == one))").message("a name stands in servedNames only once"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub served_names: Option<Vec<String>>,
}

/// How the weights get here.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(has(self.cache) ? 1 : 0) + (has(self.claim) ? 1 : 0) + (has(self.storage) ? 1 : 0) <= 1").message("at most one of cache, claim and storage may be given"),
    validation = Rule::new("!has(self.cache) || (!has(self.endpoint) && !has(self.tokenSecretRef))").message("cache brings its own source; leave out endpoint and tokenSecretRef"),
    validation = Rule::new("!has(self.claim) || (!has(self.endpoint) && !has(self.tokenSecretRef))").message("claim names weights that are there already; leave out endpoint and tokenSecretRef"),
)]
pub struct Weights {
    /// Key of a Secret of this namespace that holds the hub's token. Only the Jobs read it, never the serving pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_secret_ref: Option<SecretKey>,

    /// Address of the hub or of a mirror with the same layout. Default: set for the whole installation.
    #[schemars(
        length(max = 2048),
        regex(pattern = r"^https?://[^/?#\s]+(/[^?#\s]*)?$")
    )]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,

    /// A ModelCache of this namespace that exists already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheReference>,

    /// A PersistentVolumeClaim of this namespace that holds the weights already. No hub is asked and no token is needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<ClaimSource>,

    /// The volume of the ModelCache that is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<WeightsStorage>,
}

/// A ModelCache of the same namespace.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct CacheReference {
    /// Name of the ModelCache.
    #[schemars(
        length(min = 1, max = 44),
        regex(pattern = r"^[a-z]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub name: String,
}

/// The volume of the ModelCache that is made for a ModelDeployment.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct WeightsStorage {
    /// StorageClass of the volume. Default: the cluster's default class.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
    )]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_class_name: Option<String>,

    /// Size of the volume, such as `25Gi`. Default: the files' bytes and 10 % more, at least 64 MiB more.
    #[schemars(
        regex(pattern = r"^[1-9][0-9]*(\.[0-9]+)?([KMGTPE]i|[kMGTPE])?$"),
        length(max = 32)
    )]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<String>,

    /// Access modes of the volume. Default: `ReadWriteOnce`.
    #[schemars(length(min = 1, max = 2))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_modes: Option<Vec<AccessMode>>,

    /// What happens to the weights when the last ModelDeployment that uses them goes: `Retain` or `Delete`. Default: `Retain`.
    #[serde(default)]
    pub reclaim_policy: ReclaimPolicy,
}

/// Limits of one replica.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// Longest prompt and answer together, in tokens. Default: what the model offers.
    #[schemars(range(min = 1, max = 16_777_216))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context_length: Option<i64>,

    /// Sequences that are worked on at the same time. Default: the card's, else the runtime's.
    #[schemars(range(min = 1, max = 256))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_sequences: Option<i32>,

    /// Longest time for one request, in seconds. Default: the runtime's.
    #[schemars(range(min = 1, max = 86_400))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_timeout_seconds: Option<i32>,

    /// Pictures in one prompt; one more is answered with status 400. Default: the card's, else the runtime's.
    #[schemars(range(min = 0, max = 1024))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images_per_prompt: Option<i32>,
}

/// What one replica computes on.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.type != 'cpu' || !has(self.count) || self.count == 1").message("count stands for accelerators; leave it out for cpu and set runtime.resources"),
    validation = Rule::new("self.type != 'cpu' || (!has(self.products) && !has(self.minMemory))").message("products and minMemory stand for accelerators; leave them out for cpu"),
    validation = Rule::new("!self.type.contains('kubernetes.io/') && !self.type.startsWith('requests.')").message("type must be `cpu` or the name of an extended resource, such as nvidia.com/gpu"),
)]
pub struct Accelerator {
    /// `cpu`, or the resource name of an accelerator such as `nvidia.com/gpu`.
    #[serde(rename = "type")]
    #[schemars(
        length(max = 253),
        regex(
            pattern = r"^(cpu|[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/[A-Za-z0-9]([-A-Za-z0-9._]{0,61}[A-Za-z0-9])?)$"
        )
    )]
    pub kind: String,

    /// Number of accelerators for one replica. Default: 1.
    #[schemars(range(min = 1, max = 64))]
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub count: i32,

    /// Products that will do, as nodes are labelled: `nvidia.com/gpu.product` (feature discovery) or `cloud.google.com/gke-accelerator`. Default: any.
    #[schemars(
        length(min = 1, max = 16),
        inner(
            length(min = 1, max = 63),
            regex(pattern = r"^[A-Za-z0-9]([-A-Za-z0-9._]*[A-Za-z0-9])?$")
        )
    )]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub products: Option<Vec<String>>,

    /// Least memory of one accelerator, such as `80Gi`, as nodes are labelled. Default: any.
    #[schemars(
        regex(pattern = r"^[1-9][0-9]*(\.[0-9]+)?([KMGTPE]i|[kMGTPE])?$"),
        length(max = 32)
    )]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_memory: Option<String>,

    /// Seconds without a node for any replica until the next option is tried. Default: 300.
    #[schemars(range(min = 1, max = 86_400))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_seconds: Option<i32>,

    /// Limits that take the place of `spec.limits`, field by field, while this option is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
}

/// How a new revision takes the place of the old one.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Rollout {
    /// `SurgeFirst` starts a new pod before an old one ends, `TerminateFirst` ends an old one first, one at a time.
    /// `Auto` takes the first where a node has room for one more pod, else the second, and says so. Default: `Auto`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub policy: RolloutPolicy,

    /// When a revision is not ready in time: `Keep` leaves it as it is, `RollBack` returns to the last one that was ready. Default: `Keep`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub on_failure: OnFailure,

    /// Seconds that a new revision has to become ready. The clock starts when weights and nodes are there. Default: 900.
    #[schemars(range(min = 1, max = 86_400))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress_deadline_seconds: Option<i32>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Which of old and new pods goes or comes first.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the field says it")]
pub enum RolloutPolicy {
    #[default]
    Auto,
    SurgeFirst,
    TerminateFirst,
}

/// What happens when a revision is not ready in time.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the field says it")]
pub enum OnFailure {
    #[default]
    Keep,
    RollBack,
}

/// Who may ask the model.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Access {
    /// Key of a Secret of this namespace with the API keys, one in each line. Requests need one of them as a bearer token.
    /// A changed Secret counts within a minute or two, without a restart; without the Secret every request is refused.
    pub api_key_secret_ref: SecretKey,
}

/// The program that serves.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.options) || !has(self.options.maxQueue) || !has(self.engine) || self.engine == 'Chandler'").message("options.maxQueue is for engine Chandler"),
    validation = Rule::new("!has(self.options) || !has(self.options.imageHosts) || !has(self.engine) || self.engine == 'Chandler'").message("options.imageHosts is for engine Chandler"),
    validation = Rule::new("!has(self.options) || (!has(self.options.enforceEager) && !has(self.options.gpuMemoryUtilization)) || (has(self.engine) && self.engine == 'VLLM')").message("options.enforceEager and options.gpuMemoryUtilization are for engine VLLM"),
)]
pub struct Runtime {
    /// The engine that runs the model: our own (`Chandler`), `VLLM` or `Transformers`. Default: `Chandler`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub engine: Engine,

    /// Whether pods are replaced only for a change of this object (`OnChange`), or also when the installation's
    /// runtime image or the operator's way of building pods changes (`Always`). Default: `OnChange`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub upgrade: Upgrade,

    /// Container image of the serving pods. Default: set for the whole installation.
    #[schemars(length(min = 1, max = 1024), regex(pattern = r"^[^\s]+$"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,

    /// When the image is pulled. Default: set for the whole installation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_pull_policy: Option<PullPolicy>,

    /// Secrets with logins of image registries, besides those set for the whole installation.
    #[schemars(length(max = 8))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub image_pull_secrets: Vec<LocalReference>,

    /// Environment variables of the serving container.
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<EnvVar>,

    /// Requests and limits of the serving container. Default: from the bytes of the weights and the limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,

    /// What only one engine knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub options: Option<EngineOptions>,
}

/// The engine that runs the model.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the field says it")]
pub enum Engine {
    #[default]
    Chandler,
    #[serde(rename = "VLLM")]
    Vllm,
    Transformers,
}

impl Engine {
    /// The word in the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Chandler => "Chandler",
            Self::Vllm => "VLLM",
            Self::Transformers => "Transformers",
        }
    }
}

/// What replaces running pods besides a change of the object.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the field says it")]
pub enum Upgrade {
    #[default]
    OnChange,
    Always,
}

/// A name of several parts, the last of which no address has, and perhaps a port.
const IMAGE_HOST: &str = r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?\.)+[a-z]([-a-z0-9]*[a-z0-9])?(:([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]))?$";

/// What only one engine knows.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct EngineOptions {
    /// Chandler: requests that wait before one more is answered with status 429. Default: 64.
    #[schemars(range(min = 0, max = 65_536))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_queue: Option<i32>,

    /// Chandler: hosts that pictures in requests may be fetched from by `https:` URLs, such as `images.example.com`, with a port where it is not 443.
    /// Network policies must let the pods reach them. Default: none, and pictures come in the requests themselves.
    #[schemars(
        length(max = 16),
        inner(length(min = 1, max = 253), regex(pattern = IMAGE_HOST))
    )]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub image_hosts: Vec<String>,

    /// VLLM: no CUDA graphs (`--enforce-eager`). Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enforce_eager: Option<bool>,

    /// VLLM: share of a GPU's memory that is used, as text from `0.05` to `1`. Default: vLLM's.
    #[schemars(
        length(max = 8),
        regex(pattern = r"^(1(\.0+)?|0\.(0[5-9]|[1-9])[0-9]*)$")
    )]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_memory_utilization: Option<String>,
}

/// The Service in front of the pods.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// Type of the Service. Default: `ClusterIP`.
    #[serde(rename = "type", default)]
    pub kind: ServiceType,

    /// Port of the Service. Default: 80.
    #[schemars(range(min = 1, max = 65_535))]
    #[serde(default = "http_port")]
    pub port: i32,

    /// Annotations of the Service.
    #[schemars(extend("maxProperties" = 32))]
    #[x_kube(validation = Rule::new(LABEL_KEYS).message("a key is not one that Kubernetes takes: [PREFIX/]NAME"))]
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Default for Service {
    fn default() -> Self {
        Self {
            kind: ServiceType::default(),
            port: http_port(),
            annotations: BTreeMap::new(),
        }
    }
}

fn http_port() -> i32 {
    80
}

/// Who can reach a Service.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "PascalCase")]
#[expect(missing_docs, reason = "the words of Kubernetes")]
pub enum ServiceType {
    #[default]
    #[serde(rename = "ClusterIP")]
    ClusterIp,
    NodePort,
    LoadBalancer,
}

impl ServiceType {
    /// The word in a Service.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ClusterIp => "ClusterIP",
            Self::NodePort => "NodePort",
            Self::LoadBalancer => "LoadBalancer",
        }
    }
}

/// What the operator knows about the model and its pods.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ModelDeploymentStatus {
    /// Generation of the object that this status speaks of; -1 until the operator has seen it.
    #[serde(default = "unseen")]
    pub observed_generation: i64,

    /// The model as it was found on the hub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<ResolvedModel>,

    /// ModelCache that holds the weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<String>,

    /// Base address of the OpenAI API inside the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,

    /// What one replica needs, and where it could run. It informs; no pod waits for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<Plan>,

    /// What a replica of this revision says it computes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceStatus>,

    /// How long the slowest replica of this revision took to start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub startup: Option<Startup>,

    /// ControllerRevision that the pods are made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,

    /// Pods that exist.
    #[serde(default)]
    pub replicas: i32,

    /// Pods that exist and have this revision.
    #[serde(default)]
    pub updated_replicas: i32,

    /// Pods that are ready, of any revision.
    #[serde(default)]
    pub ready_replicas: i32,

    /// Label selector of the pods, as text, for autoscalers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,

    /// What is so and what is not, and why: Ready, ModelResolved, WeightsCached, Schedulable, RuntimeHealthy, Available;
    /// and, only while true, Reconciling (it may come by itself) or Stalled (somebody has to act).
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

impl Default for ModelDeploymentStatus {
    fn default() -> Self {
        Self {
            observed_generation: unseen(),
            model: None,
            cache: None,
            endpoint: None,
            plan: None,
            device: None,
            startup: None,
            revision: None,
            replicas: 0,
            updated_replicas: 0,
            ready_replicas: 0,
            selector: None,
            conditions: Vec::new(),
        }
    }
}

fn unseen() -> i64 {
    -1
}

/// The model as it was found on the hub.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ResolvedModel {
    /// The hub. Absent where the weights were on a volume already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hub: Option<Hub>,

    /// Repository that answered: the card's name for it, or one of its aliases.
    pub id: String,

    /// Commit of the weights, 40 hexadecimal digits. Absent until the hub has answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,

    /// How the weights are stored.
    pub format: ModelFormat,

    /// Billions of parameters.
    pub size_in_billions: String,

    /// Quantization.
    pub quantization: String,

    /// Bytes of all files. Absent until the hub has answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<i64>,

    /// Architecture that the hub tells, such as `llama`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,

    /// Whether the installation's own runtime can run it. Absent where it cannot tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub supported: Option<bool>,

    /// Dimensions of the model, as far as the hub tells them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dimensions: Option<Dimensions>,

    /// Digest of what the hub was asked for; a change of it asks again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
}

/// Dimensions of a model, from its configuration.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Dimensions {
    /// Layers with self-attention.
    pub layers: i64,

    /// Layers with cross-attention to pictures.
    #[serde(default)]
    pub cross_attention_layers: i64,

    /// Key and value heads of one layer.
    pub key_value_heads: i64,

    /// Values of one head.
    pub head_size: i64,

    /// Values of one token between layers.
    #[serde(default)]
    pub hidden_size: i64,

    /// Tokens that the model knows.
    #[serde(default)]
    pub vocabulary_size: i64,

    /// Longest context, in tokens.
    #[serde(default)]
    pub context_length: i64,

    /// Key positions of one picture in the cross-attention layers.
    #[serde(default)]
    pub image_tokens: i64,

    /// What the runtime allocates for it on a CPU, where the runtime runs it and could tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryParts>,
}

/// What the runtime allocates for a model, in parts: the sum for any limits is made from them.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct MemoryParts {
    /// Bytes of the weights in memory.
    pub weights_bytes: i64,

    /// Tokens of one block of the KV cache.
    pub block_tokens: i64,

    /// Values in one block, keys and values of all layers.
    pub block_numbers: i64,

    /// Blocks that one picture takes beside its sequence's tokens.
    pub image_blocks: i64,

    /// Rows of one step, at least as many as sequences.
    pub step_rows: i64,

    /// Bytes of activations for one row.
    pub row_bytes: i64,

    /// Rows with logits beside one for each sequence.
    pub extra_logits_rows: i64,

    /// Bytes for one row of logits.
    pub logits_row_bytes: i64,

    /// Bytes of activations for the picture that is being encoded.
    pub image_bytes: i64,
}

/// What one replica needs, and where it could run.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// Bytes of the weights: of all files where the hub told them, else parameters times bits.
    pub weights_bytes: i64,

    /// Bytes of the KV cache for contextLength × maxSequences, pictures included.
    pub kv_cache_bytes: i64,

    /// Of these, bytes for the pictures of all sequences, limits.imagesPerPrompt in each or one.
    #[serde(default, skip_serializing_if = "is_default")]
    pub image_cache_bytes: i64,

    /// Bytes of everything else: activations, buffers, the program.
    pub working_set_bytes: i64,

    /// Of these, bytes for the picture that is being encoded.
    #[serde(default, skip_serializing_if = "is_default")]
    pub image_working_set_bytes: i64,

    /// Bytes of one replica together.
    pub total_bytes: i64,

    /// Chosen accelerator, such as `2 × nvidia.com/gpu`, or `cpu`.
    pub accelerator: String,

    /// Why this one.
    pub reason: String,

    /// Nodes that could take a replica now, ten at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<String>,

    /// How many more nodes could.
    #[serde(default, skip_serializing_if = "is_default")]
    pub more_nodes: i64,

    /// Bytes of the largest free block of that accelerator on one node, where the nodes' labels tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub largest_free_bytes: Option<i64>,

    /// The same for a person: where it fits, or why nowhere.
    pub message: String,

    /// Digest of what the plan was made for; another one makes a new plan.
    pub basis: String,
}

/// What a replica says it computes on.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct DeviceStatus {
    /// `cpu` or `cuda`.
    #[serde(rename = "type")]
    pub kind: String,

    /// Why it is not the device that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub obstacle: Option<String>,

    /// Type of the weights in memory, such as `Q4_1` or `BF16`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtype: Option<String>,

    /// Bytes of the weights in memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_resident: Option<i64>,

    /// Pod that said so.
    pub pod: String,
}

/// How long the slowest replica of a revision took to start, in seconds for each phase.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Startup {
    /// Seconds until a node was found.
    pub scheduled_seconds: i64,

    /// Seconds until the volumes were mounted and the pod had a network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights_seconds: Option<i64>,

    /// Seconds until the image was there and the program ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_seconds: Option<i64>,

    /// Seconds until the weights were in memory, as the runtime says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loaded_seconds: Option<i64>,

    /// Seconds until the first computation was done, as the runtime says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm_seconds: Option<i64>,

    /// Seconds from the pod's creation until it was ready, all phases together.
    pub ready_seconds: i64,

    /// The pod.
    pub pod: String,
}
