//! Driver of ModelDeployments: what one reconcile does, in one direction.
//!
//! observe → validate → progress → build → apply → status → report.

pub mod build;
pub mod observe;
pub mod progress;
pub mod status;
pub mod validate;
pub mod variant;

use std::time::Duration;

use kube::ResourceExt;
use kube::runtime::controller::Action;

use crate::api::{ConditionType, ModelDeployment, Reason, SecretKey};
use crate::conditions;
use crate::context::Context;
use crate::kubernetes::{ClusterError, is_controlled_by};
use crate::model_cache::validate::Violation;
use crate::model_status::is_waiting;
use observe::Observed;
use progress::{CacheState, Resolution};
use status::{Outcome, Reached};
use validate::{Validated, WeightsFrom};

/// The word for this kind in logs and metrics.
pub const KIND: &str = "ModelDeployment";

/// How often a pod that is not ready is asked how far it is.
const LOOK_AT_PODS: Duration = Duration::from_secs(3);

/// How often a name that a stranger has is tried again: no watch shows strangers.
const LOOK_FOR_STRANGERS: Duration = Duration::from_secs(15);

/// One reconcile.
///
/// # Errors
///
/// When the API server refuses or does not answer.
pub async fn reconcile(object: &ModelDeployment, ctx: &Context) -> Result<Action, ClusterError> {
    if object.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let mut observed = observe::observe(object, ctx).await?;
    let outcome = converge(object, &mut observed, ctx).await?;
    observed.saying = ctx.status_reader.read(&observed.pods).await;
    let new = status::status(object, &outcome, &observed, ctx.now());
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
    Ok(next(&outcome, &observed))
}

async fn converge(
    object: &ModelDeployment,
    observed: &mut Observed,
    ctx: &Context,
) -> Result<Outcome, ClusterError> {
    let defaults = &ctx.config.pods;
    let validated = match validate::validate(object, observed, defaults) {
        Ok(validated) => validated,
        Err(violation) => return Ok(Outcome::Invalid(violation)),
    };
    let resolution = match progress::resolution(object, &validated, observed, defaults) {
        Ok(resolution) => resolution,
        Err(violation) => return Ok(Outcome::Invalid(violation)),
    };
    let cache_name = cache_name(object, &validated, &resolution);
    if let Some(name) = &cache_name {
        let namespace = object.namespace().unwrap_or_default();
        observed.cache = ctx.stores.get(&ctx.stores.caches, &namespace, name);
        observed.cache_token_of = token(object, &validated, name, ctx);
    }
    let cache = progress::cache_state(&validated, &resolution, observed);
    let objects = build::build(object, &validated, &resolution, &cache, observed, defaults);
    let workload_is_wanted = objects.workload.is_some();
    match apply(object, objects, observed, ctx).await {
        Ok(None) => {}
        Ok(Some(violation)) => return Ok(Outcome::Invalid(violation)),
        Err(error) => {
            return match error.refused() {
                Some(message) => Ok(Outcome::Invalid(Violation {
                    reason: Reason::InvalidSpec,
                    message,
                })),
                None => Err(error),
            };
        }
    }
    let reached = Reached {
        validated,
        resolution,
        cache,
        cache_name,
        workload_is_wanted,
    };
    Ok(Outcome::Reached(Box::new(reached)))
}

/// Name of the cache that this spec wants, once the commit is known.
#[must_use]
pub fn cache_name(
    object: &ModelDeployment,
    validated: &Validated,
    resolution: &Resolution,
) -> Option<String> {
    match (&validated.weights, resolution) {
        (WeightsFrom::Cache { name, .. }, _) => Some(name.clone()),
        (WeightsFrom::Hub { .. }, Resolution::Found(found)) => {
            Some(build::cache::cache_name(object, validated, found))
        }
        (WeightsFrom::Hub { .. }, _) => None,
    }
}

/// The token that the shared cache fetches with: of all users that bring one, the first by name.
/// Every user comes to the same answer, so they never write against each other.
fn token(
    object: &ModelDeployment,
    validated: &Validated,
    cache: &str,
    ctx: &Context,
) -> Option<SecretKey> {
    let own = match &validated.weights {
        WeightsFrom::Hub { token, .. } => token.clone(),
        WeightsFrom::Cache { .. } => return None,
    };
    let (namespace, name) = (object.namespace(), object.name_any());
    let mut tokens: Vec<(String, SecretKey)> = ctx
        .stores
        .deployments
        .state_filter(|other| {
            other.namespace() == namespace
                && other.name_any() != name
                && crate::model_cache::observe::uses(other, cache)
        })
        .iter()
        .filter_map(|other| {
            let token = other.spec.weights.as_ref()?.token_secret_ref.clone()?;
            Some((other.name_any(), token))
        })
        .chain(own.map(|token| (name.clone(), token)))
        .collect();
    tokens.sort_by(|one, other| one.0.cmp(&other.0));
    tokens.into_iter().next().map(|(_, token)| token)
}

/// Applies in the order of need: what goes first, the door, the question, the weights, the pods.
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
        workload,
        stale_jobs,
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
            live => {
                let live = live.clone();
                observed.cache = Some(ctx.cluster.apply(cache, live.as_ref()).await?);
            }
        }
    }
    if let Some(workload) = workload {
        observed.workload = Some(
            ctx.cluster
                .apply(workload, observed.workload.as_ref())
                .await?,
        );
    }
    Ok(None)
}

/// What wakes the object next, besides the watches.
fn next(outcome: &Outcome, observed: &Observed) -> Action {
    match outcome {
        Outcome::Invalid(violation)
            if matches!(violation.reason, Reason::NameConflict | Reason::InvalidSpec) =>
        {
            Action::requeue(LOOK_FOR_STRANGERS)
        }
        Outcome::Reached(reached)
            if matches!(reached.cache, CacheState::Ready(_))
                && observed.pods.iter().any(is_waiting) =>
        {
            Action::requeue(LOOK_AT_PODS)
        }
        _ => Action::await_change(),
    }
}
