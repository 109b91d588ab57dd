//! Volumes for weights.

#![expect(
    unreachable_pub,
    reason = "KubeSchema expands to a public type inside a function"
)]

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How many nodes may use a volume at once.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the words of Kubernetes")]
pub enum AccessMode {
    ReadWriteOnce,
    ReadWriteMany,
}

impl AccessMode {
    /// The word in a PersistentVolumeClaim.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ReadWriteOnce => "ReadWriteOnce",
            Self::ReadWriteMany => "ReadWriteMany",
        }
    }
}

/// What happens to the volume when its ModelCache goes.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReclaimPolicy {
    /// The claim and its weights stay for the next user.
    #[default]
    Retain,
    /// The claim goes with the ModelCache.
    Delete,
}

/// The volume of a ModelCache.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.claimName) || (!has(self.storageClassName) && !has(self.size) && !has(self.accessModes))").message("claimName names a volume that exists already; leave out storageClassName, size and accessModes"))]
pub struct CacheStorage {
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

    /// An empty PersistentVolumeClaim of this namespace to fill, instead of one made by the operator. Default: none.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
    )]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim_name: Option<String>,
}
