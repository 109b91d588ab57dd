//! Validated and its progress → the objects that should exist now. Pure; it cannot fail.

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimSpec, VolumeResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;

use super::observe::Observed;
use super::progress::{Known, Progress};
use super::validate::{Source, Validated, Volume};
use crate::answer::Answer;
use crate::api::{AccessMode, ModelCache, ReclaimPolicy};
use crate::child::{self, COMPONENT, Family};
use crate::config::PodDefaults;
use crate::job_state::JobState;
use crate::quantity;
use crate::weights_job::{self, Asked, Claim, HubRequest, Task, WeightsJob};

/// What should exist now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Objects {
    /// The claim that holds the files.
    pub claim: Option<PersistentVolumeClaim>,
    /// The Job of this step.
    pub job: Option<Job>,
    /// Jobs that are to go first: made from an older spec, or without their answer.
    pub stale_jobs: Vec<Job>,
}

/// Room beside the files: what is in the making, the manifest, the file system's own needs.
const HEADROOM: i64 = 64 * 1024 * 1024;

/// Builds what should exist now.
#[must_use]
pub fn build(
    object: &ModelCache,
    validated: &Validated,
    progress: &Progress,
    observed: &Observed,
    defaults: &PodDefaults,
) -> Objects {
    let job = |task| {
        let parts = WeightsJob {
            task,
            shape: &validated.shape,
            resources: object
                .spec
                .pod
                .as_ref()
                .and_then(|pod| pod.resources.as_ref()),
            defaults,
        };
        weights_job::build(object, Family::Cache, &parts)
    };
    let claim_name = super::claim_name(object);
    let existing = Claim {
        name: &claim_name,
        uid: observed
            .claim
            .as_ref()
            .and_then(|claim| claim.metadata.uid.as_deref())
            .unwrap_or_default(),
        read_only: observed.claim.as_ref().is_some_and(is_read_only),
    };
    let (request, token, volume) = match &validated.source {
        Source::Hub {
            request,
            token,
            volume,
        } => (request, token.as_ref(), volume),
        Source::Claim { path } => {
            return match progress {
                Progress::Verifying(state) => {
                    with_job(job(Task::Verify(existing, path)), state, observed)
                }
                _ => Objects::default(),
            };
        }
    };
    match progress {
        Progress::Verifying(_) | Progress::Given(_) => Objects::default(),
        Progress::Blocked { .. } => Objects {
            stale_jobs: holding(observed),
            ..Objects::default()
        },
        Progress::Resolving(state) => with_job(
            job(Task::Resolve(Asked { request, token })),
            state,
            observed,
        ),
        Progress::Claiming(known) => Objects {
            claim: claim(object, volume, known, observed),
            ..Objects::default()
        },
        Progress::Fetching(known, state) => {
            let at_commit = HubRequest {
                id: known.id.clone(),
                revision: known.commit.clone(),
                ..request.clone()
            };
            let asked = Asked {
                request: &at_commit,
                token,
            };
            let task = Task::Fetch(asked, existing);
            let objects = with_job(job(task), state, observed);
            Objects {
                claim: claim(object, volume, known, observed),
                ..objects
            }
        }
        Progress::Fetched(known, _) => Objects {
            claim: claim(object, volume, known, observed),
            ..Objects::default()
        },
    }
}

/// Whether nobody may write to a claim.
fn is_read_only(claim: &PersistentVolumeClaim) -> bool {
    let modes = claim
        .spec
        .as_ref()
        .and_then(|spec| spec.access_modes.as_deref());
    modes.is_some_and(|modes| modes.iter().all(|mode| mode == "ReadOnlyMany"))
}

/// The Jobs whose pods keep a claim that is being deleted from going: they do so even when they have ended.
fn holding(observed: &Observed) -> Vec<Job> {
    let claim = observed.claim.as_ref();
    if claim.is_none_or(|claim| claim.metadata.deletion_timestamp.is_none()) {
        return Vec::new();
    }
    let fetches = |job: &&Job| job.labels().get(COMPONENT).map(String::as_str) == Some("fetch");
    observed.jobs.iter().filter(fetches).cloned().collect()
}

/// The step's Job, and those of the same component that have to go before it.
///
/// Two fetches never write one volume: the new Job is made when the old one is gone.
fn with_job(job: Job, state: &JobState, observed: &Observed) -> Objects {
    let component = job.labels().get(COMPONENT).cloned();
    let lost = matches!(state, JobState::Lost);
    // A Job that ended with another program's answer cannot be asked again either.
    let strange = matches!(state, JobState::Done(Answer::Failed(_)));
    let stale_jobs: Vec<Job> = observed
        .jobs
        .iter()
        .filter(|old| old.labels().get(COMPONENT) == component.as_ref())
        .filter(|old| old.name_any() != job.name_any() || lost || strange)
        .cloned()
        .collect();
    let job = stale_jobs.is_empty().then_some(job);
    Objects {
        job,
        stale_jobs,
        ..Objects::default()
    }
}

fn claim(
    object: &ModelCache,
    volume: &Volume,
    known: &Known,
    observed: &Observed,
) -> Option<PersistentVolumeClaim> {
    let Volume::Made {
        class,
        size,
        access_modes,
    } = volume
    else {
        return None;
    };
    let name = object.name_any();
    let size = match (size, known.bytes) {
        (Some(size), _) => size.clone(),
        (None, Some(bytes)) => volume_size(bytes),
        // Unreachable by the way of `progress`: without a size the hub is asked first.
        (None, None) => return None,
    };
    // A volume that somebody made larger stays so: Kubernetes cannot shrink it.
    let live = observed.claim.as_ref().and_then(requested_size);
    let size = match live {
        Some(live) if quantity::parse(&live) > quantity::parse(&size) => live,
        _ => size,
    };
    let labels = child::labels(Family::Cache, &name, "weights");
    let mut metadata = child::owned_meta(object, name, labels);
    if object.spec.reclaim_policy == ReclaimPolicy::Retain {
        metadata = ObjectMeta {
            owner_references: None,
            ..metadata
        };
    }
    Some(PersistentVolumeClaim {
        metadata,
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(
                access_modes
                    .iter()
                    .copied()
                    .map(AccessMode::as_str)
                    .map(str::to_owned)
                    .collect(),
            ),
            storage_class_name: class.clone(),
            resources: Some(VolumeResourceRequirements {
                requests: Some([("storage".to_owned(), Quantity(size))].into()),
                limits: None,
            }),
            ..PersistentVolumeClaimSpec::default()
        }),
        status: None,
    })
}

fn requested_size(claim: &PersistentVolumeClaim) -> Option<String> {
    let requests = claim.spec.as_ref()?.resources.as_ref()?.requests.as_ref()?;
    requests.get("storage").map(|size| size.0.clone())
}

/// Size of a volume for files of so many bytes.
#[must_use]
pub fn volume_size(bytes: i64) -> String {
    quantity::mebibytes(bytes.saturating_add((bytes / 10).max(HEADROOM)))
}
