//! The ModelCache that a ModelDeployment makes, shared by equal needs of a namespace. Pure.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;

use crate::api::{
    CachePod, CacheSource, CacheStorage, HubSource, LocalReference, ModelCache, ModelCacheSpec,
    ModelDeployment, ReclaimPolicy, SecretKey, Toleration, TolerationOperator,
};
use crate::child::{GENERATED, MANAGED_BY, MANAGER};
use crate::digest;
use crate::model_cache::build::volume_size;
use crate::model_deployment::progress::Known;
use crate::model_deployment::revision::CacheRecord;
use crate::model_deployment::validate::{Origin, Validated};

/// The cache that a spec wants. Its name is a digest of what is needed, never of the token or of who needs it.
#[must_use]
pub fn wanted(object: &ModelDeployment, validated: &Validated, known: &Known) -> CacheRecord {
    let spec = match &validated.origin {
        Origin::Cache { name, .. } => {
            return CacheRecord {
                name: name.clone(),
                spec: None,
            };
        }
        Origin::Claim(claim) => ModelCacheSpec {
            source: CacheSource {
                hub: None,
                claim: Some(claim.clone()),
            },
            storage: None,
            reclaim_policy: ReclaimPolicy::Delete,
            // Where it runs is the volume's to say.
            pod: Some(CachePod {
                node_selector: BTreeMap::new(),
                affinity: None,
                runtime_class_name: None,
                ..pod(object, validated)
            }),
        },
        Origin::Hub { .. } => from_hub(object, validated, known),
    };
    let mut needs = spec.clone();
    let given = object.spec.weights.as_ref();
    let given = given.and_then(|weights| weights.storage.as_ref()?.size.clone());
    if let Some(storage) = &mut needs.storage {
        // What we make of the files' bytes says nothing new.
        storage.size = given;
    }
    CacheRecord {
        name: format!("weights-{}", digest::of(&needs)),
        spec: Some(spec),
    }
}

/// Builds the cache. It belongs to nobody: two owners would prune each other's.
#[must_use]
pub fn build_cache(
    object: &ModelDeployment,
    record: &CacheRecord,
    token: Option<SecretKey>,
) -> Option<ModelCache> {
    let mut spec = record.spec.clone()?;
    if let Some(hub) = &mut spec.source.hub {
        hub.token_secret_ref = token;
    }
    let labels: BTreeMap<String, String> = [
        (MANAGED_BY.to_owned(), MANAGER.to_owned()),
        (GENERATED.to_owned(), "true".to_owned()),
    ]
    .into();
    Some(ModelCache {
        metadata: ObjectMeta {
            name: Some(record.name.clone()),
            namespace: object.namespace(),
            labels: Some(labels),
            ..ObjectMeta::default()
        },
        spec,
        status: None,
    })
}

fn from_hub(object: &ModelDeployment, validated: &Validated, known: &Known) -> ModelCacheSpec {
    let (endpoint, files) = match &validated.origin {
        Origin::Hub { request, .. } => (Some(request.endpoint.clone()), request.files.clone()),
        Origin::Cache { .. } | Origin::Claim(_) => (None, Vec::new()),
    };
    let (id, revision, bytes) = match known {
        Known::Found(found) => (found.id.clone(), found.commit.clone(), found.bytes),
        Known::Given => (validated.choice.source.id.clone(), "main".to_owned(), 0),
    };
    let storage = object
        .spec
        .weights
        .clone()
        .unwrap_or_default()
        .storage
        .unwrap_or_default();
    ModelCacheSpec {
        source: CacheSource {
            hub: Some(HubSource {
                name: validated.choice.source.hub,
                id,
                revision,
                format: validated.choice.format,
                files: (!files.is_empty()).then_some(files),
                endpoint,
                token_secret_ref: None,
            }),
            claim: None,
        },
        storage: Some(CacheStorage {
            storage_class_name: storage.storage_class_name,
            size: Some(storage.size.unwrap_or_else(|| volume_size(bytes))),
            access_modes: storage.access_modes,
            claim_name: None,
        }),
        reclaim_policy: storage.reclaim_policy,
        pod: Some(pod(object, validated)),
    }
}

/// The serving pods' place, so that the volume comes to be where they can be, without their accelerators.
fn pod(object: &ModelDeployment, validated: &Validated) -> CachePod {
    let pod = object.spec.pod.clone().unwrap_or_default();
    let mut tolerations = pod.tolerations;
    tolerations.extend(
        accelerators(object, validated)
            .into_iter()
            .map(|kind| Toleration {
                key: Some(kind),
                operator: Some(TolerationOperator::Exists),
                value: None,
                effect: None,
                toleration_seconds: None,
            }),
    );
    CachePod {
        node_selector: pod.node_selector,
        tolerations,
        affinity: pod.affinity,
        runtime_class_name: pod.runtime_class_name,
        image_pull_secrets: validated
            .shape
            .pull_secrets
            .iter()
            .map(|name| LocalReference { name: name.clone() })
            .collect(),
        resources: None,
        security_context: pod.security_context,
    }
}

/// Every kind of accelerator that the spec may come to use: the weights must be where any of them is.
fn accelerators(object: &ModelDeployment, validated: &Validated) -> BTreeSet<String> {
    let listed = object.spec.accelerators.iter().flatten();
    listed
        .chain([&validated.accelerator])
        .map(|accelerator| accelerator.kind.clone())
        .filter(|kind| kind != "cpu")
        .collect()
}
