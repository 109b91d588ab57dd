//! How far the weights have come: spec, recorded status and facts in, next step out. Pure.

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::ResourceExt;

use super::observe::Observed;
use super::validate::{Source, Validated, Volume};
use crate::answer::{self, Answer};
use crate::api::{ModelCache, ModelCacheStatus, Reason};
use crate::child::{COMPONENT, MODEL_CACHE, is_managed};
use crate::job_state::{self, JobState};
use crate::weights_job::CLAIM_UID;

/// How far the weights have come.
#[derive(Clone, Debug, PartialEq)]
pub enum Progress {
    /// What lies on a claim of the user's is being compared with its manifest.
    Verifying(JobState),
    /// The weights are on a claim of the user's.
    Given(Given),
    /// Something that only a person can mend stands in the way.
    Blocked {
        /// What is known of the weights so far.
        known: Option<Known>,
        /// Why.
        reason: Reason,
        /// What to do.
        message: String,
    },
    /// The hub is being asked for commit and bytes.
    Resolving(JobState),
    /// The commit is known, the claim is to be made.
    Claiming(Known),
    /// The claim exists and is being filled.
    Fetching(Known, JobState),
    /// Every file is there and verified.
    Fetched(Known, Stored),
}

/// What is known of the weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Repository that answered.
    pub id: String,
    /// Commit.
    pub commit: String,
    /// Bytes of all files, where asked.
    pub bytes: Option<i64>,
    /// Number of files, where asked.
    pub files: Option<i64>,
    /// Architecture, where told.
    pub architecture: Option<String>,
}

/// What lies on a claim of the user's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// Number of files.
    pub files: i64,
    /// Bytes of all files.
    pub bytes: i64,
    /// Where it was found.
    pub stored: Stored,
}

/// What lies on the volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Digest of the manifest; none where a claim of the user's has none and can take none.
    pub manifest_digest: Option<String>,
    /// UID of the claim.
    pub claim_uid: String,
}

/// Decides how far the weights have come. `wanted_fetch` is the name of the fetch Job that today's spec asks for.
#[must_use]
pub fn progress(object: &ModelCache, validated: &Validated, observed: &Observed) -> Progress {
    let claim_name = super::claim_name(object);
    let claim = observed.claim.as_ref();
    let (request, volume) = match &validated.source {
        Source::Claim { .. } => {
            return match claim {
                Some(claim) => given(object, claim, observed),
                None => claim_not_found(None, &claim_name),
            };
        }
        Source::Hub {
            request, volume, ..
        } => (request, volume),
    };
    let recorded = object.status.as_ref();
    let size_is_given = match volume {
        Volume::Given => true,
        Volume::Made { size, .. } => size.is_some(),
    };
    let known = match recorded.and_then(known) {
        Some(known) => known,
        None if answer::is_commit(&request.revision) && size_is_given => Known {
            id: request.id.clone(),
            commit: request.revision.clone(),
            bytes: None,
            files: None,
            architecture: None,
        },
        None => match state(observed, "resolve") {
            JobState::Done(Answer::Resolved(resolved)) => Known {
                id: resolved.id,
                commit: resolved.commit,
                bytes: Some(resolved.bytes),
                files: Some(resolved.files),
                architecture: resolved.architecture,
            },
            state => return Progress::Resolving(state),
        },
    };
    if let Some(blocked) = volume_trouble(object, &known, volume, claim, observed) {
        return blocked;
    }
    let Some(claim_uid) = claim.and_then(|claim| claim.metadata.uid.clone()) else {
        return Progress::Claiming(known);
    };
    let stored = recorded.and_then(|status| {
        let same_claim = status.claim_uid.as_deref() == Some(&claim_uid);
        status.manifest_digest.clone().filter(|_| same_claim)
    });
    if let Some(manifest_digest) = stored {
        return Progress::Fetched(
            known,
            Stored {
                manifest_digest: Some(manifest_digest),
                claim_uid,
            },
        );
    }
    match state(observed, "fetch") {
        JobState::Done(Answer::Fetched(fetched)) if is_about(observed, "fetch", &claim_uid) => {
            let known = Known {
                id: fetched.id,
                bytes: Some(fetched.bytes),
                files: Some(fetched.files),
                ..known
            };
            let stored = Stored {
                manifest_digest: Some(fetched.manifest_digest),
                claim_uid,
            };
            Progress::Fetched(known, stored)
        }
        state => Progress::Fetching(known, state),
    }
}

fn given(object: &ModelCache, claim: &PersistentVolumeClaim, observed: &Observed) -> Progress {
    let claim_uid = claim.metadata.uid.clone().unwrap_or_default();
    let recorded = object.status.as_ref();
    let recorded = recorded.filter(|status| status.claim_uid.as_ref() == Some(&claim_uid));
    if let Some(status) = recorded {
        return Progress::Given(Given {
            files: status.files.unwrap_or_default(),
            bytes: status.bytes_total.unwrap_or_default(),
            stored: Stored {
                manifest_digest: status.manifest_digest.clone(),
                claim_uid,
            },
        });
    }
    match state(observed, "verify") {
        JobState::Done(Answer::Verified(found)) if is_about(observed, "verify", &claim_uid) => {
            Progress::Given(Given {
                files: found.files,
                bytes: found.bytes,
                stored: Stored {
                    manifest_digest: found.manifest_digest,
                    claim_uid,
                },
            })
        }
        state => Progress::Verifying(state),
    }
}

/// What a former reconcile wrote down. The source cannot change, so it stays true.
fn known(status: &ModelCacheStatus) -> Option<Known> {
    Some(Known {
        id: status.id.clone()?,
        commit: status.commit.clone()?,
        bytes: status.bytes_total,
        files: status.files,
        architecture: status.architecture.clone(),
    })
}

fn volume_trouble(
    object: &ModelCache,
    known: &Known,
    volume: &Volume,
    claim: Option<&PersistentVolumeClaim>,
    observed: &Observed,
) -> Option<Progress> {
    let name = super::claim_name(object);
    let blocked = |reason, message| {
        Some(Progress::Blocked {
            known: Some(known.clone()),
            reason,
            message,
        })
    };
    let class = match (volume, claim) {
        (Volume::Given, None) => return Some(claim_not_found(Some(known), &name)),
        (Volume::Given, Some(_)) => return None,
        (Volume::Made { class, .. }, Some(claim)) => {
            if !is_ours(claim, &object.name_any()) {
                return blocked(
                    Reason::NameConflict,
                    format!(
                        "PersistentVolumeClaim {name} exists and is not ours; delete or rename it, or name it in spec.storage.claimName"
                    ),
                );
            }
            if claim.metadata.deletion_timestamp.is_some() {
                return blocked(
                    Reason::ClaimPending,
                    format!(
                        "PersistentVolumeClaim {name} is being deleted; it goes when no pod uses it any more, and is then made again"
                    ),
                );
            }
            let phase = claim
                .status
                .as_ref()
                .and_then(|status| status.phase.as_deref());
            if phase == Some("Bound") {
                return None;
            }
            claim
                .spec
                .as_ref()
                .and_then(|spec| spec.storage_class_name.as_ref())
                .or(class.as_ref())
        }
        (Volume::Made { class, .. }, None) => class.as_ref(),
    };
    let classes = &observed.storage_classes;
    match class {
        Some(class) if !classes.iter().any(|known| known.name_any() == **class) => blocked(
            Reason::StorageClassMissing,
            format!(
                "StorageClass {class} does not exist ({}); make it, or name another in storage.storageClassName",
                listed(classes)
            ),
        ),
        None if !classes.iter().any(is_default) => blocked(
            Reason::StorageClassMissing,
            format!(
                "no StorageClass is the default ({}); name one in storage.storageClassName",
                listed(classes)
            ),
        ),
        _ => None,
    }
}

fn listed(classes: &[StorageClass]) -> String {
    let mut names: Vec<_> = classes.iter().map(ResourceExt::name_any).collect();
    names.sort();
    if names.is_empty() {
        "the cluster has none".to_owned()
    } else {
        format!("there are: {}", names.join(", "))
    }
}

fn is_default(class: &StorageClass) -> bool {
    class
        .annotations()
        .get("storageclass.kubernetes.io/is-default-class")
        .map(String::as_str)
        == Some("true")
}

fn claim_not_found(known: Option<&Known>, name: &str) -> Progress {
    Progress::Blocked {
        known: known.cloned(),
        reason: Reason::ClaimNotFound,
        message: format!(
            "PersistentVolumeClaim {name} does not exist in this namespace; make it, or name another"
        ),
    }
}

/// Whether a claim was made for this cache; it may have outlived an older object of the same name.
fn is_ours(claim: &PersistentVolumeClaim, cache: &str) -> bool {
    is_managed(claim) && claim.labels().get(MODEL_CACHE).map(String::as_str) == Some(cache)
}

/// The state of the newest Job with this component.
fn state(observed: &Observed, component: &str) -> JobState {
    job_state::read(newest(observed, component), &observed.pods)
}

/// The newest Job with this component.
#[must_use]
pub fn newest<'a>(observed: &'a Observed, component: &str) -> Option<&'a Job> {
    observed
        .jobs
        .iter()
        .filter(|job| job.labels().get(COMPONENT).map(String::as_str) == Some(component))
        .filter(|job| job.metadata.deletion_timestamp.is_none())
        .max_by_key(|job| job.metadata.creation_timestamp.clone())
}

/// Whether the newest Job with this component was about this very claim, not an older one of the same name.
fn is_about(observed: &Observed, component: &str, claim_uid: &str) -> bool {
    newest(observed, component)
        .and_then(|job| {
            job.spec
                .as_ref()?
                .template
                .metadata
                .as_ref()?
                .annotations
                .as_ref()
        })
        .and_then(|annotations| annotations.get(CLAIM_UID))
        .is_some_and(|uid| uid == claim_uid)
}
