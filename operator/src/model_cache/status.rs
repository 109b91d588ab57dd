//! Outcome + old status → new status. Pure; the time is passed in.

use jiff::Timestamp;

use super::observe::Observed;
use super::progress::{Known, Progress, Stored};
use super::validate::{Source, Validated, Violation};
use crate::api::{ConditionType, ModelCache, ModelCacheStatus, Reason};
use crate::conditions::{self, Holds, Verdict};

/// How far a reconcile got.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// The spec cannot be worked on.
    Invalid(Violation),
    /// Everything for this step exists.
    Reached(Validated, Progress),
}

/// The status after a reconcile.
#[must_use]
pub fn status(
    object: &ModelCache,
    outcome: &Outcome,
    observed: &Observed,
    now: Timestamp,
) -> ModelCacheStatus {
    let old = object.status.clone().unwrap_or_default();
    let generation = object.metadata.generation.unwrap_or_default();
    let facts = match outcome {
        // What lies on the volume stays there, whatever the spec says now.
        Outcome::Invalid(_) => old_facts(&old),
        Outcome::Reached(validated, progress) => facts(validated, progress),
    };
    let known = facts.known;
    let (resolved, fetched) = verdicts(outcome);
    let ready = match (&resolved.holds, &fetched.holds) {
        (Holds::Yes, _) => fetched.clone(),
        _ => resolved.clone(),
    };
    let progress = conditions::progress(&ready, false);
    let mut verdicts = vec![
        (ConditionType::Ready, ready),
        (ConditionType::Resolved, resolved),
        (ConditionType::Fetched, fetched),
    ];
    verdicts.extend(progress);
    ModelCacheStatus {
        observed_generation: generation,
        id: known.as_ref().map(|known| known.id.clone()).or(old.id),
        commit: known
            .as_ref()
            .map(|known| known.commit.clone())
            .or(old.commit),
        bytes_total: known
            .as_ref()
            .and_then(|known| known.bytes)
            .or(old.bytes_total),
        files: known.as_ref().and_then(|known| known.files).or(old.files),
        architecture: known
            .and_then(|known| known.architecture)
            .or(old.architecture),
        manifest_digest: facts
            .stored
            .as_ref()
            .map(|stored| stored.manifest_digest.clone()),
        claim_name: Some(super::claim_name(object)),
        claim_uid: facts.stored.map(|stored| stored.claim_uid),
        path: facts.path,
        used_by: observed.users.clone(),
        conditions: conditions::merge(&old.conditions, verdicts, generation, now),
    }
}

#[derive(Default)]
struct Facts {
    known: Option<Known>,
    stored: Option<Stored>,
    path: Option<String>,
}

fn old_facts(old: &ModelCacheStatus) -> Facts {
    let stored = old.manifest_digest.clone().zip(old.claim_uid.clone());
    Facts {
        known: None,
        stored: stored.map(|(manifest_digest, claim_uid)| Stored {
            manifest_digest,
            claim_uid,
        }),
        path: old.path.clone(),
    }
}

fn facts(validated: &Validated, progress: &Progress) -> Facts {
    let with = |known: &Known, stored: Option<&Stored>| Facts {
        known: Some(known.clone()),
        stored: stored.cloned(),
        path: Some(known.commit.clone()),
    };
    match progress {
        Progress::Given => Facts {
            path: match &validated.source {
                Source::Claim { path } => Some(path.clone()),
                Source::Hub { .. } => None,
            },
            ..Facts::default()
        },
        Progress::Blocked { known, .. } => known
            .as_ref()
            .map(|known| with(known, None))
            .unwrap_or_default(),
        Progress::Resolving(_) => Facts::default(),
        Progress::Claiming(known) | Progress::Fetching(known, _) => with(known, None),
        Progress::Fetched(known, stored) => with(known, Some(stored)),
    }
}

/// Resolved and Fetched.
fn verdicts(outcome: &Outcome) -> (Verdict, Verdict) {
    let progress = match outcome {
        Outcome::Invalid(violation) => {
            return (
                Verdict::no(violation.reason, &violation.message),
                Verdict::waiting("the spec cannot be worked on"),
            );
        }
        Outcome::Reached(_, progress) => progress,
    };
    let resolved = |known: &Known| {
        Verdict::yes(
            Reason::Succeeded,
            format!("{} at commit {}", known.id, known.commit),
        )
    };
    match progress {
        Progress::Given => (
            Verdict::yes(
                Reason::Succeeded,
                "the weights are on a claim of this namespace",
            ),
            Verdict::yes(
                Reason::Succeeded,
                "the claim exists; its files are read as they are",
            ),
        ),
        Progress::Blocked {
            known: None,
            reason,
            message,
        } => (
            Verdict::no(*reason, message),
            Verdict::waiting("the source is not usable yet"),
        ),
        Progress::Blocked {
            known: Some(known),
            reason,
            message,
        } => (resolved(known), Verdict::no(*reason, message)),
        Progress::Resolving(state) => {
            let (reason, message) = state.verdict(Reason::Resolving);
            (
                Verdict::no(reason, message),
                Verdict::waiting("the commit is not known yet"),
            )
        }
        Progress::Claiming(known) => (
            resolved(known),
            Verdict::no(Reason::ClaimPending, "the volume is being made"),
        ),
        Progress::Fetching(known, state) => {
            let (reason, message) = state.verdict(Reason::Fetching);
            (resolved(known), Verdict::no(reason, message))
        }
        Progress::Fetched(known, stored) => (
            resolved(known),
            Verdict::yes(
                Reason::Succeeded,
                format!(
                    "{} files, {} bytes, verified; manifest {}",
                    known.files.unwrap_or_default(),
                    known.bytes.unwrap_or_default(),
                    stored.manifest_digest
                ),
            ),
        ),
    }
}
