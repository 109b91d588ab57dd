//! Driver of ModelCaches: what one reconcile does, in one direction.
//!
//! observe → validate → progress → build → apply → status → report.
//! A cache belongs to nobody and is used by many; the one that the operator made goes with its last user, if it says so.

pub mod build;
pub mod collection;
pub mod observe;
pub mod progress;
pub mod status;
pub mod validate;

use std::time::Duration;

use kube::ResourceExt;

use crate::api::{ConditionType, ModelCache, ReclaimPolicy};
use crate::child::{GENERATED, is_managed};
use crate::context::Context;
use crate::kubernetes::ClusterError;
use crate::workers::Reconcile;
use collection::Fate;
use observe::Observed;
use progress::Progress;
use status::Outcome;

/// The word for this kind in logs and metrics.
pub const KIND: &str = "ModelCache";

/// A generated cache waits so long for its first user before it counts as forgotten:
/// its maker writes its name into its own status right after making it.
const FIRST_USER: Duration = Duration::from_secs(120);

/// How often a claim that no watch shows is looked for.
const LOOK_AGAIN: Duration = Duration::from_secs(15);

/// The same once its files are in use: it cannot go while pods have it open.
const LOOK_AGAIN_AT_USED: Duration = Duration::from_secs(300);

/// How often a pod that fetches is asked how far it is.
const LOOK_AT_FETCH: Duration = Duration::from_secs(5);

/// Name of the claim that holds, or is to hold, the files.
#[must_use]
pub fn claim_name(object: &ModelCache) -> String {
    if let Some(claim) = &object.spec.source.claim {
        return claim.claim_name.clone();
    }
    let given = object
        .spec
        .storage
        .as_ref()
        .and_then(|storage| storage.claim_name.clone());
    given.unwrap_or_else(|| object.name_any())
}

impl Reconcile for ModelCache {
    const KIND: &'static str = KIND;

    async fn reconcile(&self, ctx: &Context) -> Result<Option<Duration>, ClusterError> {
        reconcile(self, ctx).await
    }
}

async fn reconcile(object: &ModelCache, ctx: &Context) -> Result<Option<Duration>, ClusterError> {
    if object.metadata.deletion_timestamp.is_some() {
        return Ok(None);
    }
    let observed = observe::observe(object, ctx).await?;
    if is_forgotten(object, &observed, ctx) {
        ctx.cluster.delete(object).await?;
        return Ok(None);
    }
    let fate = collection::fate(object, &observed.holdings, ctx.config.caches, ctx.now());
    let look_again = match fate {
        Fate::Goes(why) if observed.users.is_empty() => {
            collect(object, &observed, &why, ctx).await?;
            return Ok(None);
        }
        Fate::Goes(_) => None,
        Fate::Stays(look_again) => look_again,
    };
    let outcome = converge(object, &observed, ctx).await?;
    let new = status::status(object, &outcome, &observed, ctx.now());
    let old = object
        .status
        .as_ref()
        .map(|status| status.conditions.as_slice())
        .unwrap_or_default();
    let transitions = crate::conditions::transitions(
        old,
        &new.conditions,
        &[ConditionType::Resolved, ConditionType::Ready],
    );
    ctx.cluster.report(object, &new, &transitions).await?;
    let next = next(object, &outcome, &observed);
    Ok(next.into_iter().chain(look_again).min())
}

/// Lets a cache go with its volume, as if that were its policy.
async fn collect(
    object: &ModelCache,
    observed: &Observed,
    why: &str,
    ctx: &Context,
) -> Result<(), ClusterError> {
    let mut leaving = object.clone();
    leaving.spec.reclaim_policy = ReclaimPolicy::Delete;
    converge(&leaving, observed, ctx).await?;
    tracing::info!(
        name = object.name_any(),
        namespace = object.namespace(),
        why,
        "collected"
    );
    ctx.cluster.delete(object).await
}

async fn converge(
    object: &ModelCache,
    observed: &Observed,
    ctx: &Context,
) -> Result<Outcome, ClusterError> {
    let validated = match validate::validate(object, &ctx.config.pods) {
        Ok(validated) => validated,
        Err(violation) => return Ok(Outcome::Invalid(violation)),
    };
    let progress = progress::progress(object, &validated, observed);
    let objects = build::build(object, &validated, &progress, observed, &ctx.config.pods);
    match apply(objects, observed, ctx).await {
        Ok(()) => Ok(Outcome::Reached(validated, progress)),
        Err(error) => match error.refused() {
            Some((reason, message)) => {
                Ok(Outcome::Invalid(validate::Violation { reason, message }))
            }
            None => Err(error),
        },
    }
}

async fn apply(
    objects: build::Objects,
    observed: &Observed,
    ctx: &Context,
) -> Result<(), ClusterError> {
    let build::Objects {
        claim,
        job,
        stale_jobs,
    } = objects;
    for stale in &stale_jobs {
        ctx.cluster.delete(stale).await?;
    }
    if let Some(claim) = claim {
        ctx.cluster.apply(claim, observed.claim.as_ref()).await?;
    }
    if let Some(job) = job {
        // A Job's template never changes, so one that exists is what we want.
        if !observed
            .jobs
            .iter()
            .any(|live| live.name_any() == job.name_any())
        {
            ctx.cluster.apply(job, None).await?;
        }
    }
    Ok(())
}

/// Whether the operator made the cache, nobody uses it any more, and it is to go then.
fn is_forgotten(object: &ModelCache, observed: &Observed, ctx: &Context) -> bool {
    if !is_generated(object)
        || object.spec.reclaim_policy != ReclaimPolicy::Delete
        || !observed.users.is_empty()
    {
        return false;
    }
    let had_users = object
        .status
        .as_ref()
        .is_some_and(|status| !status.used_by.is_empty());
    had_users || age(object, ctx) >= FIRST_USER
}

fn age(object: &ModelCache, ctx: &Context) -> Duration {
    object
        .creation_timestamp()
        .and_then(|created| Duration::try_from(ctx.now().duration_since(created.0)).ok())
        .unwrap_or_default()
}

/// Whether the operator made the cache.
#[must_use]
pub fn is_generated(object: &ModelCache) -> bool {
    is_managed(object) && object.labels().get(GENERATED).map(String::as_str) == Some("true")
}

/// What wakes the object next, besides the watches.
fn next(object: &ModelCache, outcome: &Outcome, observed: &Observed) -> Option<Duration> {
    // A claim without our label is in no watch, and may come or go.
    let is_foreign = observed
        .claim
        .as_ref()
        .is_some_and(|claim| !is_managed(claim));
    let is_fetching = observed.pods.iter().any(observe::is_fetching);
    let may_be_forgotten = is_generated(object)
        && object.spec.reclaim_policy == ReclaimPolicy::Delete
        && observed.users.is_empty();
    match outcome {
        Outcome::Invalid(_) | Outcome::Reached(_, Progress::Blocked { .. }) => Some(LOOK_AGAIN),
        _ if is_fetching => Some(LOOK_AT_FETCH),
        Outcome::Reached(_, Progress::Given(_) | Progress::Fetched(..)) if is_foreign => {
            Some(LOOK_AGAIN_AT_USED)
        }
        _ if is_foreign => Some(LOOK_AGAIN),
        _ if may_be_forgotten => Some(FIRST_USER),
        _ => None,
    }
}
