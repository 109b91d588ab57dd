//! Every fact that a decision about a ModelCache needs.

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::ResourceExt;
use serde::Deserialize;

use super::collection::{Holding, idle_since};
use crate::api::{ModelCache, ModelDeployment};
use crate::child::{COMPONENT, MODEL_CACHE, MODEL_DEPLOYMENT};
use crate::context::Context;
use crate::kept::{CLAIM, IS_HUB, USES_CACHE};
use crate::kubernetes::{ClusterError, Kind, is_controlled_by};
use crate::model_status::{FetchStatus, is_running};
use crate::store::Facet;

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
    /// What all caches of the namespace hold, where a quota asks for it.
    pub holdings: Vec<Holding>,
    /// What the pod that fetches says of itself.
    pub fetching: Option<FetchStatus>,
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
    let claim = match ctx.stores.get(&ctx.stores.claims, &namespace, &claim_name) {
        Some(claim) => Some(claim),
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
    let pods = ctx
        .stores
        .children(&ctx.stores.pods, &namespace, MODEL_CACHE, &name);
    let fetching = match pods.iter().find(|pod| is_fetching(pod)) {
        Some(pod) => ctx.status_reader.read_fetch(pod).await,
        None => None,
    };
    Ok(Observed {
        jobs,
        pods,
        fetching,
        holdings: if ctx.config.caches.namespace_quota.is_some() {
            holdings(ctx, &namespace)
        } else {
            Vec::new()
        },
        claim,
        storage_classes: ctx.stores.storage_classes.all(),
        users: users(ctx, &namespace, &name, &claim_name),
    })
}

fn holdings(ctx: &Context, namespace: &str) -> Vec<Holding> {
    let caches = ctx.stores.caches.by(&Facet::new(namespace, IS_HUB, ""));
    caches
        .iter()
        .map(|cache| Holding {
            name: cache.name_any(),
            bytes: cache
                .status
                .as_ref()
                .and_then(|status| status.bytes_total)
                .unwrap_or_default(),
            idle_since: idle_since(cache),
        })
        .collect()
}

/// Whether a pod is bringing files to the volume now.
#[must_use]
pub fn is_fetching(pod: &Pod) -> bool {
    pod.labels().get(COMPONENT).map(String::as_str) == Some("fetch") && is_running(pod)
}

/// ModelDeployments that name the cache, or whose pods have its claim open, or will have when they come or come back.
fn users(ctx: &Context, namespace: &str, cache: &str, claim: &str) -> Vec<String> {
    let stores = &ctx.stores;
    let facet = Facet::new(namespace, USES_CACHE, cache);
    let mut users: Vec<String> = stores
        .deployments
        .by(&facet)
        .iter()
        .filter(|user| uses(user, cache))
        .map(|user| user.name_any())
        .collect();
    let facet = Facet::new(namespace, CLAIM, claim);
    let open = stores.pods.by(&facet);
    users.extend(open.iter().filter_map(user_of));
    let wanted = stores.workloads.by(&facet);
    users.extend(wanted.iter().filter_map(user_of));
    // What pods may be made from again, after a failed rollout.
    let kept = stores
        .revisions
        .by(&Facet::new(namespace, USES_CACHE, cache));
    users.extend(kept.iter().filter_map(user_of));
    users.sort();
    users.dedup();
    users
}

/// The ModelDeployment that a child belongs to.
fn user_of<K: Kind>(child: &K) -> Option<String> {
    child.labels().get(MODEL_DEPLOYMENT).cloned()
}

/// Whether a ModelDeployment names the cache.
#[must_use]
pub fn uses(user: &ModelDeployment, cache: &str) -> bool {
    user.metadata.deletion_timestamp.is_none() && caches_of(user).any(|name| name == cache)
}

/// The caches that a ModelDeployment names or has been given.
pub fn caches_of(user: &ModelDeployment) -> impl Iterator<Item = &str> {
    let weights = user.spec.weights.as_ref();
    let named = weights.and_then(|weights| Some(weights.cache.as_ref()?.name.as_str()));
    let status = user.status.as_ref();
    let recorded = status.and_then(|status| status.cache.as_deref());
    named.into_iter().chain(recorded)
}
