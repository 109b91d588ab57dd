//! Driver of ModelDeployments: what one reconcile does, in one direction.
//!
//! observe → decide (validate → progress → revision → rollout → build) → apply → status → report.
//! The nodes are many, so they are observed only where a decision weighs them, and it is made again with them.

pub mod build;
pub mod decide;
pub mod observe;
pub mod placement;
pub mod plan;
pub mod progress;
pub mod revision;
pub mod rollout;
pub mod scheduling;
pub mod startup;
pub mod status;
pub mod validate;
pub mod variant;

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use crate::api::{ConditionType, ModelDeployment, ModelDeploymentStatus, Reason, SecretKey};
use crate::conditions;
use crate::context::Context;
use crate::kept::USES_CACHE;
use crate::kubernetes::{ClusterError, is_controlled_by};
use crate::model_cache::validate::Violation;
use crate::model_status::is_waiting;
use crate::pod_health;
use crate::store::Facet;
use crate::workers::Reconcile;
use build::engine;
use decide::Decision;
use observe::Observed;
use validate::{Origin, Validated};

/// The word for this kind in logs and metrics.
pub const KIND: &str = "ModelDeployment";

/// How often a pod that is not ready is asked how far it is.
const LOOK_AT_PODS: Duration = Duration::from_secs(3);

/// How long after its start a ready pod is asked what it computes on.
const ASK_SECONDS: i64 = 60;

/// How often a name that a stranger has is tried again: no watch shows strangers.
const LOOK_FOR_STRANGERS: Duration = Duration::from_secs(15);

impl Reconcile for ModelDeployment {
    const KIND: &'static str = KIND;

    async fn reconcile(&self, ctx: &Context) -> Result<Option<Duration>, ClusterError> {
        reconcile(self, ctx).await
    }
}

async fn reconcile(
    object: &ModelDeployment,
    ctx: &Context,
) -> Result<Option<Duration>, ClusterError> {
    if object.metadata.deletion_timestamp.is_some() {
        return Ok(None);
    }
    let now = ctx.now();
    let mut observed = observe::observe(object, ctx).await?;
    let find_cache = |name: &str, validated: &Validated| {
        let namespace = object.namespace().unwrap_or_default();
        let cache = ctx.stores.get(&ctx.stores.caches, &namespace, name);
        (cache, token(object, validated, name, ctx))
    };
    let defaults = &ctx.config.pods;
    let mut decision = decide::decide(object, &mut observed, defaults, now, &find_cache);
    if decision.weighs_nodes {
        observed.nodes = Some(observe::nodes(ctx).await?);
        if let Some(serving) = &decision.serving {
            let namespace = object.namespace().unwrap_or_default();
            let claim = &serving.record.weights.claim;
            observed.volume = observe::volume(&namespace, claim, ctx).await?;
        }
        decision = decide::decide(object, &mut observed, defaults, now, &find_cache);
    }
    let objects = std::mem::take(&mut decision.objects);
    let refused = match apply(object, objects, &mut observed, ctx).await {
        Ok(Some(violation)) => {
            decision.model = Err(violation);
            None
        }
        Ok(None) => None,
        Err(error) => Some(error.refused().ok_or(error)?),
    };
    let asked = pods_to_ask(object, &decision, &observed, now);
    observed.saying = ctx.status_reader.read(&asked).await;
    let new = status::status(object, &decision, refused.as_ref(), &observed, now);
    let old = object
        .status
        .as_ref()
        .map(|status| status.conditions.as_slice())
        .unwrap_or_default();
    let transitions = conditions::transitions(
        old,
        &new.conditions,
        &[
            ConditionType::ModelResolved,
            ConditionType::WeightsCached,
            ConditionType::Ready,
        ],
    );
    ctx.cluster.report(object, &new, &transitions).await?;
    Ok(next(&decision, refused.is_some(), &observed, &new))
}

/// Pods whose own words are of interest: those that are not ready yet, and, for a while, ready ones
/// whose device nobody knows. One that does not answer is left alone after that.
fn pods_to_ask(
    object: &ModelDeployment,
    decision: &Decision,
    observed: &Observed,
    now: Timestamp,
) -> Vec<Pod> {
    let Some(serving) = &decision.serving else {
        return Vec::new();
    };
    if !engine::tells_status(&serving.record.template) {
        return Vec::new();
    }
    let known = object
        .status
        .as_ref()
        .and_then(|status| status.device.as_ref())
        .map(|device| device.pod.as_str());
    let pods = rollout::pods_of(observed, serving.template_digest());
    let device_is_known = pods
        .iter()
        .any(|pod| Some(pod.name_any().as_str()) == known);
    let is_new = |pod: &Pod| {
        pod_health::transition(pod, "Ready")
            .is_some_and(|since| now.duration_since(since).as_secs() < ASK_SECONDS)
    };
    pods.into_iter()
        .filter(|pod| is_waiting(pod) || (!device_is_known && is_new(pod)))
        .cloned()
        .collect()
}

/// The token that the shared cache fetches with: of all users that bring one, the first by name.
/// Every user comes to the same answer, so they never write against each other.
fn token(
    object: &ModelDeployment,
    validated: &Validated,
    cache: &str,
    ctx: &Context,
) -> Option<SecretKey> {
    let own = match &validated.origin {
        Origin::Hub { token, .. } => token.clone(),
        Origin::Cache { .. } | Origin::Claim(_) => return None,
    };
    let (namespace, name) = (object.namespace(), object.name_any());
    let facet = Facet::new(namespace.as_deref().unwrap_or_default(), USES_CACHE, cache);
    let mut tokens: Vec<(String, SecretKey)> = ctx
        .stores
        .deployments
        .by(&facet)
        .iter()
        .filter(|other| other.name_any() != name && crate::model_cache::observe::uses(other, cache))
        .filter_map(|other| {
            let token = other.spec.weights.as_ref()?.token_secret_ref.clone()?;
            Some((other.name_any(), token))
        })
        .chain(own.map(|token| (name.clone(), token)))
        .collect();
    tokens.sort_by(|one, other| one.0.cmp(&other.0));
    tokens.into_iter().next().map(|(_, token)| token)
}

/// Applies in the order of need: what goes first, the door, the question, the weights, what pods are made from, the pods.
async fn apply(
    object: &ModelDeployment,
    objects: build::Objects,
    observed: &mut Observed,
    ctx: &Context,
) -> Result<Option<Violation>, ClusterError> {
    let build::Objects {
        service,
        job,
        cache,
        revision,
        workload,
        budget,
        stale_jobs,
        stale_revisions,
    } = objects;
    let uid = object.uid().unwrap_or_default();
    for stale in stale_jobs
        .iter()
        .filter(|stale| is_controlled_by(*stale, &uid))
    {
        ctx.cluster.delete(stale).await?;
    }
    if let Some(service) = service {
        observed.service = Some(
            ctx.cluster
                .apply(service, observed.service.as_ref())
                .await?,
        );
    }
    if let Some(job) = job
        && !observed
            .jobs
            .iter()
            .any(|live| live.name_any() == job.name_any())
    {
        // A Job's template never changes, so one that exists is what we want.
        ctx.cluster.apply(job, None).await?;
    }
    if let Some(cache) = cache {
        match &observed.cache {
            Some(live) if live.metadata.deletion_timestamp.is_some() => {}
            // Somebody else's object of that name is used as it is, or not at all.
            Some(live) if !crate::model_cache::is_generated(live) => {
                return Ok(Some(validate::name_conflict(
                    "ModelCache",
                    &live.name_any(),
                )));
            }
            // What is known may be older than the user's deletion, and nothing takes a cache away with its first user.
            None if !ctx.cluster.is_there(object).await? => return Ok(None),
            live => {
                let live = live.clone();
                observed.cache = Some(ctx.cluster.apply(cache, live.as_ref()).await?);
            }
        }
    }
    if let Some(revision) = revision {
        let live = observed
            .revisions
            .iter()
            .find(|live| live.name_any() == revision.name_any());
        ctx.cluster.apply(revision, live).await?;
    }
    if let Some(workload) = workload {
        observed.workload = Some(
            ctx.cluster
                .apply(workload, observed.workload.as_ref())
                .await?,
        );
    }
    if let Some(budget) = budget {
        ctx.cluster.apply(budget, observed.budget.as_ref()).await?;
    }
    for stale in &stale_revisions {
        ctx.cluster.delete(stale).await?;
    }
    Ok(None)
}

/// What wakes the object next, besides the watches.
fn next(
    decision: &Decision,
    refused: bool,
    observed: &Observed,
    status: &ModelDeploymentStatus,
) -> Option<Duration> {
    // A cache of that name is found while the objects are applied.
    let is_taken = matches!(&decision.model, Err(violation) if violation.reason == Reason::NameConflict)
        || !observed.strangers.is_empty();
    let serving = decision.serving.as_ref();
    let pods = serving.map_or_else(Vec::new, |serving| {
        rollout::pods_of(observed, serving.template_digest())
    });
    let tells = serving.is_some_and(|serving| engine::tells_status(&serving.record.template));
    let looks = (tells
        && (pods.iter().any(|pod| is_waiting(pod))
            || (status.device.is_none() && !observed.saying.is_empty())))
    .then_some(LOOK_AT_PODS);
    let strangers = (is_taken || refused).then_some(LOOK_FOR_STRANGERS);
    [looks, strangers, decision.due()]
        .into_iter()
        .flatten()
        .min()
}
