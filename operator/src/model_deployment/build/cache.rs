//! The ModelCache that a ModelDeployment makes, shared by equal needs of a namespace. Pure.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;

use crate::api::{
    CachePod, CacheSource, CacheStorage, HubSource, LocalReference, ModelCache, ModelCacheSpec,
    ModelDeployment, Toleration, TolerationOperator,
};
use crate::child::{GENERATED, MANAGED_BY, MANAGER};
use crate::digest;
use crate::model_cache::build::volume_size;
use crate::model_deployment::observe::Observed;
use crate::model_deployment::progress::Found;
use crate::model_deployment::validate::{Validated, WeightsFrom};

/// Name of the cache: a digest of what is needed, never of the token or of who needs it.
#[must_use]
pub fn cache_name(object: &ModelDeployment, validated: &Validated, found: &Found) -> String {
    let mut needs = spec(object, validated, found, None);
    let given = object.spec.weights.as_ref();
    let given = given.and_then(|weights| weights.storage.as_ref()?.size.clone());
    if let Some(storage) = &mut needs.storage {
        // What we make of the files' bytes says nothing new.
        storage.size = given;
    }
    format!("weights-{}", digest::of(&needs))
}

/// Builds the cache. It belongs to nobody: two owners would prune each other's.
#[must_use]
pub fn build_cache(
    object: &ModelDeployment,
    validated: &Validated,
    found: &Found,
    observed: &Observed,
) -> ModelCache {
    let labels: BTreeMap<String, String> = [
        (MANAGED_BY.to_owned(), MANAGER.to_owned()),
        (GENERATED.to_owned(), "true".to_owned()),
    ]
    .into();
    ModelCache {
        metadata: ObjectMeta {
            name: Some(cache_name(object, validated, found)),
            namespace: object.namespace(),
            labels: Some(labels),
            ..ObjectMeta::default()
        },
        spec: spec(object, validated, found, observed.cache_token_of.clone()),
        status: None,
    }
}

fn spec(
    object: &ModelDeployment,
    validated: &Validated,
    found: &Found,
    token: Option<crate::api::SecretKey>,
) -> ModelCacheSpec {
    let (endpoint, files) = match &validated.weights {
        WeightsFrom::Hub { request, .. } => (Some(request.endpoint.clone()), request.files.clone()),
        WeightsFrom::Cache { .. } => (None, Vec::new()),
    };
    let storage = object
        .spec
        .weights
        .clone()
        .unwrap_or_default()
        .storage
        .unwrap_or_default();
    let pod = object.spec.pod.clone().unwrap_or_default();
    let mut tolerations = pod.tolerations;
    if validated.accelerator.kind != "cpu" {
        tolerations.push(Toleration {
            key: Some(validated.accelerator.kind.clone()),
            operator: Some(TolerationOperator::Exists),
            value: None,
            effect: None,
            toleration_seconds: None,
        });
    }
    ModelCacheSpec {
        source: CacheSource {
            hub: Some(HubSource {
                name: validated.choice.source.hub,
                id: found.id.clone(),
                revision: found.commit.clone(),
                format: validated.choice.format,
                files: (!files.is_empty()).then_some(files),
                endpoint,
                token_secret_ref: token,
            }),
            claim: None,
        },
        storage: Some(CacheStorage {
            storage_class_name: storage.storage_class_name,
            size: Some(storage.size.unwrap_or_else(|| volume_size(found.bytes))),
            access_modes: storage.access_modes,
            claim_name: None,
        }),
        reclaim_policy: storage.reclaim_policy,
        pod: Some(CachePod {
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
        }),
    }
}
