//! Spec → what is meant, or what is wrong with it. Pure.

use k8s_openapi::api::core::v1::Affinity;
use serde_json::Value;

use crate::api::{AccessMode, CachePod, CacheStorage, ModelCache, Reason, SecretKey};
use crate::child::{self, PodShape};
use crate::config::PodDefaults;
use crate::weights_job::HubRequest;

/// A spec that can be worked on.
#[derive(Clone, Debug, PartialEq)]
pub struct Validated {
    /// Where the weights come from.
    pub source: Source,
    /// Where and as whom the Jobs run.
    pub shape: PodShape,
}

/// Where the weights come from.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// From a hub onto a volume.
    Hub {
        /// What the hub is asked for.
        request: HubRequest,
        /// Key of the Secret with the token.
        token: Option<SecretKey>,
        /// The volume.
        volume: Volume,
    },
    /// They are on a volume already.
    Claim {
        /// Folder or file on it; empty for the top folder.
        path: String,
    },
}

/// The volume that is to be filled.
#[derive(Clone, Debug, PartialEq)]
pub enum Volume {
    /// One that the user made.
    Given,
    /// One that the operator makes.
    Made {
        /// StorageClass; the cluster's default when absent.
        class: Option<String>,
        /// Size; from the files' bytes when absent.
        size: Option<String>,
        /// At least one.
        access_modes: Vec<AccessMode>,
    },
}

/// What is wrong with a spec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Why it cannot be used.
    pub reason: Reason,
    /// Which field, what is wrong, what to do.
    pub message: String,
}

/// Reads a spec as what is meant.
///
/// # Errors
///
/// When a part that the schema passes on unread is not what Kubernetes takes, or a hub has no address.
pub fn validate(object: &ModelCache, defaults: &PodDefaults) -> Result<Validated, Violation> {
    let spec = &object.spec;
    let shape = shape(spec.pod.as_ref())?;
    if let Some(claim) = &spec.source.claim {
        let path = claim.path.clone().unwrap_or_default();
        return Ok(Validated {
            source: Source::Claim { path },
            shape,
        });
    }
    let Some(hub) = &spec.source.hub else {
        return Err(Violation {
            reason: Reason::InvalidSpec,
            message: "spec.source: exactly one of hub and claim must be given".to_owned(),
        });
    };
    let endpoint = match &hub.endpoint {
        Some(endpoint) => endpoint.trim_end_matches('/').to_owned(),
        None => defaults
            .endpoints
            .get(&hub.name)
            .cloned()
            .ok_or_else(|| no_endpoint(hub.name))?,
    };
    let storage = spec.storage.clone().unwrap_or_default();
    Ok(Validated {
        source: Source::Hub {
            request: HubRequest {
                hub: hub.name,
                endpoint,
                id: hub.id.clone(),
                aliases: Vec::new(),
                revision: hub.revision.clone(),
                format: hub.format,
                files: hub.files.clone().unwrap_or_default(),
            },
            token: hub.token_secret_ref.clone(),
            volume: volume(storage),
        },
        shape,
    })
}

/// A hub without an address in this installation.
#[must_use]
pub fn no_endpoint(hub: crate::api::Hub) -> Violation {
    Violation {
        reason: Reason::HubNotOffered,
        message: format!(
            "no address is known for hub {}; start the operator with --hub-endpoint {}=URL or give an endpoint in the spec",
            hub.as_str(),
            hub.as_str()
        ),
    }
}

fn volume(storage: CacheStorage) -> Volume {
    if storage.claim_name.is_some() {
        return Volume::Given;
    }
    Volume::Made {
        class: storage.storage_class_name,
        size: storage.size,
        access_modes: storage
            .access_modes
            .unwrap_or_else(|| vec![AccessMode::ReadWriteOnce]),
    }
}

fn shape(pod: Option<&CachePod>) -> Result<PodShape, Violation> {
    let Some(pod) = pod else {
        return Ok(PodShape::default());
    };
    let CachePod {
        node_selector,
        tolerations,
        affinity,
        runtime_class_name,
        image_pull_secrets,
        resources: _, // Taken by the container.
        security_context,
    } = pod;
    Ok(PodShape {
        node_selector: node_selector.clone(),
        tolerations: child::tolerations(tolerations),
        affinity: affinity.as_ref().map(parse_affinity).transpose()?,
        runtime_class: runtime_class_name.clone(),
        security: security_context.clone(),
        pull_secrets: image_pull_secrets
            .iter()
            .map(|secret| secret.name.clone())
            .collect(),
        ..PodShape::default()
    })
}

/// Reads an affinity that the schema passed on unread.
///
/// # Errors
///
/// When Kubernetes' own type cannot hold it.
pub fn parse_affinity(
    written: &std::collections::BTreeMap<String, Value>,
) -> Result<Affinity, Violation> {
    let value = Value::Object(written.clone().into_iter().collect());
    serde_json::from_value(value).map_err(|error| Violation {
        reason: Reason::InvalidSpec,
        message: format!("spec.pod.affinity is not an affinity of Kubernetes: {error}"),
    })
}
