//! Outcome + old status → new status. Pure; the time is passed in.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

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
    let is_fetched = facts.stored.is_some() && facts.holds.is_none();
    let fetch = fetch(&old, is_fetched, observed);
    let last_used_time = match (observed.users.is_empty(), old.used_by.is_empty()) {
        (false, _) => None,
        (true, false) => Some(Time(now)),
        (true, true) => old.last_used_time.clone(),
    };
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
            .or(facts.holds.map(|(_, bytes)| bytes))
            .or(old.bytes_total),
        bytes_fetched: fetch.bytes,
        bytes_per_second: fetch.per_second,
        seconds_left: fetch.seconds_left,
        progress: fetch.progress,
        files: known
            .as_ref()
            .and_then(|known| known.files)
            .or(facts.holds.map(|(files, _)| files))
            .or(old.files),
        architecture: known
            .and_then(|known| known.architecture)
            .or(old.architecture),
        manifest_digest: facts
            .stored
            .as_ref()
            .and_then(|stored| stored.manifest_digest.clone()),
        claim_name: Some(super::claim_name(object)),
        claim_uid: facts.stored.map(|stored| stored.claim_uid),
        path: facts.path,
        used_by: observed.users.clone(),
        last_used_time,
        conditions: conditions::merge(&old.conditions, verdicts, generation, now),
    }
}

/// How far a fetch is.
#[derive(Default)]
struct Fetch {
    bytes: Option<i64>,
    per_second: Option<i64>,
    seconds_left: Option<i64>,
    progress: Option<String>,
}

/// What the fetching pod says. A pod that starts again first looks at what it finds, so what is known never goes back.
fn fetch(old: &ModelCacheStatus, is_stored: bool, observed: &Observed) -> Fetch {
    if is_stored {
        return Fetch {
            bytes: old.bytes_total.or(old.bytes_fetched),
            ..Fetch::default()
        };
    }
    let before = old.bytes_fetched.filter(|_| observed.claim.is_some());
    let Some(told) = observed.fetching else {
        return Fetch {
            bytes: before,
            ..Fetch::default()
        };
    };
    let bytes = told.bytes_fetched.max(before.unwrap_or_default());
    let left = told.bytes_total.map(|total| (total - bytes).max(0));
    let speed = told.bytes_per_second.max(0);
    let seconds_left = left
        .filter(|_| speed > 0)
        .map(|left| (left + speed - 1) / speed);
    Fetch {
        bytes: Some(bytes),
        per_second: Some(speed),
        seconds_left,
        progress: Some(in_words(bytes, told.bytes_total, speed, seconds_left)),
    }
}

fn in_words(bytes: i64, total: Option<i64>, speed: i64, seconds_left: Option<i64>) -> String {
    let done = match total {
        Some(total) if total > 0 => format!("{} % of {}", bytes * 100 / total, decimal(total)),
        Some(_) | None => decimal(bytes),
    };
    let left = seconds_left.map(|left| match (left / 3600, left / 60 % 60, left % 60) {
        (0, 0, seconds) => format!(", {seconds} s left"),
        (0, minutes, seconds) => format!(", {minutes} min {seconds} s left"),
        (hours, minutes, _) => format!(", {hours} h {minutes} min left"),
    });
    format!("{done}, {}/s{}", decimal(speed), left.unwrap_or_default())
}

/// Bytes in the units of hubs and disks.
fn decimal(bytes: i64) -> String {
    let (unit, size) = match bytes {
        ..1_000_000 => ("kB", 1e3),
        1_000_000..1_000_000_000 => ("MB", 1e6),
        _ => ("GB", 1e9),
    };
    format!("{:.1} {unit}", bytes as f64 / size)
}

#[derive(Default)]
struct Facts {
    known: Option<Known>,
    stored: Option<Stored>,
    path: Option<String>,
    /// Files and bytes of a claim that was filled by others.
    holds: Option<(i64, i64)>,
}

fn old_facts(old: &ModelCacheStatus) -> Facts {
    Facts {
        stored: old.claim_uid.clone().map(|claim_uid| Stored {
            manifest_digest: old.manifest_digest.clone(),
            claim_uid,
        }),
        path: old.path.clone(),
        ..Facts::default()
    }
}

fn facts(validated: &Validated, progress: &Progress) -> Facts {
    let with = |known: &Known, stored: Option<&Stored>| Facts {
        known: Some(known.clone()),
        stored: stored.cloned(),
        path: Some(known.commit.clone()),
        holds: None,
    };
    let path = match &validated.source {
        Source::Claim { path } => Some(path.clone()),
        Source::Hub { .. } => None,
    };
    match progress {
        Progress::Verifying(_) => Facts {
            path,
            ..Facts::default()
        },
        Progress::Given(given) => Facts {
            stored: Some(given.stored.clone()),
            path,
            holds: Some((given.files, given.bytes)),
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

fn on_a_claim() -> Verdict {
    Verdict::yes(
        Reason::Succeeded,
        "the weights are on a claim of this namespace",
    )
}

fn holding(files: i64, bytes: i64, stored: &Stored) -> String {
    match &stored.manifest_digest {
        Some(digest) => format!("{files} files, {bytes} bytes, verified; manifest {digest}"),
        None => format!(
            "{files} files, {bytes} bytes, read as they are: there is no manifest, and none can be written"
        ),
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
        Progress::Verifying(state) => {
            let (reason, message) = state.verdict(Reason::Fetching);
            (on_a_claim(), Verdict::no(reason, message))
        }
        Progress::Given(given) => (
            on_a_claim(),
            Verdict::yes(
                Reason::Succeeded,
                holding(given.files, given.bytes, &given.stored),
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
                holding(
                    known.files.unwrap_or_default(),
                    known.bytes.unwrap_or_default(),
                    stored,
                ),
            ),
        ),
    }
}
