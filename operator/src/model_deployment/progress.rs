//! How far a ModelDeployment has come: model found on the hub, weights there, pods to be made. Pure.

use super::build::engine;
use super::observe::Observed;
use super::validate::{Origin, Validated};
use crate::answer::{self, Answer};
use crate::api::{ConditionType, Dimensions, HubSource, ModelCache, ModelDeployment, Reason};
use crate::child::REQUEST;
use crate::conditions;
use crate::config::PodDefaults;
use crate::digest;
use crate::job_state::{self, JobState};
use crate::model_cache::validate::Violation;
use crate::weights_job::HubRequest;
use k8s_openapi::api::batch::v1::Job;
use kube::ResourceExt;
use serde::{Deserialize, Serialize};

/// How far the question what the model is has come.
#[derive(Clone, Debug, PartialEq)]
pub enum Resolution {
    /// The hub is being asked.
    Asking(JobState),
    /// It is known.
    Known(Known),
}

impl Resolution {
    /// What is known, once it is.
    #[must_use]
    pub fn known(&self) -> Option<&Known> {
        match self {
            Self::Known(known) => Some(known),
            Self::Asking(_) => None,
        }
    }
}

/// What is known of the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Known {
    /// The hub has answered.
    Found(Found),
    /// A claim or a cache that exists brings the weights; nobody is asked.
    Given,
}

/// What the hub said.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Found {
    /// Repository that answered.
    pub id: String,
    /// Commit.
    pub commit: String,
    /// Bytes of all files.
    pub bytes: i64,
    /// Architecture, where told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
    /// Whether the installation's own runtime can run it, where it could tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub supported: Option<bool>,
    /// Dimensions, where told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dimensions: Option<Dimensions>,
    /// Digest of what was asked.
    pub request: String,
}

/// Reads what is known of the model: what was written down for the same request, else the Job's answer.
///
/// # Errors
///
/// When the runtime cannot run what the hub has.
pub fn resolution(
    object: &ModelDeployment,
    validated: &Validated,
    observed: &Observed,
    defaults: &PodDefaults,
) -> Result<Resolution, Violation> {
    let request = match &validated.origin {
        Origin::Cache { .. } | Origin::Claim(_) => return Ok(Resolution::Known(Known::Given)),
        Origin::Hub { request, .. } => request,
    };
    let asked = digest::of(request);
    let found = match recorded(object, &asked) {
        Some(found) => found,
        None => match answer(&asked, observed, defaults) {
            JobState::Done(Answer::Resolved(resolved)) => Found {
                id: resolved.id,
                commit: resolved.commit,
                bytes: resolved.bytes,
                architecture: resolved.architecture,
                supported: resolved.supported,
                dimensions: resolved.dimensions,
                request: asked,
            },
            state => return Ok(Resolution::Asking(state)),
        },
    };
    // Also of what was known before: the engine may be another one now.
    if engine::runs(engine::of(object), request.format, &found) {
        Ok(Resolution::Known(Known::Found(found)))
    } else {
        Err(unsupported(object, validated, request, &found))
    }
}

/// Refuses more accelerators for one replica than the engine uses. Their number may be the operator's choice, so the plan comes first.
///
/// # Errors
///
/// When an engine that computes on one accelerator is to use several.
pub fn check_spread(
    object: &ModelDeployment,
    validated: &Validated,
    known: Option<&Known>,
) -> Result<(), Violation> {
    let engine = engine::of(object);
    let accelerator = &validated.accelerator;
    let (Origin::Hub { request, .. }, Some(Known::Found(found))) = (&validated.origin, known)
    else {
        return Ok(());
    };
    if engine::spreads(engine, accelerator) {
        return Ok(());
    }
    Err(Violation {
        reason: Reason::RuntimeUnsupported,
        message: format!(
            "engine {} computes a replica on one {}, and {} {}; ask for one that holds the model in spec.accelerators{}",
            engine.as_str(),
            accelerator.kind,
            if validated.accelerator_is_given {
                "spec.accelerators asks for"
            } else {
                "the model needs"
            },
            accelerator.count,
            engine::alternatives(engine, request.format, found, accelerator)
        ),
    })
}

/// How far the newest Job that asks the same has come.
fn answer(asked: &str, observed: &Observed, defaults: &PodDefaults) -> JobState {
    let job = observed
        .jobs
        .iter()
        .filter(|job| {
            job.annotations()
                .get(REQUEST)
                .is_some_and(|request| request == asked)
        })
        // Another image may know other architectures: it is asked anew.
        .filter(|job| image(job) == Some(&defaults.image))
        .filter(|job| job.metadata.deletion_timestamp.is_none())
        .max_by_key(|job| job.metadata.creation_timestamp.clone());
    job_state::read(job, &observed.job_pods)
}

fn image(job: &Job) -> Option<&String> {
    let pod = job.spec.as_ref()?.template.spec.as_ref()?;
    pod.containers.first()?.image.as_ref()
}

fn recorded(object: &ModelDeployment, asked: &str) -> Option<Found> {
    let model = object.status.as_ref()?.model.as_ref()?;
    if model.request.as_deref() != Some(asked) {
        return None;
    }
    Some(Found {
        id: model.id.clone(),
        commit: model.commit.clone()?,
        bytes: model.bytes?,
        architecture: model.architecture.clone(),
        supported: model.supported,
        dimensions: model.dimensions,
        request: asked.to_owned(),
    })
}

fn unsupported(
    object: &ModelDeployment,
    validated: &Validated,
    request: &HubRequest,
    found: &Found,
) -> Violation {
    let engine = engine::of(object);
    Violation {
        reason: Reason::RuntimeUnsupported,
        message: format!(
            "engine {} cannot run {} ({}, format {}); pick another variant or model{}",
            engine.as_str(),
            request.id,
            found
                .architecture
                .as_deref()
                .unwrap_or("unknown architecture"),
            request.format.as_str(),
            engine::alternatives(engine, request.format, found, &validated.accelerator)
        ),
    }
}

/// Weights that serving pods can open.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Weights {
    /// Claim that holds them.
    pub claim: String,
    /// Folder or file on the claim; empty for the top folder.
    pub path: String,
    /// Bytes, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<i64>,
    /// Dimensions of the model, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dimensions: Option<Dimensions>,
}

/// How far the cache has come.
#[derive(Clone, Debug, PartialEq)]
pub enum CacheState {
    /// Its name is not known yet.
    Unknown,
    /// Not there yet, or not usable.
    Waiting {
        /// Why.
        reason: Reason,
        /// Which object, and what to do.
        message: String,
    },
    /// Every file is there and verified.
    Ready(Weights),
}

/// Reads how far the cache has come.
#[must_use]
pub fn cache_state(
    validated: &Validated,
    resolution: &Resolution,
    observed: &Observed,
) -> CacheState {
    if let Resolution::Asking(_) = resolution {
        return CacheState::Unknown;
    }
    let Some(cache) = &observed.cache else {
        return match &validated.origin {
            Origin::Cache { name, .. } => CacheState::Waiting {
                reason: Reason::CacheNotFound,
                message: format!(
                    "ModelCache {name} (spec.weights.cache) does not exist in this namespace; make it or leave the field out"
                ),
            },
            Origin::Hub { .. } | Origin::Claim(_) => CacheState::Waiting {
                reason: Reason::Fetching,
                message: "the ModelCache is being made".to_owned(),
            },
        };
    };
    if let Origin::Cache { revision, .. } = &validated.origin
        && let Some(message) = mismatch(cache, validated, revision.as_deref())
    {
        return CacheState::Waiting {
            reason: Reason::CacheMismatch,
            message,
        };
    }
    usable(cache)
}

fn usable(cache: &ModelCache) -> CacheState {
    let name = cache.name_any();
    let waiting = |reason, message| CacheState::Waiting { reason, message };
    if cache.metadata.deletion_timestamp.is_some() {
        return waiting(
            Reason::Waiting,
            format!("ModelCache {name} is being deleted"),
        );
    }
    let Some(status) = cache
        .status
        .as_ref()
        .filter(|status| Some(status.observed_generation) == cache.metadata.generation)
    else {
        return waiting(
            Reason::Fetching,
            format!("ModelCache {name} has only just been made"),
        );
    };
    let Some(ready) = conditions::find(&status.conditions, ConditionType::Ready) else {
        return waiting(
            Reason::Fetching,
            format!("ModelCache {name} has only just been made"),
        );
    };
    if ready.status != "True" {
        let reason = Reason::ALL
            .iter()
            .find(|reason| reason.as_str() == ready.reason);
        return waiting(
            reason.copied().unwrap_or(Reason::Fetching),
            format!("ModelCache {name}: {}", ready.message),
        );
    }
    match (&status.claim_name, &status.path) {
        (Some(claim), Some(path)) => CacheState::Ready(Weights {
            claim: claim.clone(),
            path: path.clone(),
            bytes: status.bytes_total,
            dimensions: None,
        }),
        _ => waiting(
            Reason::Fetching,
            format!("ModelCache {name} does not say where its files are"),
        ),
    }
}

/// What makes a named cache one of other weights.
fn mismatch(cache: &ModelCache, validated: &Validated, revision: Option<&str>) -> Option<String> {
    // Weights on a claim carry no name: whoever put them there knows what they are.
    let hub: &HubSource = cache.spec.source.hub.as_ref()?;
    let name = cache.name_any();
    let source = &validated.choice.source;
    let ids: Vec<&String> = std::iter::once(&source.id).chain(&source.aliases).collect();
    if hub.name != source.hub || !ids.contains(&&hub.id) {
        return Some(format!(
            "ModelCache {name} holds {} from {}, and the model is {} on {}; name another cache or leave spec.weights.cache out",
            hub.id,
            hub.name.as_str(),
            source.id,
            source.hub.as_str()
        ));
    }
    if hub.files.clone().unwrap_or_default() != source.files.clone().unwrap_or_default() {
        return Some(format!(
            "ModelCache {name} holds files {:?} of {}, and the model needs {:?}; name another cache or leave spec.weights.cache out",
            hub.files.clone().unwrap_or_default(),
            hub.id,
            source.files.clone().unwrap_or_default()
        ));
    }
    let commit = cache
        .status
        .as_ref()
        .and_then(|status| status.commit.as_deref());
    match revision {
        Some(revision) if revision == hub.revision || Some(revision) == commit => None,
        Some(revision) if answer::is_commit(revision) || revision != hub.revision => Some(format!(
            "ModelCache {name} holds revision {} (commit {}), and spec.model.revision is {revision}; name another cache, or leave the revision out",
            hub.revision,
            commit.unwrap_or("not known yet")
        )),
        _ => None,
    }
}
