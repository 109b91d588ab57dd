//! Outcome + old status → new status. Pure; the time is passed in.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use super::build::service;
use super::observe::Observed;
use super::progress::{CacheState, Resolution};
use super::validate::{Validated, WeightsFrom};
use crate::answer::is_commit;
use crate::api::{ConditionType, ModelDeployment, ModelDeploymentStatus, Reason, ResolvedModel};
use crate::child::{self, Family, REVISION};
use crate::conditions::{self, Holds, Verdict};
use crate::digest;
use crate::model_cache::validate::Violation;
use crate::model_status::ModelStatus;
use crate::pod_health;

/// How far a reconcile got.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// The spec cannot be worked on; what runs goes on running.
    Invalid(Violation),
    /// Everything for this step exists.
    Reached(Box<Reached>),
}

/// A step that was reached.
#[derive(Clone, Debug)]
pub struct Reached {
    /// The spec as meant.
    pub validated: Validated,
    /// What is known of the model.
    pub resolution: Resolution,
    /// How far the weights are.
    pub cache: CacheState,
    /// Name of the cache, once known.
    pub cache_name: Option<String>,
    /// Whether the Deployment was built from today's spec.
    pub workload_is_wanted: bool,
}

/// A pod that answers nothing for so long after its start is failing its probe.
const PROBE_PATIENCE_SECONDS: i64 = 30;

/// The status after a reconcile. `observed` holds the Deployment as the API server returned it.
#[must_use]
pub fn status(
    object: &ModelDeployment,
    outcome: &Outcome,
    observed: &Observed,
    now: Timestamp,
) -> ModelDeploymentStatus {
    let old = object.status.clone().unwrap_or_default();
    let generation = object.metadata.generation.unwrap_or_default();
    let name = object.name_any();
    let counts = observed
        .workload
        .as_ref()
        .and_then(|workload| workload.status.clone())
        .unwrap_or_default();
    let (model, cache) = match outcome {
        Outcome::Invalid(_) => (old.model, old.cache),
        Outcome::Reached(reached) => (
            Some(model(reached, observed)),
            reached.cache_name.clone().or(old.cache),
        ),
    };
    let selector: Vec<String> = child::identity(Family::Deployment, &name, "serve")
        .into_iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    let verdicts = verdicts(object, outcome, observed, now);
    ModelDeploymentStatus {
        observed_generation: generation,
        model,
        cache,
        endpoint: observed.service.as_ref().map(|_| service::endpoint(object)),
        replicas: counts.replicas.unwrap_or_default(),
        updated_replicas: counts.updated_replicas.unwrap_or_default(),
        ready_replicas: counts.ready_replicas.unwrap_or_default(),
        selector: Some(selector.join(",")),
        conditions: conditions::merge(&old.conditions, verdicts, generation, now),
    }
}

fn model(reached: &Reached, observed: &Observed) -> ResolvedModel {
    let choice = &reached.validated.choice;
    let mut model = ResolvedModel {
        hub: Some(choice.source.hub),
        id: choice.source.id.clone(),
        commit: None,
        format: choice.format,
        size_in_billions: choice.size_in_billions.clone(),
        quantization: choice.quantization.clone(),
        bytes: None,
        architecture: None,
        request: None,
    };
    match (&reached.resolution, &reached.validated.weights) {
        (Resolution::Found(found), _) => {
            model.id.clone_from(&found.id);
            model.commit = Some(found.commit.clone());
            model.bytes = Some(found.bytes);
            model.architecture.clone_from(&found.architecture);
            model.request = Some(found.request.clone());
        }
        (Resolution::Asking(_), WeightsFrom::Hub { request, .. }) => {
            model.request = Some(digest::of(request));
        }
        _ => {
            if let Some(status) = observed
                .cache
                .as_ref()
                .and_then(|cache| cache.status.as_ref())
            {
                model.commit = status.commit.clone().filter(|commit| is_commit(commit));
                model.bytes = status.bytes_total;
                model.architecture.clone_from(&status.architecture);
            }
        }
    }
    model
}

fn verdicts(
    object: &ModelDeployment,
    outcome: &Outcome,
    observed: &Observed,
    now: Timestamp,
) -> Vec<(ConditionType, Verdict)> {
    let resolved = model_resolved(outcome);
    let weights = weights_cached(outcome);
    let wanted = matches!(outcome, Outcome::Reached(reached) if reached.workload_is_wanted);
    let healthy = runtime_healthy(observed, now);
    let available = available(object, observed);
    let ready = match outcome {
        _ if resolved.holds != Holds::Yes => resolved.clone(),
        _ if object.spec.replicas == 0 && (weights.holds == Holds::Yes) => {
            suspended(object, observed)
        }
        _ if weights.holds != Holds::Yes => weights.clone(),
        _ => ready(object, observed, wanted, &healthy),
    };
    // What is not known yet is not ready.
    let ready = if ready.holds == Holds::Unknown {
        Verdict {
            holds: Holds::No,
            ..ready
        }
    } else {
        ready
    };
    vec![
        (ConditionType::Ready, ready),
        (ConditionType::ModelResolved, resolved),
        (ConditionType::WeightsCached, weights),
        (ConditionType::RuntimeHealthy, healthy),
        (ConditionType::Available, available),
    ]
}

fn model_resolved(outcome: &Outcome) -> Verdict {
    let reached = match outcome {
        Outcome::Invalid(violation) => return Verdict::no(violation.reason, &violation.message),
        Outcome::Reached(reached) => reached,
    };
    let choice = &reached.validated.choice;
    match &reached.resolution {
        Resolution::Asking(state) => {
            let (reason, message) = state.verdict(Reason::Resolving);
            Verdict::no(reason, message)
        }
        Resolution::Found(found) => Verdict::yes(
            Reason::Succeeded,
            format!(
                "{} at commit {} ({}, {} billion parameters, quantization {}, {} bytes)",
                found.id,
                found.commit,
                choice.format.as_str(),
                choice.size_in_billions,
                choice.quantization,
                found.bytes
            ),
        ),
        Resolution::Cached { cache } => Verdict::yes(
            Reason::Succeeded,
            format!("the weights come from ModelCache {cache}"),
        ),
    }
}

fn weights_cached(outcome: &Outcome) -> Verdict {
    match outcome {
        Outcome::Invalid(_) => Verdict::waiting("the model is not resolved"),
        Outcome::Reached(reached) => match &reached.cache {
            CacheState::Unknown => match &reached.resolution {
                // Whatever keeps the hub from naming the commit keeps the weights away.
                Resolution::Asking(state) => {
                    let (reason, message) = state.verdict(Reason::Resolving);
                    Verdict::no(reason, message)
                }
                _ => Verdict::waiting("the commit is not known yet"),
            },
            CacheState::Waiting { reason, message } => Verdict::no(*reason, message),
            CacheState::Ready(weights) => Verdict::yes(
                Reason::Succeeded,
                format!(
                    "every file is on claim {} in /{}",
                    weights.claim, weights.path
                ),
            ),
        },
    }
}

/// Pods of the Deployment's present template.
fn current_pods(observed: &Observed) -> Vec<&Pod> {
    let Some(workload) = &observed.workload else {
        return Vec::new();
    };
    let revision = revision(workload);
    observed
        .pods
        .iter()
        .filter(|pod| !pod_health::is_leaving(pod) && !pod_health::is_over(pod))
        .filter(|pod| pod.annotations().get(REVISION).map(String::as_str) == revision)
        .collect()
}

fn revision(workload: &Deployment) -> Option<&str> {
    let template = &workload.spec.template;
    template
        .metadata
        .as_ref()?
        .annotations
        .as_ref()?
        .get(REVISION)
        .map(String::as_str)
}

fn runtime_healthy(observed: &Observed, now: Timestamp) -> Verdict {
    if observed.workload.is_none() {
        return Verdict::waiting("no pod has been asked for yet");
    }
    for pod in current_pods(observed) {
        if let Some(trouble) = pod_health::trouble(pod)
            && trouble.reason != Reason::Unschedulable
        {
            return Verdict::no(trouble.reason, trouble.message);
        }
        if let Some(error) = observed
            .saying
            .get(&pod.name_any())
            .and_then(|said| said.error.as_ref())
        {
            let message = format!("pod {}: {}", pod.name_any(), error.message);
            return Verdict::no(Reason::LoadFailed, message);
        }
        if let Some(verdict) = silent(pod, now) {
            return verdict;
        }
    }
    Verdict::yes(Reason::Succeeded, "no pod is failing")
}

/// A container that runs and does not even answer its startup probe.
fn silent(pod: &Pod, now: Timestamp) -> Option<Verdict> {
    let container = pod
        .status
        .as_ref()?
        .container_statuses
        .as_ref()?
        .iter()
        .find(|c| c.name == "serve")?;
    let since = container
        .state
        .as_ref()?
        .running
        .as_ref()?
        .started_at
        .as_ref()?;
    let seconds = now.duration_since(since.0).as_secs();
    (container.started != Some(true) && seconds > PROBE_PATIENCE_SECONDS).then(|| {
        Verdict::no(
            Reason::ProbeFailing,
            format!(
                "pod {} has run for more than {PROBE_PATIENCE_SECONDS} s without answering /healthz on port 8081; see its log",
                pod.name_any()
            ),
        )
    })
}

fn available(object: &ModelDeployment, observed: &Observed) -> Verdict {
    let ready = ready_replicas(observed);
    if ready > 0 {
        return Verdict::yes(Reason::Answering, format!("{ready} replicas answer"));
    }
    if object.spec.replicas == 0 {
        return Verdict::no(Reason::Suspended, "spec.replicas is 0");
    }
    let (reason, message) =
        pending(observed).unwrap_or((Reason::NoReadyReplica, "no replica answers yet".to_owned()));
    Verdict::no(reason, message)
}

fn ready_replicas(observed: &Observed) -> i32 {
    let status = observed
        .workload
        .as_ref()
        .and_then(|workload| workload.status.as_ref());
    status
        .and_then(|status| status.ready_replicas)
        .unwrap_or_default()
}

/// Why pods are not even running: no node, or refused before they were made.
fn pending(observed: &Observed) -> Option<(Reason, String)> {
    let unscheduled = current_pods(observed)
        .into_iter()
        .filter_map(pod_health::trouble)
        .find(|trouble| trouble.reason == Reason::Unschedulable);
    if let Some(trouble) = unscheduled {
        return Some((trouble.reason, trouble.message));
    }
    let workload = observed.workload.as_ref()?;
    let refused = workload
        .status
        .as_ref()?
        .conditions
        .as_ref()?
        .iter()
        .find(|condition| {
            condition.type_.as_deref() == Some("ReplicaFailure")
                && condition.status.as_deref() == Some("True")
        })?;
    let message = refused.message.clone().unwrap_or_default();
    Some((
        Reason::PodsRefused,
        format!(
            "pods of Deployment {} are refused: {message}",
            workload.name_any()
        ),
    ))
}

fn suspended(object: &ModelDeployment, observed: &Observed) -> Verdict {
    // The Deployment no longer counts pods that are leaving, and they still answer.
    let left = observed
        .pods
        .iter()
        .filter(|pod| !pod_health::is_over(pod))
        .count();
    if left > 0 || !is_current(object, observed) {
        return Verdict::no(
            Reason::RollingOut,
            format!("spec.replicas is 0; {left} pods are leaving"),
        );
    }
    Verdict::yes(
        Reason::Suspended,
        "spec.replicas is 0: nothing runs and the weights are kept",
    )
}

/// Whether the Deployment's controller has seen what we applied.
fn is_current(object: &ModelDeployment, observed: &Observed) -> bool {
    observed.workload.as_ref().is_some_and(|workload| {
        let seen = workload
            .status
            .as_ref()
            .and_then(|status| status.observed_generation);
        let wanted = workload.spec.replicas;
        seen.is_some()
            && seen == workload.metadata.generation
            && wanted == Some(object.spec.replicas)
    })
}

fn ready(
    object: &ModelDeployment,
    observed: &Observed,
    workload_is_wanted: bool,
    healthy: &Verdict,
) -> Verdict {
    let wanted = object.spec.replicas;
    let counts = observed
        .workload
        .as_ref()
        .and_then(|workload| workload.status.clone())
        .unwrap_or_default();
    let (all, updated, ready) = (
        counts.replicas.unwrap_or_default(),
        counts.updated_replicas.unwrap_or_default(),
        counts.ready_replicas.unwrap_or_default(),
    );
    let current = workload_is_wanted && is_current(object, observed);
    if current && updated == wanted && all == wanted && ready == wanted {
        return Verdict::yes(
            Reason::AllReplicasReady,
            format!(
                "{ready} of {wanted} replicas are ready at {}",
                service::endpoint(object)
            ),
        );
    }
    if healthy.holds == Holds::No {
        return healthy.clone();
    }
    if let Some((reason, message)) = pending(observed) {
        return Verdict::no(reason, message);
    }
    if current && all > updated {
        return Verdict::no(
            Reason::RollingOut,
            format!(
                "{updated} of {wanted} replicas have the new revision, {} of the old one are left",
                all - updated
            ),
        );
    }
    Verdict::no(
        Reason::Starting,
        format!(
            "{ready} of {wanted} replicas are ready{}",
            loading(observed)
        ),
    )
}

/// How far the slowest pod is, in its own words.
fn loading(observed: &Observed) -> String {
    let total = observed
        .cache
        .as_ref()
        .and_then(|cache| cache.status.as_ref())
        .and_then(|s| s.bytes_total);
    current_pods(observed)
        .into_iter()
        .find_map(|pod| Some((pod.name_any(), observed.saying.get(&pod.name_any())?)))
        .map(|(name, said)| {
            format!(
                "; pod {name} says: {}{}",
                said.phase.to_lowercase(),
                percent(said, total)
            )
        })
        .unwrap_or_default()
}

fn percent(said: &ModelStatus, total: Option<i64>) -> String {
    match (said.phase.as_str(), said.bytes_resident, total) {
        // In steps of ten, so that the status is not written at every look.
        ("Loading", Some(resident), Some(total)) if total > 0 => {
            let percent = (resident.clamp(0, total) as f64 / total as f64 * 10.0).floor() * 10.0;
            format!(" {percent} %")
        }
        _ => String::new(),
    }
}
