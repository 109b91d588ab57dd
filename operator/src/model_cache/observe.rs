//! Every fact that a decision about a ModelCache needs.

use std::sync::Arc;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, PodSpec};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::ResourceExt;
use serde::Deserialize;

use crate::api::{ModelCache, ModelDeployment};
use crate::child::{MODEL_CACHE, MODEL_DEPLOYMENT};
use crate::context::Context;
use crate::kubernetes::{ClusterError, is_controlled_by};
use crate::model_deployment::revision::cache_of;

/// What the cluster says.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Observed {
    /// The cache's own Jobs.
    pub jobs: Vec<Job>,
    /// Their pods.
    pub pods: Vec<Pod>,
    /// The claim that holds, or is to hold, the files.
    pub claim: Option<PersistentVolumeClaim>,
    /// Every StorageClass.
    pub storage_classes: Vec<StorageClass>,
    /// ModelDeployments that use the cache.
    pub users: Vec<String>,
}

/// Reads the facts from the watches' stores; a claim that is not ours is asked for.
///
/// # Errors
///
/// When the API server does not answer.
pub async fn observe(object: &ModelCache, ctx: &Context) -> Result<Observed, ClusterError> {
    let namespace = object.namespace().unwrap_or_default();
    let name = object.name_any();
    let claim_name = super::claim_name(object);
    let claim = match ctx.stores.claims.find(|claim| {
        claim.namespace().as_deref() == Some(&namespace) && claim.name_any() == claim_name
    }) {
        Some(claim) => Some(Arc::unwrap_or_clone(claim)),
        None => {
            ctx.cluster
                .get::<PersistentVolumeClaim>(&namespace, &claim_name)
                .await?
        }
    };
    let uid = object.uid().unwrap_or_default();
    let mut jobs = ctx
        .stores
        .children(&ctx.stores.jobs, &namespace, MODEL_CACHE, &name);
    // An older object of the same name may have been about other weights.
    jobs.retain(|job| is_controlled_by(job, &uid));
    Ok(Observed {
        jobs,
        pods: ctx
            .stores
            .children(&ctx.stores.pods, &namespace, MODEL_CACHE, &name),
        claim,
        storage_classes: ctx
            .stores
            .storage_classes
            .state()
            .iter()
            .map(|c| (**c).clone())
            .collect(),
        users: users(ctx, &namespace, &name, &claim_name),
    })
}

/// ModelDeployments that name the cache, or whose pods have its claim open, or will have when they come or come back.
fn users(ctx: &Context, namespace: &str, cache: &str, claim: &str) -> Vec<String> {
    let mut users: Vec<String> = ctx
        .stores
        .deployments
        .state_filter(|user| user.namespace().as_deref() == Some(namespace) && uses(user, cache))
        .iter()
        .map(|user| user.name_any())
        .collect();
    let pods = ctx.stores.pods.state();
    let open = pods
        .iter()
        .filter(|pod| {
            pod.namespace().as_deref() == Some(namespace) && mounts(pod.spec.as_ref(), claim)
        })
        .filter_map(|pod| pod.labels().get(MODEL_DEPLOYMENT).cloned());
    users.extend(open);
    let workloads = ctx.stores.workloads.state();
    let wanted = workloads
        .iter()
        .filter(|workload| {
            workload.namespace().as_deref() == Some(namespace)
                && mounts(workload.spec.template.spec.as_ref(), claim)
        })
        .filter_map(|workload| workload.labels().get(MODEL_DEPLOYMENT).cloned());
    users.extend(wanted);
    // What pods may be made from again, after a failed rollout.
    let revisions = ctx.stores.revisions.state();
    let kept = revisions
        .iter()
        .filter(|kept| {
            kept.namespace().as_deref() == Some(namespace) && cache_of(kept) == Some(cache)
        })
        .filter_map(|kept| kept.labels().get(MODEL_DEPLOYMENT).cloned());
    users.extend(kept);
    users.sort();
    users.dedup();
    users
}

/// Whether a ModelDeployment names the cache.
#[must_use]
pub fn uses(user: &ModelDeployment, cache: &str) -> bool {
    if user.metadata.deletion_timestamp.is_some() {
        return false;
    }
    let named = user
        .spec
        .weights
        .as_ref()
        .and_then(|weights| weights.cache.as_ref());
    let recorded = user
        .status
        .as_ref()
        .and_then(|status| status.cache.as_deref());
    named.is_some_and(|reference| reference.name == cache) || recorded == Some(cache)
}

fn mounts(pod: Option<&PodSpec>, claim: &str) -> bool {
    pod.and_then(|spec| spec.volumes.as_ref())
        .is_some_and(|volumes| {
            volumes.iter().any(|volume| {
                volume
                    .persistent_volume_claim
                    .as_ref()
                    .is_some_and(|source| source.claim_name == claim)
            })
        })
}
