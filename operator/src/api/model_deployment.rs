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
use super::pod::{EnvVar, LocalReference, PodOptions, PullPolicy, Resources, SecretKey};
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

    /// What one replica computes on; one entry in this version. Default: one `nvidia.com/gpu`. It is never the CPU unless it says so.
    #[schemars(length(min = 1, max = 1))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accelerators: Option<Vec<Accelerator>>,

    /// The program that serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<Runtime>,

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

/// Which model: exactly one of `card` and `inline`; the other fields pick the variant where more than one is left.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.card) != has(self.inline)").message("exactly one of card and inline must be given"))]
pub struct ModelSelection {
    /// Name of a ModelCard.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
    )]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub card: Option<String>,

    /// A model that no card describes: what a ModelCard has as its spec.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inline: Option<ModelCardSpec>,

    /// Billions of parameters as text, such as `11` or `1.5`. Default: the only size that is left.
    #[schemars(regex(pattern = r"^[0-9]{1,6}([._][0-9]{1,6})?$"))]
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

    /// Branch, tag or commit. A branch or tag is looked up once for a spec; it moves only when the spec changes. Default: the card's, else `main`.
    #[schemars(length(min = 1, max = 256))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,

    /// Names under which the API offers the model. Default: the name of this object.
    #[schemars(
        length(min = 1, max = 8),
        inner(length(min = 1, max = 256), regex(pattern = r"^[^\s]+$"))
    )]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub served_names: Option<Vec<String>>,
}

/// How the weights get here.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.cache) || !has(self.storage)").message("at most one of cache and storage may be given"),
    validation = Rule::new("!has(self.cache) || (!has(self.endpoint) && !has(self.tokenSecretRef))").message("cache brings its own source; leave out endpoint and tokenSecretRef"),
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

    /// The volume of the ModelCache that is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<WeightsStorage>,
}

/// A ModelCache of the same namespace.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct CacheReference {
    /// Name of the ModelCache.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
}

/// The volume of the ModelCache that is made for a ModelDeployment.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct WeightsStorage {
    /// StorageClass of the volume. Default: the cluster's default class.
    #[schemars(length(min = 1, max = 253))]
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
}

/// What one replica computes on.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.type != 'cpu' || self.count == 1").message("count stands for accelerators; leave it out for cpu and set runtime.resources"))]
pub struct Accelerator {
    /// `cpu`, or the resource name of an accelerator such as `nvidia.com/gpu`.
    #[serde(rename = "type")]
    #[schemars(
        length(max = 253),
        regex(
            pattern = r"^(cpu|[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9._]*[A-Za-z0-9])?)$"
        )
    )]
    pub kind: String,

    /// Number of accelerators for one replica. Default: 1.
    #[schemars(range(min = 1, max = 64))]
    #[serde(default = "one")]
    pub count: i32,
}

/// The program that serves.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Runtime {
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
}

/// The Service in front of the pods.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
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

    /// What is so and what is not, and why: Ready, ModelResolved, WeightsCached, RuntimeHealthy, Available.
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

    /// Digest of what the hub was asked for; a change of it asks again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
}
