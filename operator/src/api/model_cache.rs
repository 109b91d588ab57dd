//! ModelCache: where the weights are.

#![expect(
    unreachable_pub,
    reason = "KubeSchema expands to a public type inside a function"
)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::card::{Hub, ModelFormat};
use super::pod::{CachePod, SecretKey};
use super::storage::{CacheStorage, ReclaimPolicy};

/// Weights of one model at one commit, on a volume of this namespace.
///
/// A ModelDeployment makes one, or uses one that exists; equal needs of a namespace share one.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "chandler.dev",
    version = "v1alpha1",
    kind = "ModelCache",
    plural = "modelcaches",
    namespaced,
    category = "chandler",
    status = "ModelCacheStatus",
    derive = "PartialEq",
    doc = "A ModelCache is the weights of one model at one commit, on a volume of its namespace. A ModelDeployment makes one or uses one that exists.",
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status", description = "Whether every file is there and verified"),
    printcolumn(name = "Model", type_ = "string", json_path = ".spec.source.hub.id", description = "Repository on the hub"),
    printcolumn(name = "Bytes", type_ = "integer", json_path = ".status.bytesTotal", description = "Bytes of all files"),
    printcolumn(name = "Progress", type_ = "string", json_path = ".status.progress", description = "How far the fetch is"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason", description = "Why it is ready or not"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Commit", type_ = "string", json_path = ".status.commit", priority = "1", description = "Commit of the files"),
    printcolumn(name = "Claim", type_ = "string", json_path = ".status.claimName", priority = "1", description = "PersistentVolumeClaim that holds the files"),
    printcolumn(name = "Used by", type_ = "string", json_path = ".status.usedBy", priority = "1", description = "ModelDeployments that use it"),
    validation = Rule::new("size(self.metadata.name) <= 44 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')").message("metadata.name must be at most 44 characters: a lower-case letter first, then lower-case letters, digits or '-', no '-' at the end"),
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.source.claim) || !has(self.storage)").message("source.claim names weights that are there already; leave out storage"),
    validation = Rule::new("(has(self.storage) && has(self.storage.claimName) ? self.storage.claimName : '') == (has(oldSelf.storage) && has(oldSelf.storage.claimName) ? oldSelf.storage.claimName : '')").message("storage.claimName cannot be changed; make another ModelCache"),
    validation = Rule::new("(has(self.storage) && has(self.storage.storageClassName) ? self.storage.storageClassName : '') == (has(oldSelf.storage) && has(oldSelf.storage.storageClassName) ? oldSelf.storage.storageClassName : '')").message("storage.storageClassName cannot be changed; make another ModelCache"),
    validation = Rule::new("(has(self.storage) && has(self.storage.accessModes) ? self.storage.accessModes : ['ReadWriteOnce']) == (has(oldSelf.storage) && has(oldSelf.storage.accessModes) ? oldSelf.storage.accessModes : ['ReadWriteOnce'])").message("storage.accessModes cannot be changed; make another ModelCache"),
)]
pub struct ModelCacheSpec {
    /// Where the weights come from. It cannot be changed, but for the token.
    pub source: CacheSource,

    /// The volume that holds the weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<CacheStorage>,

    /// What happens to the volume when the object goes: `Retain` or `Delete`. Default: `Retain`.
    #[serde(default)]
    pub reclaim_policy: ReclaimPolicy,

    /// Where and as whom the Jobs run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<CachePod>,
}

/// Where weights come from: exactly one of `hub` and `claim`.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.hub) != has(self.claim)").message("exactly one of hub and claim must be given"),
    validation = Rule::new("has(self.hub) == has(oldSelf.hub)").message("the source cannot be changed; make another ModelCache"),
)]
pub struct CacheSource {
    /// A repository on a hub, fetched by a Job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hub: Option<HubSource>,

    /// Weights that are on a volume already; they are only read.
    #[x_kube(validation = Rule::new("self == oldSelf").message("the source cannot be changed; make another ModelCache"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<ClaimSource>,
}

/// A repository on a hub.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.name == oldSelf.name && self.id == oldSelf.id && self.format == oldSelf.format && self.revision == oldSelf.revision").message("the source cannot be changed; make another ModelCache"),
    validation = Rule::new("has(self.endpoint) == has(oldSelf.endpoint) && (!has(self.endpoint) || self.endpoint == oldSelf.endpoint)").message("the source cannot be changed; make another ModelCache"),
    validation = Rule::new("has(self.files) == has(oldSelf.files) && (!has(self.files) || self.files == oldSelf.files)").message("the source cannot be changed; make another ModelCache"),
)]
pub struct HubSource {
    /// The hub. Default: `huggingface`.
    #[serde(default = "huggingface")]
    pub name: Hub,

    /// Repository on the hub, such as `meta-llama/Llama-3.2-11B-Vision-Instruct`.
    #[schemars(
        length(min = 3, max = 256),
        regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*$")
    )]
    pub id: String,

    /// Branch, tag or commit. A branch or tag is looked up once, when the object is made. Default: `main`, which on ModelScope means `master`.
    #[schemars(length(min = 1, max = 256))]
    #[serde(default = "main_revision")]
    pub revision: String,

    /// How the weights are stored; it decides which files are fetched where `files` is left out. Default: `pytorch`.
    #[serde(default = "pytorch")]
    pub format: ModelFormat,

    /// Patterns of the files to fetch (`*`, `?` and `[…]` as in a shell). Default: what the format needs.
    #[schemars(length(min = 1, max = 32), inner(length(min = 1, max = 256)))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<Vec<String>>,

    /// Address of the hub or of a mirror with the same layout. Default: set for the whole installation.
    #[schemars(
        length(max = 2048),
        regex(pattern = r"^https?://[^/?#\s]+(/[^?#\s]*)?$")
    )]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,

    /// Key of a Secret of this namespace that holds the hub's token. Only the Job reads it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_secret_ref: Option<SecretKey>,
}

fn huggingface() -> Hub {
    Hub::Huggingface
}

fn pytorch() -> ModelFormat {
    ModelFormat::Pytorch
}

fn main_revision() -> String {
    "main".to_owned()
}

/// Weights that are on a volume already.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ClaimSource {
    /// PersistentVolumeClaim of this namespace.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
    )]
    pub claim_name: String,

    /// Folder or `.gguf` file on the volume, without a leading slash. Default: the volume's top folder.
    #[schemars(
        length(max = 1024),
        regex(pattern = r"^[A-Za-z0-9_][A-Za-z0-9._ -]*(/[A-Za-z0-9_][A-Za-z0-9._ -]*)*$")
    )]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

/// What the operator knows about the weights.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ModelCacheStatus {
    /// Generation of the object that this status speaks of; -1 until the operator has seen it.
    #[serde(default = "unseen")]
    pub observed_generation: i64,

    /// Repository that answered; it differs from the spec's where the hub renamed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,

    /// Commit of the files, 40 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,

    /// Bytes of all files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_total: Option<i64>,

    /// Bytes that are on the volume. While they are fetched it is looked at every few seconds, and never goes back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_fetched: Option<i64>,

    /// Bytes a second that come from the hub now. Absent while nothing is fetched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<i64>,

    /// Seconds until everything is there at that speed. Absent while nothing is fetched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds_left: Option<i64>,

    /// The three of them for people, such as `58 % of 21.3 GB, 250.0 MB/s, 36 s left`. Absent while nothing is fetched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<String>,

    /// Number of files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<i64>,

    /// Architecture that the hub tells, such as `llama`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,

    /// Digest of the manifest that lies beside the files, `sha256:` and 64 hexadecimal digits. Absent until all files are verified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest_digest: Option<String>,

    /// PersistentVolumeClaim that holds the files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim_name: Option<String>,

    /// UID of that claim; another claim of the same name is filled anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim_uid: Option<String>,

    /// Folder or file on the volume that the runtime opens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,

    /// ModelDeployments that use these weights.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub used_by: Vec<String>,

    /// When the last of them went. Absent while one uses them, and where none ever did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_used_time: Option<Time>,

    /// What is so and what is not, and why: Ready, Resolved, Fetched;
    /// and, only while true, Reconciling (it may come by itself) or Stalled (somebody has to act).
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

fn unseen() -> i64 {
    -1
}
